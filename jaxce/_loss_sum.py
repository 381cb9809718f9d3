"""`LossSum`: a sum of losses with its weight, which is what adds up exactly over micro-batches and devices; a mean does not."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxce import _checks as checks
from jaxce._types import Array, ArrayLike, working_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSum:
    """The sum of some losses and the sum of their weights; a pytree.

    The mean over several batches is the sum of their totals over the sum of their weights. The mean of their means is something else wherever
    they hold different numbers of valid examples.

    Example:
      >>> losses = jnp.array([1.0, 2.0, 30.0, 5.0])
      >>> mask = jnp.array([True, True, False, True])
      >>> halves = [LossSum.of(losses[i : i + 2], mask=mask[i : i + 2]) for i in (0, 2)]
      >>> print(sum(halves).mean(), LossSum.of(losses, mask=mask).mean())
      2.6666667 2.6666667
    """

    total: Array
    weight: Array

    @staticmethod
    def of(losses: ArrayLike, weights: ArrayLike | None = None, mask: ArrayLike | None = None) -> "LossSum":
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

    def __add__(self, other: "LossSum") -> "LossSum":
        if not isinstance(other, LossSum):
            return NotImplemented
        return LossSum(self.total + other.total, self.weight + other.weight)

    def __radd__(self, other: int) -> "LossSum":
        # What `sum` starts with.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def mean(self) -> Array:
        """`total / weight`; 0, with gradient 0, where the weight is 0."""
        none = self.weight == 0
        return jnp.where(none, 0, self.total) / jnp.where(none, 1, self.weight)

    def psum(self, axis_name: str | tuple[str, ...]) -> "LossSum":
        """The sum over a mapped axis, inside `jax.shard_map` or `jax.vmap`."""
        return LossSum(lax.psum(self.total, axis_name), lax.psum(self.weight, axis_name))


@jax.jit
def _sum(losses, weights, mask):
    values = checks.floating("losses", losses)
    weights = checks.loss_weights(weights, values)
    mask = checks.mask(mask, values.shape, values)
    dtype = working_dtype(values)
    values = values.astype(dtype)
    weights = jnp.ones_like(values) if weights is None else weights.astype(dtype)
    if mask is not None:
        values, weights = jnp.where(mask, values, 0), jnp.where(mask, weights, 0)
    return LossSum(jnp.sum(values * weights), jnp.sum(weights))
