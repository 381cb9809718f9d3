"""`LossSum`: a sum of losses with its weight, which is what adds up exactly over micro-batches and devices; a mean does not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxce import _checks as checks
from jaxce._checks import results as result_checks
from jaxce._types import Array, ArrayLike, exportable, working_dtype


@exportable
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSum:
    """The sum of some losses and the sum of their weights; a pytree.

    The mean over several batches is the sum of their totals over the sum of their weights. The mean of their means is something else wherever
    they hold different numbers of valid examples.

    Each sum is two numbers: `total` and the part that rounding took from it. So a sum of any number of batches stays exact to 1e-6: plain
    float32 numbers stop counting at 16,777,216 tokens.

    Attributes:
      total: The sum of the weighted losses.
      weight: The sum of the weights.
      total_remainder: The exact sum less `total`, rounded; a constant of differentiation.
      weight_remainder: The exact sum of the weights less `weight`, rounded; a constant of differentiation.

    Example:
      >>> losses = jnp.array([1.0, 2.0, 30.0, 5.0])
      >>> mask = jnp.array([True, True, False, True])
      >>> halves = [LossSum.of(losses[i : i + 2], mask=mask[i : i + 2]) for i in (0, 2)]
      >>> print(sum(halves, start=LossSum.zero()).mean(), LossSum.of(losses, mask=mask).mean())
      2.6666667 2.6666667

    References:
      The sum and its rounding error: Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B.
    """

    total: Array
    weight: Array
    total_remainder: Array | float = dataclasses.field(default=0.0, repr=False)
    weight_remainder: Array | float = dataclasses.field(default=0.0, repr=False)

    @staticmethod
    def zero(dtype: DTypeLike = jnp.float32) -> LossSum:
        """The sum of no losses: what `sum`, `jax.lax.scan` and `jax.lax.fori_loop` start from.

        Args:
          dtype: float32, or float64 to add up losses of float64.

        Returns:
          `LossSum` of two scalars that are 0.

        Raises:
          TypeError: `dtype` is not a floating dtype.

        Example:
          >>> losses = jnp.arange(6.0).reshape(3, 2)
          >>> print(jax.lax.scan(lambda s, x: (s + LossSum.of(x), None), LossSum.zero(), losses)[0].mean())
          2.5
        """
        dtype = result_checks.loss_dtype(dtype)
        return LossSum(*(jnp.zeros((), dtype) for _ in range(4)))

    @staticmethod
    def of(losses: ArrayLike, weights: ArrayLike | None = None, mask: ArrayLike | None = None) -> LossSum:
        """The sum over all losses that count.

        Args:
          losses: Any shape, floating.
          weights: The shape of `losses`, real: the weight of each, ones by default.
          mask: The shape of `losses`, boolean: those that count. Give it to the loss function too: here a NaN loss left out is not
            added, but its gradient would still be NaN.

        Returns:
          `LossSum` of two scalars, float32 for losses of 32 bits or fewer.

        Raises:
          TypeError: a dtype that does not fit.
          ValueError: a shape that does not fit.
        """
        return _sum(losses, weights, mask)

    def __add__(self, other: LossSum) -> LossSum:
        if not isinstance(other, LossSum):
            return result_checks.no_sum_with(other)
        total, total_remainder = _add(self.total, self.total_remainder, other.total, other.total_remainder)
        weight, weight_remainder = _add(self.weight, self.weight_remainder, other.weight, other.weight_remainder)
        return LossSum(total, weight, total_remainder, weight_remainder)

    def __radd__(self, other: int) -> LossSum:
        if isinstance(other, int) and other == 0:  # what `sum` starts from
            return self
        return result_checks.no_sum_with(other)

    def mean(self) -> Array:
        """`total / weight`; 0, with gradient 0, where the weight is 0."""
        none = self.weight == 0
        return jnp.where(none, 0, self.total) / jnp.where(none, 1, self.weight)  # a remainder is less than an ulp

    def psum(self, axis_name: str | tuple[str, ...]) -> LossSum:
        """The sum over a mapped axis, inside `jax.shard_map` or `jax.vmap`."""
        return jax.tree.map(lambda x: lax.psum(x, axis_name), self)

    def __str__(self) -> str:
        # `jax.grad` shows this where a function gives a LossSum instead of a number.
        return f"{self!r}, of which `.mean()` or `.total` is a number"

    def __float__(self) -> float:
        result_checks.no_float_of_a_sum()

    def __truediv__(self, other: object) -> LossSum:
        result_checks.no_quotient_with(other)


@jax.jit
def _add(a, a_remainder, b, b_remainder):
    """The sum of two numbers that are `x + x_remainder` each, as such a pair.

    The derivative is that of `a + b`. Everything else is constant: exact arithmetic would leave no remainder.
    """
    plain = a + b
    a, a_remainder, b, b_remainder = map(lax.stop_gradient, (a, a_remainder, b, b_remainder))
    rounded, error = _two_sum(a, b)
    rounded, remainder = _two_sum(rounded, error + (a_remainder + b_remainder))
    # `rounded` and `plain` differ by a few units in the last place. So their difference is exact, and the sum below is `rounded`.
    is_finite = jnp.isfinite(rounded)
    total = plain + jnp.where(is_finite, rounded - lax.stop_gradient(plain), 0)
    return total, jnp.where(is_finite, remainder, 0)


def _two_sum(a, b):
    """`a + b` rounded, and the rounding error. Barriers keep XLA from working out by algebra that there is no error."""
    total = lax.optimization_barrier(a + b)
    b_part = lax.optimization_barrier(total - a)
    return total, (a - lax.optimization_barrier(total - b_part)) + (b - b_part)


@jax.jit
def _sum(losses, weights, mask):
    values = checks.floating("losses", losses)
    weights = result_checks.loss_weights(weights, values)
    mask = checks.mask(mask, values.shape, values)
    dtype = working_dtype(values)
    values = values.astype(dtype)
    weights = jnp.ones_like(values) if weights is None else weights.astype(dtype)
    if mask is not None:
        values, weights = jnp.where(mask, values, 0), jnp.where(mask, weights, 0)
    return LossSum(jnp.sum(values * weights), jnp.sum(weights), jnp.zeros((), dtype), jnp.zeros((), dtype))
