"""The maximum of a row and the rest of its sum in one reading: statistics of some classes at a time, joined until one is left.

`rest` is `sum_k exp(z_k - shift) - 1`: one maximal class is left out of the sum, so that a tiny one keeps every digit. Of no class, or of
logits of -inf alone, the shift is -inf and the rest -1: then joining takes no special case. The online form of the sum is that of Milakov
and Gimelshein, Online normalizer calculation for softmax, 2018. Where classes tie, this code has not the derivatives of what it makes.
"""

import jax.numpy as jnp
from jax import lax

from jaxce._reading import halves, is_narrow
from jaxce._types import working_dtype

# A step of XLA's loop over a row costs a GPU as much as five classes, so it takes what stands at one place of each of so many slices of the row:
# a logit, or two of 16 bits, of which there are more since their loop has more to do than to read. Slices of more than 16,384 XLA would cut
# again, into a loop of its own.
_SLICES, _SLICES_OF_NARROW, _LONGEST = 8, 16, 2**14


def joined(a, b):
    """The maximum and the rest of two disjoint sets of classes. A NaN need be in the rest alone, and is there again."""
    (shift_a, rest_a), (shift_b, rest_b) = a, b
    is_first = shift_a >= shift_b
    below = jnp.where(is_first, shift_b - shift_a, shift_a - shift_b)
    e = jnp.exp(jnp.where(jnp.isnan(below), 0, below))  # equal infinities are equal
    shift = jnp.where(is_first, shift_a, shift_b)
    return shift, jnp.where(is_first, rest_a + (1 + rest_b) * e, rest_b + (1 + rest_a) * e)


def shift_and_rest(logits):
    """The maximum of each row and its rest, 0 of a row of -inf alone. The classes are the last axis, of one device."""
    dtype, axis = working_dtype(logits), logits.ndim - 1
    of_each_place = lax.complex(
        *_of_some(_slices(logits), is_widened=jnp.finfo(logits.dtype).max < jnp.finfo(dtype).max)
    )

    # As complex numbers: of a reduction of two arrays XLA for GPU would often make two loops, the first to write one of them out.
    def join(a, b):
        return lax.complex(*joined((lax.real(a), lax.imag(a)), (lax.real(b), lax.imag(b))))

    none = lax.complex(dtype.type(-jnp.inf), dtype.type(-1))
    of_row = lax.reduce(of_each_place, none, join, (axis,))
    shift, rest = lax.real(of_row), lax.imag(of_row)
    shift = jnp.where(jnp.isnan(rest), jnp.nan, shift)
    return shift, jnp.where(shift == -jnp.inf, 0, rest)


def _of_some(logits, *, is_widened):
    """The same of some arrays of one class each, a power of two of them: all but one are not the maximum."""
    others, largest = [], logits
    while len(largest) > 1:
        pairs = list(zip(largest[::2], largest[1::2], strict=True))
        others += [jnp.minimum(a, b) for a, b in pairs]
        largest = [jnp.maximum(a, b) for a, b in pairs]
    (shift,) = largest
    if is_widened:
        # No logit is the largest number of the wider dtype: what is above that is an infinity, and equal to the maximum.
        top = jnp.minimum(shift, jnp.finfo(shift.dtype).max)
        exponents = [jnp.minimum(z - top, 0) for z in others]
    else:
        exponents = [jnp.where(z == shift, 0, z - shift) for z in others]
    return shift, jnp.where(shift == -jnp.inf, -1, _sum([jnp.exp(x) for x in exponents]))


def _sum(terms):
    """In a tree, which rounds less than a chain and waits less."""
    while len(terms) > 1:
        odd = terms[len(terms) // 2 * 2 :]
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)] + odd
    return terms[0]


def _slices(logits):
    """The row in slices of one length, the last filled up with -inf, in the dtype to work in."""
    dtype, (*rows, num_classes) = working_dtype(logits), logits.shape
    if logits.dtype.itemsize == 2 and num_classes % 2 == 0:
        pairs = lax.bitcast_convert_type(logits.reshape(*rows, num_classes // 2, 2), jnp.uint32)
        least = lax.bitcast_convert_type(jnp.full(2, -jnp.inf, logits.dtype), jnp.uint32)
        return [half for part in _cut(pairs, least, _SLICES_OF_NARROW) for half in halves(part, logits.dtype)]
    return _cut(logits, jnp.full((), -jnp.inf, dtype), _SLICES_OF_NARROW if is_narrow(logits) else _SLICES)


def _cut(rows, least, number):
    """The last axis in a number of slices of one length, or twice as many while they are too long, the last filled up with `least`."""
    length = rows.shape[-1]
    while length > number * _LONGEST:
        number *= 2
    size = -(-length // number)
    filled = [(0, 0, 0)] * (rows.ndim - 1)

    def of_length(start):
        part = lax.slice_in_dim(rows, min(start, length), min(start + size, length), axis=-1).astype(least.dtype)
        return lax.pad(part, least, [*filled, (0, size - part.shape[-1], 0)])

    return [of_length(start) for start in range(0, number * size, size)]
