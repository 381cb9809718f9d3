"""`axis_name`: labels that count the classes of all devices, any number of devices, derivatives of any order, and invalid calls."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import Chunked
from tests.support import cases, covering, linear_cases, oracle, sharded
from tests.support.closeness import assert_within

pytestmark = pytest.mark.usefixtures("fast_compilation")

UNCHECKED = pytest.mark.parametrize("check_vma", [True, False])


def mesh_of(*shape):
    return sharded.mesh_of(shape, "shard_map")


def over_shards(function, mesh, check_vma=True):
    """Return `function(logits, labels)` in a `jax.shard_map`, with rows and classes split."""
    specs = P("data", "model"), P("data")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=check_vma))


integer = functools.partial(jaxce.softmax_cross_entropy_with_integer_labels, axis_name="model")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_labels_of_any_dtype_count_the_classes_of_all_devices(dtype, rng):
    """There are also invalid labels: negative ones, ones just above the classes, and ones that wrap around when a device subtracts its offset."""
    with jax.enable_x64("64" in dtype):
        info, num_classes = np.iinfo(dtype), 48
        labels = [0, 5, 6, 47, num_classes, info.max, info.max - 5, info.max - 41] + [max(info.min, -1), info.min] * 2
        labels = np.array(labels, dtype)
        logits = cases.make_logits(rng, (len(labels), num_classes))
        for shape in ((1, 8), (4, 2)) if dtype == "int8" else ((1, 8),):
            losses = over_shards(integer, mesh_of(*shape))(logits, labels)
            assert_within(losses, oracle.integer_softmax(logits, labels).loss, 6)


@UNCHECKED
def test_label_outside_all_devices_gives_nan_only_in_its_row(check_vma, rng):
    logits, labels = cases.make_logits(rng, (8, 16)), rng.integers(0, 16, 8).astype(np.int32)
    labels[[1, 4]] = -1, 16
    loss = over_shards(functools.partial(integer, label_smoothing=0.1), mesh_of(2, 4), check_vma)
    value, gradient = jax.value_and_grad(lambda z: loss(z, labels).sum())(logits)
    answer = oracle.integer_softmax(logits, labels, label_smoothing=0.1)
    assert np.isnan(value)
    assert_within(gradient, answer.logits, 8)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("devices", [1, 3, 5, 7])
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_any_number_of_devices(loss, devices, rng):
    """The devices are simulated by the named axis of a `jax.vmap`, which allows any number."""
    shape = (6, 105)
    logits, labels = cases.make_logits(rng, shape), loss.make_labels(rng, shape, -1)
    logits[0], logits[1, [3, 70]] = 0, 20
    split = lambda x: x.reshape(6, devices, -1)  # noqa: E731

    def run(logits):
        local = functools.partial(loss.function, label_smoothing=0.1, axis_name="classes")
        axes = (1, None if labels.ndim == 1 else 1)
        q = labels if labels.ndim == 1 else split(labels)
        return jax.vmap(local, in_axes=axes, axis_name="classes")(split(logits), q)

    losses, pull = jax.vjp(run, logits)
    answer = loss.oracle(logits, labels, label_smoothing=0.1)
    for row in losses:
        assert_within(row, answer.loss, 6)
    assert_within(pull(jnp.zeros_like(losses).at[0].set(1))[0], answer.logits, 8)


def test_classes_split_over_two_axes_of_the_mesh(rng):
    logits, labels = cases.make_logits(rng, (4, 24)), rng.integers(0, 24, 4).astype(np.int32)
    axes = ("data", "model")
    loss = functools.partial(jaxce.softmax_cross_entropy_with_integer_labels, axis_name=axes)
    losses = jax.shard_map(loss, mesh=mesh_of(2, 4), in_specs=(P(None, axes), P()), out_specs=P())(logits, labels)
    assert_within(losses, oracle.integer_softmax(logits, labels).loss, 6)


@pytest.mark.covering(1)
@UNCHECKED
@pytest.mark.parametrize("kind", ["logits", "soft", "linear"])
def test_statistics_with_split_classes_equal_those_of_all_classes(kind, check_vma, rng):
    """Check every field, the three losses from the fields, and their gradients."""
    hidden, classifier, labels = linear_cases.make(rng, 8, 4, 24)
    weights = np.linspace(0.5, 2, 24, dtype=np.float32)
    logits = hidden @ classifier
    if kind == "soft":
        labels = rng.random((8, 24)).astype(np.float32)
    arrays = (hidden, classifier, labels) if kind == "linear" else (logits, labels)
    label_spec = P("data", "model") if kind == "soft" else P("data")
    specs = (P("data"), P(None, "model"), label_spec) if kind == "linear" else (P("data", "model"), label_spec)

    def stacked_stats(axis_name, arrays, weights):
        function = jaxce.linear_logit_stats if kind == "linear" else jaxce.logit_stats
        stats = function(*arrays, class_weights=weights, axis_name=axis_name)
        return jnp.stack(
            [*(x.astype(jnp.float32) for x in jax.tree.leaves(stats)), stats.nll, stats.smooth_nll, stats.log_z]
        )

    sharded_stats = jax.shard_map(
        functools.partial(stacked_stats, "model"), mesh=mesh_of(2, 4), in_specs=(specs, P("model")), out_specs=P(None, "data"), check_vma=check_vma
    )  # fmt: skip

    def values_and_gradients(function):
        value, pull = jax.vjp(lambda arrays: function(arrays, weights), arrays)
        return value, [g for g in pull(jnp.ones_like(value))[0] if g.dtype == np.float32]

    answers = [
        jax.jit(values_and_gradients, static_argnums=0)(f)
        for f in (sharded_stats, functools.partial(stacked_stats, None))
    ]
    (got, gradients), (want, want_gradients) = answers
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)
    for a, b in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def plain(logits, labels):
    """Compute the losses by the textbook formula, which JAX differentiates."""
    return jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


HIGHER = {
    "jvp": lambda f, x, t: jax.jvp(f, (x,), (t,)),
    "hvp": lambda f, x, t: jax.jvp(jax.grad(f), (x,), (t,))[1],
    "hvp of scan": lambda f, x, t: jax.jvp(jax.grad(functools.partial(_in_scan, f)), (x,), (t,))[1],
    "scan in reverse": lambda f, x, t: jax.grad(lambda x: _vdot(jax.grad(functools.partial(_in_scan, f))(x), t))(x),
}


def _vdot(a, b):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


def _in_scan(f, x):
    return lax.scan(lambda c, s: (c + f(jax.tree.map(lambda v: v * s, x)), None), 0.0, jnp.array([1.0, 0.5]))[0]


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize(
    ("blocks", "check_vma"),
    covering.quick(
        [*itertools.product([Chunked(2), Chunked(2, 2), "dense"], [True, False])],
        [(Chunked(2, 2), False), ("dense", False)],
    ),
    ids=str,
)
def test_every_mode_of_differentiation(blocks, check_vma, rng, x64):
    """Differentiate around `shard_map`, also twice."""
    hidden, classifier, labels = linear_cases.make(rng, 8, 3, 12, np.float64)
    x = {"hidden": jnp.asarray(hidden), "classifier": jnp.asarray(classifier), "z_loss": jnp.asarray(0.1)}
    t = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=np.shape(v))), x)
    names = {"axis_name": "model"}

    def local(x, labels):
        if blocks == "dense":
            logits = x["hidden"] @ x["classifier"]
            losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, z_loss=x["z_loss"], **names)
            return lax.psum(losses.sum(), "data")
        loss = jaxce.linear_softmax_cross_entropy_sum(labels=labels, implementation=blocks, **x, **names)
        return loss.psum("data").total

    specs = {name: sharded.spec(name) for name in x}, P("data")
    sharded_total = jax.shard_map(local, mesh=mesh_of(2, 4), in_specs=specs, out_specs=P(), check_vma=check_vma)

    def theirs(x):
        logits = x["hidden"] @ x["classifier"]
        return (plain(logits, labels) + x["z_loss"] * jax.nn.logsumexp(logits, axis=1) ** 2).sum()

    few = ("jvp", "hvp", "hvp of scan") if check_vma else ("hvp of scan",)
    for mode in HIGHER.values() if blocks == "dense" and check_vma else map(HIGHER.get, few):
        got, want = (
            jax.jit(lambda x, t, f=f, m=mode: m(f, x, t))(x, t) for f in (lambda x: sharded_total(x, labels), theirs)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, want)


@pytest.mark.nightly
@UNCHECKED
def test_rule_around_the_whole_sharded_loss_has_an_error_of_the_mesh_size(check_vma, rng):
    """A `custom_vjp` around the merged loss cannot be correct both with and without check_vma, because the cotangents differ."""
    logits, labels = cases.make_logits(rng, (4, 16)), rng.integers(0, 16, 4).astype(np.int32)

    def losses(z, y):
        z_max = lax.pmax(lax.stop_gradient(z.max(1)), "model")
        own = lax.axis_index("model") * 4 + jnp.arange(4)[None] == y[:, None]
        e = jnp.exp(z - z_max[:, None])
        log_z = jnp.log(lax.psum(e.sum(1), "model")) + z_max
        return log_z - lax.psum(jnp.where(own, z, 0).sum(1), "model"), jnp.exp(z - log_z[:, None]) - own.astype(z.dtype)

    def with_rule(cotangent):
        ruled = jax.custom_vjp(lambda z, y: losses(z, y)[0])
        ruled.defvjp(losses, lambda gradient, ct: (gradient * cotangent(ct)[:, None], None))
        return ruled

    candidates = {
        "as it comes": with_rule(lambda ct: ct),
        "summed": with_rule(lambda ct: lax.psum(ct, "model")),
        "no rule": lambda z, y: losses(z, y)[0],
        "ours": integer,
    }
    factors = {}
    truth = np.asarray(oracle.integer_softmax(logits, labels).logits.value, np.float32)
    for name, loss in candidates.items():
        sharded_total = over_shards(loss, mesh_of(2, 4), check_vma)
        gradient = jax.grad(lambda z, f=sharded_total: f(z, labels).sum())(logits)
        factors[name] = np.median(np.asarray(gradient) / truth)
    wrong = {"summed": 4} if check_vma else {"as it comes": 1 / 4}
    for name, found in factors.items():
        np.testing.assert_allclose(found, wrong.get(name, 1), rtol=1e-5, err_msg=name)


def trace_in_shard_map(mesh, in_specs, function, *arrays):
    jax.eval_shape(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=P()), *arrays)


LOGITS, HIDDEN, CLASSIFIER, Q = (np.zeros(shape, np.float32) for shape in ((4, 8), (4, 3), (3, 8), (4, 8)))
LABELS = np.zeros(4, np.int32)
CALLS = {
    "integer": (jaxce.softmax_cross_entropy_with_integer_labels, (LOGITS, LABELS)),
    "soft": (jaxce.softmax_cross_entropy, (LOGITS, Q)),
    "statistics": (jaxce.logit_stats, (LOGITS, LABELS)),
    "linear": (jaxce.linear_softmax_cross_entropy, (HIDDEN, CLASSIFIER, LABELS)),
    "sum": (jaxce.linear_softmax_cross_entropy_sum, (HIDDEN, CLASSIFIER, LABELS)),
    "linear statistics": (jaxce.linear_logit_stats, (HIDDEN, CLASSIFIER, LABELS)),
}


@pytest.mark.parametrize("call", CALLS)
class TestRefusals:
    """Each invalid call raises an error with a rule."""

    def test_outside_shard_map(self, call):
        function, arrays = CALLS[call]
        rule = r"`axis_name` must name an axis of the mesh of the `jax.shard_map`.*got 'model'.*Under plain jit leave `axis_name` out"
        for mode in ("auto", "explicit"):
            with jax.set_mesh(sharded.mesh_of((2, 4), mode)), pytest.raises(ValueError, match=rule):
                jax.eval_shape(functools.partial(function, axis_name="model"), *arrays)
        with pytest.raises(ValueError, match=rule):
            function(*arrays, axis_name="model")

    def test_unknown_mesh_axis(self, call):
        function, arrays = CALLS[call]
        for name in ("modle", ("model", "modle")):
            with pytest.raises(
                ValueError, match=r"`axis_name` must name an axis of the mesh.*got 'modle', which is not such an axis"
            ):
                trace_in_shard_map(mesh_of(2, 4), P(), functools.partial(function, axis_name=name), *arrays)

    @pytest.mark.parametrize("name", [0, 1.5, ["model"], (), ("model", 0), True], ids=str)
    def test_invalid_type_of_name(self, call, name):
        function, arrays = CALLS[call]
        with pytest.raises(TypeError, match=r"`axis_name` must be the name of a mesh axis, or a tuple of names; got"):
            trace_in_shard_map(mesh_of(2, 4), P(), functools.partial(function, axis_name=name), *arrays)

    def test_classes_that_are_not_split(self, call):
        """Each device would count all classes, which would give a wrong loss."""
        function, arrays = CALLS[call]
        name = "classifier" if len(arrays) == 3 else "logits"
        rule = rf"`{name}` must have its classes split over `axis_name` 'model'; got the same \((4|3), 8\)"
        with pytest.raises(ValueError, match=rule):
            trace_in_shard_map(mesh_of(2, 4), P(), functools.partial(function, axis_name="model"), *arrays)
        trace_in_shard_map(
            mesh_of(8, 1), P(), functools.partial(function, axis_name="model"), *arrays
        )  # one device has all classes


@pytest.mark.parametrize("mode", ["auto", "shard_map"])
def test_classes_that_the_mesh_does_not_divide(mode, rng):
    """JAX cannot split these classes. If the caller pads them, or XLA does under jit, the loss is correct."""
    logits, labels = cases.make_logits(rng, (8, 13)), rng.integers(0, 13, 8).astype(np.int32)
    mesh = sharded.mesh_of((2, 4), mode)
    place = lambda: jax.device_put(logits, NamedSharding(mesh, P("data", "model")))  # noqa: E731
    split = place if mode == "auto" else lambda: over_shards(integer, mesh)(logits, labels)
    with pytest.raises(ValueError, match=r"divisible by 4|evenly divide"):
        split()
    answer = oracle.integer_softmax(logits, labels, label_smoothing=0.1)

    def constrained(z):
        z = lax.with_sharding_constraint(z, NamedSharding(mesh, P("data", "model")))
        return jaxce.softmax_cross_entropy_with_integer_labels(z, labels, label_smoothing=0.1)

    def padded(z):
        z = jnp.pad(z, ((0, 0), (0, 3)), constant_values=-jnp.inf)
        return over_shards(functools.partial(integer, label_smoothing=0.1), mesh)(z, labels)

    def left_out(z):
        """Exclude the padding with `where`, so that its values do not matter."""
        loss = lambda z, y, where: integer(z, y, where=where, label_smoothing=0.1)  # noqa: E731
        specs = P("data", "model"), P("data"), P(None, "model")
        z, where = jnp.pad(z, ((0, 0), (0, 3)), constant_values=5), jnp.arange(16)[None] < 13
        return jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P("data"))(z, labels, where)

    for function in (constrained,) if mode == "auto" else (padded, left_out):
        losses, pull = jax.vjp(jax.jit(function), logits)
        assert_within(losses, answer.loss, 8)
        assert_within(pull(jnp.ones_like(losses))[0], answer.logits, 8)


@pytest.mark.covering(1)
@pytest.mark.parametrize("soft_cap", [None, np.float32(3)])
@pytest.mark.parametrize("blocks", [None, Chunked(2, 2), Chunked(2)], ids=str)
def test_linear_classes_that_the_mesh_does_not_divide(blocks, soft_cap, rng):
    """A bias of -inf excludes the padding classes, also with a cap."""
    hidden, classifier, labels = linear_cases.make(rng, 8, 4, 13)
    bias, options = np.zeros(13, np.float32), {} if soft_cap is None else {"soft_cap": soft_cap}

    def local(hidden, classifier, bias, labels, cap):
        options = {"bias": bias, "soft_cap": cap, "label_smoothing": 0.1, "implementation": blocks}
        loss = jaxce.linear_softmax_cross_entropy_sum(hidden, classifier, labels, axis_name="model", **options)
        return loss.psum("data").total

    def total(hidden, classifier, bias, soft_cap):
        arrays = jnp.pad(classifier, ((0, 0), (0, 3))), jnp.pad(bias, (0, 3), constant_values=-jnp.inf)
        specs = P("data"), P(None, "model"), P("model"), P("data"), P()
        sharded_total = jax.shard_map(local, mesh=mesh_of(2, 4), in_specs=specs, out_specs=P())
        return sharded_total(hidden, *arrays, labels, soft_cap)

    argnums = (0, 1, 2) if soft_cap is None else (0, 1, 2, 3)
    value, gradients = jax.jit(jax.value_and_grad(total, argnums))(hidden, classifier, bias, soft_cap)
    options = {"bias": bias, "label_smoothing": np.float32(0.1), **options}
    want, want_gradients = linear_cases.expected(hidden, classifier, labels, np.ones(8), **options)
    assert_within(value, oracle.Quantity(want.value.sum(), want.scale.sum()), 8)
    for name, gradient in zip(("hidden", "classifier", "bias", "soft_cap"), gradients, strict=False):
        assert_within(gradient, want_gradients[name], 8)
