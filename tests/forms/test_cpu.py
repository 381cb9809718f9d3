"""The forms for a CPU, called directly: they agree with the definition, also for ties, missing classes and non-finite logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxce
from jaxce._core import cpu, cpu_sums, definition, sigmoid
from jaxce._core.definition import Derivatives, Statistics
from tests.support import cases, covering, oracle, statistics
from tests.support.closeness import assert_within
from tests.support.versions import on_small_memory

INF, NAN = np.inf, np.nan
DTYPES = ["float8_e4m3fn", "float16", "bfloat16", "float32", "float64"]
# Rows of 1009 classes (a prime) are not cut. Rows of 1001 classes are cut into seven parts. Rows of fewer than 1,000 classes are not cut.
LENGTHS = [1, 7, 64, 1000, 1001, 1009]
LABELS = ["integer", "soft"]


@functools.partial(jax.jit, static_argnames="axis")
def run(logits, labels, where=None, class_weights=None, *, axis):
    return cpu.statistics(logits, where, labels, class_weights, axis=axis)


@functools.partial(jax.jit, static_argnames="axis")
def run_vjp(cotangents, logits, labels, where, class_weights, stats, *, axis):
    return cpu.logits_vjp(cotangents, logits, where, labels, class_weights, stats, axis=axis)


def make_labels(kind, rng, shape, axis=-1):
    """Return integers, some of them outside the classes; or probabilities, some of them 0."""
    axis %= len(shape)
    if kind == "integer":
        labels = rng.integers(0, shape[axis], (*shape[:axis], *shape[axis + 1 :])).astype(np.int32)
        no_class = np.int32([-1, shape[axis], 2**31 - 1, -(2**31)])
        return np.where(rng.random(labels.shape) < 0.2, rng.choice(no_class, labels.shape), labels)
    q = rng.random(shape) * (rng.random(shape) < 0.7)
    return (q / np.maximum(q.sum(axis, keepdims=True), 1e-3)).astype(np.float32)


@pytest.fixture
def short_parts(monkeypatch):
    """Cut even rows of four classes, into parts of two classes if possible."""
    monkeypatch.setattr(cpu_sums, "SHORT", 4)
    monkeypatch.setattr(cpu_sums, "PART_SIZES", [2, 3, 5, 7])
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.covering(1, at_most=4)
@pytest.mark.parametrize("weights", [False, True], ids=["plain", "class_weights"])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", LENGTHS)
def test_statistics(num_classes, dtype, kind, weights, rng, x64):
    logits = np.asarray(3 * rng.standard_normal((8, num_classes)), jnp.dtype(dtype))
    labels = make_labels(kind, rng, logits.shape)
    class_weights = rng.uniform(0, 2, num_classes).astype(np.float32) if weights else None
    found = run(logits, labels, None, class_weights, axis=1)
    statistics.assert_statistics(found, logits, labels, class_weights=class_weights, ulps=8)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("has_where", [False, True], ids=["plain", "where"])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 6), 2), ((2, 6, 4), 1), ((6, 4), 0), ((12,), 0)], ids=str)
def test_statistics_of_any_axis_and_rank(shape, axis, dtype, kind, has_where, rng, short_parts):
    logits, labels = cases.make_logits(rng, shape, jnp.dtype(dtype)), make_labels(kind, rng, shape, axis)
    where = rng.random(shape) < 0.7 if has_where else None
    if has_where and kind == "soft":
        labels = labels * where
    found = run(logits, labels, where, axis=axis)
    statistics.assert_statistics(found, logits, labels, where=where, axis=axis, ulps=8)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("num_classes", [20, 1000, 1001])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_of_special_numbers(dtype, num_classes, kind, rng, x64):
    rows = statistics.special_rows(rng, num_classes, jnp.dtype(dtype))
    logits = np.repeat(rows, 2, 0)
    labels = np.int32([0, 8] * len(rows))
    if kind == "soft":
        labels = np.eye(num_classes, dtype=np.float32)[labels]
    found = run(logits, labels, axis=1)
    statistics.assert_statistics(found, logits, labels, ulps=16)


# A few values, so that there are ties in one part and across parts. Some differences have a tiny exp, and one has an exp near 1.
VALUES = st.sampled_from([0.0, -1e-37, 0.5, 1.0, 3.0, -2.0, -30.0, -80.0, 1e4, -np.inf])


@pytest.mark.covering(1)
@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("num_classes", [9, *covering.nightly_values(4, 6, 10, 11)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_ties_in_one_part_and_in_several(dtype, num_classes):
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.lists(VALUES, min_size=num_classes, max_size=num_classes), st.integers(0, num_classes - 1))
    def check(row, label):
        logits, labels = np.asarray([row], jnp.dtype(dtype)), np.int32([label])
        statistics.assert_statistics(run(logits, labels, axis=1), logits, labels, ulps=8)

    check()


@pytest.mark.usefixtures("short_parts")
def test_nearly_maximal_logit_counts_once(x64):
    """The logit is so near the maximum that the difference is subnormal in float64, or would be in float32."""
    for below in (1e-40, 1e-300, 5e-324):
        logits, labels = np.array([[-below, -50, 0, -60], [0, -50, -60, -below]]), np.int32([0, 0])
        stats = run(logits, labels, axis=1)
        assert_within(stats.sum_exp_rest, 1 + np.exp(-50.0) * np.ones(2), 4)


@pytest.mark.covering(1, at_most=6)
@pytest.mark.parametrize("num_classes", [9, 1000, 2048])
@pytest.mark.parametrize("margin", [1e-6, 1e-3, 1.0, 27.0, 80.0])
def test_tiny_sum_exp_rest_is_accurate_for_any_position_of_the_maximum(num_classes, margin, rng):
    logits = -np.float32(margin) - rng.random((num_classes, num_classes), np.float32)
    np.fill_diagonal(logits, 0)
    labels = np.arange(num_classes, dtype=np.int32)
    some = slice(None, None, max(1, num_classes // 100))
    found = Statistics(*(x[some] for x in run(logits, labels, axis=1)))
    statistics.assert_statistics(found, logits[some], labels[some], ulps=8)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [50257, 50021])
def test_sizes_of_real_vocabularies(dtype, num_classes, rng, x64):
    logits = np.asarray(4 * rng.standard_normal((6, num_classes)), jnp.dtype(dtype))
    logits[0, 5] = logits[0, 6] = logits[0, -1] = 20  # ties, near and far
    logits[1, -1] = 60  # a tiny sum_exp_rest
    labels = np.int32([5, num_classes - 1, 7, -1, num_classes, 0])
    statistics.assert_statistics(run(logits, labels, axis=1), logits, labels, ulps=12)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("shape", [(2048,), (1, 1000), (1, 1, 1009)], ids=str)
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_single_row(dtype, kind, shape, rng):
    logits, labels = cases.make_logits(rng, shape, jnp.dtype(dtype)), make_labels(kind, rng, shape)
    statistics.assert_statistics(run(logits, labels, axis=len(shape) - 1), logits, labels, ulps=8)


@pytest.mark.parametrize("shape", [(0, 1000), (0, 3, 2048), (3, 0, 1000)], ids=str)
def test_no_rows_use_the_definition(shape):
    """Arrays with so few logits do not use the forms."""
    logits, labels = jnp.zeros(shape), jnp.zeros(shape[:-1], jnp.int32)
    assert not cpu.suits(logits)
    losses, pull = jax.vjp(lambda z: jaxce.softmax_cross_entropy_with_integer_labels(z, labels), logits)
    assert losses.shape == labels.shape
    assert pull(losses)[0].shape == shape


def test_few_logits_and_logits_on_an_explicit_mesh_use_the_definition():
    assert not cpu.suits(jax.ShapeDtypeStruct((256, 10), "float32"))
    assert cpu.suits(jax.ShapeDtypeStruct((8, 2**12), "float32"))
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    split = jax.device_put(jnp.zeros((8, 2**12)), jax.NamedSharding(mesh, jax.P("rows")))
    assert not cpu.suits(split)


@pytest.mark.parametrize("num_classes", [20, 1000])
@pytest.mark.parametrize("kind", ["integer", "soft"])
def test_the_largest_number_is_below_an_infinity(num_classes, kind, rng):
    logits = cases.make_logits(rng, (2, num_classes))
    logits[:, [0, -1]], logits[:, 8] = np.finfo(np.float32).max, INF
    labels = np.int32([0, 8]) if kind == "integer" else np.eye(num_classes, dtype=np.float32)[[0, 8]]
    found = run(logits, labels, axis=1)
    assert (found.sum_exp_rest == 0).all()
    np.testing.assert_array_equal(found.label_nll, [INF, 0])


@pytest.mark.parametrize("class_weight", [None, 0, 1e-37, 0.5])
@pytest.mark.parametrize("num_classes", [900, 1000])
def test_the_largest_number_is_infinitely_far_below_an_infinity(num_classes, class_weight):
    """Whatever its class weight is, unless it is 0."""
    logits = np.full((2, num_classes), np.finfo(np.float32).max, np.float32)
    logits[:, 8] = INF
    weights = None if class_weight is None else np.eye(1, num_classes, dtype=np.float32)[0] * np.float32(class_weight)
    found = run(logits, np.int32([0, 8]), class_weights=weights, axis=1)
    np.testing.assert_array_equal(found.uniform_nll, [0, 0] if class_weight == 0 else [INF, INF])


@pytest.mark.parametrize("num_classes", [900, 1000])
@pytest.mark.parametrize("class_weight", [None, 0.5])
def test_a_gap_above_the_largest_number_is_infinite(num_classes, class_weight, rng):
    logits = cases.make_logits(rng, (2, num_classes))
    logits[0] = -INF
    logits[0, 3], logits[0, 8] = 3e38, -3e38
    weights = None if class_weight is None else np.full(num_classes, class_weight, np.float32)
    assert (np.isinf(run(logits, np.int32([3, 3]), class_weights=weights, axis=1).uniform_nll) == [True, False]).all()


INFINITE_ROWS = {"largest": np.finfo(np.float32).max, "zeros": 0, "-inf": -INF}


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("kind", ["integer", "soft"])
@pytest.mark.parametrize("num_classes", [900, 1000])
@pytest.mark.parametrize("others", INFINITE_ROWS)
def test_single_infinite_logit_has_loss_0_and_gradient_0(others, num_classes, kind, rng):
    """The infinite logit is at the true class, in a large array. With smoothing the loss is NaN, unless no other class takes part."""
    logits = cases.make_logits(rng, (40, num_classes))
    logits[3], logits[3, 8] = INFINITE_ROWS[others], INF
    labels = np.full(40, 8) if kind == "integer" else np.eye(num_classes, dtype=np.float32)[np.full(40, 8)]
    loss = jaxce.softmax_cross_entropy_with_integer_labels if kind == "integer" else jaxce.softmax_cross_entropy
    assert cpu.suits(logits)
    for options, defined in (({}, True), ({"label_smoothing": 0.1}, others == "-inf")):
        losses, pull = jax.vjp(jax.jit(lambda z, options=options: loss(z, labels, **options)), logits)
        (gradient,) = pull(jnp.ones_like(losses))
        np.testing.assert_array_equal(losses[3], 0 if defined else NAN)
        np.testing.assert_array_equal(np.isnan(gradient[3]), not defined)
        assert not defined or not np.asarray(gradient[3]).any()
        assert np.isfinite(np.delete(losses, 3)).all() and np.isfinite(np.delete(gradient, 3, 0)).all()


def test_no_rows():
    found = run(jnp.zeros((0, 1000)), jnp.zeros(0, jnp.int32), axis=1)
    assert all(field.shape == (0,) for field in found)


@pytest.mark.covering(1, at_most=4)
@pytest.mark.parametrize("option", ["plain", "where", "class_weights"])
@pytest.mark.parametrize("used", statistics.USED)
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((9, 7), 1), ((9, 1001), 1), ((2, 6, 4), 1), ((5, 1), 1)], ids=str)
def test_gradient(shape, axis, dtype, kind, used, option, rng, x64):
    logits, labels = cases.make_logits(rng, shape, jnp.dtype(dtype)), make_labels(kind, rng, shape, axis)
    where = rng.random(shape) < 0.7 if option == "where" else None
    class_weights = rng.uniform(0, 2, shape[axis]).astype(np.float32) if option == "class_weights" else None
    if where is not None:  # in each row some class takes part, because a row without classes has no gradient
        where |= where.sum(axis, keepdims=True) == 0
        if kind == "soft":
            labels = labels * where
        else:
            at = np.expand_dims(np.clip(labels, 0, shape[axis] - 1), axis)
            np.put_along_axis(where, at, True, axis)
    working = statistics.working_dtype(logits.dtype)
    stats = statistics.by_definition(logits, labels, where=where, class_weights=class_weights, axis=axis)
    rows = np.moveaxis(logits, axis, -1).shape[:-1]
    cotangents = statistics.make_cotangents(rng, statistics.USED[used], rows, shape[axis], working)
    found = run_vjp(cotangents, logits, labels, where, class_weights, stats, axis=axis)
    assert found.dtype == logits.dtype
    z, y, mask = (np.moveaxis(x, axis, -1) if np.ndim(x) == len(shape) else x for x in (logits, labels, where))
    want = statistics.exact_gradient(cotangents, z, y, where=mask, class_weights=class_weights)
    assert_within(np.moveaxis(np.asarray(found), axis, -1), want, 8, working=working)
    wide = jnp.asarray(logits).astype(working)
    wide = wide if where is None else jnp.where(where, wide, -INF)
    defined = definition.logits_vjp(cotangents, wide, jnp.asarray(labels), class_weights, stats, axis=axis)
    assert_within(np.moveaxis(np.asarray(defined), axis, -1), want, 8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_gradient_of_rows_of_special_numbers(dtype, rng):
    """A row without a loss has a NaN cotangent, and a NaN in its gradient. The other rows are correct."""
    logits = statistics.special_rows(rng, 1000, jnp.dtype(dtype))
    labels = np.full(len(logits), 8, np.int32)
    stats = statistics.by_definition(logits, labels)
    is_defined = np.isfinite(np.asarray(stats.label_nll)) & np.isfinite(np.asarray(stats.max_logit))
    cotangent = np.where(is_defined, 1.5, NAN).astype(np.float32)
    found = np.asarray(run_vjp(Derivatives(label_nll=cotangent), logits, labels, None, None, stats, axis=1), np.float32)
    assert np.isnan(found[~is_defined]).any(1).all()
    want = statistics.exact_gradient(Derivatives(label_nll=cotangent), logits, labels)
    narrowed = np.asarray(found[is_defined], jnp.dtype(dtype))
    assert_within(narrowed, oracle.Quantity(*(x[is_defined] for x in want)), 8, working="float32")


def bits(values):
    """Return the bits of bfloat16 values, with the same bits for every NaN."""
    values = np.asarray(values)
    return np.where(np.isnan(values.astype(np.float32)), 0x7FC0, values.view(np.uint16))


def test_float32_is_rounded_to_the_nearest_bfloat16():
    """Check every bfloat16 value, and float32 values next to it and next to the midpoint. Ties go to even. Large values go to infinity."""
    ends = np.uint32([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    values = (np.arange(2**16, dtype=np.uint32)[:, None] << 16 | ends).view(np.float32)
    # XLA for CPU flushes subnormal numbers to 0.
    values = np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)
    with np.errstate(invalid="ignore", over="ignore"):
        want = values.astype(jnp.bfloat16)
    found = jax.jit(lambda x: cpu.rounded(x, jnp.dtype("bfloat16")))(values)
    np.testing.assert_array_equal(bits(found), bits(want))


@pytest.mark.parametrize(("dtype", "to"), [("float32", "float16"), ("float64", "bfloat16"), ("float32", "float32")])
def test_other_dtypes_are_rounded_like_astype(dtype, to, rng, x64):
    values = (10 ** rng.uniform(-5, 5, 1000)).astype(dtype)
    with np.errstate(over="ignore"):
        want = values.astype(jnp.dtype(to))
    found = jax.jit(lambda x: cpu.rounded(x, jnp.dtype(to)))(values)
    assert found.dtype == want.dtype
    np.testing.assert_array_equal(np.asarray(found), want)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("dtype", cases.INTEGER_DTYPES)
def test_labels_of_every_dtype_have_the_same_gradient(dtype, rng, x64):
    """Also labels that other code computes in the same program. XLA for CPU (jax 0.10) has aborted on some gradients of int16 labels."""
    logits, tokens = cases.make_logits(rng, (40, 1000), np.float32), rng.integers(0, 100, 41).astype(np.int64)
    assert cpu.suits(logits)

    @jax.jit
    def gradient(z, tokens):
        return jax.grad(lambda z: jaxce.softmax_cross_entropy_with_integer_labels(z, tokens[1:]).sum())(z)

    np.testing.assert_array_equal(gradient(logits, tokens.astype(dtype)), gradient(logits, tokens))


def sigmoid_source(names, dtype, rng, shape=(6, 50)):
    logits, labels = cases.make_logits(rng, shape, jnp.dtype(dtype)), cases.SIGMOID.make_labels(rng, shape, -1)
    options = cases.make_options(rng, names, cases.SIGMOID, shape, labels)
    return logits, labels, options


def as_arguments(logits, labels, options):
    weight = options.get("pos_weight")
    weight = None if weight is None else weight[None]  # checked arguments have the rank of the logits
    return sigmoid.Arguments(logits, labels, options.get("mask"), options.get("label_smoothing"), weight)


@pytest.mark.covering(1, at_most=3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", cases.SIGMOID_OPTION_SETS, ids=cases.name_of)
def test_sigmoid_losses_and_gradient(names, dtype, rng, x64):
    logits, labels, options = sigmoid_source(names, dtype, rng)
    arguments, working = as_arguments(logits, labels, options), statistics.working_dtype(logits.dtype)
    cotangent = rng.uniform(-2, 2, logits.shape).astype(working)
    answer = oracle.sigmoid(logits, labels, cotangent=cotangent, **options)
    mask = options.get("mask", np.ones(logits.shape, bool))
    found, gradient = jax.jit(lambda args, ct: (cpu.sigmoid_losses(args), cpu.sigmoid_vjp(ct, args)))(
        jax.tree.map(jnp.asarray, arguments), cotangent
    )
    assert found.dtype == working
    assert gradient.dtype == logits.dtype
    x, yes, no = sigmoid.logits_and_weights(jax.tree.map(jnp.asarray, arguments))
    for losses in (found, sigmoid.losses(x, yes, no)):
        assert_within(np.where(mask, losses, 0), answer.loss, 6)
    for derivative in (gradient, cotangent * sigmoid.derivative(x, yes, no)):
        assert_within(np.where(mask, derivative, 0), answer.logits, 6, working=working)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_sigmoid_losses_of_special_numbers(dtype, x64):
    """At infinity the losses are the limits. A NaN logit gives NaN. The largest number is a logit like any other."""
    largest = float(jnp.finfo(dtype).max)
    x = np.asarray([[INF, -INF, NAN, largest, -largest, 0, 30, -30]] * 3, jnp.dtype(dtype))
    y = np.broadcast_to(np.float32([[0], [1], [0.25]]), x.shape)
    found = jax.jit(cpu.sigmoid_losses)(sigmoid.Arguments(x, y))
    logits = x.astype(np.longdouble)
    with np.errstate(over="ignore", invalid="ignore"):
        pairs = ((y, np.logaddexp(0, -logits)), (1 - y, np.logaddexp(0, logits)))
        want = sum(np.where(weight == 0, 0, weight * nll) for weight, nll in pairs)
    want = np.where(np.isnan(logits), NAN, want)
    assert_within(found, (want, abs(want)), 6)


@on_small_memory
@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("option", ["plain", "mask", "label_smoothing", "z_loss"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradient_store_nothing_as_large_as_the_logits(dtype, option):
    """By the memory analysis of the compiler, there is no float32 copy of narrow logits, no array of exponentials and no second gradient."""
    rows, num_classes = 64, 32768

    def mean(logits, labels):
        options = {"mask": {"mask": labels != 0}, "label_smoothing": {option: 0.1}, "z_loss": {option: 1e-4}}
        return jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, **options.get(option, {})).mean()

    args = jax.ShapeDtypeStruct((rows, num_classes), dtype), jax.ShapeDtypeStruct((rows,), "int32")
    compiled = jax.jit(jax.value_and_grad(mean)).lower(*args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= rows * num_classes * 4 / 16


@on_small_memory
@pytest.mark.covering(2)
@pytest.mark.parametrize("has_narrow_labels", [False, True])
@pytest.mark.parametrize("option", ["plain", "label_smoothing", "pos_weight", "labels made on the way"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sigmoid_loss_and_gradient_store_at_most_computed_labels(dtype, option, has_narrow_labels):
    rows, num_classes = 64, 8192
    labels_dtype = "bfloat16" if has_narrow_labels else "float32"

    def mean(logits, labels):
        options = {"label_smoothing": {option: 0.1}, "pos_weight": {option: jnp.arange(num_classes)}}
        if labels.ndim == 1:
            labels = jax.nn.one_hot(labels, num_classes, dtype=labels_dtype)
        return jaxce.sigmoid_binary_cross_entropy(logits, labels, **options.get(option, {})).mean()

    is_computed = option == "labels made on the way"
    dense_labels = jax.ShapeDtypeStruct((rows, num_classes), labels_dtype)
    labels = jax.ShapeDtypeStruct((rows,), "int32") if is_computed else dense_labels
    logits = jax.ShapeDtypeStruct((rows, num_classes), dtype)
    compiled = jax.jit(jax.value_and_grad(mean)).lower(logits, labels).compile()
    size = rows * num_classes * jnp.dtype(labels_dtype).itemsize
    assert compiled.memory_analysis().temp_size_in_bytes <= is_computed * size + size / 16


@on_small_memory
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_soft_labels_are_not_copied_to_a_wide_dtype(dtype):
    rows, num_classes = 64, 8192
    args = [jax.ShapeDtypeStruct((rows, num_classes), dtype), jax.ShapeDtypeStruct((rows, num_classes), "bfloat16")]

    def mean(logits, labels):
        return jaxce.softmax_cross_entropy(logits, labels, label_smoothing=0.1).mean()

    compiled = jax.jit(jax.value_and_grad(mean)).lower(*args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= rows * num_classes * 4 / 16
