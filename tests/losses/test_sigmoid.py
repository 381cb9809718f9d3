"""The sigmoid loss agrees with the oracle: values and every gradient, for every shape, option and dtype."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import sigmoid_binary_cross_entropy
from tests.support import cases, oracle
from tests.support.cases import SIGMOID
from tests.support.closeness import assert_within
from tests.support.dense import SIGMOID_ULPS, check_sigmoid


@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (5, 3), (0, 4), (2, 3, 4), (2, 3, 5, 4)], ids=str)
def test_any_shape(shape, rng):
    check_sigmoid(np.asarray(cases.make_logits(rng, shape)), np.asarray(SIGMOID.make_labels(rng, shape, 0)), rng)


@pytest.mark.parametrize("names", cases.SIGMOID_OPTION_SETS, ids=cases.name_of)
def test_options_and_their_combinations(names, rng):
    shape = (5, 7)
    logits, labels = cases.make_logits(rng, shape), SIGMOID.make_labels(rng, shape, -1)
    check_sigmoid(logits, labels, rng, **cases.make_options(rng, names, SIGMOID, shape, labels))


@pytest.mark.parametrize("names", [(), cases.SIGMOID_OPTIONS], ids=cases.name_of)
def test_float64_keeps_float64(names, rng, x64):
    logits, labels = cases.make_logits(rng, (4, 6), np.float64), SIGMOID.make_labels(rng, (4, 6), -1).astype(np.float64)
    check_sigmoid(logits, labels, rng, **cases.make_options(rng, names, SIGMOID, (4, 6), labels))


@pytest.mark.covering(1)
@pytest.mark.parametrize("names", [(), cases.SIGMOID_OPTIONS], ids=cases.name_of)
@pytest.mark.parametrize("dtype", [d for d in cases.DTYPES if d.id != "float64"])
def test_works_in_float32_and_returns_gradients_in_the_dtype_of_the_logits(names, dtype, rng):
    logits, labels = cases.make_logits(rng, (4, 6), dtype), SIGMOID.make_labels(rng, (4, 6), -1)
    check_sigmoid(logits, labels, rng, **cases.make_options(rng, names, SIGMOID, (4, 6), labels))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.float16, jnp.bfloat16])
def test_labels_of_any_real_dtype(dtype, rng):
    logits, labels = cases.make_logits(rng, (4, 6)), rng.integers(0, 2, (4, 6)).astype(dtype)
    assert_within(sigmoid_binary_cross_entropy(logits, labels), oracle.sigmoid(logits, labels).loss, SIGMOID_ULPS)


@pytest.mark.parametrize("label", [0.0, 1e-8, 0.3, 1.0])
def test_hard_logits_keep_every_digit(label, rng):
    sizes = np.float32(10.0) ** np.linspace(-30, 4, 35, dtype=np.float32)
    logits = np.concatenate([sizes, -sizes, np.float32([0, -0.0, 88.7, -88.7, 3e38, -3e38])])
    check_sigmoid(logits, np.full_like(logits, label), rng)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 4), (3, 1), (1, 1), (2, 3, 4), (2, 1, 4)], ids=str)
def test_pos_weight_is_a_scalar_or_fits_the_last_axes(shape, rng):
    logits, labels = cases.make_logits(rng, (2, 3, 4)), SIGMOID.make_labels(rng, (2, 3, 4), -1)
    check_sigmoid(logits, labels, rng, pos_weight=np.asarray(rng.uniform(0.25, 4, shape).astype(np.float32)))


@pytest.mark.parametrize("smoothing", [0, 1e-8, 0.5, 1.0])
def test_label_smoothing_from_none_to_all(smoothing):
    # A smoothing that is lost in `1 - s` still changes the loss of a confident correct prediction.
    logits, labels = np.float32([[-30, 0, 30], [5, -5, 2]]), np.float32([[0, 1, 1], [1, 0, 0.5]])
    values = sigmoid_binary_cross_entropy(logits, labels, label_smoothing=smoothing)
    assert_within(values, oracle.sigmoid(logits, labels, label_smoothing=np.float32(smoothing)).loss, SIGMOID_ULPS)


def test_loss_beyond_the_largest_number_is_infinite():
    values = sigmoid_binary_cross_entropy(np.float32([-3e38, 3e38, -3e38]), np.float32([1, 1, 0]), pos_weight=3.0)
    np.testing.assert_array_equal(values, [np.inf, 0, 0])
