"""The forms for XLA for GPU: the maximum and the sum in one pass over the logits, and a gradient that is read and written in wide words.

XLA for GPU reads the logits of the definition twice, once for the maximum and once for the sums. For the gradient, each thread reads the numbers
of its row one by one. With these forms:

- `max_and_rest` reads the logits once, like the online softmax of Milakov and Gimelshein (Online normalizer calculation for softmax, 2018).
  One step of XLA's loop over a row costs as much as five classes. So a step takes one logit from each of many slices of the row.
- `logits_vjp` stores the numbers of a row next to each other, and a thread reads them in one access. Logits of 16 bits are read and written as
  pairs in 32 bits: XLA gives each thread four elements, and four pairs are 16 bytes.
"""

import jax.numpy as jnp
from jax import lax

from jaxce._core import definition
from jaxce._core.definition import Statistics
from jaxce._core.integer_labels import gradient, row_coefficients, with_label_logit
from jaxce._jax.axes import is_known, per_row
from jaxce._jax.mesh import is_explicit, is_on_auto_mesh
from jaxce._types import working_dtype

# Rows of fewer classes take the definition.
SHORTEST = 1000
# The number of slices of a row; for logits of 16 bits, which take longer to compute with than to read; and the length above which XLA splits a slice.
_SLICES, _SLICES_OF_NARROW, _LONGEST = 8, 16, 2**14
# The number of logits that share one look-up of their row, if rows are no multiple of 16 bytes. It is below SHORTEST, so a run is part of two rows
# at most.
_RUN = 512


def suits(logits, where, axis) -> bool:
    """Whether these forms are faster than the definition: for long rows that lie one after the other on one device."""
    num_classes = logits.shape[axis]
    is_long = is_known(num_classes) and num_classes >= SHORTEST
    is_whole = not (is_explicit(logits) or is_on_auto_mesh(logits))
    return is_long and where is None and axis == logits.ndim - 1 and is_whole


def statistics(logits, labels, class_weights) -> Statistics:
    """Compute `definition.statistics`; the classes are the last axis."""
    axis, (m, rest) = logits.ndim - 1, max_and_rest(logits)
    z = logits.astype(working_dtype(logits))
    gap = definition.below_maximum(z, m, axis)
    stats = definition.with_maximum(m, rest, gap, z, labels, class_weights, axis=axis)
    if labels.ndim == logits.ndim:
        return stats
    label_logit = jnp.take_along_axis(logits, per_row(labels, axis), axis=axis, mode="clip").squeeze(axis)
    return with_label_logit(stats, label_logit.astype(z.dtype), labels, logits.shape[axis])


def max_and_rest(logits):
    """Return the maximum of each row, and the sum of `exp(z_k - m)` over all classes but one maximal class, from one pass."""
    axis = logits.ndim - 1
    is_widened = jnp.finfo(logits.dtype).max < jnp.finfo(working_dtype(logits)).max
    of_each_place = lax.complex(*_max_and_rest_of_slices(_slices(logits), is_widened=is_widened))

    # As complex numbers: XLA for GPU often makes two loops of a reduction of two arrays, and the first writes one of them out.
    def merge(a, b):
        return lax.complex(*_merge((lax.real(a), lax.imag(a)), (lax.real(b), lax.imag(b))))

    nothing = lax.complex(*(of_each_place.real.dtype.type(x) for x in (-jnp.inf, -1)))
    of_row = lax.reduce(of_each_place, nothing, merge, (axis,))
    m, rest = lax.real(of_row), lax.imag(of_row)
    return m, jnp.where((m == -jnp.inf) & ~jnp.isnan(rest), 0, rest)


def _merge(a, b):
    """Return the maximum and the rest of two disjoint sets of classes. Without classes, or with logits of -inf alone, they are -inf and -1."""
    (m_a, rest_a), (m_b, rest_b) = a, b
    is_first = m_a >= m_b
    below = jnp.where(is_first, m_b - m_a, m_a - m_b)
    e = jnp.exp(jnp.where(jnp.isnan(below), 0, below))  # equal infinities are equal
    return jnp.where(is_first, m_a, m_b), jnp.where(is_first, rest_a + (1 + rest_b) * e, rest_b + (1 + rest_a) * e)


def _max_and_rest_of_slices(slices, *, is_widened):
    """Return the maximum and the rest of the classes that stand at one place of each slice; the number of slices is a power of two."""
    others, largest = [], slices
    while len(largest) > 1:
        pairs = list(zip(largest[::2], largest[1::2], strict=True))
        others += [jnp.minimum(a, b) for a, b in pairs]
        largest = [jnp.maximum(a, b) for a, b in pairs]
    (m,) = largest
    if is_widened:
        # No logit is the largest number of the wider dtype. So only the difference of +inf and this number is above 0; it counts as 0.
        top = jnp.minimum(m, jnp.finfo(m.dtype).max)
        gaps = [jnp.minimum(z - top, 0) for z in others]
    else:
        gaps = [jnp.where(z == m, 0, z - m) for z in others]
    return m, jnp.where(m == -jnp.inf, -1, _sum([jnp.exp(gap) for gap in gaps]))


def _sum(terms):
    """Sum in a tree, which rounds less than a chain and waits less."""
    while len(terms) > 1:
        odd = terms[len(terms) // 2 * 2 :]
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)] + odd
    return terms[0]


