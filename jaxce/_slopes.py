"""The derivatives of the statistics by the logits.

With `e = exp(z - shift)`, `p` the softmax, `q` the label distribution and `u` the class weights:

    d rest        e
    d label_nll   label_mass * p - q
    d total_nll   total_mass * p - u

One elementwise pass over the logits makes any of them from the logits and the statistics.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._axes import is_known, per_row
from jaxce._infinities import capped, finite
from jaxce._reading import (
    below,
    halves,
    label_indices,
    label_probabilities,
    read,
    rounded,
    weights_of_classes,
    widened,
)
from jaxce._reductions import is_label, is_long
from jaxce._transpose import with_transpose


def by_logits(args, outs, logits_dot, *, axis):
    """What the tangents of the logits contribute to those of `rest`, `label_nll` and `total_nll`."""
    logits, labels, where, _, class_weights = args
    if class_weights is None and labels.ndim < logits.ndim and is_long(logits, where, axis):
        return with_transpose(_of_rows, _gradient, logits_dot, (args, outs))
    return _of_rows(logits_dot, (args, outs), axis)


def _of_rows(logits_dot, residuals, axis=-1):
    (logits, labels, where, mask, class_weights), outs = residuals
    shift, rest, _, label_mass, *_ = outs
    axis = axis % logits.ndim
    z = read(logits, where, mask, axis)
    z_dot = widened(logits_dot, z.dtype)
    if where is not None:
        # The coefficients of a class left out are 0 already, but those of a row without a loss are NaN.
        z_dot = jnp.where(where, z_dot, 0)
    gap = below(z, shift, axis)
    e = jnp.exp(gap)
    if labels.ndim == z.ndim:
        # label_mass * p - q, where both are nearly label_mass (the class of a confident, right row), is worked out in terms that are small
        # themselves. Both forms have the derivatives of what they stand for.
        q, mass = label_probabilities(labels, mask, axis).astype(z.dtype), per_row(label_mass, axis)
        inverse = 1 / (1 + rest)
        near = mass * ((e - 1) - per_row(rest, axis)) * per_row(inverse, axis) + (mass - q)
        of_label = jnp.where((gap == 0) & (2 * q > mass), near, per_row(label_mass * inverse, axis) * e - q)
    else:
        is_own = is_label(z, label_indices(labels, mask), axis)
        of_label = _of_label(z, is_own, shift, *_rows_of_label(outs), axis)
    of_total = _of_total(z, e, per_row(_share_of_total(outs), axis), class_weights, axis)
    return [jnp.sum(of * z_dot, axis) for of in (_of_rest(z, e), of_label, of_total)]


def _of_rest(z, e):
    return jnp.where(z == jnp.inf, 0, e)  # capped, it does not move


def _rows_of_label(outs):
    """Of each row with an integer label: what its own class is given, `p - 1`, and what the exponentials of the others are multiplied by."""
    _, rest, label_nll, label_mass, *_ = outs
    # The derivative of expm1 is worked out as 1 more than its value, which of a small p leaves nothing.
    p_gap = jnp.where(label_nll < 0.5, jnp.expm1(-label_nll), jnp.exp(-label_nll) - 1)
    return p_gap, label_mass * (1 / (1 + rest))


def _of_label(z, is_own, shift, of_own, share, axis):
    # A +inf is the label's own or in a row without a loss. It is not capped but cut down to what exp can bear: of a loop with one more
    # select XLA for CPU makes one half as fast.
    p = per_row(share, axis) * jnp.exp(jnp.minimum(1, z - per_row(finite(shift), axis)))
    return jnp.where(is_own, per_row(of_own, axis), p)


def _share_of_total(outs):
    """What the exponentials of a row are multiplied by in its `total_nll`."""
    _, rest, _, _, _, total_mass, *_ = outs
    return total_mass * (1 / (1 + rest))


def _of_total(z, e, share, class_weights, axis):
    return share * e - weights_of_classes(z, class_weights, axis)


@jax.custom_jvp
def _gradient(cts, residuals):
    """The transpose of `_of_rows` for long rows with integer labels; a cotangent that is None is of nothing."""
    return lax.platform_dependent(cts, residuals, cuda=_gradient_by_tables, default=_gradient_by_hand)


@_gradient.defjvp
def _gradient_jvp(primals, tangents):
    # A bitcast, of which the tables are made, has no derivative.
    return jax.jvp(_derived_gradient, primals, tangents)


def _derived_gradient(cts, residuals):
    used = [i for i, ct in enumerate(cts) if ct is not None]

    def of_rows(logits_dot):
        dots = _of_rows(logits_dot, residuals)
        return [dots[i] for i in used]

    (logits, *_), _ = residuals
    (logits_ct,) = jax.linear_transpose(of_rows, logits)([cts[i] for i in used])
    return logits_ct


def _by_hand(cts, residuals):
    """The same in fewer steps: what is one number per row is made once. It has no derivatives of its own.

    It gives the rows of logits as those of a matrix, the labels, those numbers by name, and a function of some logits of each row, of which
    of them is the label's own, and of the numbers of the rows.
    """
    (logits, labels, _, mask, _), outs = residuals
    rest_ct, label_ct, total_ct = cts
    rows = {"shift": finite(outs[0])}
    if label_ct is not None:
        rows["of_own"], rows["share"] = (label_ct * row for row in _rows_of_label(outs))
    if rest_ct is not None:
        rows["rest_ct"] = rest_ct
    if total_ct is not None:
        rows["total_ct"], rows["total_share"] = total_ct, _share_of_total(outs)
    if mask is not None:
        rows["mask"] = mask

    is_of_label_alone = rest_ct is None and total_ct is None

    def of(z, is_own, rows):
        z = read(z, None, rows.get("mask"), axis=1)
        at = {name: per_row(row, 1) for name, row in rows.items()}
        # Of the label's term a +inf is the label's own or in a row without a loss.
        e = jnp.exp((z if is_of_label_alone else capped(z)) - at["shift"])
        terms = []
        if label_ct is not None:
            terms.append(jnp.where(is_own, at["of_own"], at["share"] * e))
        terms += [] if rest_ct is None else [at["rest_ct"] * _of_rest(z, e)]
        terms += [] if total_ct is None else [at["total_ct"] * _of_total(z, e, at["total_share"], None, axis=1)]
        return rounded(sum(terms[1:], terms[0]), logits.dtype)

    matrix = logits.reshape(-1, logits.shape[-1])
    return matrix, label_indices(labels, mask).reshape(-1), {name: row.reshape(-1) for name, row in rows.items()}, of


def _gradient_by_hand(cts, residuals):
    matrix, labels, rows, of = _by_hand(cts, residuals)
    labels, rows = lax.optimization_barrier((labels, rows))
    return of(matrix, is_label(matrix, labels, 1), rows).reshape(residuals[0][0].shape)


# Of so many logits the row is found once, where the rows are no multiple of 16 bytes.
_RUN = 512


def _gradient_by_tables(cts, residuals):
    """As XLA for GPU makes it best.

    What belongs to a row lies together, so that a thread reads it at once. Logits of 16 bits are read as pairs: four of what it reads are code
    of one thread, and of pairs they are 16 bytes. If they may be of two rows, it looks for the row of each: so rows that are no multiple of
    8 classes are taken as one long row, in runs as of the row in which they begin, and the first classes of each row are made again.
    """
    matrix, labels, rows, of = _by_hand(cts, residuals)
    num_classes, size, dtype = matrix.shape[1], matrix.size, matrix.dtype
    # Whichever class is taken for that of a label that is none, it gets what the others do.
    own = labels.astype(jnp.int32)
    table = _table(own, rows)

    def of_first(number):
        own, some = _columns(table, rows)
        return of(matrix[:, :number], lax.iota(jnp.int32, number)[None] == per_row(own, 1), some)

    def of_pairs(run, table):
        own, some = _columns(table, rows)
        pairs = lax.bitcast_convert_type(matrix.reshape(-1, run // 2, 2), jnp.uint32)
        first = 2 * lax.iota(jnp.int32, run // 2)[None]
        made = [of(half, first + i == per_row(own, 1), some) for i, half in enumerate(halves(pairs, dtype))]
        low, high = (lax.bitcast_convert_type(half, jnp.uint16).astype(jnp.uint32) for half in made)
        return lax.bitcast_convert_type(low | high << 16, dtype).reshape(matrix.shape)

    in_runs = is_known(size) and size % _RUN == 0 and size < 2**31
    if dtype.itemsize == 2 and num_classes % 8 == 0:
        gradient = of_pairs(num_classes, table)
    elif dtype.itemsize != 2 or not in_runs:
        gradient = of_first(num_classes)
    else:
        start = lax.iota(jnp.int32, size // _RUN) * _RUN
        row = lax.div(start, num_classes)
        of_row = {name: number[row] for name, number in rows.items()}
        gradient = of_pairs(_RUN, _table(own[row] - (start - row * num_classes), of_row))
        gradient = lax.dynamic_update_slice(gradient, of_first(_RUN - 1), (0, 0))
    return gradient.reshape(residuals[0][0].shape)


def _table(own, rows):
    """The bits of numbers of each row, side by side: a multiple of four, which are read at once."""
    integer = f"int{8 * rows['shift'].dtype.itemsize}"

    def bits(row):
        return row.astype(integer) if row.dtype == bool else lax.bitcast_convert_type(row, integer)

    columns = [own.astype(integer), *map(bits, rows.values())]
    return lax.optimization_barrier(jnp.stack(columns + columns[:1] * (-len(columns) % 4), 1))


def _columns(table, rows):
    """What such a table was made of."""
    some = {}
    for i, (name, row) in enumerate(rows.items(), start=1):
        bits = table[:, i]
        some[name] = bits != 0 if row.dtype == bool else lax.bitcast_convert_type(bits, row.dtype)
    return table[:, 0].astype(jnp.int32), some
