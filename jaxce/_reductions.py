"""Reductions over the classes, each in the form that XLA makes its best loop of. By default those that follow a maximum share one reading.

On a GPU the maximum shares it too, where rows are long (`_online`). On a CPU a sum is one loop, without temporaries, if nothing else reads what
it reads, constants included; if it is arithmetic without selecting; and if the rows are those of a matrix, not longer than 2**15, else it takes
four times as long. So there each sum comes after the one before it, its numbers are arguments, what leaves a class out is a factor of 0, and
long rows are cut into parts.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxce import _online as online
from jaxce._axes import is_explicit, is_on_auto_mesh, per_row
from jaxce._infinities import finite
from jaxce._reading import read
from jaxce._types import working_dtype

# Of fewer logits a copy costs nothing.
_MANY = 2**16
# So far float32 counts classes.
_COUNTED = 2**24
# Shorter rows are not worth cutting.
_SHORT = 1000
# Parts of a row this long cost little, the one that is read again too; the first size that divides the row is taken.
_SIZES = sorted(range(64, 2049), key=lambda size: abs(size - 128))


def total(term, *numbers, logits, where, shift, axis, after, beside=None):
    """The sum over the classes of `term(z, z - shift, *numbers, *beside)`; on a CPU once `after` is known.

    `beside` are arrays that broadcast against the logits: then rows are not cut.
    """
    numbers = tuple(map(shift.dtype.type, numbers))
    parts = 1 if beside is not None else _parts(logits, where, axis)

    def one_reading(logits, where, shift, beside, numbers, axis=axis):
        z = read(logits, where)
        beside = () if beside is None else (beside.astype(z.dtype),)
        return jnp.sum(term(z, z - per_row(finite(shift), axis), *numbers, *beside), axis)

    def on_cpu(logits, where, shift, beside, after):
        arrays = (logits, where, shift) if parts == 1 else (_cut(logits, parts), None, _repeated(shift, parts))
        *arrays, numbers_, _ = lax.optimization_barrier((*arrays, beside, tuple(map(jnp.asarray, numbers)), after))
        if parts == 1:
            return one_reading(*arrays, numbers_)
        sums = one_reading(*arrays, numbers_, axis=1)
        return jnp.sum(sums.reshape(*shift.shape, parts), -1)

    def elsewhere(logits, where, shift, beside, _):
        return one_reading(logits, where, shift, beside, numbers)

    return lax.platform_dependent(logits, where, shift, beside, after, cpu=on_cpu, default=elsewhere)


def shift_and_rest(logits, where, axis):
    """The maximum of each row, a constant of differentiation, and `sum_k exp(z_k - shift)` over all but one maximal class.

    A NaN logit is in the sum in any case. XLA for CPU loses it from the maximum.
    """
    of_rows = functools.partial(_of_rows, axis=axis)
    if not is_long(logits, where, axis):
        return of_rows(logits, where)
    parts = _parts(logits, where, axis)
    in_parts = of_rows if parts == 1 else functools.partial(_of_parts, parts=parts)
    return lax.platform_dependent(logits, where, cpu=in_parts, cuda=_in_one_reading, default=of_rows)


def pick(logits, where, labels, axis):
    """The logit of each label that is a class."""

    def by_index(logits, labels):
        at_labels = functools.partial(jnp.take_along_axis, indices=per_row(labels, axis), axis=axis, mode="clip")
        allowed = None if where is None else at_labels(jnp.broadcast_to(where, logits.shape))
        return read(at_labels(logits), allowed).squeeze(axis)

    def by_comparison(logits, labels):
        # Fuses with the other sums over the classes, and shards as they do.
        return jnp.sum(jnp.where(_classes(labels, logits, axis) == per_row(labels, axis), read(logits, where), 0), axis)

    if is_explicit(logits):
        return by_comparison(logits, labels)
    is_counted = logits.shape[axis] <= _COUNTED or _parts(logits, where, axis) > 1
    by_maximum = is_narrow(logits) and _is_matrix(logits, where, axis) and logits.size >= _MANY and is_counted
    on_cpu = _pick_by_maximum if by_maximum else by_index
    on_gpu = {"cuda": by_index} if is_long(logits, where, axis) else {}
    return lax.platform_dependent(logits, labels, cpu=on_cpu, default=by_comparison, **on_gpu)


def is_label(z, labels, axis):
    """Whether a class is that of the integer label."""

    def on_cpu(labels):
        # An equality of integers XLA for CPU makes in 64 bits each, which takes longer than all the rest of a gradient.
        return jnp.abs((_classes(labels, z, axis) - per_row(labels, axis)).astype(jnp.float32)) < 0.5

    def elsewhere(labels):
        return _classes(labels, z, axis) == per_row(labels, axis)

    return lax.platform_dependent(labels, cpu=on_cpu, default=elsewhere)


def _of_rows(logits, where, *, axis):
    shift = lax.stop_gradient(jnp.max(read(logits, where), axis))
    return shift, _all_but_one(*_others_and_ties(logits, where, shift, axis), shift)


@jax.custom_jvp
def _in_one_reading(logits, _):
    return online.shift_and_rest(logits)


@_in_one_reading.defjvp
def _in_one_reading_jvp(primals, tangents):
    logits, where = primals
    of_rows = functools.partial(_of_rows, where=where, axis=logits.ndim - 1)
    return jax.jvp(of_rows, (logits,), tangents[:1])


def _others_and_ties(logits, where, shift, axis):
    """`sum_k exp(z_k - shift)` over the classes below `shift`, and the number of the others.

    The sum of both differentiates to what the rule says, in any order.
    """
    sum_of = functools.partial(total, logits=logits, where=where, shift=shift, axis=axis)
    others = sum_of(_exp_below_top, 0, 1, 1e38, after=shift)
    return others, sum_of(_is_top, 0, 1, 1e38, after=others)


def _all_but_one(others, ties, shift):
    """All maximal classes are left out of the sum; all but one come back: a sum of exact ones."""
    return jnp.where((shift == -jnp.inf) & ~jnp.isnan(others), 0, others + (ties - 1))


def _of_parts(logits, _, *, parts):
    """`shift_and_rest` of rows that are cut into parts."""
    rows = logits.shape[:-1]
    matrix = _cut(logits, parts)
    tops = lax.stop_gradient(jnp.max(read(matrix, None), 1)).reshape(*rows, parts)
    shift = jnp.max(tops, -1)
    repeated = _repeated(shift, parts)
    if is_narrow(logits):
        sums = _others_and_ties(matrix, None, repeated, 1)
        others, ties = (jnp.sum(x.reshape(*rows, parts), -1) for x in sums)
        return shift, _all_but_one(others, ties, shift)
    # Only the first part that has a maximal class is read again, to sum it without that class; the others are summed as they are. (XLA for
    # CPU would make a wide copy of all narrow logits to look that part up.)
    sums = total(_exp, 1, logits=matrix, where=None, shift=repeated, axis=1, after=shift)
    sums = jnp.where(repeated == jnp.inf, jnp.round(sums * math.exp(-1)), sums)  # `_exp` counts infinities as e each
    order = lax.broadcasted_iota(jnp.int32, tops.shape, len(rows))
    first = jnp.min(jnp.where(tops == shift[..., None], order, parts - 1), -1)
    start = jnp.arange(0, tops.size, parts, dtype=jnp.int32)
    own = matrix.at[start + first.reshape(-1)].get(mode="promise_in_bounds").reshape(*rows, matrix.shape[1])
    own_others, own_ties = _others_and_ties(own, None, shift, len(rows))
    others = jnp.sum(jnp.where(order == first[..., None], 0, sums.reshape(tops.shape)), -1)
    return shift, _all_but_one(own_others + others, own_ties, shift)


def _pick_by_maximum(logits, labels):
    # Of narrow logits an index would make a wide copy of them all.
    parts = _parts(logits, None, logits.ndim - 1)
    size, dtype = logits.shape[-1] // parts, working_dtype(logits)
    starts = jnp.arange(0, logits.shape[-1], size, dtype=labels.dtype)
    from_starts = labels[..., None] - starts.reshape(*[1] * labels.ndim, parts)
    matrix, labels_of_parts = _cut(logits, parts), from_starts.reshape(-1, 1).astype(dtype)
    numbers = jnp.arange(size, dtype=dtype), dtype.type(0.5), dtype.type(jnp.inf)
    matrix, labels_of_parts, numbers = lax.optimization_barrier((matrix, labels_of_parts, numbers))
    classes, half, inf = numbers
    bounds = (half - jnp.abs(classes[None] - labels_of_parts)) * inf  # +inf at the label, -inf at any other
    at_labels = jnp.max(jnp.minimum(matrix.astype(dtype), bounds), 1)
    return jnp.max(at_labels.reshape(*labels.shape, parts), -1)


def _classes(labels, z, axis):
    """The number of each class, in the dtype of the labels."""
    return lax.broadcasted_iota(labels.dtype, z.shape, axis)


def _is_top(_, below, zero, one, big):
    """1 where the difference from the maximum is 0, else 0; a constant of differentiation."""
    return lax.stop_gradient(jnp.maximum(zero, one + jnp.minimum(zero, below) * big))


def _exp_below_top(z, below, zero, one, big):
    """`exp(z - shift)` less the value, but not the derivatives, of those that are maximal."""
    e = _exp(z, below, one)
    return e - _is_top(z, below, zero, one, big) * lax.stop_gradient(e)


def _exp(_, below, one):
    # Only a +inf is above its shift, and does not move: never at the bound of this minimum, where its derivative would be a half.
    return jnp.exp(jnp.minimum(one, below))


def is_narrow(logits):
    return logits.dtype.itemsize <= 2


def _is_matrix(logits, where, axis):
    """Whether the rows lie one after the other on one device, so that parts of them are the rows of a matrix."""
    is_whole = not (is_explicit(logits) or is_on_auto_mesh(logits))
    return where is None and axis == logits.ndim - 1 and is_whole


def is_long(logits, where, axis):
    """Whether rows are worth cutting, and lie so that they can be."""
    return logits.shape[axis] >= _SHORT and _is_matrix(logits, where, axis)


def _parts(logits, where, axis):
    """Into how many parts to cut the rows."""
    num_classes = logits.shape[axis]
    if not is_long(logits, where, axis):
        return 1
    return num_classes // next((size for size in _SIZES if num_classes % size == 0), num_classes)


def _cut(logits, parts):
    """The parts of the rows as the rows of a matrix."""
    # The barrier keeps XLA from widening narrow logits before it cuts them.
    return lax.optimization_barrier(logits.reshape(-1, logits.shape[-1] // parts))


def _repeated(shift, parts):
    """For each part of a row its shift."""
    return jnp.broadcast_to(shift[..., None], (*shift.shape, parts)).reshape(-1)
