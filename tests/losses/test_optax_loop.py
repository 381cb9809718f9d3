"""Training with the losses and optax: small problems that a model can fit, in the dtypes used for training."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxce
from jaxce import LossSum

pytestmark = pytest.mark.usefixtures("fast_compilation")


def clusters(rng, examples=96, features=4, num_classes=3):
    """Return three well separated clusters of points, and their labels."""
    labels = rng.integers(0, num_classes, examples).astype(np.int32)
    centres = 3 * rng.standard_normal((num_classes, features))
    return (centres[labels] + 0.3 * rng.standard_normal((examples, features))).astype(np.float32), labels


def train(loss, params, steps=150):
    optimizer = optax.adam(0.1)

    def step(state, _):
        params, opt_state = state
        value, gradients = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # the arithmetic of optax needs standard promotion
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

    (params, _), values = jax.jit(lambda state: jax.lax.scan(step, state, None, length=steps))(
        (params, optimizer.init(params))
    )
    return params, values


def logits_of(params, x):
    return x @ params["kernel"] + jnp.broadcast_to(params["bias"], (x.shape[0], params["bias"].shape[0]))


def zeros(features, outputs, dtype):
    return {"kernel": jnp.zeros((features, outputs), dtype), "bias": jnp.zeros(outputs, dtype)}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("kind", ["integer", "soft"])
def test_a_linear_classifier_learns_clusters(dtype, kind, rng):
    x, labels = clusters(rng)
    targets = labels if kind == "integer" else np.eye(3, dtype=np.float32)[labels]
    function = jaxce.softmax_cross_entropy_with_integer_labels if kind == "integer" else jaxce.softmax_cross_entropy
    x = jnp.asarray(x, dtype)

    params, values = train(
        lambda params: LossSum.of(function(logits_of(params, x), targets)).mean(), zeros(4, 3, dtype)
    )
    chex.assert_tree_all_finite(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, zeros(4, 3, dtype))
    chex.assert_type(values, jnp.float32)
    np.testing.assert_allclose(values[0], np.log(3), rtol=1e-6)
    assert values[-1] < 0.05
    assert np.array_equal(logits_of(params, x).argmax(1), labels)


def test_masked_examples_with_nan_do_not_affect_training(rng):
    x, labels = clusters(rng)
    mask = rng.random(len(x)) < 0.7
    labels = np.where(mask, labels, -100)
    dirty = np.where(mask[:, None], x, np.float32(1e30))

    def loss(params, x):
        logits = logits_of(params, x)
        logits = jnp.where(jnp.expand_dims(mask, 1), logits, jnp.nan)
        return LossSum.of(jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, mask=mask), mask=mask).mean()

    def clean(params):
        kept = jaxce.softmax_cross_entropy_with_integer_labels(logits_of(params, x[mask]), labels[mask])
        return LossSum.of(kept).mean()

    start = {"kernel": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32), "bias": jnp.zeros(3)}
    chex.assert_trees_all_close(jax.grad(loss)(start, dirty), jax.grad(clean)(start), rtol=1e-5, atol=1e-6)
    params, values = train(lambda params: loss(params, dirty), start, steps=60)
    chex.assert_tree_all_finite(params)
    assert values[-1] < 0.1 * values[0]


def test_sigmoid_learns_several_labels(rng):
    x, labels = clusters(rng)
    targets = np.float32([[1, 1, 0], [0, 1, 1], [1, 0, 0]])[labels]

    def loss(params):
        return jaxce.sigmoid_binary_cross_entropy(logits_of(params, x), targets, pos_weight=np.float32(2)).mean()

    params, values = train(loss, zeros(4, 3, jnp.float32))
    assert values[-1] < 0.1
    assert np.array_equal(logits_of(params, x) > 0, targets > 0.5)


def test_z_loss_keeps_log_z_near_0(rng):
    x, labels = clusters(rng)

    def mean_abs_log_z(z_loss):
        def loss(params):
            return jaxce.softmax_cross_entropy_with_integer_labels(
                logits_of(params, x) + 5, labels, z_loss=z_loss
            ).mean()

        params, _ = train(loss, zeros(4, 3, jnp.float32))
        return abs(jaxce.logit_stats(logits_of(params, x) + 5, labels).log_z).mean()

    assert mean_abs_log_z(0.1) < mean_abs_log_z(0.0) / 4


def test_accumulated_gradients_of_totals_equal_those_of_the_batch(rng):
    """The micro-batches have different numbers of valid examples. `optax.MultiSteps` over means would give another result."""
    x, labels = clusters(rng)
    mask = np.arange(len(x)) % 24 < np.repeat([1, 9, 24, 2], 24)
    params = {"kernel": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32), "bias": jnp.zeros(3)}

    def loss_sum(params, x, labels, mask):
        losses = jaxce.softmax_cross_entropy_with_integer_labels(logits_of(params, x), labels, mask=mask)
        sums = LossSum.of(losses, mask=mask)
        return sums.total, sums.weight

    parts = [
        jax.grad(loss_sum, has_aux=True)(params, *(a[i : i + 24] for a in (x, labels, mask))) for i in range(0, 96, 24)
    ]
    weight = sum(w for _, w in parts)
    accumulated = jax.tree.map(lambda *g: sum(g) / weight, *(g for g, _ in parts))
    whole = jax.grad(lambda p: LossSum(*loss_sum(p, x, labels, mask)).mean())(params)
    assert int(weight) == mask.sum()
    chex.assert_trees_all_close(accumulated, whole, rtol=1e-5, atol=1e-6)
