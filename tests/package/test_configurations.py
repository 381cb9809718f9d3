"""The most important tests under every setting of JAX that changes results or raises errors, and operations that programs must not contain."""

import contextlib
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import LossSum, logit_stats
from jaxce.keras import losses as keras_losses
from tests.support import cases, covering
from tests.support.cases import INTEGER, SIGMOID, SOFT
from tests.support.closeness import assert_within
from tests.support.ours import OURS

pytestmark = pytest.mark.usefixtures("fast_compilation")

SHAPE = (4, 6)
CONFIGURATIONS = {
    "x64": [functools.partial(jax.enable_x64, True)],
    "no x64": [functools.partial(jax.enable_x64, False)],
    "strict dtypes": [functools.partial(jax.numpy_dtype_promotion, "strict")],
    "standard dtypes": [functools.partial(jax.numpy_dtype_promotion, "standard")],
    "no rank promotion": [functools.partial(jax.numpy_rank_promotion, "raise")],
    "rank promotion": [functools.partial(jax.numpy_rank_promotion, "allow")],
    "checks": [functools.partial(jax.enable_checks, True)],
    "all that refuse": [
        functools.partial(jax.enable_x64, True),
        functools.partial(jax.numpy_dtype_promotion, "strict"),
        functools.partial(jax.numpy_rank_promotion, "raise"),
        functools.partial(jax.enable_checks, True),
    ],
}


# The settings of all other tests.
USUAL = ("no x64", "strict dtypes", "no rank promotion")


@pytest.fixture(params=[*(name for name in CONFIGURATIONS if name not in USUAL), *covering.nightly_values(*USUAL)])
def configured(request):
    with contextlib.ExitStack() as stack:
        for setting in CONFIGURATIONS[request.param]:
            stack.enter_context(setting())
        yield


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize(
    ("dtype", "options"),
    [(jnp.float32, "none"), (jnp.bfloat16, "all")],
    ids=["float32 without options", "bfloat16 with all options"],
)
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_values_gradients_and_tangents(loss, options, dtype, rng, configured):
    """The options are Python numbers, and arrays with a dtype that may differ from that of the logits."""
    logits, labels = cases.make_logits(rng, SHAPE, dtype), loss.make_labels(rng, SHAPE, -1)
    options = cases.make_options(rng, () if options == "none" else loss.options, loss, SHAPE, labels)
    answer = loss.oracle(logits, labels, **options)
    if options:
        options["label_smoothing"] = float(options["label_smoothing"])
    losses = lambda z: loss.function(z, labels, **options)  # noqa: E731 - a function of the logits only
    values, vjp = jax.vjp(losses, jnp.asarray(logits))
    assert values.dtype == jnp.float32
    assert_within(values, answer.loss, 6)
    (gradient,) = vjp(jnp.ones_like(values))
    assert gradient.dtype == dtype
    assert_within(gradient, answer.logits, 6, working=jnp.float32)
    tangents = jax.jvp(losses, (jnp.asarray(logits),), (jnp.ones(SHAPE, dtype),))[1]
    assert_within(tangents, answer.logits if loss is SIGMOID else tuple(x.sum(-1) for x in answer.logits), 8)


@pytest.mark.covering(1, at_most=2)
def test_hessian(configured):
    z = np.float32([0.5, -1, 2])
    p = np.exp(z.astype(np.float64)) / np.exp(z.astype(np.float64)).sum()
    hessian = jax.hessian(lambda z: INTEGER.function(z, np.int32(1)))(z)
    np.testing.assert_allclose(hessian, np.diag(p) - np.outer(p, p), rtol=1e-5, atol=1e-6)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize(
    "labels", [np.int32([1, 0, 2, 3]), np.int8([1, 0, 2, 3]), np.int64([1, 0, 2, 3])], ids=lambda y: y.dtype.name
)
def test_public_losses_run(labels, rng, configured):
    logits, mask = cases.make_logits(rng, SHAPE), np.array([True, False, True, True])
    answer = INTEGER.oracle(logits, labels, mask=mask)
    mean = LossSum.of(INTEGER.function(logits, labels, mask=mask), weights=np.array([1, 2, 1, 1]), mask=mask).mean()
    np.testing.assert_allclose(mean, float(answer.loss.value.sum() / 3), rtol=1e-6)
    np.testing.assert_allclose(logit_stats(logits, labels).nll[mask], answer.loss.value[mask].astype(float), rtol=1e-6)
    keras = keras_losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    np.testing.assert_allclose(keras(labels, logits, mask), float(answer.loss.value.sum()), rtol=1e-6)
    for function, q in (
        (OURS.keras_categorical, labels[:, None] == np.arange(6)),
        (OURS.keras_binary, np.ones(SHAPE, int)),
    ):
        assert np.isfinite(function(logits, q)).all()
    for from_logits, loss in itertools.product(
        (False, True), (keras_losses.CategoricalCrossentropy, keras_losses.BinaryCrossentropy)
    ):
        value = loss(from_logits=from_logits, label_smoothing=0.1)([[0, 1], [1, 0]], [[0.25, 0.75], [0.5, 0.5]])
        assert value.dtype == np.float32 and np.isfinite(value)


