"""Sums over the classes as XLA for CPU computes them fastest: what the forms in `cpu` are made of.

XLA for CPU vectorises a sum, and writes nothing but its results, if

- nothing else uses what the loop computes, constants included. So each sum follows the one before it, behind a barrier, and its constants are
  arguments;
- the loop has no select. So a class is left out by arithmetic: by a factor that is 0;
- a row has at most 2**15 classes, and is a row of a matrix. So long rows are cut into parts.

In each minimum or maximum the bound comes first: these loops (jax 0.10 to 0.12) lose a NaN that comes first.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxce._core.definition import first_true
from jaxce._jax.axes import is_known, per_row
from jaxce._jax.mesh import is_on_auto_mesh
from jaxce._types import Array, working_dtype

# Rows of fewer classes are not worth cutting.
SHORT = 1000
# The numbers of classes that a part may have, best first. The first one that divides the number of classes is taken. Near 128, both costs are
# small: that of many parts, and that of reading one part twice.
PART_SIZES = sorted(range(64, 2049), key=lambda size: abs(size - 128))


class Constants(NamedTuple):
    zero: Any
    half: Any
    one: Any
    big: Any
    largest: Any


class Operands(NamedTuple):
    """The arrays that a loop reads: the logits, the maximum of each row, and a factor of each class: a label probability or a class weight."""

    logits: Array
    where: Any
    max_logit: Any
    factor: Any = None


def total(term, rows: Operands, axis, parts=1, *, after, tells_infinity=True):
    """Sum `term(z, gap, constants, *factors)` over the classes, once `after` is computed.

    `gap` is `z - m`, at most 0, but +inf for a logit of +inf. A maximum of +inf is replaced by the largest number, whose own gap is then 0. With
    `tells_infinity` it is below 0, which costs one more operation per class.
    """
    dtype, shape = rows.max_logit.dtype, rows.max_logit.shape
    constants = Constants(*(np.asarray(x, dtype) for x in (0, 0.5, 1, 1e38, jnp.finfo(dtype).max)))
    if parts > 1:
        rows, axis = rows._replace(logits=cut(rows.logits, parts), max_logit=_repeated(rows.max_logit, parts)), 1
    rows, constants, _ = lax.optimization_barrier((rows, constants, after))
    z = read(rows.logits, rows.where)
    largest = jnp.finfo(dtype).max
    gap = z - per_row(lax.clamp(-largest, rows.max_logit, largest), axis)
    if tells_infinity:
        gap = gap - per_row(jnp.where(rows.max_logit == jnp.inf, largest, 0), axis)
    factors = () if rows.factor is None else (rows.factor.astype(dtype),)
    sums = jnp.sum(term(z, gap, constants, *factors), axis)
    return sums if parts == 1 else jnp.sum(sums.reshape(*shape, parts), -1)


def max_and_rest_of_rows(logits, where, axis):
    """Return the maximum of each row, the sum of `exp(z_k - m)` over all but one maximal class, and the first maximal class."""
    rows = Operands(logits, where, jnp.max(read(logits, where), axis))
    others = total(exp_unless_top, rows, axis, after=rows.max_logit, tells_infinity=False)
    num_tops = total(is_top, rows, axis, after=others)
    prediction = first_true(read(logits, where) == per_row(rows.max_logit, axis), axis)
    return rows.max_logit, _with_ties(others, num_tops, rows.max_logit), prediction


def max_and_rest_of_parts(logits, parts):
    """Compute `max_and_rest_of_rows` of long rows in parts.

    1. `exp(z - m)` is summed in each part. In a row with a logit of +inf, a part counts as 1 if it has one, otherwise as 0.
    2. The first part with a maximal class is read again and summed without its maximal classes.
    3. The difference of both sums of this part, rounded to an integer, is the number of its maximal classes: each counted exactly 1, and the
       rounding error of a sum of at most 2,048 numbers up to 1 is less than a half.
    """
    shape, matrix = logits.shape[:-1], cut(logits, parts)
    part_max = jnp.max(read(matrix, None), 1).reshape(*shape, parts)
    m = jnp.max(part_max, -1)
    sums = total(exp, Operands(matrix, None, _repeated(m, parts)), 1, after=m, tells_infinity=False)
    sums = sums.reshape(part_max.shape)
    in_infinite_row = (m == jnp.inf)[..., None] & ~jnp.isnan(sums)
    sums = jnp.where(in_infinite_row, (sums == jnp.inf).astype(sums.dtype), sums)
    first = lax.argmax(part_max, len(shape), jnp.int32)
    row_starts = jnp.arange(0, part_max.size, parts, dtype=jnp.int32)
    own = as_integers(lambda x: x.at[row_starts + first.reshape(-1)].get(mode="promise_in_bounds"), matrix)
    own_rows = Operands(own.reshape(*shape, matrix.shape[1]), None, m)
    prediction = first * matrix.shape[1] + lax.argmax(read(own_rows.logits, None), len(shape), jnp.int32)
    own_others = total(exp_unless_equal, own_rows, len(shape), after=sums, tells_infinity=False)
    is_own = lax.broadcasted_iota(jnp.int32, part_max.shape, len(shape)) == first[..., None]
    own_sum = jnp.take_along_axis(sums, first[..., None], -1, mode="promise_in_bounds")[..., 0]
    others = jnp.sum(jnp.where(is_own, 0, sums), -1)
    is_infinite = m == jnp.inf
    num_tops = jnp.round(jnp.where(is_infinite, own_others * math.exp(-1), own_sum - own_others))
    rest = _with_ties(jnp.where(is_infinite, own_others * 0, own_others) + others, num_tops, m)
    return m, rest, prediction


def _with_ties(others, num_tops, m):
    """Return the sum without one maximal class, from the sum `others` without any. Each of the other maximal classes contributes exactly 1."""
    return jnp.where((m == -jnp.inf) & ~jnp.isnan(others), 0, others + (num_tops - 1))


def exp(_, gap, __):
    return jnp.exp(gap)


def exp_unless_top(z, gap, c):
    """Return `exp(z - m)`, but 0 for a maximal logit."""
    e = jnp.exp(jnp.minimum(c.one, gap))  # only a logit of +inf is above m
    return e - is_top(z, gap, c) * e


def exp_unless_equal(_, gap, c):
    """Return `exp(z - m)`, but 0 for a finite maximal logit, and `exp(1)` for one of +inf."""
    e = jnp.exp(jnp.minimum(c.one, gap))
    return e - jnp.maximum(c.zero, c.one - jnp.abs(gap) * c.largest) * e


def is_top(_, gap, c):
    """Return 1 where the difference from the maximum is 0, otherwise 0."""
    return jnp.maximum(c.zero, c.one + jnp.minimum(c.zero, gap) * c.big)


def gap_times_exp(_, gap, c):
    """Return `exp(z - m) (m - z)`, but 0 for a logit of -inf or +inf."""
    return jnp.exp(jnp.minimum(c.one, gap)) * jnp.minimum(c.largest, jnp.maximum(c.zero, -gap))


def takes_part(z, _, c):
    """Return 0 for a logit of -inf, otherwise 1."""
    return jnp.minimum(c.one, jnp.maximum(c.zero, z * c.half + c.largest))


def weight(z, gap, c, u):
    return u * takes_part(z, gap, c)


def bounded_gap(z, gap, c):
    """Return `m - z`, at most the largest number; 0 for a logit of -inf or +inf."""
    return takes_part(z, gap, c) * jnp.minimum(c.largest, jnp.maximum(c.zero, -gap))


def weighted_gap(_, gap, c, q):
    """Return `q (m - z)`: 0 for a `q` of 0 or a logit of +inf, and otherwise infinite for a logit of -inf."""
    size = jnp.maximum(c.zero, -gap)
    return (q * jnp.minimum(c.largest, size)) * jnp.minimum(c.largest, jnp.maximum(c.one, size - c.largest))


def class_gap(z, gap, c, u):
    """Return `u (m - z)`; 0 for a class that takes no part."""
    return weighted_gap(z, gap, c, u * takes_part(z, gap, c))


def as_integers(look_up, values):
    """Return `look_up(values)`, which picks some of the values. XLA would first write a float32 copy of all narrow floating-point values."""
    if values.dtype.itemsize > 2:
        return look_up(values)
    integers = lax.bitcast_convert_type(values, f"uint{8 * values.dtype.itemsize}")
    return lax.bitcast_convert_type(look_up(integers), values.dtype)


def read(logits, where):
    """Return the logits in the working dtype, with -inf for a class that is left out."""
    z = logits.astype(working_dtype(logits))
    return z if where is None else jnp.where(where, z, -jnp.inf)


def number_of_parts(logits, where, axis):
    """Return the number of parts of each row: 1 if rows are short, or are not contiguous on one device."""
    num_classes = logits.shape[axis]
    is_long = is_known(num_classes) and num_classes >= SHORT
    if not is_long or where is not None or axis != logits.ndim - 1 or is_on_auto_mesh(logits):
        return 1
    return num_classes // next((size for size in PART_SIZES if num_classes % size == 0), num_classes)


def cut(logits, parts):
    """Return the parts of the rows as the rows of a matrix."""
    # The barrier keeps XLA from widening narrow logits before it cuts them.
    return lax.optimization_barrier(logits.reshape(-1, logits.shape[-1] // parts))


def _repeated(m, parts):
    """Return the maximum of its row for each part."""
    return jnp.broadcast_to(m[..., None], (*m.shape, parts)).reshape(-1)
