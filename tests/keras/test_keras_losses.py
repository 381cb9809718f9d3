"""The loss objects of `jaxce.keras.losses` against those of Keras 3 on the JAX backend, also inside `model.compile`."""

import functools
import inspect
import json
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxce.keras import backend, losses, metrics
from tests.support import covering

pytestmark = pytest.mark.usefixtures("fast_compilation")

REDUCTIONS = ["sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none", None]
B, T, C = 4, 3, 5


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Allow implicit promotion, because the code of Keras needs it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def without_keras(monkeypatch):
    """Remove Keras from `sys.modules`, so that jaxce behaves as if Keras had never been imported."""
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
    "vector for column": ((B, 1), lambda rng: rng.uniform(size=(B,))),
    "zeros": ((B,), lambda rng: np.zeros(B)),
    "row alone": ((), None),
    "no rows": ((0,), None),
}


@pytest.mark.covering(2, at_most=30)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_reduces_like_keras(name, reduction, weights, rng, request):
    rows, make = WEIGHTS[weights]
    y_true, y_pred = _examples(name, rng, *rows)
    sample_weight = None if make is None else np.asarray(make(rng), np.float32)
    # From probabilities, the formulas of Keras differ. So compare the reductions with losses from logits.
    theirs = getattr(keras.losses, name)(from_logits=True, reduction=reduction)(y_true, y_pred, sample_weight)
    request.getfixturevalue("without_keras")
    ours = getattr(losses, name)(from_logits=True, reduction=reduction)
    assert type(ours) is getattr(losses, name)
    answer = ours(y_true, y_pred, sample_weight)
    assert answer.shape == theirs.shape and answer.dtype == theirs.dtype
    np.testing.assert_allclose(answer, theirs, rtol=2e-6)


@pytest.mark.covering(1)
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", ["some", "all"])
def test_ignore_class_averages_over_the_other_labels_like_keras(reduction, weighted, ignored, rng, request):
    y_true, y_pred = rng.integers(0, C, (B, T), np.int32), _softmax(rng, B, T, C)
    y_true[0] = y_true[2, 1] = 3
    if ignored == "all":
        y_true[:] = 3
    sample_weight = rng.uniform(size=(B, T)).astype(np.float32) if weighted else None
    options = {"from_logits": True, "ignore_class": 3, "reduction": reduction}
    theirs = keras.losses.SparseCategoricalCrossentropy(**options)(y_true, y_pred, sample_weight)
    request.getfixturevalue("without_keras")
    answer = losses.SparseCategoricalCrossentropy(**options)(y_true, y_pred, sample_weight)
    np.testing.assert_allclose(answer, theirs, rtol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_call_and_config_are_those_of_keras(name, rng, request):
    keras_config = getattr(keras.losses, name)().get_config()
    request.getfixturevalue("without_keras")
    loss = getattr(losses, name)(from_logits=True, reduction="sum", name="mine")
    config = loss.get_config()
    assert set(keras_config) <= set(config)
    assert config["from_logits"] is True and config["reduction"] == "sum" and loss.name == "mine"
    restored = getattr(losses, name).from_config(config)
    examples = _examples(name, rng, B)
    assert restored(*examples) == loss(*examples)


@pytest.mark.parametrize("weight_shape", [(B,), (B, 1)])
def test_weight_of_each_example_applies_to_all_its_losses(weight_shape, rng, without_keras):
    """This follows the documentation of Keras. The code of Keras broadcasts a vector along the last axis, which only works for a square batch."""
    y_true, y_pred = _examples("SparseCategoricalCrossentropy", rng, B, B)
    weights = rng.uniform(size=weight_shape).astype(np.float32)
    each = losses.sparse_categorical_crossentropy(y_true, y_pred)
    answer = losses.SparseCategoricalCrossentropy(reduction=None)(y_true, y_pred, weights)
    np.testing.assert_allclose(answer, each * weights.reshape(B, 1), rtol=1e-6)


def test_vector_of_labels_fits_a_column_of_predictions(rng, without_keras):
    y_true, y_pred = np.float32([0, 1, 1, 0]), rng.uniform(size=(4, 1)).astype(np.float32)
    assert losses.BinaryCrossentropy()(y_true, y_pred) == losses.BinaryCrossentropy()(y_true[:, None], y_pred)


def test_predictions_are_converted_to_the_dtype_of_the_loss(without_keras):
    y_true, y_pred = [[0.0, 1.0]], np.float16([[0.3, 0.7]])
    assert losses.CategoricalCrossentropy()(y_true, y_pred).dtype == np.float32
    assert losses.CategoricalCrossentropy(dtype="float16")(y_true, y_pred).dtype == np.float16


@pytest.mark.parametrize("name", NAMES)
def test_gradient_and_sample_weight_work_inside_jit(name, rng, without_keras):
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
    ],
)  # fmt: skip
def test_invalid_use_raises(make, error, message, without_keras):
    with pytest.raises(error, match=message):
        make()


