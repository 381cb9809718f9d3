"""The statistics of dense logits, and their derivative rule. `_stats` says what each of them is.

`e` and `p` are `exp(z - shift)` and the softmax; `q` is the label distribution and `u` the class weights. The derivatives by the logits:

    d rest        e
    d label_nll   label_mass * p - q
    d total_nll   total_mass * p - u

One elementwise pass over the logits makes any of them from the logits and the statistics.
"""

import functools

import jax.numpy as jnp
from jax import lax

from jaxce._axes import apart, per_class, per_row, varying_like
from jaxce._infinities import capped, finite, weighted
from jaxce._reductions import is_label, pick, read, shift_and_rest, total
from jaxce._rule import read_anew, with_rule
from jaxce._sharded import AxisName, across

# What a masked row is given: the fields of a row of one certain class whose logit is 0.
_OF_ONE_CLASS = (0, 0, 0, 1, 0, 1, 1)


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
    shift, rest, _, label_mass, _, _, _ = outs
    logits_dot, labels_dot, _, _, class_weights_dot = tangents
    # Read anew, or XLA holds what the statistics have in common with the derivatives: a float32 copy of narrow logits, say.
    logits = read_anew(logits, shift)
    z = _read(logits, where, mask, axis)
    zero = jnp.zeros_like(shift)
    rest_dot = label_nll_dot = total_nll_dot = total_mass_dot = zero
    label_mass_dot = jnp.zeros_like(label_mass)  # it lies where the labels do, which may not be where the logits do
    if logits_dot is not None:
        z_dot = logits_dot.astype(z.dtype)
        if where is not None:
            # The coefficients of a class left out are 0 already, but those of a row without a loss are NaN.
            z_dot = jnp.where(where, z_dot, 0)
        rest_dot, label_nll_dot, total_nll_dot = _by_logits(args, outs, z, z_dot, axis)
    nll = jnp.where(z > -jnp.inf, per_row(jnp.log1p(rest), axis) - _below(z, shift, axis), 0)
    if labels_dot is not None:
        q_dot = labels_dot.astype(z.dtype)
        label_nll_dot = label_nll_dot + jnp.sum(nll * q_dot, axis)
        label_mass_dot = jnp.sum(q_dot, axis)
    if class_weights_dot is not None:
        u_dot = jnp.where(z > -jnp.inf, per_class(class_weights_dot.astype(z.dtype), axis, z.ndim), 0)
        total_nll_dot = total_nll_dot + jnp.sum(nll * u_dot, axis)
        total_mass_dot = jnp.sum(u_dot, axis)
    return zero, rest_dot, label_nll_dot, label_mass_dot, total_nll_dot, total_mass_dot, zero


def _by_logits(args, outs, z, z_dot, axis):
    """What the tangents of the logits contribute to those of `rest`, `label_nll` and `total_nll`."""
    _, labels, _, mask, class_weights = args
    shift, rest, label_nll, label_mass, _, total_mass, _ = outs
    below, inverse = _below(z, shift, axis), 1 / (1 + rest)
    e, share = jnp.exp(below), label_mass * inverse
    of_rest = jnp.where(z == jnp.inf, 0, e)  # capped, it does not move
    of_total = per_row(total_mass * inverse, axis) * e - _class_weights(z, class_weights, axis)
    if labels.ndim == z.ndim:
        # label_mass * p - q, where both are nearly label_mass (the class of a confident, right row), is worked out in terms that are small
        # themselves. Both forms have the derivatives of what they stand for.
        q, mass = _label_probabilities(labels, mask, axis).astype(z.dtype), per_row(label_mass, axis)
        near = mass * ((e - 1) - per_row(rest, axis)) * per_row(inverse, axis) + (mass - q)
        of_label = jnp.where((below == 0) & (2 * q > mass), near, per_row(share, axis) * e - q)
        label_nll_dot = jnp.sum(of_label * z_dot, axis)
    else:
        # The derivative of expm1 is worked out as 1 more than its value, which of a small p leaves nothing.
        p_gap = jnp.where(label_nll < 0.5, jnp.expm1(-label_nll), jnp.exp(-label_nll) - 1)
        # A +inf is the label's own or in a row without a loss. It is not capped but cut down to what exp can bear: of a loop with one more
        # select XLA for CPU makes one half as fast.
        p = per_row(share, axis) * jnp.exp(jnp.minimum(z - per_row(finite(shift), axis), 1))
        of_label = jnp.where(is_label(z, label_indices(labels, mask), axis), per_row(p_gap, axis), p)
        label_nll_dot = jnp.sum(of_label * z_dot, axis)
    return jnp.sum(of_rest * z_dot, axis), label_nll_dot, jnp.sum(of_total * z_dot, axis)


