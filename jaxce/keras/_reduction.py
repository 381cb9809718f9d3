"""The reductions of Keras 3, with sample weights."""

import functools
import typing

import jax
import jax.numpy as jnp

from jaxce._loss_sum import LossSum
from jaxce._types import Array, Reduction

_REDUCTIONS = (*typing.get_args(Reduction), None)


def checked(reduction: Reduction | None) -> Reduction | None:
    """Check for the name of a reduction."""
    if not (reduction is None or isinstance(reduction, str)) or reduction not in _REDUCTIONS:
        raise ValueError(f"`reduction` must be one of {_REDUCTIONS}; got {reduction!r}.")
    return reduction


def same_rank(a: Array, b: Array) -> tuple[Array, Array]:
    """Return two arrays with the same rank if their ranks differ by a last axis of size 1. Add the axis to a vector, otherwise drop it."""
    if a.ndim == b.ndim + 1 and a.shape[-1] == 1:
        return (a, b[:, None]) if b.ndim == 1 else (a[..., 0], b)
    if b.ndim == a.ndim + 1 and b.shape[-1] == 1:
        return (a[:, None], b) if a.ndim == 1 else (a, b[..., 0])
    return a, b


@functools.partial(jax.jit, static_argnames="reduction")
def reduce(losses: Array, sample_weight: Array | None, mask: Array | None, *, reduction: Reduction | None) -> Array:
    """Return the losses, weighted and reduced.

    Args:
      losses: One loss per example.
      sample_weight: A scalar, or an array with the shape of `losses` or of its first axes. A weight applies to all losses at its index.
      mask: The shape of `losses`. True for the examples that count; a mean is over these examples.
      reduction: `sum`; `sum_over_batch_size` or `mean`, which divide by the number of losses; `mean_with_sample_weight`, which divides by the sum
        of the given weights; `none` or None. A mean over nothing is 0.
    """
    weights = sample_weight
    if mask is not None:
        counted = mask.astype(losses.dtype)
        if reduction in ("sum_over_batch_size", "mean"):
            counted = counted * LossSum(_size(losses), jnp.sum(counted)).mean()
        if weights is not None:
            counted, weights = same_rank(counted, weights.astype(losses.dtype))
            counted = counted * _fitted(weights, counted)
        weights = counted
    if weights is not None:
        losses, weights = same_rank(losses, weights.astype(losses.dtype))
        weights = _fitted(weights, losses)
        losses = losses * weights
    if reduction in (None, "none") or losses.shape in ((), (0,)):
        return losses
    total = jnp.sum(losses)
    if reduction == "sum":
        return total
    if reduction == "mean_with_sample_weight" and weights is not None:
        return LossSum(total, jnp.sum(weights)).mean()
    return LossSum(total, _size(losses)).mean()


def _size(losses):
    return jnp.asarray(losses.size, losses.dtype)


def _fitted(weights, losses):
    """Append axes of size 1 to `weights`, so that the weights broadcast against the first axes of `losses`."""
    shape = weights.shape + (1,) * (losses.ndim - weights.ndim)
    if len(shape) > losses.ndim or any(n not in (1, full) for n, full in zip(shape, losses.shape, strict=True)):
        raise ValueError(
            f"`sample_weight` must be a scalar or have the shape {losses.shape} of the losses or of its first axes; got {weights.shape}."
        )
    return weights.reshape(shape)
