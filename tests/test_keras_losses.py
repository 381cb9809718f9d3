"""The loss objects of `jaxce.keras.losses` against Keras 3's own, on the JAX backend; and inside `model.compile`."""

import functools
import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxce.keras import losses

pytestmark = pytest.mark.usefixtures("made_quickly")

REDUCTIONS = ["sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none", None]
B, T, C = 4, 3, 5


@pytest.fixture(autouse=True)
def _as_keras_expects():
    """Keras itself relies on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def alone(monkeypatch):
    """As if Keras had never been imported."""
    monkeypatch.delitem(__import__("sys").modules, "keras")


def _softmax(rng, *shape):
    x = np.exp(rng.normal(size=shape).astype(np.float32))
    return x / x.sum(-1, keepdims=True)


def _examples(name, rng, *rows):
    predictions = _softmax(rng, *rows, C)
    if name == "SparseCategoricalCrossentropy":
        return rng.integers(0, C, rows, np.int32), predictions
    if name == "BinaryCrossentropy":
        return rng.integers(0, 2, (*rows, C)).astype(np.float32), predictions
    return _softmax(rng, *rows, C), predictions


NAMES = ["CategoricalCrossentropy", "SparseCategoricalCrossentropy", "BinaryCrossentropy"]
WEIGHTS = {
    "none": ((B, T), None),
    "scalar": ((B, T), lambda rng: np.float32(0.5)),
    "every loss": ((B, T), lambda rng: rng.uniform(size=(B, T))),
    "column": ((B, T), lambda rng: rng.uniform(size=(B, 1))),
    "trailing 1": ((B, T), lambda rng: rng.uniform(size=(B, T, 1))),
    "vector": ((B,), lambda rng: rng.uniform(size=(B,))),
    "column for vector": ((B,), lambda rng: rng.uniform(size=(B, 1))),
    "zeros": ((B,), lambda rng: np.zeros(B)),
    "row alone": ((), None),
    "no rows": ((0,), None),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_reduces_as_keras_does(name, reduction, weights, rng, request):
    rows, make = WEIGHTS[weights]
    y_true, y_pred = _examples(name, rng, *rows)
    sample_weight = None if make is None else np.asarray(make(rng), np.float32)
    # Through the probabilities Keras's own formulas differ, so compare what is the same: the reduction, from logits.
    theirs = getattr(keras.losses, name)(from_logits=True, reduction=reduction)(y_true, y_pred, sample_weight)
    request.getfixturevalue("alone")
    ours = getattr(losses, name)(from_logits=True, reduction=reduction)
    assert type(ours) is getattr(losses, name)
    answer = ours(y_true, y_pred, sample_weight)
    assert answer.shape == theirs.shape and answer.dtype == theirs.dtype
    np.testing.assert_allclose(answer, theirs, rtol=2e-6)


@pytest.mark.covering(1)
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", ["some", "all"])
def test_ignore_class_averages_over_the_rest_as_keras_does(reduction, weighted, ignored, rng, request):
    y_true, y_pred = rng.integers(0, C, (B, T), np.int32), _softmax(rng, B, T, C)
    y_true[0] = y_true[2, 1] = 3
    if ignored == "all":
        y_true[:] = 3
    sample_weight = rng.uniform(size=(B, T)).astype(np.float32) if weighted else None
    options = {"from_logits": True, "ignore_class": 3, "reduction": reduction}
    theirs = keras.losses.SparseCategoricalCrossentropy(**options)(y_true, y_pred, sample_weight)
    request.getfixturevalue("alone")
    answer = losses.SparseCategoricalCrossentropy(**options)(y_true, y_pred, sample_weight)
    np.testing.assert_allclose(answer, theirs, rtol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_call_and_config_are_those_of_keras(name, rng, request):
    keras_config = getattr(keras.losses, name)().get_config()
    request.getfixturevalue("alone")
    loss = getattr(losses, name)(from_logits=True, reduction="sum", name="mine")
    config = loss.get_config()
    assert set(keras_config) <= set(config)
    assert config["from_logits"] is True and config["reduction"] == "sum" and loss.name == "mine"
    again = getattr(losses, name).from_config(config)
    examples = _examples(name, rng, B)
    assert again(*examples) == loss(*examples)


@pytest.mark.parametrize("weight_shape", [(B,), (B, 1)])
def test_weight_of_each_example_weighs_all_its_losses(weight_shape, rng, alone):
    """By Keras's documentation; its code broadcasts a vector along the last axis instead, which only a square batch lets through."""
    y_true, y_pred = _examples("SparseCategoricalCrossentropy", rng, B, B)
    weights = rng.uniform(size=weight_shape).astype(np.float32)
    each = losses.sparse_categorical_crossentropy(y_true, y_pred)
    answer = losses.SparseCategoricalCrossentropy(reduction=None)(y_true, y_pred, weights)
    np.testing.assert_allclose(answer, each * weights.reshape(B, 1), rtol=1e-6)


