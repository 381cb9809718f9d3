"""Rows that are cut into parts on a CPU: the same sums as those that are not, whatever ties or is missing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxce
from jaxce import _reductions as reductions
from tests.support import cases
from tests.support.closeness import assert_within
from tests.support.dense import check_softmax

DTYPES = ["float32", "float64", "bfloat16", "float16"]


@pytest.fixture
def short_parts(monkeypatch):
    """Even a row of four classes is cut, into parts of two if it can be."""
    monkeypatch.setattr(reductions, "_SHORT", 4)
    monkeypatch.setattr(reductions, "_SIZES", [2, 3, 5, 7])
    jax.clear_caches()
    yield
    jax.clear_caches()


def expected_rest(rows):
    """`sum_k exp(z_k - max z)` over all but one maximal class, added up from the smallest, in extended precision."""
    rows = np.asarray(rows).astype(np.longdouble)
    below = np.sort(rows - rows.max(-1, keepdims=True), -1)[..., :-1]
    return np.sum(np.exp(below), -1)


def shift_and_rest(logits):
    return reductions.shift_and_rest(logits, None, logits.ndim - 1)


# Few different values, so that classes tie, in one part and in several; margins at which exp is tiny, and one at which it is all but 1.
VALUES = st.sampled_from([0.0, -1e-37, 0.5, 1.0, 3.0, -2.0, -30.0, -80.0, 1e4, -np.inf])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_row_in_parts_is_summed_without_one_maximal_class(data):
    size, parts = data.draw(st.sampled_from([(2, 2), (2, 3), (3, 3), (5, 2)]))
    dtype = data.draw(st.sampled_from(["float32", "bfloat16"]))
    row = data.draw(st.lists(VALUES, min_size=size * parts, max_size=size * parts).filter(lambda r: max(r) > -np.inf))
    logits = jnp.asarray(row, dtype)
    got_shift, got = in_parts(parts)(logits[None])
    assert got_shift[0] == max(np.asarray(logits, np.float64))
    assert_within(got[0], expected_rest(logits.astype(jnp.float32)), 4)


def test_a_logit_all_but_maximal_counts_once(x64):
    """Below the maximum by so little that its difference is subnormal, or would be in float32."""
    for below in (1e-40, 1e-300, 5e-324):
        logits = jnp.array([[-below, -50, 0, -60], [0, -50, -60, -below]])
        _, rest = in_parts(2)(logits)
        assert_within(rest, 1 + np.exp(-50.0) * np.ones(2), 4, working="float64")


@functools.cache
def in_parts(parts):
    return jax.jit(lambda logits: reductions._of_parts(logits, parts))


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [1000, 1001, 2048, 50257, 50021])
def test_real_sizes(dtype, num_classes, rng, x64):
    logits = (4 * rng.standard_normal((2, 3, num_classes))).astype(jnp.dtype(dtype))
    logits[0, 0, 5] = logits[0, 0, 6] = logits[0, 0, -1] = 20  # ties, near and far
    logits[0, 1, -1] = 60  # a tiny sum
    shift, rest = jax.jit(shift_and_rest)(jnp.asarray(logits))
    assert rest.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_array_equal(np.asarray(shift, np.float64), logits.max(-1).astype(np.float64))
    assert_within(rest, expected_rest(logits.astype(rest.dtype)), 4 if num_classes < 3000 else 12)


@pytest.mark.covering(1)
@pytest.mark.parametrize("shape", [(0, 1000), (0, 3, 2048), (3, 0, 1000), (2048,)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_rows_and_a_single_one(dtype, shape, rng):
    logits, labels = jnp.asarray(rng.standard_normal(shape), dtype), jnp.zeros(shape[:-1], jnp.int32)
    losses, pull = jax.vjp(lambda z: jaxce.softmax_cross_entropy_with_integer_labels(z, labels), logits)
    z = np.asarray(logits, np.float64)
    assert_within(losses, np.log(np.exp(z).sum(-1)) - z[..., 0], 8)
    assert pull(losses)[0].shape == shape


def test_infinities_and_nan(short_parts):
    nan, inf = np.nan, np.inf
    rows = jnp.asarray(
        [[inf, 0, 1, 2], [-inf] * 4, [0, nan, 0, 0], [0, 0, nan, 1], [inf, 0, inf, 0], [0, -inf, -inf, -inf]]
    )
    for dtype in ("float32", "bfloat16"):
        shift, rest = jax.jit(shift_and_rest)(rows.astype(dtype))
        np.testing.assert_array_equal(shift, [inf, -inf, nan, nan, inf, 0])
        np.testing.assert_array_equal(rest[jnp.array([0, 1, 2, 3, 5])], [0, 0, nan, nan, 0])
        assert rest[4] > 0  # two of them: a loss that is not 0, and so not defined


@pytest.mark.covering(2)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize(
    "names",
    [(), ("where",), ("label_smoothing",), ("mask", "label_smoothing", "class_weights", "z_loss")],
    ids=cases.name_of,
)
@pytest.mark.parametrize(("shape", "axis"), [((4, 10), -1), ((2, 3, 6), 2), ((2, 6, 4), 1), ((6, 4), 0)], ids=str)
def test_losses_of_rows_that_could_be_cut(loss, names, shape, axis, rng, short_parts):
    logits, labels = cases.make_logits(rng, shape), loss.make_labels(rng, shape, axis)
    check_softmax(loss, logits, labels, rng, axis, **cases.make_options(rng, names, loss, shape, labels, axis))


@pytest.mark.parametrize("size", [12, 13, 50257])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_narrow_logits_of_labels(dtype, size, rng, short_parts):
    logits = jnp.asarray(rng.standard_normal((5, size)), dtype)
    labels = jnp.asarray([0, size - 1, size // 2, 6, 3])
    picked = jax.jit(lambda z, y: reductions.pick(z, None, y, 1))(logits, labels)
    np.testing.assert_array_equal(picked, np.asarray(logits.astype("float32"))[np.arange(5), labels])


@pytest.mark.parametrize(
    ("num_classes", "parts"), [(10, 1), (999, 1), (1000, 8), (32768, 256), (50257, 29), (50021, 1), (128256, 1002)]
)
def test_how_rows_are_cut(num_classes, parts):
    logits = jax.ShapeDtypeStruct((4, num_classes), "float32")
    assert jax.eval_shape(lambda z: jnp.zeros(reductions._parts(z, None, 1)), logits).shape == (parts,)
    for shape, axis, where in ((num_classes, 4), 0, None), ((4, num_classes), 1, jnp.ones((1, num_classes), bool)):
        logits = jax.ShapeDtypeStruct(shape, "float32")
        parts = jax.eval_shape(lambda z, a=axis, w=where: jnp.zeros(reductions._parts(z, w, a)), logits).shape
        assert parts == (1,)


@pytest.mark.covering(1)
@pytest.mark.parametrize("option", ["plain", "mask", "label_smoothing", "z_loss"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradient_hold_nothing_as_large_as_the_logits(dtype, option):
    """By the compiler's figure: no float32 copy of narrow logits, no exponentials, no second gradient."""
    rows, num_classes = 64, 32768

    def mean(logits, labels):
        options = {"mask": {"mask": labels != 0}, "label_smoothing": {option: 0.1}, "z_loss": {option: 1e-4}}
        return jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, **options.get(option, {})).mean()

    args = jax.ShapeDtypeStruct((rows, num_classes), dtype), jax.ShapeDtypeStruct((rows,), "int32")
    compiled = jax.jit(jax.value_and_grad(mean)).lower(*args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= rows * num_classes * 4 / 16


@pytest.mark.covering(2)
@pytest.mark.parametrize("of_narrow_labels", [False, True])
@pytest.mark.parametrize("option", ["plain", "label_smoothing", "pos_weight", "labels made on the way"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sigmoid_loss_and_gradient_hold_no_more_than_labels_made_on_the_way(dtype, option, of_narrow_labels):
    rows, num_classes = 64, 8192
    of_labels = "bfloat16" if of_narrow_labels else "float32"

    def mean(logits, labels):
        options = {"label_smoothing": {option: 0.1}, "pos_weight": {option: jnp.arange(num_classes)}}
        if labels.ndim == 1:
            labels = jax.nn.one_hot(labels, num_classes, dtype=of_labels)
        return jaxce.sigmoid_binary_cross_entropy(logits, labels, **options.get(option, {})).mean()

    made = option == "labels made on the way"
    labels = jax.ShapeDtypeStruct((rows,), "int32") if made else jax.ShapeDtypeStruct((rows, num_classes), of_labels)
    compiled = (
        jax.jit(jax.value_and_grad(mean)).lower(jax.ShapeDtypeStruct((rows, num_classes), dtype), labels).compile()
    )
    size = rows * num_classes * jnp.dtype(of_labels).itemsize
    assert compiled.memory_analysis().temp_size_in_bytes <= made * size + size / 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_soft_labels_of_few_bits_are_not_copied_to_more(dtype):
    rows, num_classes = 64, 8192
    args = [jax.ShapeDtypeStruct((rows, num_classes), dtype), jax.ShapeDtypeStruct((rows, num_classes), "bfloat16")]
    loss = lambda logits, labels: jaxce.softmax_cross_entropy(logits, labels, label_smoothing=0.1).mean()  # noqa: E731
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= rows * num_classes * 4 / 16
