"""Keras's three cross-entropies, one loss per row. `losses` and `backend` are two public interfaces to them.

From logits they compute jaxce's own losses. From probabilities they follow TensorFlow 1.15 and 2.2 exactly: they clip to [eps, 1 - eps] with
eps = 1e-7 in the dtype of the predictions. The gradient of the clipping is 0 outside the bounds and 1 on the bounds.

`names` are the names of the two arrays in error messages.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxce import _checks as checks
from jaxce._checks.rows import Arguments
from jaxce._jax.axes import per_row, row_shape
from jaxce._jax.rules import keep_statistics
from jaxce._sigmoid import sigmoid_binary_cross_entropy
from jaxce._stats import dense_stats
from jaxce._types import Array, working_dtype
from jaxce.keras import _arguments as arguments

_FOR_INDICES = "For class indices use sparse_categorical_crossentropy."


@functools.partial(jax.jit, static_argnames=("from_logits", "axis", "names"))
def categorical(target, output, label_smoothing, *, from_logits: bool, axis: int, names: tuple[str, str]) -> Array:
    """Return the cross-entropy against class probabilities."""
    output, axis = arguments.predictions(names[1], output, axis, may_be_empty=True)
    target = arguments.same_shape(names[0], target, output, names[1], indices=_FOR_INDICES)
    if output.shape[axis] == 0:
        return jnp.zeros(row_shape(output.shape, axis), output.dtype)  # a sum over no classes

    def losses(target, output, label_smoothing):
        dtype = working_dtype(output)
        q = target.astype(dtype)
        if label_smoothing is not None:
            s = label_smoothing.astype(dtype)
            q = (1 - s) * q + s / output.shape[axis]
        if from_logits:
            return _nll(dense_stats(Arguments(output, q), axis=axis))
        p = output.astype(dtype)
        p = p / jnp.sum(p, axis, keepdims=True)
        return -jnp.sum(q * jnp.log(_clip(p, output.dtype)), axis)

    return keep_statistics(losses)(target, output, label_smoothing).astype(output.dtype)


@functools.partial(jax.jit, static_argnames=("from_logits", "axis", "ignore_class", "names"))
def sparse_categorical(
    target, output, *, from_logits: bool, axis: int, ignore_class: int | None, names: tuple[str, str]
) -> tuple[Array, Array | None]:
    """Return the cross-entropy against class indices, and the mask of the examples that count, or None if all count."""
    output, axis = arguments.predictions(names[1], output, axis)
    target = arguments.class_indices(names[0], target, output, names[1], axis)
    mask = None if ignore_class is None else is_counted(target, ignore_class)

    def losses(target, output, mask):
        logits = output
        if not from_logits:
            p = output.astype(working_dtype(output))
            if mask is not None:
                p = jnp.where(per_row(mask, axis), p, 0)
            logits = jnp.log(_clip(p, output.dtype))  # no division by the sum: the softmax normalises
        nll = _nll(dense_stats(Arguments(logits, target, mask=mask), axis=axis))
        return nll if mask is None else jnp.where(mask, nll, 0)

    return keep_statistics(losses)(target, output, mask).astype(output.dtype), mask


@functools.partial(jax.jit, static_argnames=("from_logits", "names"))
def binary(target, output, label_smoothing, *, from_logits: bool, names: tuple[str, str]) -> Array:
    """Return the cross-entropy against binary labels, one loss per entry, in the working dtype."""
    output = checks.floating(names[1], output)
    target = arguments.same_shape(names[0], target, output, names[1])

    def losses(target, output, label_smoothing):
        dtype = working_dtype(output)
        y = target.astype(dtype)
        if label_smoothing is not None:
            s = label_smoothing.astype(dtype)
            y = (1 - s) * y + s / 2
        epsilon, _ = _bounds(output.dtype)
        p = _clip(output.astype(dtype), output.dtype)
        # Keras adds epsilon again after clipping. The barrier keeps XLA from computing (1 + epsilon) - p, which rounds differently for p near 1.
        not_p = lax.optimization_barrier(1 - p)
        return -(y * jnp.log(p + epsilon) + (1 - y) * jnp.log(not_p + epsilon))

    if from_logits:
        smoothing = 0.0 if label_smoothing is None else label_smoothing
        loss = sigmoid_binary_cross_entropy(output, target, label_smoothing=smoothing)
        return loss + jnp.where(jnp.isinf(output) & (loss == 0), jnp.nan, 0)  # Keras computes inf - inf or 0 * inf
    return keep_statistics(losses)(target, output, label_smoothing)


def _nll(stats):
    """Return the loss. A row with a +inf logit gives NaN even if the label is that class, because Keras computes inf - inf."""
    return stats.nll * jnp.where(stats.max_logit == jnp.inf, jnp.nan, 1)


def is_counted(indices: Array, ignore_class: int) -> Array:
    """Return which rows have a label other than `ignore_class`."""
    limits = jnp.iinfo(indices.dtype)
    if not limits.min <= ignore_class <= limits.max:
        return jnp.ones(indices.shape, bool)
    return indices != ignore_class


def _clip(p, dtype):
    low, high = _bounds(dtype)
    return jnp.where(p < low, low, jnp.where(p > high, high, p))


def _bounds(dtype):
    """Return the clip bounds, rounded to the dtype of the predictions as Keras does: in float16, 1 - 1e-7 is 1."""
    epsilon = jnp.asarray(arguments.EPSILON, dtype)
    wide = working_dtype(epsilon)
    return epsilon.astype(wide), (1 - epsilon).astype(wide)
