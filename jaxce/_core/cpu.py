"""The forms for XLA for CPU: the statistics in fast loops, and a gradient that is rounded fast.

XLA for CPU computes `exp(z - m)` and each comparison of the definition once, writes each to memory as an array as large as the logits, and sums
these arrays, slowly if there is a select. It computes each sum of these forms in one vectorised loop over the logits; `cpu_sums` says why. XLA
rounds a gradient to bfloat16 with a select; the form rounds with integer operations, in half the time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxce._core import cpu_sums as sums
from jaxce._core import definition, sigmoid
from jaxce._core.cpu_sums import Operands
from jaxce._core.definition import Derivatives, Statistics
from jaxce._core.integer_labels import gradient, row_coefficients, with_label_logit
from jaxce._jax.axes import is_known, per_class, per_row
from jaxce._jax.mesh import is_explicit
from jaxce._types import working_dtype

# Below this number of logits, the arrays that the definition writes stay in the cache.
SMALLEST = 2**15
# Below this number of logits, comparing labels as float32 is faster on jax 0.10.
_FLOATS_BELOW = 2**23 if jax.__version_info__ < (0, 11) else 0


def suits(logits) -> bool:
    """Whether these forms are faster, or smaller, than the definition. An unknown number of logits counts as a large one."""
    return not is_explicit(logits) and (not is_known(logits.size) or logits.size >= SMALLEST)


def statistics(logits, where, labels, class_weights, *, axis) -> Statistics:
    """Compute `definition.statistics` in loops that follow one another."""
    # If elementwise code computes the logits, XLA may recompute them for each loop and round them differently.
    logits, labels = lax.optimization_barrier((logits, labels))
    parts = sums.number_of_parts(logits, where, axis)
    if parts > 1:
        m, rest, prediction = sums.max_and_rest_of_parts(logits, parts)
    else:
        m, rest, prediction = sums.max_and_rest_of_rows(logits, where, axis)
    rows, log_norm = Operands(logits, where, m), jnp.log1p(rest)
    spread = definition.spread_of(
        sums.total(sums.gap_times_exp, rows, axis, parts, after=rest, tells_infinity=False), rest
    )
    stats = Statistics(*[None] * len(Statistics._fields))._replace(
        max_logit=m,
        sum_exp_rest=rest,
        spread=spread,
        expected_nll=log_norm + spread,
        top_nll=log_norm,
        prediction=prediction,
    )
    if labels.ndim < logits.ndim:
        label_logit = _label_logit(logits, where, labels, axis)
        stats = with_label_logit(stats, label_logit, labels, logits.shape[axis])
    else:
        stats = _with_label_probabilities(stats, rows, labels, axis)
    return _with_uniform(stats, rows, class_weights, axis, parts)


def _with_label_probabilities(stats: Statistics, rows: Operands, labels, axis) -> Statistics:
    m, rest = stats.max_logit, stats.sum_exp_rest
    q = labels.astype(m.dtype)
    label_mass = jnp.sum(q, axis)
    label_gap = sums.total(sums.weighted_gap, rows._replace(factor=labels), axis, after=(rest, label_mass))
    is_top = (sums.read(rows.logits, rows.where) == per_row(m, axis)) & per_row(m > -jnp.inf, axis)
    return stats._replace(
        label_nll=label_mass * jnp.log1p(rest) + _infinite_below_infinity(label_gap, label_gap != 0, m),
        label_mass=label_mass,
        top_label_mass=jnp.sum(jnp.where(is_top, q, 0), axis),
    )


def _with_uniform(stats: Statistics, rows: Operands, class_weights, axis, parts) -> Statistics:
    m = stats.max_logit
    num_classes = weight_sum = sums.total(
        sums.takes_part, rows, axis, parts, after=stats.label_nll, tells_infinity=False
    )
    if class_weights is None:
        gap = sums.total(sums.bounded_gap, rows, axis, parts, after=weight_sum, tells_infinity=False)
        gap = jnp.where(gap == jnp.finfo(m.dtype).max, jnp.inf, gap)
        # Where the maximum is +inf, `1 + sum_exp_rest` is the number of maximal classes.
        has_gap = num_classes > 1 + stats.sum_exp_rest
    else:
        rows = rows._replace(factor=per_class(class_weights, axis, rows.logits.ndim))
        weight_sum = sums.total(sums.weight, rows, axis, after=num_classes, tells_infinity=False)
        gap = sums.total(sums.class_gap, rows, axis, after=weight_sum)
        has_gap = gap != 0
    return stats._replace(
        uniform_nll=weight_sum * jnp.log1p(stats.sum_exp_rest) + _infinite_below_infinity(gap, has_gap, m),
        weight_sum=weight_sum,
        num_classes=num_classes,
    )


def _infinite_below_infinity(gap, has_gap, m):
    """Return the sum of the gaps of each row. A gap below a logit of +inf is infinite, even if its loop found a finite one."""
    return jnp.where((m == jnp.inf) & has_gap, jnp.copysign(jnp.inf, gap), gap)


def logits_vjp(cotangents: Derivatives, logits, where, labels, class_weights, stats: Statistics, *, axis):
    """Compute `definition.logits_vjp` rounded to the dtype of the logits, by integers where that is bfloat16."""
    # Without the barrier, XLA computes once and stores what the value and the gradient share, such as a float32 copy of narrow logits.
    read = _read_by_vjp(cotangents)
    logits, values = lax.optimization_barrier((logits, [getattr(stats, name) for name in read]))
    stats = stats._replace(**dict(zip(read, values, strict=True)))
    z = sums.read(logits, where)
    if labels.ndim == logits.ndim or class_weights is not None:
        z_ct = definition.logits_vjp(cotangents, z, labels, class_weights, stats, axis=axis)
    else:
        rows = row_coefficients(cotangents, stats)
        # Without the barrier, XLA computes these numbers again for each class.
        labels, rows = lax.optimization_barrier((labels, rows))
        rows = {name: per_row(row, axis) for name, row in rows.items()}
        z_ct = gradient(z, is_label(z, labels, axis), rows)
    return rounded(z_ct, logits.dtype)


def _read_by_vjp(cotangents: Derivatives) -> list[str]:
    """Return the names of the statistics that `logits_vjp` reads. A barrier would keep the others alive."""
    of_cotangent = {
        "label_nll": ("label_nll", "label_mass"),
        "uniform_nll": ("weight_sum",),
        "spread": ("spread",),
        "expected_nll": ("spread",),
    }
    used = {name for ct, names in of_cotangent.items() if getattr(cotangents, ct) is not None for name in names}
    return ["max_logit", "sum_exp_rest", *sorted(used)]


def _label_logit(logits, where, labels, axis):
    def at_labels(x):
        return jnp.take_along_axis(x, per_row(labels, axis), axis=axis, mode="clip").squeeze(axis)

    return sums.read(
        sums.as_integers(at_labels, logits), None if where is None else at_labels(jnp.broadcast_to(where, logits.shape))
    )


def is_label(z, labels, axis):
    """Compute `definition.is_label`. XLA's loop for an equality is fastest where it compares numbers of 16 bits that it reads."""
    num_classes = z.shape[axis]
    classes = jnp.arange(num_classes, dtype=labels.dtype)
    if is_known(z.size) and z.size < _FLOATS_BELOW:
        return per_class(classes.astype(jnp.float32), axis, z.ndim) == per_row(labels.astype(jnp.float32), axis)
    # An invalid label has no class: both halves of its number are the largest.
    labels = jnp.where(definition.is_class(labels, num_classes), labels, jnp.full((), -1, labels.dtype))
    equal = []
    for first_bit in [0, 16] if not is_known(num_classes) or num_classes >= 2**16 else [0]:
        of_classes, of_labels = ((x >> first_bit).astype(jnp.uint16) for x in (classes, labels))
        # The barrier makes XLA read the numbers of the classes, instead of computing them again for each row.
        of_classes = per_class(lax.optimization_barrier(of_classes), axis, z.ndim)
        equal.append(of_classes == per_row(of_labels, axis))
    return functools.reduce(jnp.logical_and, equal)


