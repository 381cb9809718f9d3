"""Whole losses with the code of each platform, run on a CPU: the forms of CPU and GPU for rows of any length, and the definition, as on a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import Chunked, logit_stats
from jaxce._blocks import sizes
from jaxce._core import cpu, cpu_sums, gpu
from tests.support import cases, hessians, linear, oracle, platform
from tests.support import nonfinite_cells as cells
from tests.support.cases import INTEGER, SIGMOID, SOFT
from tests.support.changed import Changed, among_many_classes
from tests.support.closeness import assert_within
from tests.support.dense import check_sigmoid, check_softmax
from tests.support.linear_cases import OPTIONS as LINEAR_OPTIONS
from tests.support.linear_cases import expected, make
from tests.support.ways import INF, LOGITS, NAN, C, targets, value_and_gradient

pytestmark = pytest.mark.usefixtures("fast_compilation")

on_a_gpu = platform.on_a_gpu
MASK = np.array([True, True, False, True, True])
OPTIONS = {"label_smoothing": np.float32(0.1), "z_loss": np.float32(1e-2)}


@pytest.fixture(params=platform.PLATFORMS)
def on_platform(request, monkeypatch):
    """Use the forms of this platform for every loss. The CPU form cuts rows of four or more classes into parts."""
    monkeypatch.setattr(cpu_sums, "SHORT", 4)
    monkeypatch.setattr(cpu_sums, "PART_SIZES", [2, 3, 5, 7])
    with platform.forms_of(request.param):
        yield request.param


@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_only_the_forms_of_the_platform_are_used(loss, on_platform, rng, monkeypatch):
    """Every form of this platform runs, and no form of another platform runs. The other tests of this file rely on this."""
    called = set()

    def recorded(name, function):
        def form(*args, **kwargs):
            called.add(name)
            return function(*args, **kwargs)

        return form

    for module in (cpu, gpu):
        for name in ("statistics", "logits_vjp"):
            key = f"{module.__name__.rpartition('.')[2]}.{name}"
            monkeypatch.setattr(module, name, recorded(key, getattr(module, name)))
    logits, labels = cases.make_logits(rng, (3, 6)), loss.make_labels(rng, (3, 6), -1)
    jax.jit(jax.grad(lambda z: loss.function(z, labels).sum()))(logits)
    forms = {
        "cpu": {"cpu.statistics", "cpu.logits_vjp"},
        "cuda": {"gpu.statistics"} | ({"gpu.logits_vjp"} if loss is INTEGER else set()),
        "tpu": set(),
    }
    assert called == forms[on_platform]


@pytest.mark.covering(1, at_most=4)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("names", cases.SOFTMAX_OPTION_SETS, ids=cases.name_of)
def test_options_and_their_combinations(loss, names, rng, on_platform):
    shape, axis = ((6, 10), -1) if len(names) < 3 else ((2, 5, 4), 1)
    logits, labels = cases.make_logits(rng, shape), loss.make_labels(rng, shape, axis)
    check_softmax(loss, logits, labels, rng, axis, **cases.make_options(rng, names, loss, shape, labels, axis))


@pytest.mark.covering(2, at_most=3)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("names", [(), ("where", "label_smoothing"), cases.SOFTMAX_OPTIONS], ids=cases.name_of)
@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float16, jnp.bfloat16])
def test_narrow_logits(dtype, loss, names, rng, on_platform):
    shape = (5, 12)
    logits, labels = cases.make_logits(rng, shape, dtype), loss.make_labels(rng, shape, -1)
    check_softmax(loss, logits, labels, rng, **cases.make_options(rng, names, loss, shape, labels))


@pytest.mark.covering(2, at_most=2)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
def test_labels_of_other_dtypes(dtype, rng, on_platform):
    logits, labels = cases.make_logits(rng, (5, 300)), np.array([0, 1, 2, 126, 127]).astype(dtype)
    check_softmax(INTEGER, logits, labels, rng)


@pytest.mark.covering(2)
@pytest.mark.parametrize("names", [(), cases.SIGMOID_OPTIONS], ids=cases.name_of)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_sigmoid_loss(names, dtype, rng, on_platform):
    shape = (5, 7)
    logits, labels = cases.make_logits(rng, shape, dtype), SIGMOID.make_labels(rng, shape, -1)
    check_sigmoid(logits, labels, rng, **cases.make_options(rng, names, SIGMOID, shape, labels))


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_hard_logits(loss, rng, on_platform):
    """Test all hard logits in one array. Shorter rows are padded with classes at -inf, which take no part."""
    tables = [make(rng) for make in cases.HARD_LOGITS.values()]
    longest = max(table.shape[1] for table in tables)
    rows, labels = [], []
    for table in tables:
        filled = np.pad(table, [(0, 0), (0, longest - table.shape[1])], constant_values=-INF)
        for label in range(0, table.shape[1], 2):
            rows.append(filled)
            labels.append(np.full(len(table), label, np.int32))
    logits, labels = np.concatenate(rows), np.concatenate(labels)
    if loss is SOFT:
        labels = np.eye(longest, dtype=np.float32)[labels]
    values, gradient = value_and_gradient(jax.jit, loss, logits, labels)
    answer = loss.oracle(logits, labels)
    assert_within(values, answer.loss, 6)
    assert_within(gradient, answer.logits, 6)


@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_rows_without_a_loss_and_masked_rows(loss, on_platform):
    """The rows have NaN, infinities, a single +inf at the true class, -inf at the true class, or an invalid label."""
    rows = [[NAN, 1, 2, 3, 4], [INF, INF, 0, 0, 0], [-INF] * C, [0, INF, 0, 0, -INF], [1, -INF, 2, 0, 0], LOGITS[0]]
    logits, labels = np.float32([*rows, *rows]), np.int32([1, 1, 1, 1, 1, 2] * 2)
    if loss is INTEGER:
        labels[[5, 11]] = C, -1
    labels, mask = targets(loss, labels), np.arange(12) < 6
    values, gradient = value_and_gradient(jax.jit, loss, logits, labels, mask, names=("mask",))
    answer = loss.oracle(logits, labels, mask=mask)
    assert_within(values, answer.loss, 6)
    np.testing.assert_array_equal(gradient[6:], 0)
    assert gradient[4, 1] == -1
    np.testing.assert_array_equal(np.isnan(gradient[:6]).any(1), np.isnan(values[:6]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_masked_row_of_nan_affects_no_value_and_no_gradient(rng, on_platform, dtype):
    z = np.asarray(rng.standard_normal((5, 1000)), jnp.dtype(dtype))
    z[~MASK] = NAN
    value, pull = jax.vjp(jax.jit(lambda z: INTEGER.function(z, np.arange(5), mask=MASK, z_loss=1e-2)), z)
    (gradient,) = pull(jnp.ones_like(value))
    assert np.isfinite(np.asarray(value)).all() and np.isfinite(np.asarray(gradient, np.float32)).all()
    assert not np.asarray(gradient)[~MASK].any()


@pytest.mark.covering(2, at_most=4)
@pytest.mark.parametrize("way", [hessians.weighted, hessians.through_scan], ids=lambda f: f.__name__)
@pytest.mark.parametrize("hard", ["random", "ties", "confident"])
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_hessian(way, hard, loss, rng, on_platform):
    logits = hessians.HESSIAN_LOGITS[hard](rng)
    labels, w, want = hessians.hessian_case(loss, logits, rng)
    assert_within(jax.jit(jax.jacfwd(jax.jacrev(way(loss, labels, w))))(logits), want, 16)


def test_statistics_of_classes_without_the_label(rng, on_platform):
    logits = cases.make_logits(rng, (4, 6))
    stats = logit_stats(logits, np.int32([-1, 6, -100, 3]))
    np.testing.assert_array_equal(stats.label_mass, [0, 0, 0, 1])
    assert_within(stats.label_nll, np.append(np.zeros(3), INTEGER.oracle(logits[3:], np.int32([3])).loss.value), 8)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("num_classes", [1001, 2050])
@pytest.mark.parametrize("options", [{}, OPTIONS, OPTIONS | {"mask": MASK}], ids="+".join)
def test_long_rows(rng, on_platform, x64, dtype, num_classes, options):
    z = np.asarray(4 * rng.standard_normal((5, num_classes)), jnp.dtype(dtype))
    y = np.int32([0, 1, num_classes - 1, num_classes - 2, 7])
    check_softmax(INTEGER, z, y, rng, **options)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("num_classes", [6, 1002])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_second_derivatives(rng, on_platform, dtype, num_classes):
    """Every order of modes. The derivatives come from the definition, because the code of a form has a bitcast without derivatives."""
    z, v = (np.asarray(rng.standard_normal((2, num_classes)), jnp.dtype(dtype)) for _ in range(2))
    y = np.int32([3, num_classes - 1])

    def loss(z):
        return INTEGER.function(z, y).sum()

    want = _hessian_times(z, v)
    forward_over_reverse = jax.jvp(jax.grad(loss), (z,), (v,))[1]
    reverse_over_reverse = jax.grad(lambda z: jnp.vdot(jax.grad(loss)(z).astype(jnp.float32), v.astype(np.float32)))(z)
    reverse_over_forward = jax.grad(lambda z: jax.jvp(loss, (z,), (v,))[1])(z)
    for found in (forward_over_reverse, reverse_over_reverse, reverse_over_forward):
        _assert_close(found, want, dtype)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_second_derivatives_through_a_loop_with_ties(rng, on_platform, dtype):
    z = np.asarray(rng.integers(-1, 2, (3, 1000)), jnp.dtype(dtype))
    v = rng.standard_normal(z.shape).astype(np.float32)

    def loss(z):
        def step(total, row):
            return total + INTEGER.function(row[None], np.int32([7]))[0], None

        return lax.scan(step, jnp.float32(0), z)[0]

    found = jax.grad(lambda z: jnp.vdot(jax.grad(loss)(z).astype(jnp.float32), v))(z)
    _assert_close(found, _hessian_times(z, v), dtype)


def _hessian_times(z, v):
    e, v = np.exp(z.astype(np.float64)), v.astype(np.float64)
    p = e / e.sum(1, keepdims=True)
    return p * (v - (p * v).sum(1, keepdims=True))


def _assert_close(found, want, dtype):
    rtol, atol = (2e-2, 1e-6) if dtype == "bfloat16" else (2e-5, 1e-9)
    np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=rtol, atol=atol)


@pytest.mark.nightly
def test_every_cell_is_correct_among_many_classes(on_platform):
    number, failed = cells.failures(Changed(among_many_classes, ("integer", "soft", "loss_sum")))
    assert number >= 4 * 100
    assert not failed


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("num_classes", [1000, 1004])
def test_rows_split_over_devices(rng, on_platform, monkeypatch, num_classes):
    monkeypatch.setattr(gpu, "_RUN", 8)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    z, y = np.asarray(rng.standard_normal((8, num_classes)), jnp.bfloat16), np.arange(8)

    def mean(z, y):
        return lax.pmean(INTEGER.function(z, y, z_loss=1e-2).mean(), "rows")

    split = jax.shard_map(mean, mesh=mesh, in_specs=P("rows"), out_specs=P())
    value, gradient = jax.jit(jax.value_and_grad(split))(z, y)
    answer = oracle.integer_softmax(z, y, z_loss=1e-2, cotangent=np.full(8, 0.125))
    np.testing.assert_allclose(value, float(answer.loss.value.mean()), rtol=1e-6)
    assert_within(np.asarray(gradient), answer.logits, 6)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("names", [(), tuple(LINEAR_OPTIONS)], ids=cases.name_of)
@pytest.mark.parametrize("implementation", ["reference", Chunked(6, 7)], ids=str)
def test_linear_losses(implementation, names, rng, on_platform):
    linear.check(rng, implementation, names)


@pytest.mark.nightly
def test_hessian_vector_product_of_a_linear_loss(rng, x64, on_platform):
    linear.differentiate(rng, "hvp", False, Chunked(4, 5))


@pytest.mark.covering(1, at_most=1)
def test_blocks_of_a_linear_loss_that_differ_on_a_gpu(rng, on_platform, other_blocks_on_gpu):
    linear.check(rng, None, tuple(LINEAR_OPTIONS))


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("names", [(), tuple(LINEAR_OPTIONS)], ids=cases.name_of)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("loss", ["losses", "sum"])
def test_narrow_linear_losses_on_a_gpu(rng, on_a_gpu, monkeypatch, names, dtype, loss):
    """The losses use blocks of classes, and the sum uses buffered blocks of tokens.

    Gradients with respect to the logits are bfloat16 if both operands are bfloat16.
    """
    monkeypatch.setattr(sizes, "for_statistics_on_gpu", lambda tokens, *_: sizes.Blocks(4, 7))
    monkeypatch.setattr(sizes, "for_total_on_gpu", lambda tokens, num_classes, _: sizes.Blocks(2, num_classes, 3))
    hidden, classifier, labels = make(rng)
    hidden, classifier = (np.asarray(x, jnp.dtype(dtype)) for x in (hidden, classifier))
    options = {name: LINEAR_OPTIONS[name] for name in names}
    cotangent = np.ones(len(labels)) if loss == "sum" else rng.uniform(-2, 2, len(labels))

    def total(hidden, classifier):
        if loss == "sum":
            return jaxce.linear_softmax_cross_entropy_sum(hidden, classifier, labels, **options).total
        return jnp.vdot(jaxce.linear_softmax_cross_entropy(hidden, classifier, labels, **options), cotangent)

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, classifier)
    wide = [x.astype(np.float32) for x in (hidden, classifier)]
    want, want_gradients = expected(*wide, labels, cotangent, **options)
    np.testing.assert_allclose(value, float((want.value * cotangent).sum()), rtol=1e-5)
    for name, gradient in zip(("hidden", "classifier"), gradients, strict=True):
        assert gradient.dtype == dtype
        working = "bfloat16" if dtype == "bfloat16" else "float32"
        assert_within(np.asarray(gradient), want_gradients[name], 16, working=working)
