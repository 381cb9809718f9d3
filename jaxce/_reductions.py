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
from jaxce._axes import is_explicit, is_known, is_on_auto_mesh, per_class, per_row
from jaxce._infinities import finite
from jaxce._reading import looked_up, read

# Of so few logits as jax 0.10 needs no fresh memory for, an equality of float32 numbers is faster there.
_FLOATS_BELOW = 2**23 if jax.__version_info__ < (0, 11) else 0
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
    """The maximum of each row, and `sum_k exp(z_k - shift)` over all but one maximal class.

    A NaN logit is in the sum in any case. XLA for CPU loses it from the maximum.
    """
    of_rows = functools.partial(_of_rows, axis=axis)
    if not is_long(logits, where, axis):
        return of_rows(logits, where)
    parts = _parts(logits, where, axis)

    def in_parts(logits, where):
        return of_rows(logits, where) if parts == 1 else _of_parts(logits, parts)

    def in_one_reading(logits, _):
        return online.shift_and_rest(logits)

    return lax.platform_dependent(logits, where, cpu=in_parts, cuda=in_one_reading, default=of_rows)


def pick(logits, where, labels, axis):
    """The logit of each label that is a class."""

    def by_index(logits, labels):
        at_labels = functools.partial(jnp.take_along_axis, axis=axis, mode="clip")
        indices = per_row(labels, axis)
        allowed = None if where is None else at_labels(jnp.broadcast_to(where, logits.shape), indices)
        return read(looked_up(at_labels, logits, indices), allowed).squeeze(axis)

    def by_comparison(logits, labels):
        # Fuses with the other sums over the classes, and shards as they do.
        return jnp.sum(jnp.where(_classes(labels, logits, axis) == per_row(labels, axis), read(logits, where), 0), axis)

    if is_explicit(logits):
        return by_comparison(logits, labels)
    on_gpu = {"cuda": by_index} if is_long(logits, where, axis) else {}
    return lax.platform_dependent(logits, labels, cpu=by_index, default=by_comparison, **on_gpu)


def is_label(z, labels, axis):
    """Whether a class is that of the integer label."""

    def on_cpu(labels):
        # Of equalities XLA for CPU makes loops of very different speed. The fastest are of numbers of 16 bits that are read, and of float32
        # numbers that are made on the way.
        num_classes = z.shape[axis]
        classes = jnp.arange(num_classes, dtype=labels.dtype)
        if is_known(z.size) and z.size < _FLOATS_BELOW:
            return per_class(classes.astype(jnp.float32), axis, z.ndim) == per_row(labels.astype(jnp.float32), axis)
        # A label that is no class has both halves of the largest number.
        labels = jnp.where((labels >= 0) & (labels < num_classes), labels, jnp.full((), -1, labels.dtype))
        equal = []
        for first_bit in [0, 16] if not is_known(num_classes) or num_classes >= 2**16 else [0]:
            of_classes, of_labels = ((x >> first_bit).astype(jnp.uint16) for x in (classes, labels))
            of_classes = per_class(lax.optimization_barrier(of_classes), axis, z.ndim)
            equal.append(of_classes == per_row(of_labels, axis))
        return functools.reduce(jnp.logical_and, equal)

    def elsewhere(labels):
        return _classes(labels, z, axis) == per_row(labels, axis)

    return lax.platform_dependent(labels, cpu=on_cpu, default=elsewhere)


def _of_rows(logits, where, *, axis):
    shift = jnp.max(read(logits, where), axis)
    sum_of = functools.partial(total, logits=logits, where=where, shift=shift, axis=axis)
    others = sum_of(_exp_below_top, 0, 1, 1e38, after=shift)
    ties = sum_of(_is_top, 0, 1, 1e38, after=others)
    return shift, _all_but_one(others, ties, shift)


def _all_but_one(others, ties, shift):
    """All maximal classes are left out of the sum; all but one come back: a sum of exact ones."""
    return jnp.where((shift == -jnp.inf) & ~jnp.isnan(others), 0, others + (ties - 1))


def _of_parts(logits, parts):
    """`shift_and_rest` of rows that are cut into parts.

    The parts are summed as they are, infinities counting 1 in each. Only the first that has a maximal class is read again, to sum it without
    such classes; how many of them there are, its first sum says.
    """
    rows, matrix = logits.shape[:-1], _cut(logits, parts)
    tops = jnp.max(read(matrix, None), 1).reshape(*rows, parts)
    shift = jnp.max(tops, -1)
    sums = total(_exp, logits=matrix, where=None, shift=_repeated(shift, parts), axis=1, after=shift)
    sums = jnp.where(sums == jnp.inf, 1, sums).reshape(tops.shape)
    first = lax.argmax(tops, len(rows), jnp.int32)
    start = jnp.arange(0, tops.size, parts, dtype=jnp.int32)
    own = looked_up(_rows_at, matrix, start + first.reshape(-1)).reshape(*rows, matrix.shape[1])
    largest = jnp.finfo(shift.dtype).max
    own = total(_exp_but_of_top, 0, 1, largest, logits=own, where=None, shift=shift, axis=len(rows), after=sums)
    own_sum = jnp.take_along_axis(sums, first[..., None], -1, mode="promise_in_bounds")[..., 0]
    is_own = lax.broadcasted_iota(jnp.int32, tops.shape, len(rows)) == first[..., None]
    others = jnp.sum(jnp.where(is_own, 0, sums), -1)
    is_infinite = shift == jnp.inf
    ties = jnp.round(jnp.where(is_infinite, own * math.exp(-1), own_sum - own))
    return shift, _all_but_one(jnp.where(is_infinite, own * 0, own) + others, ties, shift)


def _rows_at(matrix, indices):
    return matrix.at[indices].get(mode="promise_in_bounds")


def _classes(labels, z, axis):
    """The number of each class, in the dtype of the labels."""
    return lax.broadcasted_iota(labels.dtype, z.shape, axis)


def _is_top(_, below, zero, one, big):
    """1 where the difference from the maximum is 0, else 0."""
    return jnp.maximum(zero, one + jnp.minimum(zero, below) * big)


def _exp_below_top(z, below, zero, one, big):
    """`exp(z - shift)`, of those that are maximal 0."""
    e = jnp.exp(jnp.minimum(one, below))  # only a +inf is above its shift
    return e - _is_top(z, below, zero, one, big) * e


def _exp(_, below):
    return jnp.exp(below)


def _exp_but_of_top(_, below, zero, one, largest):
    """`exp(z - shift)`, of those that are maximal 0, of a +inf e."""
    e = jnp.exp(jnp.minimum(one, below))
    is_top = jnp.maximum(zero, one - jnp.abs(below) * largest)
    return e - is_top * e


def _is_matrix(logits, where, axis):
    """Whether the rows lie one after the other on one device, so that parts of them are the rows of a matrix."""
    is_whole = not (is_explicit(logits) or is_on_auto_mesh(logits))
    return where is None and axis == logits.ndim - 1 and is_whole


def is_long(logits, where, axis):
    """Whether rows are worth cutting, and lie so that they can be. Rows of unknown length cannot be cut."""
    num_classes = logits.shape[axis]
    return is_known(num_classes) and num_classes >= _SHORT and _is_matrix(logits, where, axis)


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
