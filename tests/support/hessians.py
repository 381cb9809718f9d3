"""Closed forms of the Hessians of the losses, and sums of the losses through loops and checkpoint that have these Hessians."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import cases
from tests.support.cases import SIGMOID

SHAPE = (3, 4)


def softmax_hessian(z, w):
    """Return the Hessian of `sum_i w_i (log_z - z_y)_i`, and its scale.

    The block of row i is `w_i (diag(p) - p p^T)`. Its scale is `w_i (diag(p) + p p^T)`.
    """
    p = np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True))
    n, c = z.shape
    hessian, scale = np.zeros((n, c, n, c)), np.zeros((n, c, n, c))
    for i in range(n):
        hessian[i, :, i] = w[i] * (np.diag(p[i]) - np.outer(p[i], p[i]))
        scale[i, :, i] = w[i] * (np.diag(p[i]) + np.outer(p[i], p[i]))
    return hessian, scale


def sigmoid_hessian(z, w):
    p, not_p = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    hessian = np.diag((w[:, None] * p * not_p).ravel()).reshape(*z.shape, *z.shape)
    return hessian, hessian


HESSIAN_LOGITS = {
    "random": lambda rng: cases.make_logits(rng, SHAPE),
    "ties": lambda rng: np.float32([[1, 1, 0, 1], [2, 2, 2, 2], [0, 0, 0, -1]]),
    "confident": lambda rng: np.float32([[12, 0, 0, 1], [0, 1, 15, 0], [-3, 9, 0, 0]]),
    "zeros": lambda rng: np.zeros(SHAPE, np.float32),
}


def weighted(loss, labels, w):
    def total(z):
        losses = loss.function(z, labels)
        return jnp.sum(losses * (w if losses.ndim == 1 else jnp.expand_dims(w, 1)))

    return total


def through_scan(loss, labels, w):
    """Return the function `weighted(loss, labels, w)`, computed row by row in a scan."""

    def total(z):
        def step(carry, row):
            z, y, w = row
            return carry + w * jnp.sum(loss.function(z, y)), None

        return jax.lax.scan(step, jnp.zeros((), z.dtype), (z, labels, w))[0]

    return total


def through_map(loss, labels, w):
    return lambda z: jnp.sum(jax.lax.map(lambda row: row[2] * jnp.sum(loss.function(row[0], row[1])), (z, labels, w)))


def under_checkpoint(loss, labels, w):
    return jax.checkpoint(weighted(loss, labels, w))


def hessian_case(loss, logits, rng):
    labels = loss.make_labels(rng, SHAPE, -1)
    w = np.float32([1, 0.5, 2])
    expected = (sigmoid_hessian if loss is SIGMOID else softmax_hessian)(logits.astype(np.float64), w)
    return jnp.asarray(labels), jnp.asarray(w), expected