def primitives(jaxpr):
    """Yield the names of all primitives of a program, including those in its branches, loops and calls."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


FORBIDDEN = (
    "callback",
    "random",
    "threefry",
    "rng",
    "print",
    "infeed",
    "outfeed",
    "while",
)
DERIVATIVES = {
    "value": lambda f: f,
    "gradient": lambda f: jax.grad(lambda z: f(z).sum()),
    "jvp": lambda f: lambda z: jax.jvp(f, (z,), (z,)),
    "hessian": lambda f: jax.hessian(lambda z: f(z).sum()),
}
PROGRAMS = {
    "integer": lambda z: OURS.integer(z, jnp.zeros(4, int), label_smoothing=0.1, z_loss=0.1, mask=jnp.ones(4, bool)),
    "soft": lambda z: OURS.soft(z, jnp.ones(SHAPE), class_weights=jnp.ones(6)),
    "sigmoid": lambda z: OURS.sigmoid(z, jnp.ones(SHAPE), pos_weight=jnp.ones(6)),
    "statistics": lambda z: logit_stats(z, jnp.zeros(4, int)).nll,
    "LossSum": lambda z: LossSum.of(z, mask=jnp.ones(SHAPE, bool)).mean(),
    "Keras sparse": lambda z: keras_losses.sparse_categorical_crossentropy(jnp.zeros(4), z, ignore_class=0),
    "Keras categorical": lambda z: keras_losses.categorical_crossentropy(jnp.ones(SHAPE), z),
    "Keras binary": lambda z: keras_losses.binary_crossentropy(jnp.ones(SHAPE), z),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_have_no_callbacks_effects_or_randomness(program, derivative):
    closed = jax.make_jaxpr(DERIVATIVES[derivative](PROGRAMS[program]))(jnp.ones(SHAPE))
    assert not closed.effects
    found = set(primitives(closed.jaxpr))
    assert {"exp", "log", "div"} & found  # so the search reaches the loss inside its calls
    assert not [name for name in found if any(word in name for word in FORBIDDEN)]


@pytest.mark.covering(1)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_for_accelerators_do_not_index_logits(program, derivative, platform):
    """On accelerators, a gather or scatter of logits needs a float32 copy of the logits, and does not shard well."""
    function = jax.jit(DERIVATIVES[derivative](PROGRAMS[program]))
    text = jax.export.export(function, platforms=[platform])(jnp.ones(SHAPE)).mlir_module()
    assert "4x6x" in text
    # Indexing the class weights is allowed.
    indexed = [
        line for line in text.splitlines() if re.search(r"stablehlo\.\"?(gather|scatter|sort|dynamic_slice)", line)
    ]
    assert not [line for line in indexed if "4x6" in line]


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("num_classes", [3, 2000, 70000])
@pytest.mark.parametrize("loss", [INTEGER, SOFT, SIGMOID], ids=lambda loss: loss.name)
def test_one_program_for_all_platforms_and_any_number_of_rows(loss, num_classes, dtype, rng):
    """Long rows are also tested, because their form depends on the number of rows if this number is known."""
    logits = cases.make_logits(rng, (5, num_classes)).astype(dtype)
    labels = loss.make_labels(rng, (5, num_classes), -1)
    function = jax.jit(jax.value_and_grad(lambda z, y: loss.function(z, y).sum()))
    (rows,) = jax.export.symbolic_shape("rows")
    arguments = [jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for x in (logits, labels)]
    exported = jax.export.export(function, platforms=["cpu", "cuda", "tpu"])(*arguments)
    (value, gradient), (want, want_gradient) = exported.call(logits, labels), function(logits, labels)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(gradient.astype("float32"), want_gradient.astype("float32"), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("loss", [INTEGER, SOFT, SIGMOID], ids=lambda loss: loss.name)
def test_traced_options_are_traced_once(loss, rng):
    traces = []
    names = ("label_smoothing", "z_loss") if loss.has_class_axis else ("label_smoothing",)

    @jax.jit
    def step(z, y, options):
        traces.append(1)
        return jax.value_and_grad(lambda z: loss.function(z, y, **options).sum())(z)

    for i in range(4):
        logits, labels = cases.make_logits(rng, SHAPE), loss.make_labels(rng, SHAPE, -1)
        values = {n: np.float32(0.1 * i) for n in names}
        value, gradient = step(logits, labels, values)
        answer = loss.oracle(logits, labels, **values)
        assert_within(value, (answer.loss.value.sum(), answer.loss.scale.sum()), 8)
        assert_within(gradient, answer.logits, 8)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["keras_sparse", "keras_categorical", "keras_binary", "LossSum"])
def test_second_call_with_the_same_shapes_traces_nothing(name, rng):
    logits = cases.make_logits(rng, (3, 4, 7))
    labels = np.zeros((3, 4), np.int32) if name == "keras_sparse" else np.ones((3, 4, 7), np.float32)
    function = LossSum.of if name == "LossSum" else getattr(OURS, name)
    function(logits, labels)
    with jax.no_tracing():
        function(logits + 1, labels)
