"""The maximum of a row and the rest of its sum in one reading: statistics of pairs of classes, joined until one is left.

`rest` is `sum_k exp(z_k - shift) - 1`: one maximal class is left out of the sum, so that a tiny one keeps every digit. Of no class, or of
logits of -inf alone, the shift is -inf and the rest -1: then joining takes no special case. The online form of the sum is that of Milakov
and Gimelshein, Online normalizer calculation for softmax, 2018.
"""

import jax.numpy as jnp
from jax import lax

from jaxce._types import working_dtype

# A step of XLA's loop over a row costs a GPU as much as five classes, so it takes one class of each of so many slices of the row.
_SLICES = 8


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
    slices = _slices(logits)
    pairs = [_of_pair(a, b) for a, b in zip(slices[::2], slices[1::2], strict=True)]
    while len(pairs) > 1:
        pairs = [joined(a, b) for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
    dtype = pairs[0][0].dtype.type
    shift, rest = lax.reduce(pairs[0], (dtype(-jnp.inf), dtype(-1)), joined, (logits.ndim - 1,))
    shift = jnp.where(jnp.isnan(rest), jnp.nan, shift)
    return shift, jnp.where(shift == -jnp.inf, 0, rest)


def _of_pair(a, b):
    """What `joined` would make of two classes, in fewer steps.

    Of two at -inf any rest would do; but without this select XLA for GPU makes two loops of float32 logits, with an array between them.
    """
    shift = jnp.maximum(a, b)
    below = jnp.where(a == b, 0, -jnp.abs(a - b))
    return shift, jnp.where(shift == -jnp.inf, -1, jnp.exp(below))


def _slices(logits):
    """The row in slices of one length, the last filled up with -inf."""
    num_classes, dtype = logits.shape[-1], working_dtype(logits)
    size = -(-num_classes // _SLICES)
    filled = [(0, 0, 0)] * (logits.ndim - 1)

    def of_length(start):
        part = lax.slice_in_dim(logits, min(start, num_classes), min(start + size, num_classes), axis=-1).astype(dtype)
        return lax.pad(part, dtype.type(-jnp.inf), [*filled, (0, size - part.shape[-1], 0)])

    return [of_length(start) for start in range(0, _SLICES * size, size)]
