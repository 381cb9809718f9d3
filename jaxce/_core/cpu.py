"""The forms for XLA for CPU: the statistics in fast loops, and a gradient that is rounded fast.

What XLA for CPU does with the definition: it computes `exp(z - m)` and each comparison once, writes them out as arrays as large as the
logits, and sums each of those. A sum with a select in it is not vectorised. What it does with these forms: each sum is one vectorised loop
over the logits, which writes nothing but its results. It does so where

- nothing else uses what the loop computes, constants included. So each sum follows the one before it, behind a barrier, and its constants are
  arguments;
- the loop has no select. So a class is left out by arithmetic: by a factor that is 0;
- a row has at most 2**15 classes, and is a row of a matrix. So long rows are cut into parts.

In each minimum or maximum the bound comes first: these loops (jax 0.10 to 0.12) lose a NaN that comes first.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxce._core import definition, sigmoid
from jaxce._core.definition import Statistics
from jaxce._core.integer_labels import gradient, row_coefficients, with_label_logit
from jaxce._jax.axes import is_known, per_class, per_row
from jaxce._jax.mesh import is_explicit, is_on_auto_mesh
from jaxce._types import Array, working_dtype

# Fewer logits stay in the cache, whatever the definition writes out.
SMALLEST = 2**15
# Rows of fewer classes are not worth cutting.
_SHORT = 1000
# The number of classes of a part. Parts as long as this cost little, and so does the one that is read again. The first that divides is taken.
_PART_SIZES = sorted(range(64, 2049), key=lambda size: abs(size - 128))


def suits(logits) -> bool:
    """Whether these forms are faster, or smaller, than the definition. An unknown number of logits counts as a large one."""
    return not is_explicit(logits) and (not is_known(logits.size) or logits.size >= SMALLEST)


class _Constants(NamedTuple):
    zero: Array
    half: Array
    one: Array
    big: Array
    largest: Array


class _Rows(NamedTuple):
    """The logits that a loop reads, what it subtracts from them, and other arrays that it reads."""

    logits: Array
    where: Array | None
    max_logit: Array
    beside: Array | None = None


def statistics(logits, where, labels, class_weights, *, axis) -> Statistics:
    """Compute `definition.statistics` in loops that follow one another."""
    # Otherwise XLA recomputes the logits for each loop, rounded differently, if they are the result of other elementwise code.
    logits, labels = lax.optimization_barrier((logits, labels))
    parts = _number_of_parts(logits, where, axis)
    if parts > 1:
        m, rest = _max_and_rest_of_parts(logits, parts)
    else:
        m, rest = _max_and_rest(logits, where, axis)
    rows = _Rows(logits, where, m)
    dtype = m.dtype
    log_norm = jnp.log1p(rest)
    num_classes = weight_sum = _sum(_takes_part, rows, axis, parts, after=rest)
    with_weights = rows
    if class_weights is not None:
        with_weights = rows._replace(beside=per_class(class_weights, axis, logits.ndim))
        weight_sum = _sum(_weight, with_weights, axis, after=num_classes)
    uniform_gap = _sum(_weighted_gap, with_weights, axis, parts if class_weights is None else 1, after=weight_sum)
    # A logit of +inf is infinitely far above the others.
    uniform_gap = jnp.where((m == jnp.inf) & (uniform_gap != 0), jnp.inf, uniform_gap)
    stats = Statistics(m, rest, rest, rest, weight_sum * log_norm + uniform_gap, weight_sum, num_classes, rest)
    if labels.ndim < logits.ndim:
        return with_label_logit(stats, _label_logit(logits, where, labels, axis), labels, logits.shape[axis])
    label_mass = jnp.sum(labels.astype(dtype), axis)
    label_gap = _sum(_label_gap, rows._replace(beside=labels), axis, after=(uniform_gap, label_mass))
    is_top = (_read(logits, where) == per_row(m, axis)) & per_row(m > -jnp.inf, axis)
    return stats._replace(
        label_nll=label_mass * log_norm + label_gap,
        label_mass=label_mass,
        top_label_mass=jnp.sum(jnp.where(is_top, labels.astype(dtype), 0), axis),
    )


def logits_vjp(cotangents, logits, where, labels, class_weights, stats: Statistics, *, axis):
    """Compute `definition.logits_vjp` rounded to the dtype of the logits, by integers where that is bfloat16."""
    # The barrier keeps XLA from storing what the value and the gradient have in common: a float32 copy of narrow logits, say.
    logits, stats = lax.optimization_barrier((logits, stats))
    z = _read(logits, where)
    if labels.ndim == logits.ndim or class_weights is not None:
        z_ct = definition.logits_vjp(cotangents, z, labels, class_weights, stats, axis=axis)
    else:
        rows = row_coefficients(cotangents, stats)
        # The barrier keeps XLA from computing these numbers again for each class.
        labels, rows = lax.optimization_barrier((labels, rows))
        z_ct = gradient(
            z, definition.is_label(z, labels, axis), {name: per_row(row, axis) for name, row in rows.items()}
        )
    return rounded(z_ct, logits.dtype)


def _sum(term, rows: _Rows, axis, parts=1, *, after):
    """Sum `term(z, z - m, constants, *beside)` over the classes, once `after` is computed."""
    dtype, shape = rows.max_logit.dtype, rows.max_logit.shape
    constants = _Constants(*(np.asarray(x, dtype) for x in (0, 0.5, 1, 1e38, jnp.finfo(dtype).max)))
    if parts > 1:
        rows, axis = rows._replace(logits=_cut(rows.logits, parts), max_logit=_repeated(rows.max_logit, parts)), 1
    rows, constants, _ = lax.optimization_barrier((rows, constants, after))
    z = _read(rows.logits, rows.where)
    largest = jnp.finfo(dtype).max
    m = lax.clamp(-largest, rows.max_logit, largest)
    beside = () if rows.beside is None else (rows.beside.astype(dtype),)
    sums = jnp.sum(term(z, z - per_row(m, axis), constants, *beside), axis)
    return sums if parts == 1 else jnp.sum(sums.reshape(*shape, parts), -1)


def _max_and_rest(logits, where, axis):
    """Return the maximum of each row, and the sum of `exp(z_k - m)` over all but one maximal class."""
    rows = _Rows(logits, where, jnp.max(_read(logits, where), axis))
    others = _sum(_exp_unless_top, rows, axis, after=rows.max_logit)
    num_tops = _sum(_is_top, rows, axis, after=others)
    return rows.max_logit, _with_ties(others, num_tops, rows.max_logit)


def _max_and_rest_of_parts(logits, parts):
    """Compute `_max_and_rest` of long rows in parts.

    Each part is summed as it is; one with a logit of +inf counts as 1. Only the first part with a maximal class is read again, to leave its
    maximal classes out of its sum. Each of them had counted exactly 1, and the rounding of a sum of at most 2,048 numbers up to 1 is below a
    half. So the difference of both sums, rounded, is their number.
    """
    shape, matrix = logits.shape[:-1], _cut(logits, parts)
    part_max = jnp.max(_read(matrix, None), 1).reshape(*shape, parts)
    m = jnp.max(part_max, -1)
    sums = _sum(_exp, _Rows(matrix, None, _repeated(m, parts)), 1, after=m)
    sums = jnp.where(sums == jnp.inf, 1, sums).reshape(part_max.shape)
    first = lax.argmax(part_max, len(shape), jnp.int32)
    row_starts = jnp.arange(0, part_max.size, parts, dtype=jnp.int32)
    own = _as_integers(lambda x: x.at[row_starts + first.reshape(-1)].get(mode="promise_in_bounds"), matrix)
    own_others = _sum(_exp_unless_equal, _Rows(own.reshape(*shape, -1), None, m), len(shape), after=sums)
    is_own = lax.broadcasted_iota(jnp.int32, part_max.shape, len(shape)) == first[..., None]
    own_sum = jnp.sum(jnp.where(is_own, sums, 0), -1)
    others = jnp.sum(jnp.where(is_own, 0, sums), -1)
    is_infinite = m == jnp.inf
    num_tops = jnp.round(jnp.where(is_infinite, own_others * math.exp(-1), own_sum - own_others))
    return m, _with_ties(jnp.where(is_infinite, own_others * 0, own_others) + others, num_tops, m)


def _with_ties(others, num_tops, m):
    """All maximal classes are left out of the sum `others`. All but one come back: a sum of exact ones."""
    return jnp.where((m == -jnp.inf) & ~jnp.isnan(others), 0, others + (num_tops - 1))


def _exp(_, gap, __):
    return jnp.exp(gap)


def _exp_unless_top(z, gap, c):
    """Return `exp(z - m)`, but 0 for a maximal logit."""
    e = jnp.exp(jnp.minimum(c.one, gap))  # only a logit of +inf is above m
    return e - _is_top(z, gap, c) * e


def _exp_unless_equal(_, gap, c):
    """Return `exp(z - m)`, but 0 for a finite maximal logit, and `exp(1)` for one of +inf."""
    e = jnp.exp(jnp.minimum(c.one, gap))
    return e - jnp.maximum(c.zero, c.one - jnp.abs(gap) * c.largest) * e


def _is_top(_, gap, c):
    """Return 1 where the difference from the maximum is 0, otherwise 0."""
    return jnp.maximum(c.zero, c.one + jnp.minimum(c.zero, gap) * c.big)


def _takes_part(z, _, c):
    """Return 0 for a logit of -inf, otherwise 1."""
    return jnp.minimum(c.one, jnp.maximum(c.zero, z * c.half + c.largest))


def _weight(z, gap, c, u):
    return u * _takes_part(z, gap, c)


def _weighted_gap(z, gap, c, u=1):
    """`u (m - z)`; 0 for a logit of -inf."""
    return u * _takes_part(z, gap, c) * jnp.minimum(c.largest, -gap)


def _label_gap(_, gap, c, q):
    """`q (m - z)`; 0 for a `q` of 0, infinite for another at a logit of -inf."""
    size = jnp.maximum(c.zero, -gap)
    return (q * jnp.minimum(c.largest, size)) * jnp.minimum(c.largest, jnp.maximum(c.one, size - c.largest))


def _label_logit(logits, where, labels, axis):
    def at_labels(x):
        return jnp.take_along_axis(x, per_row(labels, axis), axis=axis, mode="clip").squeeze(axis)

    return _read(
        _as_integers(at_labels, logits), None if where is None else at_labels(jnp.broadcast_to(where, logits.shape))
    )


def _as_integers(look_up, values):
    """`look_up(values)`, which picks some of the values. Of narrow numbers that are no integers XLA would write out a wide copy."""
    if values.dtype.itemsize > 2:
        return look_up(values)
    integers = lax.bitcast_convert_type(values, f"uint{8 * values.dtype.itemsize}")
    return lax.bitcast_convert_type(look_up(integers), values.dtype)


def rounded(values, dtype):
    """`values.astype(dtype)`. XLA rounds to bfloat16 with a select, which takes longer than all the rest of a gradient."""
    if (values.dtype, dtype) != (jnp.float32, jnp.bfloat16):
        return values.astype(dtype)
    bits = lax.bitcast_convert_type(lax.reduce_precision(values, 8, 7), jnp.uint32) >> 16
    # What tells a NaN from infinity may be in the half that is cut off.
    return lax.bitcast_convert_type(jnp.where(jnp.isnan(values), 0x7FC0, bits).astype(jnp.uint16), dtype)


def _read(logits, where):
    """The logits in the working dtype, a class that is left out as -inf."""
    z = logits.astype(working_dtype(logits))
    return z if where is None else jnp.where(where, z, -jnp.inf)


def _number_of_parts(logits, where, axis):
    """Into how many parts to cut each row: 1 where rows are short, or do not lie one after the other on one device."""
    num_classes = logits.shape[axis]
    is_long = is_known(num_classes) and num_classes >= _SHORT
    if not is_long or where is not None or axis != logits.ndim - 1 or is_on_auto_mesh(logits):
        return 1
    return num_classes // next((size for size in _PART_SIZES if num_classes % size == 0), num_classes)


def _cut(logits, parts):
    """The parts of the rows as the rows of a matrix."""
    # The barrier keeps XLA from widening narrow logits before it cuts them.
    return lax.optimization_barrier(logits.reshape(-1, logits.shape[-1] // parts))


def _repeated(m, parts):
    """For each part of a row its maximum."""
    return jnp.broadcast_to(m[..., None], (*m.shape, parts)).reshape(-1)


def copied(indices):
    """Return the indices in an array of their own, unless they lie on several devices.

    XLA (jax 0.10) would widen narrow ones again for each class, and aborts on some of the instructions that it makes for that.
    """
    if is_explicit(indices):
        return indices
    flat = indices.reshape(-1)
    flat = jnp.zeros_like(flat).at[jnp.arange(flat.size)].set(flat, unique_indices=True, indices_are_sorted=True)
    return flat.reshape(indices.shape)


def sigmoid_losses(source):
    """Compute `sigmoid.losses` by arithmetic: XLA does not vectorise a sum of losses with a select in it, nor one that shares constants."""
    logits, labels, *options = source
    dtype = working_dtype(logits)
    constants = tuple(np.asarray(v, dtype) for v in (0, 1, jnp.finfo(dtype).max, jnp.finfo(dtype).min))
    # The labels too, or XLA computes them again in each loop, if they are the result of other elementwise code.
    labels, (zero, one, largest, least) = lax.optimization_barrier((labels, constants))
    x, yes, no = sigmoid.logits_and_weights(logits, labels, *options, one=one)
    size = jnp.abs(x)
    bounded = jnp.minimum(largest, jnp.maximum(least, x))
    up = jnp.maximum(zero, bounded)
    against = no * up + yes * (
        up - bounded
    )  # the size, cut down to the largest number, times the weight of the answer that x speaks against
    log_norm = jnp.log1p(jnp.exp(-size))
    # Without a weight both answers weigh 1 together.
    total = log_norm if options[-1] is None else (yes + no) * log_norm
    return total + against * jnp.minimum(largest, jnp.maximum(one, size - largest))


def sigmoid_vjp(loss_ct, source):
    """Compute the cotangent of the logits, rounded to their dtype."""
    # The barrier keeps XLA from storing what the value and the gradient have in common.
    source, one = lax.optimization_barrier((source, jnp.ones((), working_dtype(source[0]))))
    x, yes, no = sigmoid.logits_and_weights(*source, one=one)
    return rounded(loss_ct * sigmoid.derivative(x, yes, no), source[0].dtype)
