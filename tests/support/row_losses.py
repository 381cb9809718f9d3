"""Losses of a row for `loss_sum`, each with the same loss in plain `jnp` over whole rows of logits, and a problem for them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxce

TOKENS, FEATURES, CLASSES = 11, 4, 13
# Every argument with respect to which the sum can be differentiated.
DIFFERENTIABLE = ("hidden", "classifier", "advantages", "old", "weights", "clip", "beta")


class Problem(NamedTuple):
    hidden: np.ndarray
    classifier: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    advantages: np.ndarray
    old: np.ndarray
    weights: np.ndarray
    clip: np.ndarray
    beta: np.ndarray


def policy_loss(stats, advantage, old, *, clip, beta):
    """The clipped ratio of PPO with an entropy bonus and a z-loss."""
    ratio = jnp.exp(-stats.nll - old)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    return -gain - beta * stats.entropy + 0.01 * jnp.square(stats.log_z) - 0.1 * stats.confidence


def policy_loss_and_metrics(stats, advantage, old, *, clip, beta):
    metrics = {"entropy": stats.entropy, "correct": stats.correct, "prediction": stats.prediction}
    return policy_loss(stats, advantage, old, clip=clip, beta=beta), metrics


def make(rng, rows=(TOKENS,), dtype=np.float32, features=FEATURES, classes=CLASSES) -> Problem:
    """Return a problem whose logits are exact in float32. Masked rows hold NaN in the arrays of one number per row."""
    hidden = (rng.integers(-8, 9, (*rows, features)) / 8).astype(dtype)
    classifier = (rng.integers(-8, 9, (features, classes)) / 4).astype(dtype)
    mask = np.arange(np.prod(rows)).reshape(rows) % 3 != 1
    old = np.where(mask, rng.uniform(-4, -1, rows), np.nan).astype(np.float32)
    advantages, weights = (np.where(mask, rng.standard_normal(rows), np.nan).astype(np.float32) for _ in range(2))
    labels = rng.integers(0, classes, rows).astype(np.int32)
    return Problem(hidden, classifier, labels, mask, advantages, old, weights, np.float32(0.2), np.float32(0.3))


def ours(problem: Problem, logits=None, loss=policy_loss, **options):
    """Return what `loss_sum` returns; `logits` are those of the problem."""
    bound = functools.partial(loss, clip=jnp.asarray(problem.clip), beta=jnp.asarray(problem.beta))
    logits = jaxce.LinearLogits(problem.hidden, problem.classifier) if logits is None else logits
    per_row = problem.advantages, problem.old
    return jaxce.loss_sum(logits, problem.labels, bound, per_row, mask=problem.mask, weights=problem.weights, **options)


def naive(problem: Problem):
    """Compute the same sum from whole rows of logits, by the textbook formulas."""
    mask = jnp.asarray(problem.mask)
    advantages, old, weights = (jnp.where(mask, x, 0) for x in (problem.advantages, problem.old, problem.weights))
    z = jnp.asarray(problem.hidden) @ jnp.asarray(problem.classifier)
    log_p = jax.nn.log_softmax(z)
    nll = -jnp.take_along_axis(log_p, jnp.asarray(problem.labels)[..., None], -1)[..., 0]
    ratio = jnp.exp(-nll - old)
    gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - problem.clip, 1 + problem.clip) * advantages)
    entropy, confidence = -jnp.sum(jnp.exp(log_p) * log_p, -1), jnp.exp(jnp.max(log_p, -1))
    loss = -gain - problem.beta * entropy + 0.01 * jax.nn.logsumexp(z, -1) ** 2 - 0.1 * confidence
    return jnp.sum(jnp.where(mask, weights * loss, 0))


def as_float64(problem: Problem) -> Problem:
    """Return the problem in float64."""
    return Problem(*(x.astype(np.float64) if x.dtype.kind not in "bi" else x for x in map(np.asarray, problem)))


def split(problem: Problem):
    """Return the arguments with gradients by name, and a function that puts others in their place."""
    by_name = {name: jnp.asarray(getattr(problem, name)) for name in DIFFERENTIABLE}
    return by_name, lambda others: problem._replace(**others)


def gradients(total, problem: Problem):
    """Return `total(problem)` and its gradients by name."""
    by_name, replaced = split(problem)
    return jax.jit(jax.value_and_grad(lambda x: total(replaced(x))))(by_name)


def assert_near(found, wanted, relative):
    """Assert that each array differs by at most this part of its largest number, and holds no NaN."""
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        x, y = (np.asarray(a).astype(np.float64) for a in (x, y))
        error = np.max(np.abs(x - y), initial=0) / max(np.max(np.abs(y), initial=0), 1e-30)
        assert error <= relative, f"{jax.tree_util.keystr(path)}: off by {error:.2e} of its largest number"
