"""`LossSum`: a sum of losses and a sum of weights. Unlike means, these sums add up exactly over micro-batches and devices."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxce import _checks as checks
from jaxce._checks import results as result_checks
from jaxce._core.weighting import times_loss
from jaxce._jax.axes import is_known, wide_indices
from jaxce._jax.mesh import gathered, varying_like
from jaxce._types import Array, ArrayLike, exportable, working_dtype

# The number of losses that `by_segment` adds up in float32, before it adds their sum to a pair of numbers. This sum is exact to 1e-6.
_SEGMENT_BLOCK = 512


@exportable
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSum:
    """The sum of some losses and the sum of their weights; a pytree.

    The mean over several batches is the sum of their totals divided by the sum of their weights. The mean of their means differs from this mean
    if the batches have different numbers of valid examples.

    Each sum is stored as two numbers, for example `total` and the rounding error of `total`. So a sum of any number of batches stays exact to
    1e-6. A plain float32 number stops counting at 16,777,216 tokens.

    Attributes:
      total: The sum of the weighted losses.
      weight: The sum of the weights. With weights of both signs it may be near 0: then divide `total` by a number of your own.
      total_remainder: The exact sum of the weighted losses minus `total`, rounded; differentiation treats it as a constant.
      weight_remainder: The exact sum of the weights minus `weight`, rounded; differentiation treats it as a constant.

    Example:
      >>> losses = jnp.array([1.0, 2.0, 30.0, 5.0])
      >>> mask = jnp.array([True, True, False, True])
      >>> halves = [LossSum.of(losses[i : i + 2], mask=mask[i : i + 2]) for i in (0, 2)]
      >>> print(sum(halves, start=LossSum.zero()).mean(), LossSum.of(losses, mask=mask).mean())
      2.6666667 2.6666667

    References:
      The sum and its rounding error: Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B.
      Guide: docs/pages/guides/accumulation.md
    """

    total: Array
    weight: Array
    total_remainder: Array | float = dataclasses.field(default=0.0, repr=False)
    weight_remainder: Array | float = dataclasses.field(default=0.0, repr=False)

    @staticmethod
    def zero(dtype: DTypeLike = jnp.float32) -> LossSum:
        """Return the sum of no losses: the start of a `sum`, a `jax.lax.scan` or a `jax.lax.fori_loop`.

        Args:
          dtype: float32, or float64 to add up float64 losses.

        Returns:
          A `LossSum` whose fields are all 0.

        Raises:
          TypeError: `dtype` is neither float32 nor float64.

        Example:
          >>> losses = jnp.arange(6.0).reshape(3, 2)
          >>> print(jax.lax.scan(lambda s, x: (s + LossSum.of(x), None), LossSum.zero(), losses)[0].mean())
          2.5
        """
        dtype = result_checks.loss_dtype(dtype)
        return LossSum(*(jnp.zeros((), dtype) for _ in range(4)))

    @staticmethod
    def of(losses: ArrayLike, weights: ArrayLike | None = None, mask: ArrayLike | None = None) -> LossSum:
        """Return the sum over all losses that count.

        Args:
          losses: Any shape, floating.
          weights: The shape of `losses`, real, of any sign: the weight of each loss, ones by default. An infinite loss of weight 0 counts as 0.
          mask: The shape of `losses`, boolean. True for the losses that count. Pass the mask to the loss function too: this function does not
            add a masked NaN loss, but the gradient of that loss would still be NaN.

        Returns:
          A `LossSum` of two scalars, float32 for losses of 32 bits or fewer.

        Raises:
          TypeError: An argument has the wrong dtype.
          ValueError: An argument has the wrong shape.
        """
        return _sum(losses, weights, mask)

    @staticmethod
    def by_segment(
        losses: ArrayLike,
        segment_ids: ArrayLike,
        num_segments: int,
        weights: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> LossSum:
        """Return the sum over each segment: over each sequence of a packed batch, for example.

        Args:
          losses: Any shape, floating.
          segment_ids: The shape of `losses`, integer: the number of the segment of each loss, in any order. A loss whose number is outside
            `[0, num_segments)` belongs to no segment, and is left out.
          num_segments: The number of segments, a Python integer.
          weights: The shape of `losses`, real, of any sign: the weight of each loss, ones by default.
          mask: The shape of `losses`, boolean. True for the losses that count.

        Returns:
          A `LossSum` of arrays `[num_segments]`, float32 for losses of 32 bits or fewer. `.mean()` is the mean of each segment, 0 for one without
          losses.

        Raises:
          TypeError: An argument has the wrong dtype.
          ValueError: An argument has the wrong shape, or `num_segments` is negative.

        Numerics:
          The sums are exact to 1e-6 of the sum of the sizes of their terms, however long a segment is. They take a few times as long as
          `jax.ops.segment_sum`. If the number of losses is a symbol of `jax.export`, they are added up in float32 alone.

        Example:
          >>> losses = jnp.array([1.0, 2.0, 30.0, 5.0])
          >>> print(LossSum.by_segment(losses, jnp.array([0, 0, 1, 0]), 3).mean().round(4))
          [ 2.6667 30.      0.    ]
        """
        return _sum_by_segment(
            losses, segment_ids, weights, mask, num_segments=result_checks.number_of_segments(num_segments)
        )

    def __add__(self, other: LossSum) -> LossSum:
        if not isinstance(other, LossSum):
            return result_checks.no_sum_with(other)
        result_checks.same_segments(self, other)
        total, total_remainder = _add(self.total, self.total_remainder, other.total, other.total_remainder)
        weight, weight_remainder = _add(self.weight, self.weight_remainder, other.weight, other.weight_remainder)
        return LossSum(total, weight, total_remainder, weight_remainder)

    def __radd__(self, other: int) -> LossSum:
        if isinstance(other, int) and other == 0:  # the start of the builtin `sum`
            return self
        return result_checks.no_sum_with(other)

    def mean(self) -> Array:
        """Return `total / weight`. If the weight is 0, the mean is 0 and its gradient is 0."""
        none = self.weight == 0
        return jnp.where(none, 0, self.total) / jnp.where(none, 1, self.weight)  # the remainders are less than an ulp

    def psum(self, axis_name: str | tuple[str, ...]) -> LossSum:
        """Return the sum over a mapped axis, inside `jax.shard_map` or `jax.vmap`."""
        return jax.tree.map(lambda x: lax.psum(x, axis_name), self)

    def __str__(self) -> str:
        # `jax.grad` shows this string if a function returns a LossSum instead of a number.
        return f"{self!r}, of which `.mean()` or `.total` is a number"

    def __float__(self) -> float:
        result_checks.no_float_of_a_sum()

    def __truediv__(self, other: object) -> LossSum:
        result_checks.no_quotient_with(other)


@jax.jit
def _add(a, a_remainder, b, b_remainder):
    """Add `a + a_remainder` and `b + b_remainder`, and return the result as such a pair.

    The derivative is the derivative of `a + b`. The remainders are constants, because they are 0 in exact arithmetic.
    """
    plain = a + b
    a, a_remainder, b, b_remainder = map(lax.stop_gradient, (a, a_remainder, b, b_remainder))
    rounded, error = _two_sum(a, b)
    rounded, remainder = _two_sum(rounded, error + (a_remainder + b_remainder))
    # `rounded` and `plain` differ by a few units in the last place. So their difference is exact, and adding it to `plain` gives `rounded`.
    is_finite = jnp.isfinite(rounded)
    total = plain + jnp.where(is_finite, rounded - lax.stop_gradient(plain), 0)
    return total, jnp.where(is_finite, remainder, 0)


def _two_sum(a, b):
    """Return `a + b` rounded, and the rounding error. The barriers keep XLA from simplifying the rounding error to 0."""
    total = lax.optimization_barrier(a + b)
    b_part = lax.optimization_barrier(total - a)
    return total, (a - lax.optimization_barrier(total - b_part)) + (b - b_part)


@jax.jit
def _sum(losses, weights, mask):
    losses, weights = _weighted(losses, weights, mask)
    zero = jnp.zeros((), losses.dtype)
    return LossSum(jnp.sum(losses), jnp.sum(weights), zero, zero)


@functools.partial(jax.jit, static_argnames="num_segments")
def _sum_by_segment(losses, segment_ids, weights, mask, *, num_segments):
    losses = checks.floating("losses", losses)
    ids = wide_indices(result_checks.segment_ids(segment_ids, losses.shape))
    has_segment = (ids >= 0) & (ids < num_segments)
    mask = checks.mask(mask, losses.shape, losses)
    losses, weights = _weighted(losses, weights, has_segment if mask is None else mask & has_segment)
    losses, weights, ids = (gathered(x).reshape(-1) for x in (losses, weights, jnp.where(has_segment, ids, 0)))
    total, total_remainder = _sums_of_segments(losses, ids, num_segments)
    weight, weight_remainder = _sums_of_segments(weights, ids, num_segments)
    return LossSum(total, weight, total_remainder, weight_remainder)


def _sums_of_segments(values, ids, num_segments):
    """Return the sum of each segment and what rounding left of it. Values that are left out are 0."""
    if not is_known(values.size):  # a symbol of `jax.export` cannot be cut into blocks
        total = jax.ops.segment_sum(values, ids, num_segments)
        return total, jnp.zeros_like(total)
    missing = -values.size % _SEGMENT_BLOCK
    blocks, ids_of_blocks = (jnp.pad(x, (0, missing)).reshape(-1, _SEGMENT_BLOCK) for x in (values, ids))

    def add(sums, block):
        values, ids = block
        part = jax.ops.segment_sum(values, ids, num_segments)
        return _add(*sums, part, jnp.zeros_like(part)), None

    zero = varying_like(jnp.zeros(num_segments, values.dtype), (blocks, ids_of_blocks))
    return lax.scan(add, (zero, zero), (blocks, ids_of_blocks))[0]


def _weighted(losses, weights, mask):
    """Return the checked losses times their weights, and the weights."""
    values = checks.floating("losses", losses)
    weights = result_checks.loss_weights(weights, values.shape)
    mask = checks.mask(mask, values.shape, values)
    dtype = working_dtype(values)
    values = values.astype(dtype)
    weights = jnp.ones_like(values) if weights is None else weights.astype(dtype)
    if mask is not None:
        values, weights = jnp.where(mask, values, 0), jnp.where(mask, weights, 0)
    return times_loss(weights, values), weights
