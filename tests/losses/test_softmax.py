"""The two softmax losses agree with the oracle: values and every gradient, for every shape, option and dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import cases
from tests.support.cases import INTEGER, SOFT
from tests.support.closeness import assert_within
from tests.support.dense import SOFTMAX_ULPS, check_softmax


@pytest.mark.covering(1, at_most=6)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize(("shape", "axis"), cases.SHAPES_AND_AXES)
def test_any_shape_and_class_axis(loss, shape, axis, rng):
    logits, labels = cases.make_logits(rng, shape), loss.make_labels(rng, shape, axis)
    check_softmax(loss, logits, labels, rng, axis)


@pytest.mark.covering(1, at_most=5)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("names", cases.SOFTMAX_OPTION_SETS, ids=cases.name_of)
@pytest.mark.parametrize(("shape", "axis"), [((6, 11), -1), ((2, 5, 4), 1)])
def test_options_and_their_combinations(loss, names, shape, axis, rng):
    logits, labels = cases.make_logits(rng, shape), loss.make_labels(rng, shape, axis)
    check_softmax(loss, logits, labels, rng, axis, **cases.make_options(rng, names, loss, shape, labels, axis))


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("names", [(), cases.SOFTMAX_OPTIONS], ids=cases.name_of)
def test_float64_keeps_float64(loss, names, rng, x64):
    shape = (5, 9)
    logits, labels = cases.make_logits(rng, shape, np.float64), loss.make_labels(rng, shape, -1)
    check_softmax(loss, logits, labels, rng, **cases.make_options(rng, names, loss, shape, labels))


@pytest.mark.covering(1, at_most=3)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("names", [(), cases.SOFTMAX_OPTIONS], ids=cases.name_of)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_works_in_float32_and_returns_gradients_in_the_dtype_of_the_logits(loss, names, dtype, rng):
    if dtype == jnp.float64:
        pytest.skip("tested with float64 enabled")
    shape = (6, 13)
    logits, labels = cases.make_logits(rng, shape, dtype), loss.make_labels(rng, shape, -1)
    check_softmax(loss, logits, labels, rng, **cases.make_options(rng, names, loss, shape, labels))


@pytest.mark.covering(1, at_most=6)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("hard", cases.HARD_LOGITS)
def test_hard_logits(loss, hard, rng):
    logits = cases.HARD_LOGITS[hard](rng)
    for label in range(0, logits.shape[1], 2):
        labels = np.full(logits.shape[:1], label, np.int32)
        if loss is SOFT:
            labels = np.eye(logits.shape[1], dtype=np.float32)[labels]
        values = loss.function(logits, labels)
        gradient = jax.grad(lambda z, labels=labels: loss.function(z, labels).sum())(logits)
        answer = loss.oracle(logits, labels)
        assert_within(values, answer.loss, SOFTMAX_ULPS)
        assert_within(gradient, answer.logits, SOFTMAX_ULPS)


@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_small_probability_keeps_its_digits_at_a_maximal_class(loss):
    """With 1000 equal logits, every class is a maximal class, and `p - q` is 1 / 1000 for every class except the label."""
    logits, labels = np.zeros((1, 1000), np.float32), np.int32([7])
    if loss is SOFT:
        labels = np.eye(1000, dtype=np.float32)[labels]
    gradient = jax.grad(lambda z: loss.function(z, labels).sum())(logits)
    expected = np.full((1, 1000), 1 / 1000)
    expected[0, 7] -= 1
    assert_within(gradient, expected, 2)


def test_class_probabilities_with_most_of_the_label_at_the_largest_logit():
    """The gradient has another formula for this class (`is_certain` in the definition), but its label probability is less than 1."""
    logits, labels = np.float32([[3, 1, 0, -1], [0, 0, 9, 1]]), np.float32([[0.75, 0.25, 0, 0], [0, 0.125, 0.875, 0]])
    gradient = jax.grad(lambda z: SOFT.function(z, labels).sum())(logits)
    assert_within(gradient, SOFT.oracle(logits, labels).logits, 4)


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", cases.INTEGER_DTYPES)
@pytest.mark.parametrize("names", [(), ("class_weights",), ("mask", "label_smoothing")], ids=cases.name_of)
def test_labels_of_any_integer_dtype(dtype, names, rng, x64):
    # More classes than an 8-bit label can represent.
    shape = (5, 300)
    logits, labels = cases.make_logits(rng, shape), np.array([0, 1, 2, 126, 127]).astype(dtype)
    check_softmax(INTEGER, logits, labels, rng, **cases.make_options(rng, names, INTEGER, shape, labels))


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.int32, np.float16, jnp.bfloat16, np.float32])
def test_class_probabilities_of_any_real_dtype(dtype, rng):
    logits, labels = cases.make_logits(rng, (4, 6)), rng.integers(0, 2, (4, 6)).astype(dtype)
    assert_within(SOFT.function(logits, labels), SOFT.oracle(logits, labels).loss, SOFTMAX_ULPS)


def test_class_probabilities_need_not_sum_to_one(rng):
    check_softmax(SOFT, cases.make_logits(rng, (6, 5)), rng.uniform(0, 3, (6, 5)).astype(np.float32), rng)


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.covering(1)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("shape", [(1, 5), (4, 1), (1, 1), (4, 5)])
def test_where_broadcasts_to_the_logits(loss, shape, rng):
    logits, labels = cases.make_logits(rng, (4, 5)), loss.make_labels(rng, (4, 5), -1)
    where = np.ones(shape, bool)
    if shape[1] == 5:
        where[:, 3] = False
        labels = np.full(4, 2, np.int32) if loss is INTEGER else labels * where
    check_softmax(loss, logits, labels, rng, where=where)


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.covering(1)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("smoothing", [0, 0.0, 1e-6, 0.5, 1, 1.0])
def test_label_smoothing_from_none_to_all(loss, smoothing, rng):
    logits, labels = cases.make_logits(rng, (4, 5)), loss.make_labels(rng, (4, 5), -1)
    values = loss.function(logits, labels, label_smoothing=smoothing)
    assert_within(values, loss.oracle(logits, labels, label_smoothing=np.float32(smoothing)).loss, SOFTMAX_ULPS)


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.covering(1)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("weight", [0, 1, 1e-4, 2.0])
def test_z_loss_of_any_weight(loss, weight, rng):
    logits, labels = cases.make_logits(rng, (4, 5)) + np.float32(9), loss.make_labels(rng, (4, 5), -1)
    values = loss.function(logits, labels, z_loss=weight)
    assert_within(values, loss.oracle(logits, labels, z_loss=np.float32(weight)).loss, SOFTMAX_ULPS)


@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_class_weights_of_integers_and_of_zero(loss, rng):
    logits, labels = cases.make_logits(rng, (6, 3)), loss.make_labels(rng, (6, 3), -1)
    weights = np.array([2, 0, 3])
    values = loss.function(logits, labels, class_weights=weights, label_smoothing=0.25)
    assert_within(values, loss.oracle(logits, labels, class_weights=weights, label_smoothing=0.25).loss, SOFTMAX_ULPS)


@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_a_constant_added_to_every_logit_changes_nothing(loss, rng):
    # Multiples of 1/64 stay exact under the shift, so the results must be bitwise equal.
    logits = (rng.integers(-300, 300, (6, 5)) / 64).astype(np.float32)
    labels = loss.make_labels(rng, (6, 5), -1)
    options = {"label_smoothing": 0.1, "class_weights": rng.uniform(0.5, 2, 5).astype(np.float32)}
    np.testing.assert_array_equal(
        loss.function(logits + np.float32(4096), labels, **options), loss.function(logits, labels, **options)
    )


@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_loss_of_a_single_class_is_exactly_zero(loss):
    logits = np.float32([[0.0], [5.0], [-1e30], [3e38]])
    labels = np.zeros(4, np.int32) if loss is INTEGER else np.ones((4, 1), np.float32)
    values, gradient = jax.value_and_grad(lambda z: loss.function(z, labels).sum())(logits)
    assert values == 0
    np.testing.assert_array_equal(gradient, np.zeros((4, 1)))


@pytest.mark.usefixtures("fast_compilation")
def test_arrays_and_scalars_of_numpy_and_jax_are_accepted(rng):
    logits, labels = cases.make_logits(rng, (3, 4)), INTEGER.make_labels(rng, (3, 4), -1)
    expected = INTEGER.oracle(logits, labels, label_smoothing=0.25, z_loss=0.5).loss
    for array in (np.asarray, jnp.asarray):
        for number in (float, np.float32, np.asarray, jnp.float32, lambda v: jnp.asarray(v, jnp.bfloat16)):
            values = INTEGER.function(array(logits), array(labels), label_smoothing=number(0.25), z_loss=number(0.5))
            assert_within(values, expected, SOFTMAX_ULPS)
