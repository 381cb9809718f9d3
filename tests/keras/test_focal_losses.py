"""The focal losses of logits: digits of tiny losses, derivatives at infinities, and the transforms of JAX. Keras is no truth here."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxce.keras import losses
from tests.support.closeness import assert_within
from tests.support.golden import focal_oracle
from tests.support.golden.keras3_cases import BINARY, CATEGORICAL, cotangent

pytestmark = pytest.mark.usefixtures("fast_compilation")

FUNCTIONS = {BINARY: losses.binary_focal_crossentropy, CATEGORICAL: losses.categorical_focal_crossentropy}
OBJECTS = {BINARY: losses.BinaryFocalCrossentropy, CATEGORICAL: losses.CategoricalFocalCrossentropy}
HOT = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
# Entries and rows that are predicted well, badly, and neither.
LOGITS = np.float32([[30, 0, -10], [-20, 15, 0], [25, -1, 1]])
INF = np.inf


def weighted_sum(function, labels, **options):
    def total(logits):
        loss = function(labels, logits, from_logits=True, **options)
        return jnp.sum(loss * jnp.asarray(cotangent(loss.shape), loss.dtype)), loss

    return total


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_tiny_loss_and_its_gradient_keep_their_digits(name, gamma):
    balance = {"apply_class_balancing": False} if name == BINARY else {"alpha": 0.25}
    options = {"axis": -1, "gamma": gamma, "label_smoothing": 0.0, **balance}
    gradient, loss = jax.jit(jax.grad(weighted_sum(FUNCTIONS[name], HOT, **options), has_aux=True))(LOGITS)
    right = focal_oracle.ORACLES[name](HOT, LOGITS, cotangent, from_logits=True, **options)
    for got, (value, _) in zip((loss, gradient), right, strict=True):
        assert_within(got, value, 16)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_and_reverse_mode_agree_at_extreme_logits(name, gamma):
    logits = np.float32([[-INF, 0, 1], [0, -INF, 1], [1e3, -1e3, 0], [-1e3, 1e3, 0], [3e38, -3e38, 0]])
    labels = HOT[[0, 0, 0, 0, 1]]

    def losses_of(logits):
        return FUNCTIONS[name](labels, logits, gamma=gamma, from_logits=True)

    forward, reverse = jax.jit(lambda z: (jax.jacfwd(losses_of)(z), jax.jacrev(losses_of)(z)))(logits)
    assert np.isfinite(forward).all()
    np.testing.assert_allclose(forward, reverse, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_infinite_logit_that_contradicts_its_label_has_an_infinite_loss_and_a_finite_gradient(name):
    logits, labels = np.float32([[-INF, 0.0, 0.0]]), np.float32([[1, 0, 0]])
    value, gradient = jax.value_and_grad(lambda z: FUNCTIONS[name](labels, z, from_logits=True)[0])(logits)
    assert value == INF and np.isfinite(gradient).all() and gradient[0, 0] < 0


def test_gradient_with_respect_to_the_label_of_a_saturated_logit_is_that_of_the_cross_entropy():
    """The loss is 0 and its factor is `0**0`, but a label of 0 would cost 1000."""
    total = lambda y: losses.binary_focal_crossentropy(y, [1e3], gamma=0.0, from_logits=True)  # noqa: E731
    np.testing.assert_allclose(jax.grad(total)(jnp.ones(1)), [-1e3], rtol=1e-6)


@pytest.mark.parametrize("logit", [INF, np.nan, -INF])
def test_row_without_a_softmax_gives_nan(logit):
    row = np.full((1, 3), -INF, np.float32)
    row[0, 0] = logit
    loss, gradient = jax.value_and_grad(lambda z: FUNCTIONS[CATEGORICAL](HOT[:1], z, from_logits=True)[0])(row)
    assert np.isnan(loss) and np.isnan(gradient).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_weight_of_0_makes_an_infinite_loss_0(name):
    logits, labels = np.float32([[-INF, 0.0, 0.0]]), np.float32([[1, 0, 0]])
    options = {"apply_class_balancing": True, "alpha": 0.0} if name == BINARY else {"alpha": [0.0, 1.0, 1.0]}
    loss, gradient = jax.value_and_grad(lambda z: FUNCTIONS[name](labels, z, from_logits=True, **options)[0])(logits)
    assert np.isfinite(loss) and gradient[0, 0] == 0


@pytest.mark.nightly
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_with_respect_to_all_arguments_up_to_the_second_order(name, from_logits, x64, rng):
    y_true, y_pred = rng.uniform(0.1, 0.9, (3, 4)), rng.uniform(0.1, 0.9, (3, 4))
    options = {"apply_class_balancing": True} if name == BINARY else {}
    alpha = 0.3 if name == BINARY else rng.uniform(0.5, 1.5, 4)

    def function(y_true, y_pred, alpha, gamma, smoothing):
        options_of = {"alpha": alpha, "gamma": gamma, "label_smoothing": smoothing, "from_logits": from_logits}
        return FUNCTIONS[name](y_true, y_pred, **options_of, **options)

    arguments = tuple(map(jnp.asarray, (y_true, y_pred, alpha, 1.5, 0.1)))
    check_grads(jax.jit(function), arguments, order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["kl_divergence", "categorical_generalized_cross_entropy"])
def test_derivatives_of_the_losses_of_probabilities(name, x64, rng):
    p = jnp.asarray(rng.uniform(0.1, 0.9, (3, 4)))
    if name == "kl_divergence":
        function, arguments = losses.kl_divergence, (p[::-1], p)
    else:
        labels = jnp.array([0, 2, 3])
        function = lambda p, q: losses.categorical_generalized_cross_entropy(labels, p, q)  # noqa: E731
        arguments = (p, jnp.float64(0.7))
    check_grads(jax.jit(function), arguments, order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_over_examples_and_options_gives_the_same_as_a_loop(name):
    gammas = jnp.array([0.0, 1.0, 2.5])

    def each(labels, logits, gamma):
        return FUNCTIONS[name](labels, logits, gamma=gamma, from_logits=True)

    together = jax.jit(jax.vmap(each))(HOT, LOGITS, gammas)
    apart = [each(*arguments) for arguments in zip(HOT, LOGITS, gammas, strict=True)]
    np.testing.assert_allclose(together, apart, rtol=1e-6)


def test_generalized_cross_entropy_of_a_likely_label_keeps_its_digits():
    p = np.float32([[1 - 2.0**-20, 2.0**-20]])
    exact = -np.expm1(0.3 * np.log1p(-np.longdouble(2.0**-20))) / 0.3
    np.testing.assert_allclose(losses.categorical_generalized_cross_entropy([0], p, 0.3), [float(exact)], rtol=1e-6)


def test_q_of_1_is_the_absolute_error():
    p = np.float32([[0.25, 0.75]])
    np.testing.assert_allclose(losses.categorical_generalized_cross_entropy([0], p, 1.0), [0.75], rtol=1e-6)


@pytest.mark.parametrize("alpha", [[1, 0.5, 2], (1, 0.5, 2), np.float32([1, 0.5, 2]), jnp.array([1, 0.5, 2])], ids=type)
def test_class_weights_are_stored_as_a_list_of_python_numbers(alpha):
    loss = losses.CategoricalFocalCrossentropy(alpha, np.float32(1.5), from_logits=True)
    config = loss.get_config()
    assert config["alpha"] == [1.0, 0.5, 2.0] and json.loads(json.dumps(config)) == config
    restored = losses.CategoricalFocalCrossentropy.from_config(config)
    assert restored(HOT, LOGITS) == loss(HOT, LOGITS)


@pytest.mark.parametrize("name", OBJECTS)
def test_options_of_an_object_may_be_traced(name):
    def value(alpha, gamma):
        return OBJECTS[name](alpha=alpha, gamma=gamma, from_logits=True)(HOT, LOGITS)

    np.testing.assert_allclose(jax.jit(value)(0.5, 1.5), value(0.5, 1.5), rtol=1e-6)