BAD_OPTIONS = {
    "from_logits": ("yes", TypeError, "`from_logits` must be True or False, not traced; got 'yes'"),
    "reduction": ("average", ValueError, "`reduction` must be one of .*; got 'average'"),
    "axis": (1.0, TypeError, "`axis` must be a Python integer, not traced; got 1.0"),
    "name": (3, TypeError, "`name` must be a string; got 3"),
    "dtype": ("int32", TypeError, "`dtype` must be a floating dtype.*keras.DTypePolicy; got 'int32'"),
    "dtype that is none": ("half a float", TypeError, "`dtype` must be a floating dtype.*got 'half a float'"),
    "label_smoothing": (1.5, ValueError, "`label_smoothing` must be from 0 to 1; got 1.5"),
    "label_smoothing of numpy": (np.float32(-1), ValueError, "`label_smoothing` must be from 0 to 1; got -1.0"),
    "label_smoothing that is nan": (float("nan"), ValueError, "`label_smoothing` must be from 0 to 1; got nan"),
    "label_smoothing by a name": ("sum", TypeError, "`label_smoothing` must be a number; got 'sum'"),
    "label_smoothing by a boolean": (True, TypeError, "`label_smoothing` must be a number; got True"),
    "ignore_class": (1.5, TypeError, "`ignore_class` must be a Python integer, not traced; got 1.5"),
    "apply_class_balancing": ("yes", TypeError, "`apply_class_balancing` must be True or False, not traced; got 'yes'"),
    "alpha": (-1, ValueError, "`alpha` must be (from 0 to 1|finite and not negative); got -1.0"),
    "alpha by a name": ("sum", TypeError, "`alpha` must be a number; got 'sum'"),
    "alpha per class": ([0.5, -1], (TypeError, ValueError), "`alpha` must be (a number|finite and not negative); got "),
    "gamma": (-0.5, ValueError, "`gamma` must be finite and not negative; got -0.5"),
    "gamma that is infinite": (float("inf"), ValueError, "`gamma` must be finite and not negative; got inf"),
    "gamma that is none": (None, TypeError, "`gamma` must be a number; got None"),
    "q": (1, ValueError, "`q` must be above 0 and below 1; got 1.0"),
    "q by a name": ("sum", TypeError, "`q` must be a number; got 'sum'"),
    "ignore_class by a name": ("sum", TypeError, "`ignore_class` must be a Python integer, not traced; got 'sum'"),
}


BAD_CONSTRUCTIONS = [
    (name, case)
    for name in [name for name in losses.__all__ if not name.islower()]
    for case in BAD_OPTIONS
    if case.partition(" ")[0] in inspect.signature(getattr(losses, name)).parameters
]


@pytest.mark.parametrize("with_keras", [False, True])
@pytest.mark.parametrize(("name", "case"), BAD_CONSTRUCTIONS)
def test_constructor_refuses_invalid_options(name, case, with_keras, request):
    option, (value, error, message) = case.partition(" ")[0], BAD_OPTIONS[case]
    if not with_keras:
        request.getfixturevalue("without_keras")
    with pytest.raises(error, match=message):
        getattr(losses, name)(**{option: value})


