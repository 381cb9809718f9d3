"""A short training of a language model on the next word, before it is taught by rewards or preferences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import progress
from corpus import IGNORED, UNKNOWN
from flax import nnx

import jaxce

BATCH, LEARNING_RATE, SEED = 32, 1e-2, 0


def pretrained(model, rows: np.ndarray, steps: int):
    """Return the graph and the parameters of the model, trained on the rows."""
    graph, params = nnx.split(model)
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, 1 + steps // 20, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    def mean_loss(params, rows):
        hidden, classifier = nnx.merge(graph, params)(jnp.maximum(rows[:, :-1], UNKNOWN))
        labels = rows[:, 1:]
        logits = jaxce.LinearLogits(hidden, classifier)
        return jaxce.softmax_cross_entropy_sum(logits, labels, mask=labels != IGNORED).mean()

    @jax.jit
    def step(params, state, rows):
        value, gradient = jax.value_and_grad(mean_loss)(params, rows)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    batches = np.random.default_rng(SEED).integers(len(rows), size=(steps, BATCH))
    for batch in (bar := progress.bar(batches, "next word")):
        params, state, value = step(params, state, rows[batch])
        bar.set_postfix(loss=f"{float(value):.3f}")
    return graph, params
