"""The code that only GPUs are given, run here: what a GPU's own compiler makes of it, `benchmarks.device` checks where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxce._kernels import tiles
from jaxce._kernels.blocked import Blocks

import jaxce
from tests.support import nonfinite_cells as cells
from tests.support import oracle
from tests.support.changed import Changed, among_many_classes
from tests.support.closeness import assert_within
from tests.support.linear_cases import OPTIONS as LINEAR_OPTIONS
from tests.support.linear_cases import expected, make

pytestmark = pytest.mark.usefixtures("made_quickly")

INTEGER = jaxce.softmax_cross_entropy_with_integer_labels
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-2}
MASK = np.array([True, True, False, True, True])


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Whatever depends on the platform takes what is meant for a GPU."""

    def of_a_gpu(*args, default, cuda=None, **others):
        chosen.append(cuda is not None)
        return (cuda or default)(*args)

    chosen = []
    monkeypatch.setattr(lax, "platform_dependent", of_a_gpu)
    jax.clear_caches()  # or a program that another test has made is run
    yield chosen
    jax.clear_caches()
    assert any(chosen)


def rounded(values, dtype):
    return np.asarray(values, jnp.dtype(dtype))


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("classes", [1001, 2050])
@pytest.mark.parametrize("options", [{}, OPTIONS, OPTIONS | {"mask": MASK}], ids=str)
def test_values_and_gradients(rng, on_a_gpu, x64, dtype, classes, options):
    z = rounded(4 * rng.standard_normal((5, classes)), dtype)
    y, cotangent = np.int32([0, 1, classes - 1, classes - 2, 7]), rng.uniform(-2, 2, 5).astype(np.float32)
    working = "float64" if dtype == "float64" else "float32"
    value, pull = jax.vjp(jax.jit(lambda z: INTEGER(z, y, **options)), z)
    answer = oracle.integer_softmax(z, y, cotangent=cotangent, **options)
    assert_within(np.asarray(value), answer.loss, 4, working=working)
    (gradient,) = pull(jnp.asarray(cotangent, value.dtype))
    assert gradient.dtype == z.dtype
    assert_within(np.asarray(gradient), answer.logits, 6, working=working)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_masked_row_of_nan_is_nowhere(rng, on_a_gpu, dtype):
    z = rounded(rng.standard_normal((5, 1000)), dtype)
    z[~MASK] = np.nan
    value, pull = jax.vjp(jax.jit(lambda z: INTEGER(z, np.arange(5), mask=MASK, z_loss=1e-2)), z)
    (gradient,) = pull(jnp.ones_like(value))
    assert np.isfinite(np.asarray(value)).all() and np.isfinite(np.asarray(gradient, np.float32)).all()
    assert not np.asarray(gradient)[~MASK].any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_second_derivatives(rng, on_a_gpu, dtype):
    """In every order of modes; the exact ones of p and the identity, which a bitcast that was differentiated would leave out."""
    z, v = rounded(rng.standard_normal((2, 1002)), dtype), rounded(rng.standard_normal((2, 1002)), dtype)
    y = np.int32([3, 1001])
    loss = lambda z: INTEGER(z, y).sum()  # noqa: E731
    e = np.exp(z.astype(np.float64))
    p = e / e.sum(1, keepdims=True)
    wide = v.astype(np.float64)
    want = p * (wide - (p * wide).sum(1, keepdims=True))
    forward_over_reverse = jax.jvp(jax.grad(loss), (z,), (v,))[1]
    reverse_over_reverse = jax.grad(lambda z: jnp.vdot(jax.grad(loss)(z).astype(jnp.float32), v.astype(np.float32)))(z)
    reverse_over_forward = jax.grad(lambda z: jax.jvp(loss, (z,), (v,))[1])(z)
    rtol, atol = (2e-2, 1e-6) if dtype == "bfloat16" else (2e-5, 1e-9)
    for found in (forward_over_reverse, reverse_over_reverse, reverse_over_forward):
        np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=rtol, atol=atol)