def test_options_by_position_in_another_order_are_refused():
    """In Keras, `ignore_class` and `axis` have different positions in the functions and in the classes."""
    with pytest.raises(TypeError, match="`ignore_class` must be a Python integer, not traced; got 'sum'"):
        losses.SparseCategoricalCrossentropy(True, "sum")


def test_options_of_numpy_are_stored_as_python_values():
    loss = losses.CategoricalCrossentropy(np.bool_(True), np.float32(0.25), np.int64(-1))
    config = loss.get_config()
    assert [type(config[name]) for name in ("from_logits", "label_smoothing", "axis")] == [bool, float, int]
    assert json.loads(json.dumps(config)) == config
    assert losses.CategoricalCrossentropy(label_smoothing=jnp.float32(0.25)).get_config()["label_smoothing"] == 0.25


def test_smoothing_may_be_traced():
    def value(smoothing):
        return losses.CategoricalCrossentropy(True, smoothing)([[1.0, 0.0]], [[0.0, 1.0]])

    np.testing.assert_allclose(
        jax.jit(value)(0.5), losses.CategoricalCrossentropy(True, 0.5)([[1.0, 0.0]], [[0.0, 1.0]])
    )


@pytest.mark.parametrize("given", [None, ""])
def test_default_name_is_that_of_the_function(given):
    assert losses.BinaryCrossentropy(name=given).name == "binary_crossentropy"


DTYPES = ["float16", "bfloat16", "float64", np.float16, jnp.bfloat16, np.dtype("float64"), float, "mixed_bfloat16", "mixed_float16"]  # fmt: skip


@pytest.mark.parametrize("dtype", [*DTYPES, keras.DTypePolicy("mixed_float16"), keras.DTypePolicy("float64")], ids=str)
def test_dtype_accepts_the_same_values_as_keras(dtype, request):
    theirs = keras.losses.BinaryCrossentropy(dtype=dtype).dtype
    assert losses.BinaryCrossentropy(dtype=dtype).dtype == theirs
    request.getfixturevalue("without_keras")
    assert losses.BinaryCrossentropy(dtype=dtype).dtype == theirs