def test_vector_of_labels_fits_a_column_of_predictions(rng, alone):
    y_true, y_pred = np.float32([0, 1, 1, 0]), rng.uniform(size=(4, 1)).astype(np.float32)
    assert losses.BinaryCrossentropy()(y_true, y_pred) == losses.BinaryCrossentropy()(y_true[:, None], y_pred)


def test_predictions_are_converted_to_the_dtype_asked_for(alone):
    y_true, y_pred = [[0.0, 1.0]], np.float16([[0.3, 0.7]])
    assert losses.CategoricalCrossentropy()(y_true, y_pred).dtype == np.float32
    assert losses.CategoricalCrossentropy(dtype="float16")(y_true, y_pred).dtype == np.float16


@pytest.mark.parametrize("name", NAMES)
def test_is_jitted_differentiable_and_weighted_inside_jit(name, rng, alone):
    y_true, y_pred = _examples(name, rng, B)
    weights = rng.uniform(size=B).astype(np.float32)
    loss = getattr(losses, name)(from_logits=True)
    gradient = jax.jit(jax.grad(lambda p: loss(y_true, p, weights)))(y_pred)
    single = jax.grad(lambda p: loss(y_true[:1], p))(y_pred[:1])
    np.testing.assert_allclose(gradient[:1], single * weights[0] / B, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: losses.CategoricalCrossentropy(reduction="average"), ValueError, "`reduction` must be one of .*'average'"),
        (lambda: losses.CategoricalCrossentropy(reduction=3), ValueError, "`reduction` must be one of .*3"),
        (lambda: losses.BinaryCrossentropy()([[0.0, 1.0]], [[0.5, 0.5]], [1.0, 1.0]), ValueError, r"`sample_weight` .*\(1,\).*\(2,\)"),
        (lambda: losses.BinaryCrossentropy()([[0.0, 1.0]], [[0.5, 0.5]], [[[1.0]] * 2]), ValueError, "`sample_weight`"),
        (lambda: losses.BinaryCrossentropy()([[0.0, 1.0]], "half"), TypeError, "`y_pred` must be an array"),
        (lambda: losses.BinaryCrossentropy(from_logits="yes")([[0.0]], [[0.5]]), TypeError, "`from_logits` .*'yes'"),
    ],
)  # fmt: skip
def test_bad_use_raises(make, error, message, alone):
    with pytest.raises(error, match=message):
        make()


def _model(classes=C):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(classes)])


@pytest.mark.parametrize("form", ["object", "function"])
@pytest.mark.parametrize("name", NAMES)
def test_trains_a_compiled_model_like_keras_with_sample_weights(name, form, rng):
    x = rng.normal(size=(64, 8)).astype(np.float32)
    y, _ = _examples(name, rng, 64)
    weights = rng.uniform(size=64).astype(np.float32)

    def history(module):
        loss = getattr(module, name)(from_logits=True)
        if form == "function":
            function = {"C": "categorical", "S": "sparse_categorical", "B": "binary"}[name[0]] + "_crossentropy"
            loss = functools.partial(getattr(module, function), from_logits=True)
        model = _model()
        model.compile(optimizer="sgd", loss=loss)
        return model.fit(x, y, sample_weight=weights, epochs=5, batch_size=16, shuffle=False, verbose=0).history["loss"]

    ours, theirs = history(losses), history(keras.losses)
    assert ours[-1] < ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_is_a_keras_loss_once_keras_is_in_use():
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    assert isinstance(loss, keras.losses.Loss) and isinstance(loss, losses.SparseCategoricalCrossentropy)


def test_stays_pure_jax_once_keras_is_in_use():
    """Whatever backend Keras has, and under settings that Keras's own code does not bear."""
    loss = losses.BinaryCrossentropy()
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        value = jax.jit(lambda p: loss(jnp.array([[0, 1]]), p, jnp.array([2.0])))(jnp.array([[0.5, 0.5]]))
    np.testing.assert_allclose(value, 2 * np.log(2), rtol=1e-5)


@pytest.mark.parametrize("ours", [False, True])
def test_keras_masks_and_ignore_class_work_together(ours, rng):
    """A mask handed on by a layer, and labels ignored by the loss: the mean is over what both leave."""
    tokens = np.int32([[1, 2, 3, 0], [4, 5, 0, 0]])
    labels = np.int32([[0, -1, 2, 1], [1, 2, 0, 0]])
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Embedding(6, 8, mask_zero=True), keras.layers.Dense(3)])
    logits = np.asarray(model(tokens))
    module = losses if ours else keras.losses
    model.compile(loss=module.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1))
    value = model.evaluate(tokens, labels, verbose=0)
    counted = (tokens != 0) & (labels != -1)
    each = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(value, each[counted].mean(), rtol=1e-5)