def _slices(logits):
    """Return slices of each row, all of one length, in the working dtype. The last is filled up with -inf."""
    dtype, (*rows, num_classes) = working_dtype(logits), logits.shape
    if logits.dtype.itemsize == 2 and num_classes % 2 == 0:
        pairs = lax.bitcast_convert_type(logits.reshape(*rows, num_classes // 2, 2), jnp.uint32)
        filling = lax.bitcast_convert_type(jnp.full(2, -jnp.inf, logits.dtype), jnp.uint32)
        return [half for part in _cut(pairs, filling, _SLICES_OF_NARROW) for half in _halves(part, logits.dtype)]
    return _cut(logits, jnp.full((), -jnp.inf, dtype), _SLICES_OF_NARROW if logits.dtype.itemsize <= 2 else _SLICES)


def _cut(rows, filling, number):
    """Cut the last axis into slices of one length: this number of them, or twice as many while they are too long."""
    length = rows.shape[-1]
    while length > number * _LONGEST:
        number *= 2
    size = -(-length // number)
    others = [(0, 0, 0)] * (rows.ndim - 1)

    def slice_from(start):
        part = lax.slice_in_dim(rows, min(start, length), min(start + size, length), axis=-1).astype(filling.dtype)
        return lax.pad(part, filling, [*others, (0, size - part.shape[-1], 0)])

    return [slice_from(start) for start in range(0, number * size, size)]


def _halves(pairs, dtype):
    """Return the two numbers of 16 bits, of this dtype, that each integer of 32 bits holds, in float32: the lower half first."""
    if dtype == jnp.bfloat16:  # the upper half of a float32
        return [lax.bitcast_convert_type(x, jnp.float32) for x in (pairs << 16, pairs & jnp.uint32(0xFFFF0000))]
    return [lax.bitcast_convert_type((pairs >> bits).astype(jnp.uint16), dtype).astype(jnp.float32) for bits in (0, 16)]


def logits_vjp(cotangents, logits, labels, mask, stats: Statistics):
    """Compute `definition.logits_vjp` for integer labels, in the dtype of the logits; the classes are the last axis.

    If a pair of logits may belong to two rows, XLA looks up the row of each logit. So rows whose length is no multiple of 8 are taken as one long
    row, cut into runs. A run is computed with the numbers of the row in which it begins; then the first classes of each row are computed again.
    """
    matrix = logits.reshape(-1, logits.shape[-1])
    num_classes, size, dtype = matrix.shape[1], matrix.size, matrix.dtype
    # An invalid label may become a valid one. The loss of its row is NaN in any case.
    labels = labels.reshape(-1).astype(jnp.int32)
    rows = {name: row.reshape(-1) for name, row in row_coefficients(cotangents, stats).items()}
    if mask is not None:
        rows["mask"] = mask.reshape(-1)
    table = _table(labels, rows)

    def of_classes(z, is_label, rows):
        rows = {name: per_row(row, 1) for name, row in rows.items()}
        mask = rows.pop("mask", None)
        z = z.astype(working_dtype(logits))
        return gradient(z if mask is None else jnp.where(mask, z, 0), is_label, rows).astype(dtype)

    def of_first(number):
        label, some = _columns(table, rows)
        return of_classes(matrix[:, :number], lax.iota(jnp.int32, number)[None] == per_row(label, 1), some)

    def of_pairs(run, table):
        label, some = _columns(table, rows)
        pairs = lax.bitcast_convert_type(matrix.reshape(-1, run // 2, 2), jnp.uint32)
        first = 2 * lax.iota(jnp.int32, run // 2)[None]
        halves = [of_classes(z, first + i == per_row(label, 1), some) for i, z in enumerate(_halves(pairs, dtype))]
        low, high = (lax.bitcast_convert_type(half, jnp.uint16).astype(jnp.uint32) for half in halves)
        return lax.bitcast_convert_type(low | high << 16, dtype).reshape(matrix.shape)

    in_runs = is_known(size) and size % _RUN == 0 and size < 2**31
    if dtype.itemsize == 2 and num_classes % 8 == 0:
        result = of_pairs(num_classes, table)
    elif dtype.itemsize != 2 or not in_runs:
        result = of_first(num_classes)
    else:
        start = lax.iota(jnp.int32, size // _RUN) * _RUN
        row = lax.div(start, num_classes)
        table_of_runs = _table(labels[row] - (start - row * num_classes), {name: x[row] for name, x in rows.items()})
        result = lax.dynamic_update_slice(of_pairs(_RUN, table_of_runs), of_first(_RUN - 1), (0, 0))
    return result.reshape(logits.shape)


def _table(labels, rows):
    """Return a table of the bits of the numbers of each row. A row of the table has a multiple of four integers, which are read in one access."""
    integer = f"int{8 * rows['max_logit'].dtype.itemsize}"

    def bits(row):
        return row.astype(integer) if row.dtype == bool else lax.bitcast_convert_type(row, integer)

    columns = [labels.astype(integer), *map(bits, rows.values())]
    return lax.optimization_barrier(jnp.stack(columns + columns[:1] * (-len(columns) % 4), 1))


def _columns(table, rows):
    """Return the label and the numbers of each row that such a table holds."""
    numbers = {}
    for i, (name, row) in enumerate(rows.items(), start=1):
        bits = table[:, i]
        numbers[name] = bits != 0 if row.dtype == bool else lax.bitcast_convert_type(bits, row.dtype)
    return table[:, 0].astype(jnp.int32), numbers
