"""The maximum of a row and the rest of its sum in one reading: statistics of pairs of classes, joined until one is left.

`rest` is `sum_k exp(z_k - shift) - 1`: one maximal class is left out of the sum, so that a tiny one keeps every digit. Of no class, or of
logits of -inf alone, the shift is -inf and the rest -1: then joining takes no special case. The online form of the sum is that of Milakov
and Gimelshein, Online normalizer calculation for softmax, 2018.
"""

import math

import jax.numpy as jnp
from jax import lax

from jaxce._types import working_dtype

# A step of XLA's loop over a row costs a GPU as much as five classes, so it takes one class of each of so many slices of the row. Slices of
# more than 16,384 classes XLA would cut again, into a loop of its own: of narrow logits, whose loop has more to do than to read, that takes a
# third longer. Of more slices it makes one loop only where there are many rows.
_SLICES, _LONGEST, _MANY_ROWS = 8, 2**14, 2048


def joined(a, b):
    """The maximum and the rest of two disjoint sets of classes. A NaN need be in the rest alone, and is there again."""
    (shift_a, rest_a), (shift_b, rest_b) = a, b
    # By selects: of equal maxima one is the shift, for derivatives too.
    is_first = shift_a >= shift_b
    below = jnp.where(is_first, shift_b - shift_a, shift_a - shift_b)
    e = jnp.exp(jnp.where(jnp.isnan(below), 0, below))  # equal infinities are equal
    shift = jnp.where(is_first, shift_a, shift_b)
    return shift, jnp.where(is_first, rest_a + (1 + rest_b) * e, rest_b + (1 + rest_a) * e)


def shift_and_rest(logits):
    """The maximum of each row and its rest, 0 of a row of -inf alone. The classes are the last axis, of one device."""
    rows, num_classes, dtype = math.prod(logits.shape[:-1]), logits.shape[-1], working_dtype(logits)
    largest = jnp.finfo(dtype).max
    is_widened = jnp.finfo(logits.dtype).max < largest
    if is_widened:
        are_many = isinstance(rows, int) and rows >= _MANY_ROWS  # under `jax.export` it may be a symbol
        is_cut_more = are_many and num_classes > _SLICES * _LONGEST
        slices = _slices(logits, 2 * _SLICES if is_cut_more else _SLICES)
        # No logit is the largest number of the wider dtype, so that can stand for +inf, of which two have a difference then.
        slices = [jnp.minimum(z, largest) for z in slices]
        parts = [_of_four(*slices[i : i + 4]) for i in range(0, len(slices), 4)]
    else:
        slices = _slices(logits, _SLICES)
        parts = [_of_pair(*slices[i : i + 2]) for i in range(0, _SLICES, 2)]
    while len(parts) > 1:
        parts = [joined(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    shift, rest = lax.reduce(parts[0], (dtype.type(-jnp.inf), dtype.type(-1)), joined, (logits.ndim - 1,))
    if is_widened:
        shift = jnp.where(shift == largest, jnp.inf, shift)
    shift = jnp.where(jnp.isnan(rest), jnp.nan, shift)
    return shift, jnp.where(shift == -jnp.inf, 0, rest)


def _of_pair(a, b):
    """What `joined` would make of two classes, in fewer steps.

    Of two at -inf any rest would do; but without this select XLA for GPU makes two loops of float32 logits, with an array between them.
    """
    shift = jnp.maximum(a, b)
    below = jnp.where(a == b, 0, -jnp.abs(a - b))
    return shift, jnp.where(shift == -jnp.inf, -1, jnp.exp(below))


def _of_four(a, b, c, d):
    """The same of four finite classes, or classes at -inf: three of them are not the maximum."""
    ab, cd = jnp.maximum(a, b), jnp.maximum(c, d)
    shift = jnp.maximum(ab, cd)
    others = jnp.minimum(a, b), jnp.minimum(c, d), jnp.minimum(ab, cd)
    first, second, third = (jnp.exp(z - shift) for z in others)
    return shift, jnp.where(shift == -jnp.inf, -1, (first + second) + third)


def _slices(logits, number):
    """The row in slices of one length, the last filled up with -inf."""
    num_classes, dtype = logits.shape[-1], working_dtype(logits)
    size = -(-num_classes // number)
    filled = [(0, 0, 0)] * (logits.ndim - 1)

    def of_length(start):
        part = lax.slice_in_dim(logits, min(start, num_classes), min(start + size, num_classes), axis=-1).astype(dtype)
        return lax.pad(part, dtype.type(-jnp.inf), [*filled, (0, size - part.shape[-1], 0)])

    return [of_length(start) for start in range(0, number * size, size)]