NOT_FINITE = {
    "one infinity": {0: np.inf},
    "two infinities": {0: np.inf, 9: np.inf},
    "infinities side by side in their slices": {0: np.inf, 125: np.inf, 250: np.inf},
    "infinities in all slices": dict.fromkeys(range(0, 1000, 100), np.inf),
    "a NaN": {5: np.nan},
    "a NaN and an infinity": {5: np.nan, 6: np.inf},
    "-inf but for one": dict.fromkeys(range(1, 1000), -np.inf),
    "-inf alone": dict.fromkeys(range(1000), -np.inf),
    "the largest number": {0: "max", 8: "max"},
    "the least number": dict.fromkeys(range(1000), "min"),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rows_that_are_not_finite(rng, request, dtype):
    """The same as by the code of a CPU, which other tests hold to the rules; but how many infinities there are, `rest` may leave open.

    Each row with two labels, beside one of zeros, whose classes all tie.
    """
    rows = rounded(rng.standard_normal((len(NOT_FINITE) + 1, 1000)), dtype)
    rows[-1] = 0
    for row, places in zip(rows, NOT_FINITE.values(), strict=False):
        for k, value in places.items():
            row[k] = getattr(jnp.finfo(dtype), value) if isinstance(value, str) else value
    z, y = np.repeat(rows, 2, 0), np.int32([0, 500] * len(rows))

    def answers():
        stats = jax.jit(jaxce.logit_stats)(z, y)
        rest = jnp.where(stats.max_logit < np.inf, stats.sum_exp_rest, jnp.sign(stats.sum_exp_rest))
        said = stats.max_logit, rest, stats.log_z, stats.nll, stats.smooth_nll, stats.weight_sum, stats.num_classes
        value, pull = jax.vjp(jax.jit(lambda z: INTEGER(z, y, label_smoothing=0.1)), z)
        return [np.asarray(x, np.float64) for x in (*said, stats.label_mass, value, *pull(jnp.ones_like(value)))]

    want = answers()
    assert np.isfinite(want[-1][-2:]).all()
    request.getfixturevalue("on_a_gpu")
    rtol = 2e-2 if dtype == "bfloat16" else 2e-3
    names = [f"{name}, label {label}" for name in (*NOT_FINITE, "zeros") for label in (0, 500)]
    for found, expected_ in zip(answers(), want, strict=True):
        for name, of_row, expected_of_row in zip(names, found, expected_, strict=True):
            np.testing.assert_allclose(of_row, expected_of_row, rtol=rtol, atol=1e-6, err_msg=name)


def test_every_cell_is_what_the_rules_say_among_many_classes(on_a_gpu):
    number, failed = cells.failures(Changed(among_many_classes, ("integer", "soft", "loss_sum")))
    assert number >= 4 * 100
    assert not failed


@pytest.mark.covering(1)
@pytest.mark.parametrize(("run", "rows", "classes"), [(64, 64, 1001), (64, 16, 1004), (512, 256, 1002)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("options", [{}, OPTIONS, {"mask": True} | OPTIONS], ids=lambda options: "+".join(options))
def test_rows_that_begin_anywhere(rng, on_a_gpu, monkeypatch, run, rows, classes, dtype, options):
    """Runs of narrow logits, which may be of two rows: bad rows stay alone in their gradients, too, and labels are found at both ends."""
    monkeypatch.setattr("jaxce._slopes._RUN", run)
    z, y = rounded(4 * rng.standard_normal((rows, classes)), dtype), rng.integers(0, classes, rows).astype(np.int32)
    y[:6] = 0, classes - 1, run - 2, run - 1, run, classes - 2
    is_good, cotangent = np.arange(rows) % 5 != 3, rng.uniform(-2, 2, rows).astype(np.float32)
    z[3::10], y[8::20], y[18::20] = np.nan, -1, classes
    if "mask" in options:
        options = options | {"mask": is_good}

    def gradient(z):
        value, pull = jax.vjp(lambda z: INTEGER(z, y, **options), z)
        return value, pull(cotangent)[0]

    assert "dynamic_update_slice" in str(jax.make_jaxpr(gradient)(z))
    value, slopes = map(np.asarray, jax.jit(gradient)(z))
    if "mask" in options:
        assert not value[~is_good].any() and not slopes[~is_good].any()
        options = options | {"mask": None}
    else:
        assert np.isnan(value[~is_good]).all() and np.isnan(slopes[~is_good].astype(np.float32)).all()
    checked = np.flatnonzero(is_good)[:: rows // 64 or 1]
    answer = oracle.integer_softmax(z[checked], y[checked], cotangent=cotangent[checked], **options)
    assert_within(value[checked], answer.loss, 4)
    assert_within(slopes[checked], answer.logits, 6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_second_derivatives_through_a_loop_where_classes_tie(rng, on_a_gpu, dtype):
    """Where jax <= 0.11.2 leaves out the rules of `jax.custom_jvp`: the code has not the derivatives of what it makes."""
    z = rounded(rng.integers(-1, 2, (3, 1000)), dtype)
    v = rng.standard_normal(z.shape).astype(np.float32)

    def loss(z):
        return jax.lax.scan(lambda total, row: (total + INTEGER(row[None], np.int32([7]))[0], None), 0.0, z)[0]

    found = jax.grad(lambda z: jnp.vdot(jax.grad(loss)(z).astype(jnp.float32), v))(z)
    e = np.exp(z.astype(np.float64))
    p = e / e.sum(1, keepdims=True)
    want = p * (v - (p * v).sum(1, keepdims=True))
    rtol, atol = (2e-2, 1e-6) if dtype == "bfloat16" else (2e-5, 1e-9)
    np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=rtol, atol=atol)


@pytest.mark.parametrize("classes", [1000, 1001])
def test_very_long_rows(rng, on_a_gpu, classes, monkeypatch):
    """They are cut into more slices."""
    monkeypatch.setattr("jaxce._online._LONGEST", 16)
    for dtype in ("bfloat16", "float32"):
        z, y = rounded(3 * rng.standard_normal((5, classes)), dtype), np.arange(5)
        assert_within(np.asarray(jax.jit(INTEGER)(z, y)), oracle.integer_softmax(z, y).loss, 4)


@pytest.mark.parametrize("classes", [1000, 1004])
def test_rows_split_over_devices(rng, on_a_gpu, monkeypatch, classes):
    monkeypatch.setattr("jaxce._slopes._RUN", 8)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    z, y = rounded(rng.standard_normal((8, classes)), "bfloat16"), np.arange(8)

    def mean(z, y):
        return lax.pmean(INTEGER(z, y, z_loss=1e-2).mean(), "rows")

    split = jax.shard_map(mean, mesh=mesh, in_specs=P("rows"), out_specs=P())
    value, gradient = jax.jit(jax.value_and_grad(split))(z, y)
    answer = oracle.integer_softmax(z, y, z_loss=1e-2, cotangent=np.full(8, 0.125))
    np.testing.assert_allclose(value, float(answer.loss.value.mean()), rtol=1e-6)
    assert_within(np.asarray(gradient), answer.logits, 6)


@pytest.mark.covering(2)
@pytest.mark.parametrize("names", [(), tuple(LINEAR_OPTIONS)], ids=lambda names: "+".join(names) or "plain")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("loss", ["losses", "sum"])
def test_linear_losses(rng, on_a_gpu, monkeypatch, names, dtype, loss):
    """Blocks of classes and, of the sum, gathered blocks of tokens. Slopes are bfloat16 where both operands are."""
    monkeypatch.setattr(tiles, "for_statistics_on_gpu", lambda tokens, *_: Blocks(4, 7))
    monkeypatch.setattr(tiles, "for_total_on_gpu", lambda tokens, num_classes, _: Blocks(2, num_classes, 3))
    hidden, classifier, labels = make(rng)
    hidden, classifier = (rounded(x, dtype) for x in (hidden, classifier))
    options = {name: LINEAR_OPTIONS[name] for name in names}
    cotangent = np.ones(len(labels)) if loss == "sum" else rng.uniform(-2, 2, len(labels))

    def of(hidden, classifier):
        if loss == "sum":
            return jaxce.linear_softmax_cross_entropy_sum(hidden, classifier, labels, **options).total
        return jnp.vdot(jaxce.linear_softmax_cross_entropy(hidden, classifier, labels, **options), cotangent)

    value, gradients = jax.jit(jax.value_and_grad(of, (0, 1)))(hidden, classifier)
    wide = [x.astype(np.float32) for x in (hidden, classifier)]
    want, want_gradients = expected(*wide, labels, cotangent, **options)
    np.testing.assert_allclose(value, float((want.value * cotangent).sum()), rtol=1e-5)
    narrow = dtype == "bfloat16" or (dtype == "float16" and loss == "sum")
    for name, gradient in zip(("hidden", "classifier"), gradients, strict=True):
        assert gradient.dtype == dtype
        assert_within(np.asarray(gradient), want_gradients[name], 16, working=dtype if narrow else "float32")
