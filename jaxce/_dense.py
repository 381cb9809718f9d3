"""The statistics of dense logits, and their derivative rule. `_stats` says what each of them is, `_slopes` how they move with the logits."""

import functools

import jax.numpy as jnp
from jax import lax

from jaxce._axes import per_class, per_row, varying_like
from jaxce._infinities import capped, finite, times_excess
from jaxce._reading import below, label_indices, label_probabilities, read
from jaxce._reductions import pick, shift_and_rest, total
from jaxce._rule import read_anew, with_rule
from jaxce._sharded import AxisName, across
from jaxce._slopes import by_logits

# What a masked row is given: the fields of a row of one certain class whose logit is 0.
_OF_ONE_CLASS = (0, 0, 0, 1, 0, 1, 1, 1)


@functools.cache
def statistics(axis: int, axis_name: AxisName = None):
    """The fields of `LogitStats` as a function of `(logits, labels, where, mask, class_weights)`, with their rule.

    An argument that is None is not used. A row whose `mask` is false has ordinary numbers for statistics, whatever it holds: so whoever
    gives the mask can make what comes of them, and with it its derivatives, 0. With an `axis_name` the arguments are those of some of the
    classes, the labels counted from the first of them, and the statistics those of all.
    """
    return with_rule(*across(axis_name, functools.partial(_primal, axis=axis), functools.partial(tangent, axis=axis)))


def tangent(args, outs, tangents, *, axis):
    """The tangents of the fields, linear in those of the arguments.

    `logits` may be some of the classes of a row whose statistics are `outs`: its tangents then are the part that they contribute.
    """
    logits, _, where, mask, _ = args
    shift, rest, _, label_mass, *_ = outs
    logits_dot, labels_dot, _, _, class_weights_dot = tangents
    # Read anew, or XLA holds what the statistics have in common with the derivatives: a float32 copy of narrow logits, say.
    logits = read_anew(logits, shift)
    z = read(logits, where, mask, axis)
    zero = jnp.zeros_like(shift)
    rest_dot = label_nll_dot = total_nll_dot = total_mass_dot = zero
    # Sharded as the labels are, which may differ from how the logits are.
    label_mass_dot = top_label_mass_dot = jnp.zeros_like(label_mass)
    if logits_dot is not None:
        rest_dot, label_nll_dot, total_nll_dot = by_logits((logits, *args[1:]), outs, logits_dot, axis=axis)
    nll = jnp.where(z > -jnp.inf, per_row(jnp.log1p(rest), axis) - below(z, shift, axis), 0)
    if labels_dot is not None:
        q_dot = labels_dot.astype(z.dtype)
        label_nll_dot = label_nll_dot + jnp.sum(nll * q_dot, axis)
        label_mass_dot = jnp.sum(q_dot, axis)
        top_label_mass_dot = _of_top(z, q_dot, shift, axis)
    if class_weights_dot is not None:
        u_dot = jnp.where(z > -jnp.inf, per_class(class_weights_dot.astype(z.dtype), axis, z.ndim), 0)
        total_nll_dot = total_nll_dot + jnp.sum(nll * u_dot, axis)
        total_mass_dot = jnp.sum(u_dot, axis)
    return zero, rest_dot, label_nll_dot, label_mass_dot, total_nll_dot, total_mass_dot, zero, top_label_mass_dot


def _primal(logits, labels, where, mask, class_weights, *, axis):
    # In jax 0.10 what comes out of a barrier varies over all axes of `jax.shard_map` over which one of its operands does, so they vary before.
    logits, labels = varying_like((logits, labels), (logits, labels))
    # Had XLA for CPU made the logits anew for each sum, the maximum of one would not be quite that of another.
    logits, labels = lax.platform_dependent((logits, labels), cpu=lax.optimization_barrier, default=lambda x: x)
    shift, rest = shift_and_rest(logits, where, axis)
    dtype = rest.dtype
    sum_of = functools.partial(total, logits=logits, where=where, shift=shift, axis=axis)
    log_norm = jnp.log1p(rest)
    largest = jnp.finfo(dtype).max
    bounds = (0, 0.5, 1, largest)
    if labels.ndim == logits.ndim:
        q = label_probabilities(labels, mask, axis)
        label_mass = jnp.sum(q.astype(dtype), axis)
        label_gap = sum_of(_label_gap, 0, 1, largest, beside=q, after=(rest, label_mass))
        top_label_mass = _of_top(read(logits, where), q.astype(dtype), shift, axis)
    else:
        labels = label_indices(labels, mask)
        is_class = (labels >= 0) & (labels < logits.shape[axis])
        label_mass = is_class.astype(dtype)
        of_label = pick(logits, where, labels, axis)
        label_gap = jnp.where(is_class, finite(shift) - capped(of_label), 0)
        top_label_mass = (is_class & (of_label == shift) & (shift > -jnp.inf)).astype(dtype)
    num_classes = total_mass = sum_of(_weight, *bounds, after=label_gap)
    u = None
    if class_weights is not None:
        u = per_class(class_weights.astype(dtype), axis, logits.ndim)
        total_mass = sum_of(_weight, *bounds, beside=u, after=num_classes)
    total_gap = sum_of(_weighted_gap, *bounds, beside=u, after=total_mass)
    total_gap = jnp.where(shift < jnp.inf, total_gap, jnp.where(num_classes == 1, 0, jnp.inf))
    # A NaN that XLA for CPU has lost from the maximum, and counted as a class.
    shift, total_mass, num_classes = (jnp.where(jnp.isnan(rest), jnp.nan, x) for x in (shift, total_mass, num_classes))
    top_label_mass = jnp.where(jnp.isnan(rest), 0, top_label_mass)
    fields = (
        shift,
        rest,
        label_mass * log_norm + label_gap,
        label_mass,
        total_mass * log_norm + total_gap,
        total_mass,
        num_classes,
        top_label_mass,
    )
    if mask is None:
        return fields
    return tuple(jnp.where(mask, x, jnp.asarray(y, dtype)) for x, y in zip(fields, _OF_ONE_CLASS, strict=True))


def _of_top(z, q, shift, axis):
    """The sum of `q` over the maximal classes. The logits are compared: a difference of statistics would have a rounding error."""
    return jnp.sum(jnp.where((z == per_row(shift, axis)) & (z > -jnp.inf), q, 0), axis)


def _label_gap(_, below, zero, one, largest, q):
    """`q (shift - z)`, of a q of 0 nothing; a +inf logit is no further up than its shift. In arithmetic, see `_reductions`."""
    gap = jnp.maximum(zero, -below)
    return times_excess(q * jnp.minimum(largest, gap), gap, one, largest)


def _weight(z, _, zero, half, one, largest, u=1):
    """`u` of a class that takes part, 0 of a logit of -inf."""
    return u * jnp.minimum(one, jnp.maximum(zero, z * half + largest))


def _weighted_gap(z, below, zero, half, one, largest, u=1):
    """`u (shift - z)`, for a logit of -inf 0."""
    return _weight(z, below, zero, half, one, largest, u) * jnp.minimum(largest, -below)
