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

from jaxce._axes import apart, is_split, per_class, per_row
from jaxce._rule import read_anew, with_rule
from jaxce._sharded import AxisName, across
from jaxce._types import working_dtype


@functools.cache
def statistics(axis: int, axis_name: AxisName = None):
    """The fields of `LogitStats` as a function of `(logits, labels, where, mask, class_weights)`, with their rule.

    An argument that is None is not used. A row whose `mask` is false is read as one of zeros with label 0, whatever it holds: so its
    statistics are ordinary numbers, and whoever gives the mask makes them, and with them their derivatives, 0. With an `axis_name` the
    arguments are those of some of the classes, the labels counted from the first of them, and the statistics those of all.
    """
    return with_rule(*across(axis_name, functools.partial(_primal, axis=axis), functools.partial(tangent, axis=axis)))


def tangent(args, outs, tangents, *, axis):
    """The tangents of the fields, linear in those of the arguments.

    `logits` may be some of the classes of a row whose statistics are `outs`: its tangents then are the part that they contribute.
    """
    logits, labels, where, mask, class_weights = args
    shift, rest, label_nll, label_mass, _, total_mass, _ = outs
    logits_dot, labels_dot, _, _, class_weights_dot = tangents
    # Read anew, or XLA holds what the statistics have in common with the derivatives: a float32 copy of narrow logits, say.
    logits = read_anew(logits, shift)
    z = _read(logits, where, mask, axis)
    below = _capped(z) - per_row(finite(shift), axis)
    e = jnp.exp(below)
    zero = jnp.zeros_like(shift)
    rest_dot = label_nll_dot = total_nll_dot = total_mass_dot = zero
    label_mass_dot = jnp.zeros_like(label_mass)  # it lies where the labels do, which may not be where the logits do
    rest_, label_mass_, total_mass_ = (per_row(x, axis) for x in (rest, label_mass, total_mass))
    inverse = 1 / (1 + rest_)
    if logits_dot is not None:
        z_dot = logits_dot.astype(z.dtype)
        if where is not None:
            # The coefficients of a class left out are 0 already, but those of a row without a loss are NaN.
            z_dot = jnp.where(where, z_dot, 0)
        p = label_mass_ * inverse * e
        # label_mass * p - q, where both are nearly label_mass (the class of a confident, right row), is worked out in terms that are small
        # themselves. Both forms have the derivatives of what they stand for.
        if labels.ndim == z.ndim:
            q = _label_probabilities(z, labels, mask, axis)
            near = label_mass_ * ((e - 1) - rest_) * inverse + (label_mass_ - q)
            q_gap = jnp.where((below == 0) & (2 * q > label_mass_), near, p - q)
        else:
            # The derivative of expm1 is worked out as 1 more than its value, which of a small p leaves nothing.
            p_gap = jnp.where(label_nll < 0.5, jnp.expm1(-label_nll), jnp.exp(-label_nll) - 1)
            q_gap = jnp.where(_is_label(z, labels, mask, axis), per_row(p_gap, axis), p)
        rest_dot = jnp.sum(jnp.where(z == jnp.inf, 0, e) * z_dot, axis)  # capped, it does not move
        label_nll_dot = jnp.sum(q_gap * z_dot, axis)
        total_nll_dot = jnp.sum((total_mass_ * inverse * e - _class_weights(z, class_weights, axis)) * z_dot, axis)
    nll = jnp.where(z > -jnp.inf, jnp.log1p(rest_) - below, 0)
    if labels_dot is not None:
        q_dot = labels_dot.astype(z.dtype)
        label_nll_dot = label_nll_dot + jnp.sum(nll * q_dot, axis)
        label_mass_dot = jnp.sum(q_dot, axis)
    if class_weights_dot is not None:
        u_dot = jnp.where(z > -jnp.inf, per_class(class_weights_dot.astype(z.dtype), axis, z.ndim), 0)
        total_nll_dot = total_nll_dot + jnp.sum(nll * u_dot, axis)
        total_mass_dot = jnp.sum(u_dot, axis)
    return zero, rest_dot, label_nll_dot, label_mass_dot, total_nll_dot, total_mass_dot, zero