POLICIES = ["int8_from_mixed_bfloat16", {"class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}]


@pytest.mark.parametrize("dtype", POLICIES, ids=str)
def test_dtype_may_be_a_policy_that_only_keras_knows(dtype):
    assert losses.BinaryCrossentropy(dtype=dtype).dtype == keras.losses.BinaryCrossentropy(dtype=dtype).dtype


def test_default_dtype_is_the_current_floatx_of_keras(monkeypatch, x64):
    examples = np.eye(2), np.full((2, 2), 0.5)
    before = losses.CategoricalCrossentropy()
    keras.config.set_floatx("float64")
    try:
        loss, theirs = losses.CategoricalCrossentropy(), keras.losses.CategoricalCrossentropy()
    finally:
        keras.config.set_floatx("float32")
    assert loss.dtype == theirs.dtype == "float64" and before.dtype == "float32"
    assert loss(*examples).dtype == theirs(*examples).dtype == np.float64
    assert "dtype" not in loss.get_config()
    monkeypatch.delitem(sys.modules, "keras")
    assert losses.CategoricalCrossentropy().dtype == "float32"


def test_config_has_an_explicit_dtype():
    config = losses.CategoricalCrossentropy(dtype="bfloat16").get_config()
    assert config["dtype"] == "bfloat16" and losses.CategoricalCrossentropy.from_config(config).dtype == "bfloat16"


@pytest.mark.parametrize("module", [losses, backend, metrics], ids=lambda module: module.__name__)
def test_only_names_of_keras_are_listed(module):
    listed = {name for name in dir(module) if not name.startswith("__")}
    assert listed == set(module.__all__)
    theirs = {"losses": keras.losses, "metrics": keras.metrics}.get(module.__name__.rpartition(".")[2])
    assert theirs is None or listed <= set(dir(theirs))


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


OTHERS = [
    "BinaryFocalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "KLDivergence",
]


@pytest.mark.parametrize("name", [OTHERS[0], *covering.nightly_values(*OTHERS[1:])])
@pytest.mark.parametrize("masked", [True, *covering.nightly_values(False)])
def test_loss_of_probabilities_trains_a_masked_model_like_keras(name, masked, rng):
    """The tokens of id 0 are masked by the layer, so they take no part in the loss."""
    tokens = rng.integers(1, 6, (32, T), dtype=np.int32)
    weights = rng.uniform(size=(32, T)).astype(np.float32)
    tokens[::3, 1:] = 0
    y = _softmax(rng, 32, T, C)
    labels = y.argmax(-1).astype(np.int32) if name == "CategoricalGeneralizedCrossEntropy" else y

    def history(module):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Embedding(6, 8, mask_zero=masked), keras.layers.Dense(C, "softmax")]
        model = keras.Sequential(layers)
        model.compile(optimizer="sgd", loss=getattr(module, name)())
        fit = model.fit(tokens, labels, sample_weight=weights, epochs=3, batch_size=16, shuffle=False, verbose=0)
        return fit.history["loss"]

    np.testing.assert_allclose(history(losses), history(keras.losses), rtol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_defaults_and_config_are_those_of_keras(name):
    theirs = getattr(keras.losses, name)
    ours = getattr(losses, name)
    assert {n: p.default for n, p in inspect.signature(ours).parameters.items()} == {
        n: p.default for n, p in inspect.signature(theirs).parameters.items()
    }
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    assert ours().get_config() == theirs().get_config()


@pytest.mark.parametrize("name", [name for name in losses.__all__ if name.islower()])
def test_function_has_the_arguments_of_keras(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (losses, keras.losses))
    positions = list(theirs)
    if name == "sparse_categorical_crossentropy":  # `tf.keras` has `axis` before `ignore_class`, which came later
        positions = ["y_true", "y_pred", "from_logits", "axis", "ignore_class"]
    assert list(ours) == positions
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}


def test_is_a_keras_loss_once_keras_is_in_use():
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    assert isinstance(loss, keras.losses.Loss) and isinstance(loss, losses.SparseCategoricalCrossentropy)


def test_stays_pure_jax_once_keras_is_in_use():
    """The loss works with strict promotion, which the code of Keras does not support."""
    loss = losses.BinaryCrossentropy()
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        value = jax.jit(lambda p: loss(jnp.array([[0, 1]]), p, jnp.array([2.0])))(jnp.array([[0.5, 0.5]]))
    np.testing.assert_allclose(value, 2 * np.log(2), rtol=1e-5)


@pytest.mark.parametrize("ours", [False, True])
def test_keras_masks_and_ignore_class_work_together(ours, rng):
    """A layer passes a mask, and the loss ignores labels. The mean is over the tokens that neither of them excludes."""
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


def _ignoring(rng):
    """Return labels, some of them equal to the ignored class -1, and logits."""
    labels = rng.integers(-1, C, (B, T), np.int32)
    labels[0, 0] = -1
    return labels, rng.normal(size=(B, T, C)).astype(np.float32)


@pytest.mark.parametrize("module", [losses, backend], ids=["losses", "backend"])
def test_result_of_ignore_class_carries_the_mask_that_keras_attaches(module, rng):
    labels, logits = _ignoring(rng)
    function = functools.partial(module.sparse_categorical_crossentropy, from_logits=True, ignore_class=-1)
    theirs = keras.losses.sparse_categorical_crossentropy(jnp.asarray(labels), jnp.asarray(logits), True, -1)
    np.testing.assert_array_equal(function(labels, logits)._keras_mask, theirs._keras_mask)
    # A tracer has no attributes, so Keras stores the mask elsewhere. A loss of Keras must find the mask there.
    loss, masked = keras.losses.Loss(name="mean"), jnp.mean(theirs, where=labels != -1)
    loss.call = function
    np.testing.assert_allclose(jax.jit(loss)(labels, logits), masked, rtol=1e-6)
    np.testing.assert_allclose(jax.value_and_grad(lambda z: loss(labels, z))(logits)[0], masked, rtol=1e-6)


def test_result_without_ignore_class_carries_no_mask(rng):
    labels, logits = _ignoring(rng)
    assert not hasattr(losses.sparse_categorical_crossentropy(labels, logits, True), "_keras_mask")
    assert not hasattr(backend.sparse_categorical_crossentropy(labels, logits, True), "_keras_mask")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_ignore_class_needs_no_keras(wrap, rng, without_keras):
    labels, logits = _ignoring(rng)
    each = wrap(lambda y, z: losses.sparse_categorical_crossentropy(y, z, True, -1, -1))(labels, logits)
    assert (np.asarray(each) != 0).tolist() == (labels != -1).tolist()
    mean = wrap(losses.SparseCategoricalCrossentropy(True, -1))(labels, logits)
    np.testing.assert_allclose(mean, np.asarray(each)[labels != -1].mean(), rtol=1e-6)


@pytest.mark.parametrize("axis", [-1, 1])
def test_backend_ignores_a_class_like_the_loss(axis, rng):
    labels, logits = _ignoring(rng)
    logits = np.moveaxis(logits, -1, axis)
    answer = backend.sparse_categorical_crossentropy(labels, logits, True, axis, -1)
    np.testing.assert_array_equal(answer, losses.sparse_categorical_crossentropy(labels, logits, True, axis, -1))
    assert (np.asarray(answer)[labels == -1] == 0).all()


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_function_with_ignore_class_trains_like_that_of_keras(weighted, eagerly, rng):
    """Keras takes the mean over the unmasked losses, so the result of the function must carry a mask."""
    x, labels = rng.normal(size=(32, 8)).astype(np.float32), rng.integers(-1, C, 32, np.int32)
    weights = rng.uniform(size=32).astype(np.float32) if weighted else None

    def numbers(module):
        loss = functools.partial(module.sparse_categorical_crossentropy, from_logits=True, ignore_class=-1)
        model = _model()
        model.compile("sgd", loss, metrics=[loss], weighted_metrics=[loss], run_eagerly=eagerly)
        history = model.fit(x, labels, sample_weight=weights, epochs=2, batch_size=16, shuffle=False, verbose=0).history
        return [*history.values(), model.evaluate(x, labels, sample_weight=weights, verbose=0)]

    for ours, theirs in zip(numbers(losses), numbers(keras.losses), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("ignored", [-1, 2**40])
def test_ignore_class_outside_the_label_dtype_ignores_nothing(ignored, rng):
    logits, labels = rng.normal(size=(4, C)), rng.integers(0, C, 4, np.uint8)
    answer = losses.sparse_categorical_crossentropy(labels, logits.astype(np.float32), True, ignore_class=ignored)
    right = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), labels]
    np.testing.assert_allclose(answer, right, rtol=1e-5)


