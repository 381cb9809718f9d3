"""NaN and infinities in large arrays. XLA for CPU compiles other loops for these, and a maximum in these loops may lose a NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from jaxce import keras
from tests.support import covering

ROWS, ROW = 400, 3  # enough rows that even 100 classes use the forms for a CPU
INTEGER, SOFT, SIGMOID = (
    jaxce.softmax_cross_entropy_with_integer_labels,
    jaxce.softmax_cross_entropy,
    jaxce.sigmoid_binary_cross_entropy,
)


def integer(**options):
    return lambda z: INTEGER(z, np.arange(ROWS) % z.shape[1], **options)


def soft(**options):
    return lambda z: SOFT(z, jnp.full(z.shape, 1 / z.shape[1], z.dtype), **options)


def weighted(make_loss, **options):
    return lambda z: make_loss(class_weights=np.linspace(1, 2, z.shape[1], dtype=np.float32), **options)(z)


def with_where(make_loss):
    """Leave out the last two classes. Neither of them has the NaN."""
    return lambda z: make_loss(where=np.arange(z.shape[1])[None] < z.shape[1] - 2)(z)


def _linear(loss):
    """Return the loss of a linear layer as a function of `hidden`, which has the NaN."""
    return lambda h: loss(h, jnp.eye(h.shape[1], dtype=h.dtype), np.arange(ROWS) % h.shape[1])


LOSSES = {
    "integer": integer(),
    "integer, smoothing and z-loss": integer(label_smoothing=0.1, z_loss=1e-3),
    "integer, class weights": weighted(integer, label_smoothing=0.1),
    "integer, classes left out": with_where(integer),
    "soft": soft(),
    "soft, smoothing": soft(label_smoothing=0.1),
    "soft, class weights": weighted(soft),
    "soft, classes left out": with_where(soft),
    "sigmoid": lambda z: SIGMOID(z, jnp.full(z.shape, 0.25, z.dtype), label_smoothing=0.1).sum(1),
    "sigmoid, pos_weight": lambda z: SIGMOID(z, jnp.ones(z.shape, z.dtype), pos_weight=2.0).sum(1),
    "linear": _linear(jaxce.linear_softmax_cross_entropy),
    "keras sparse": lambda z: keras.losses.sparse_categorical_crossentropy(
        np.arange(ROWS) % z.shape[1], z, from_logits=True
    ),
    "keras categorical": lambda z: keras.losses.categorical_crossentropy(
        jnp.full(z.shape, 1 / z.shape[1], z.dtype), z, from_logits=True
    ),
    "keras categorical of probabilities": lambda z: keras.losses.categorical_crossentropy(
        jnp.full(z.shape, 1 / z.shape[1], z.dtype), jnp.abs(z)
    ),
    "keras binary": lambda z: keras.losses.binary_crossentropy(jnp.ones(z.shape, z.dtype), z, from_logits=True),
    "keras binary of probabilities": lambda z: keras.losses.binary_crossentropy(jnp.ones(z.shape, z.dtype), jnp.abs(z)),
}


QUICK = ["integer", "integer, classes left out", "soft, class weights", "sigmoid", "linear", "keras sparse"]


@pytest.mark.covering(1, at_most=3)
@pytest.mark.parametrize(("classes", "dtype"), [(100, "float32"), (2000, "float32"), (2000, "bfloat16")])
@pytest.mark.parametrize("name", covering.quick([(name,) for name in LOSSES], [(name,) for name in QUICK]))
def test_nan_reaches_only_the_loss_and_the_gradient_of_its_row(rng, name, classes, dtype):
    z = np.asarray(rng.uniform(0.1, 0.9, (ROWS, classes)), jnp.dtype(dtype))
    is_row = np.arange(ROWS) == ROW
    mean = jax.jit(lambda z: LOSSES[name](z).mean())
    for place in (0, classes - 3):
        z_nan = z.copy()
        z_nan[ROW, place] = np.nan
        value, pull = jax.vjp(jax.jit(LOSSES[name]), z_nan)
        np.testing.assert_array_equal(np.isnan(value), is_row)
        (gradient,) = pull(jnp.ones_like(value))
        np.testing.assert_array_equal(np.isnan(gradient).any(1), is_row)
        assert np.isnan(float(mean(z_nan)))


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("classes", "place"), [(100, 7), (100, 99), (2000, 7), (2000, 1999)])
@pytest.mark.parametrize("where", [None, np.ones((1, 1), bool)], ids=["", "where"])
def test_statistics_of_a_row_with_a_nan(rng, where, classes, place, dtype):
    z = np.asarray(rng.standard_normal((ROWS, classes)), jnp.dtype(dtype))
    z[ROW, place] = np.nan
    stats = jax.jit(jaxce.logit_stats)(z, np.zeros(ROWS, np.int32), where=where)
    for name in ("max_logit", "sum_exp_rest", "label_nll", "uniform_nll", "weight_sum", "nll", "log_z"):
        np.testing.assert_array_equal(np.isnan(getattr(stats, name)), np.arange(ROWS) == ROW, err_msg=name)
    np.testing.assert_array_equal(stats.num_classes, np.where(np.arange(ROWS) == ROW, 0, classes))
    assert not stats.correct[ROW]


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [100, 2000])
@pytest.mark.parametrize("places", [[5], [5, 6], [5, -1], [5, 6, 30, -2, -1]], ids=str)
def test_sum_exp_rest_tells_one_infinity_from_several(rng, places, classes, dtype):
    """`sum_exp_rest` is the number of infinities minus one; in long rows it may be smaller, but it is at least one if there are several.

    In a row that also has a NaN, it is NaN.
    """
    z = np.asarray(rng.standard_normal((ROWS, classes)), jnp.dtype(dtype))
    z[[ROW, ROW + 1], np.array(places)[:, None]] = np.inf
    z[ROW + 1, 7] = np.nan
    stats = jax.jit(jaxce.logit_stats)(z, np.zeros(ROWS, np.int32))
    assert stats.max_logit[ROW] == np.inf
    assert stats.sum_exp_rest[ROW] == len(places) - 1 or (classes > 100 and 1 <= stats.sum_exp_rest[ROW] < len(places))
    np.testing.assert_array_equal(np.isnan(stats.sum_exp_rest), np.arange(ROWS) == ROW + 1)


def test_masked_nan_reaches_no_value_and_no_gradient(rng):
    z = rng.standard_normal((ROWS, 2000)).astype(np.float32)
    z[ROW] = np.nan
    mask = np.arange(ROWS) != ROW
    for losses in (integer(mask=mask), soft(mask=mask, label_smoothing=0.1)):
        value, pull = jax.vjp(jax.jit(losses), z)
        (gradient,) = pull(jnp.ones_like(value))
        assert np.isfinite(value).all() and np.isfinite(gradient).all()
        assert value[ROW] == 0 and not gradient[ROW].any()