def _primal(logits, labels, where, mask, class_weights, *, axis):
    if mask is not None:
        # XLA drops a select whose sides are the same, but no derivative passes through the second.
        unread = lax.stop_gradient(logits) if class_weights is None else 0
        logits = jnp.where(per_row(mask, axis), logits, unread)
    # In jax 0.10 what comes out of a barrier varies over all axes of `jax.shard_map` over which one of its operands does, so they vary before.
    logits, labels = varying_like((logits, labels), (logits, labels))
    # Had XLA for CPU made the logits anew for each sum, the maximum of one would not be quite that of another.
    logits, labels = lax.platform_dependent((logits, labels), cpu=lax.optimization_barrier, default=lambda x: x)
    shift, rest = shift_and_rest(logits, where, axis)
    dtype = rest.dtype
    sum_of = functools.partial(total, logits=logits, where=where, shift=shift, axis=axis)
    log_norm = jnp.log1p(rest)
    bounds = (0, 0.5, 1, jnp.finfo(dtype).max)
    if labels.ndim == logits.ndim:
        q = _label_probabilities(labels, mask, axis)
        label_mass = jnp.sum(q.astype(dtype), axis)
        label_gap = sum_of(_label_gap, *bounds, beside=q, after=(rest, label_mass))
    else:
        labels = label_indices(labels, mask)
        is_class = (labels >= 0) & (labels < logits.shape[axis])
        label_mass = is_class.astype(dtype)
        label_gap = finite(shift) - capped(pick(logits, where, labels, axis))
        label_gap = jnp.where(is_class, label_gap, 0)
    num_classes = total_mass = sum_of(_weight, *bounds, after=label_gap)
    u = None
    if class_weights is not None:
        u = per_class(class_weights.astype(dtype), axis, logits.ndim)
        total_mass = sum_of(_weight, *bounds, beside=u, after=num_classes)
    total_gap = sum_of(_weighted_gap, *bounds, beside=u, after=total_mass)
    total_gap = jnp.where(shift < jnp.inf, total_gap, jnp.where(num_classes == 1, 0, jnp.inf))
    fields = (
        shift,
        rest,
        label_mass * log_norm + label_gap,
        label_mass,
        total_mass * log_norm + total_gap,
        total_mass,
        num_classes,
    )
    if mask is None:
        return fields
    return tuple(jnp.where(mask, x, jnp.asarray(y, dtype)) for x, y in zip(fields, _OF_ONE_CLASS, strict=True))


def _label_gap(_, below, zero, half, one, largest, q):
    """`q (shift - z)`; a +inf logit is no further up than its shift."""
    is_above = lax.stop_gradient(jnp.minimum(jnp.maximum(below, zero), one))
    return weighted(q, is_above - jnp.minimum(below, one), zero, half, one, largest)


def _weight(z, _, zero, half, one, largest, u=1):
    """`u` of a class that takes part, 0 of a logit of -inf."""
    return u * lax.stop_gradient(jnp.clip(z * half + largest, zero, one))


def _weighted_gap(z, below, zero, half, one, largest, u=1):
    """`u (shift - z)`, for a logit of -inf 0."""
    return _weight(z, below, zero, half, one, largest, u) * jnp.minimum(-below, largest)


def _read(logits, where, mask, axis):
    """The logits in the dtype to work in: a class that is left out as -inf, a masked row as zeros."""
    z = read(logits, where)
    return z if mask is None else jnp.where(per_row(mask, axis), z, 0)


def _below(z, shift, axis):
    """`z - shift`, not above 0."""
    return capped(z) - per_row(finite(shift), axis)


def _label_probabilities(labels, mask, axis):
    """`q` in its own dtype, with a masked row of zeros."""
    return labels if mask is None else jnp.where(per_row(mask, axis), labels, jnp.zeros((), labels.dtype))


def label_indices(labels, mask):
    """Integer labels wide enough to count any classes; a masked row's label is 0."""
    labels = labels if labels.dtype.itemsize >= 4 else apart(labels.astype(jnp.int32))
    return labels if mask is None else jnp.where(mask, labels, 0)


def _class_weights(z, class_weights, axis):
    """`u`: the weight of each class that takes part, 0 for one that does not."""
    weights = 1 if class_weights is None else per_class(class_weights.astype(z.dtype), axis, z.ndim)
    return jnp.where(z > -jnp.inf, weights, jnp.zeros((), z.dtype))