def test_masks_do_not_change_the_names_of_layers(rng):
    keras.utils.clear_session()
    jax.jit(losses.SparseCategoricalCrossentropy(True, -1))(*_ignoring(rng))
    assert keras.layers.Lambda(lambda x: x).name == "lambda"


def test_infinite_logit_whose_label_is_0_takes_no_part():
    """TensorFlow gives NaN. The guide and the README list this difference."""
    labels, logits = np.float32([[1, 0, 0]]), np.float32([[1, -np.inf, 0]])
    right = np.log1p(np.exp(-1))
    np.testing.assert_allclose(losses.categorical_crossentropy(labels, logits, True), [right], rtol=1e-6)
    np.testing.assert_allclose(losses.sparse_categorical_crossentropy([0], logits, True), [right], rtol=1e-6)
    assert np.isnan(keras.losses.categorical_crossentropy(jnp.asarray(labels), jnp.asarray(logits), True)).all()


def test_binary_loss_of_a_clipped_probability_agrees_with_tensorflow_not_with_keras_3():
    """TensorFlow 1.15 and 2.2 clip the probability at epsilon and then add epsilon. The guide and the README list this difference."""
    labels, predictions = np.float32([[1], [0]]), np.float32([[0], [1]])
    np.testing.assert_allclose(losses.binary_crossentropy(labels, predictions), [15.424949, 15.333239], rtol=1e-6)
    theirs = keras.losses.binary_crossentropy(jnp.asarray(labels), jnp.asarray(predictions))
    np.testing.assert_allclose(theirs, [16.118095, 15.942385], rtol=1e-6)