def rounded(values, dtype):
    """`values.astype(dtype)`. XLA rounds to bfloat16 with a select, which takes longer than all the rest of a gradient."""
    if (values.dtype, dtype) != (jnp.float32, jnp.bfloat16):
        return values.astype(dtype)
    bits = lax.bitcast_convert_type(lax.reduce_precision(values, 8, 7), jnp.uint32) >> 16
    # All bits that distinguish a NaN from infinity may be in the half that is cut off.
    return lax.bitcast_convert_type(jnp.where(jnp.isnan(values), 0x7FC0, bits).astype(jnp.uint16), dtype)


def sigmoid_losses(arguments: sigmoid.Arguments):
    """Compute `sigmoid.losses` by arithmetic. XLA does not vectorise a sum of losses that has a select, or that shares constants with others."""
    dtype = working_dtype(arguments.logits)
    constants = tuple(np.asarray(v, dtype) for v in (0, 1, jnp.finfo(dtype).max, jnp.finfo(dtype).min))
    # If elementwise code computes the labels, XLA may recompute them for each loop.
    labels, (zero, one, largest, least) = lax.optimization_barrier((arguments.labels, constants))
    x, yes, no = sigmoid.logits_and_weights(arguments._replace(labels=labels), one=one)
    size = jnp.abs(x)
    bounded = jnp.minimum(largest, jnp.maximum(least, x))
    up = jnp.maximum(zero, bounded)
    # The size, at most the largest number, times the weight of the answer that x speaks against.
    against = no * up + yes * (up - bounded)
    log_norm = jnp.log1p(jnp.exp(-size))
    # Without a weight both answers weigh 1 together.
    total = log_norm if arguments.pos_weight is None else (yes + no) * log_norm
    return total + against * jnp.minimum(largest, jnp.maximum(one, size - largest))


def sigmoid_vjp(loss_ct, arguments: sigmoid.Arguments):
    """Compute the cotangent of the logits, rounded to their dtype."""
    # Without the barrier, XLA computes once and stores the arrays that the value and the gradient share.
    arguments, one = lax.optimization_barrier((arguments, jnp.ones((), working_dtype(arguments.logits))))
    x, yes, no = sigmoid.logits_and_weights(arguments, one=one)
    return rounded(loss_ct * sigmoid.derivative(x, yes, no), arguments.logits.dtype)
