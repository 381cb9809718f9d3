"""Keras 3's reductions of losses with sample weights."""

import functools
import typing

import jax
import jax.numpy as jnp

from jaxce._loss_sum import LossSum
from jaxce._types import Array, Reduction

_REDUCTIONS = (*typing.get_args(Reduction), None)


def checked(reduction: Reduction | None) -> Reduction | None:
    """A name that `reduce` knows."""
    if not (reduction is None or isinstance(reduction, str)) or reduction not in _REDUCTIONS:
        raise ValueError(f"`reduction` must be one of {_REDUCTIONS}; got {reduction!r}.")
    return reduction


def same_rank(a: Array, b: Array) -> tuple[Array, Array]:
    """Two arrays whose ranks differ by a last axis of size 1, brought to one rank: against a vector the axis is added, else dropped."""
    if a.ndim == b.ndim + 1 and a.shape[-1] == 1:
        return (a, b[:, None]) if b.ndim == 1 else (a[..., 0], b)
    if b.ndim == a.ndim + 1 and b.shape[-1] == 1:
        return (a[:, None], b) if a.ndim == 1 else (a, b[..., 0])
    return a, b


@functools.partial(jax.jit, static_argnames="reduction")
def reduce(losses: Array, sample_weight: Array | None, mask: Array | None, *, reduction: Reduction | None) -> Array:
    """The losses, weighted and reduced.

    Args:
      losses: One loss per example.
      sample_weight: A scalar, or the shape of `losses`, or its first axes: then each weighs all that shares its indices.
      mask: The shape of `losses`: the examples that count; a mean is over these.
      reduction: `sum`; `sum_over_batch_size` or `mean`, by the number of losses; `mean_with_sample_weight`, by the sum of the weights as
        given; `none` or None. A mean over nothing is 0.
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
    """`weights` with axes of size 1 behind, so that they broadcast against `losses` from the first axis on."""
    shape = weights.shape + (1,) * (losses.ndim - weights.ndim)
    if len(shape) > losses.ndim or any(n not in (1, full) for n, full in zip(shape, losses.shape, strict=True)):
        raise ValueError(
            f"`sample_weight` must be a scalar or have the shape {losses.shape} of the losses or of its first axes; got {weights.shape}."
        )
    return weights.reshape(shape)