def _primal(logits, labels, where, mask, class_weights, *, axis):
    def total(term, *numbers, after):
        """The sum over the classes of `term(z, z - shift, *numbers)`."""

        def one_reading(arrays, shift, numbers):
            logits, where, mask = arrays
            z = _read(logits, where, mask, axis)
            return jnp.sum(term(z, z - per_row(finite(shift), axis), *numbers), axis)

        return _alone(one_reading, ((logits, where, mask), shift), tuple(map(z.dtype.type, numbers)), after)

    # Had XLA for CPU made the logits anew for each sum, the maximum of one would not be quite that of another.
    logits = lax.platform_dependent(logits, cpu=lax.optimization_barrier, default=lambda x: x)
    z = _read(logits, where, mask, axis)
    shift = lax.stop_gradient(jnp.max(z, axis))
    largest = jnp.finfo(z.dtype).max
    # The maximal classes are excluded from the sum, then all but one come back: a sum of exact ones. Both sums differentiate to what the
    # rule says, where a +inf does not move.
    others = total(
        lambda _, d, zero, one, big: (one - _top(d, zero, one, big)) * jnp.exp(jnp.minimum(d, zero)),
        0,
        1,
        1e38,
        after=shift,
    )
    ties = total(
        lambda _, d, zero, one, big: _top(d, zero, one, big) * (one + _nought(d, one)), 0, 1, 1e38, after=others
    )
    rest = jnp.where(shift == -jnp.inf, 0, others + (ties - 1))
    log_norm = jnp.log1p(rest)
    if labels.ndim == z.ndim:
        q = _label_probabilities(z, labels, mask, axis)
        label_mass = jnp.sum(q, axis)
        label_gap = total(lambda _, d: q * jnp.where(((q == 0) & (d == -jnp.inf)) | (d > 0), 0, -d), after=ties)
    else:
        labels = label_indices(labels, mask)
        label_mass = ((labels >= 0) & (labels < z.shape[axis])).astype(z.dtype)
        label_gap = finite(shift) - _capped(_pick(logits, where, mask, labels, axis))
        label_gap = jnp.where(label_mass == 0, 0, label_gap)
    weights = 1 if class_weights is None else per_class(class_weights.astype(z.dtype), axis, z.ndim)
    bounds = (0, 1, 0.5, largest)
    num_classes = total_mass = total(lambda z, _, *bounds: _taking_part(z, *bounds), *bounds, after=label_gap)
    if class_weights is not None:
        total_mass = total(lambda z, _, *bounds: weights * _taking_part(z, *bounds), *bounds, after=num_classes)
    total_gap = total(
        lambda z, d, *bounds: weights * _taking_part(z, *bounds) * jnp.minimum(-d, bounds[-1]),
        *bounds,
        after=total_mass,
    )
    total_gap = jnp.where(shift < jnp.inf, total_gap, jnp.where(num_classes == 1, 0, jnp.inf))
    return (
        shift,
        rest,
        label_mass * log_norm + label_gap,
        label_mass,
        total_mass * log_norm + total_gap,
        total_mass,
        num_classes,
    )


def _read(logits, where, mask, axis):
    """The logits in the dtype to work in: an excluded class as -inf, a masked row as zeros."""
    z = logits.astype(working_dtype(logits))
    if where is not None:
        z = jnp.where(where, z, -jnp.inf)
    if mask is not None:
        z = jnp.where(per_row(mask, axis), z, 0)
    return z


def _capped(z):
    """A +inf logit as the largest number, so that alone it is its own maximum."""
    # By a select: the derivative of a minimum at the largest number itself would be a half.
    return jnp.where(z == jnp.inf, jnp.finfo(z.dtype).max, z)


def finite(shift):
    """`shift`, its infinities replaced by the largest numbers, so that it can be subtracted."""
    largest = jnp.finfo(shift.dtype).max
    return jnp.clip(shift, -largest, largest)


def _alone(reduction, arrays, numbers, after):
    """`reduction(*arrays, numbers)`; on a CPU once `after` is known.

    XLA for CPU makes one loop without temporaries of a sum over the classes only if nothing else reads what it reads, constants included:
    hence the barrier, the numbers as an argument, and sums written in arithmetic without selecting. Elsewhere all share one reading.
    """

    def on_cpu(arrays, after):
        arrays, numbers_, _ = lax.optimization_barrier((arrays, tuple(map(jnp.asarray, numbers)), after))
        return reduction(*arrays, numbers_)

    return lax.platform_dependent(arrays, after, cpu=on_cpu, default=lambda arrays, _: reduction(*arrays, numbers))


def _top(below, zero, one, big):
    """1 where the difference from the maximum is 0, else 0; a constant of differentiation."""
    return lax.stop_gradient(jnp.maximum(one + jnp.minimum(below, zero) * big, zero))


def _nought(below, one):
    """0, with the derivative of `below` where that is near 0."""
    near = jnp.clip(below, -one, one)
    return near - lax.stop_gradient(near)


def _taking_part(z, zero, one, half, largest):
    """0 for a logit of -inf, 1 for any other; a constant of differentiation."""
    return lax.stop_gradient(jnp.clip(z * half + largest, zero, one))


def _pick(logits, where, mask, labels, axis):
    """The logit of each label that is a class."""

    def by_index(logits, labels):
        pick = functools.partial(jnp.take_along_axis, indices=per_row(labels, axis), axis=axis, mode="clip")
        allowed = None if where is None else pick(jnp.broadcast_to(where, logits.shape))
        return _read(pick(logits), allowed, mask, axis).squeeze(axis)

    def by_comparison(logits, labels):
        # Fuses with the other sums over the classes, and shards as they do.
        z = _read(logits, where, mask, axis)
        return jnp.sum(jnp.where(_is_label(z, labels, None, axis), z, 0), axis)

    if is_split(logits, axis):
        return by_comparison(logits, labels)
    return lax.platform_dependent(logits, labels, cpu=by_index, default=by_comparison)


def _label_probabilities(z, labels, mask, axis):
    """`q`, with a masked row of zeros."""
    q = labels.astype(z.dtype)
    return q if mask is None else jnp.where(per_row(mask, axis), q, 0)


def _is_label(z, labels, mask, axis):
    """Whether a class is that of the integer label."""
    labels = label_indices(labels, mask)
    return lax.broadcasted_iota(labels.dtype, z.shape, axis) == per_row(labels, axis)


def label_indices(labels, mask):
    """Integer labels wide enough to count any classes; a masked row's label is 0."""
    labels = labels if labels.dtype.itemsize >= 4 else apart(labels.astype(jnp.int32))
    return labels if mask is None else jnp.where(mask, labels, 0)


def _class_weights(z, class_weights, axis):
    """`u`: the weight of each class that takes part, 0 for one that does not."""
    weights = 1 if class_weights is None else per_class(class_weights.astype(z.dtype), axis, z.ndim)
    return jnp.where(z > -jnp.inf, weights, jnp.zeros((), z.dtype))
