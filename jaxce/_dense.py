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

from jaxce._axes import per_class, per_row
from jaxce._rule import with_rule
from jaxce._types import working_dtype


@functools.cache
def statistics(axis: int, integer_labels: bool):
    """The fields of `LogitStats` as a function of `(logits, labels, where, mask, class_weights)`, with their rule.

    An argument that is None is not used. A row whose `mask` is false is read as one of zeros with label 0, whatever it holds: so its
    statistics are ordinary numbers, and whoever gives the mask makes them, and with them their derivatives, 0.
    """

    def primal(logits, labels, where, mask, class_weights):
        z = _read(logits, where, mask, axis)
        shift = lax.stop_gradient(jnp.max(z, axis))
        below, e = _shifted(z, shift, axis)
        q, u = _label_distribution(z, labels, mask, axis), _class_weights(z, class_weights, axis)
        # The sign excludes the maximal classes from the sum, then all but one come back: a sum of exact ones. Written so, both sums
        # differentiate to what the rule says.
        top = 1 + jnp.sign(below)
        rest = jnp.sum(-jnp.sign(below) * e, axis) + (jnp.sum(top * e, axis) - 1)
        rest = jnp.where(shift == -jnp.inf, 0, rest)
        log_norm = jnp.log1p(rest)
        label_mass, total_mass = _label_mass(q, labels, mask, axis), jnp.sum(u, axis)
        return (
            shift,
            rest,
            label_mass * log_norm + _weighted_sum(q, -below, axis),
            label_mass,
            total_mass * log_norm + _weighted_sum(u, -below, axis),
            total_mass,
            jnp.sum((z > -jnp.inf).astype(z.dtype), axis),
        )

    def tangent(args, outs, tangents):
        logits, labels, where, mask, class_weights = args
        shift, rest, _, label_mass, _, total_mass, _ = outs
        logits_dot, labels_dot, _, _, class_weights_dot = tangents
        z = _read(logits, where, mask, axis)
        below, e = _shifted(z, shift, axis)
        zero = jnp.zeros_like(shift)
        rest_dot = label_nll_dot = label_mass_dot = total_nll_dot = total_mass_dot = zero
        rest_, label_mass_, total_mass_ = (per_row(x, axis) for x in (rest, label_mass, total_mass))
        inverse = 1 / (1 + rest_)
        if logits_dot is not None:
            z_dot = logits_dot.astype(z.dtype)
            if where is not None:
                # The coefficients of a class left out are 0 already, but those of a row without a loss are NaN.
                z_dot = jnp.where(where, z_dot, 0)
            q, u = _label_distribution(z, labels, mask, axis), _class_weights(z, class_weights, axis)
            p = e * inverse
            # label_mass * p - q, where both are nearly label_mass (the class of a confident, right row): p - 1 = (e - 1 - rest) / (1 + rest)
            # is exact there, as e is 1. It is e - 1 and not 0 for the sake of its own derivative.
            near = label_mass_ * ((e - 1) - rest_) * inverse + (label_mass_ - q)
            q_gap = jnp.where((below == 0) & (2 * q > label_mass_), near, label_mass_ * p - q)
            rest_dot = jnp.sum(jnp.where(z == jnp.inf, 0, e) * z_dot, axis)  # capped, it does not move
            label_nll_dot = jnp.sum(q_gap * z_dot, axis)
            total_nll_dot = jnp.sum((total_mass_ * p - u) * z_dot, axis)
        taking_part = z > -jnp.inf
        nll = jnp.where(taking_part, jnp.log1p(rest_) - below, 0)
        if labels_dot is not None:
            q_dot = labels_dot.astype(z.dtype)
            label_nll_dot = label_nll_dot + jnp.sum(nll * q_dot, axis)
            label_mass_dot = jnp.sum(q_dot, axis)
        if class_weights_dot is not None:
            u_dot = jnp.where(taking_part, per_class(class_weights_dot.astype(z.dtype), axis, z.ndim), 0)
            total_nll_dot = total_nll_dot + jnp.sum(nll * u_dot, axis)
            total_mass_dot = jnp.sum(u_dot, axis)
        return zero, rest_dot, label_nll_dot, label_mass_dot, total_nll_dot, total_mass_dot, zero

    return with_rule(primal, tangent)


def _read(logits, where, mask, axis):
    """The logits in the dtype to work in: an excluded class as -inf, a masked row as zeros."""
    z = logits.astype(working_dtype(logits))
    if where is not None:
        z = jnp.where(where, z, -jnp.inf)
    if mask is not None:
        z = jnp.where(per_row(mask, axis), z, 0)
    return z


def _shifted(z, shift, axis):
    """`z - shift` and its exponential. A +inf logit counts as the largest number, so that alone it is its own maximum."""
    # Capped by a select: the derivative of a minimum at the largest number itself would be a half.
    capped = jnp.where(z == jnp.inf, jnp.finfo(z.dtype).max, z)
    below = capped - per_row(finite(shift), axis)
    return below, jnp.exp(below)


def finite(shift):
    """`shift`, its infinities replaced by the largest numbers, so that it can be subtracted."""
    largest = jnp.finfo(shift.dtype).max
    return jnp.clip(shift, -largest, largest)


def _label_distribution(z, labels, mask, axis):
    """`q`: the probabilities given, or the one-hot of the label, found by comparison so that it fuses and shards with `z`."""
    if labels.ndim == z.ndim:
        q = labels.astype(z.dtype)
        return q if mask is None else jnp.where(per_row(mask, axis), q, 0)
    labels = label_indices(labels, mask)
    classes = lax.broadcasted_iota(labels.dtype, z.shape, axis)
    return (classes == per_row(labels, axis)).astype(z.dtype)


def _label_mass(q, labels, mask, axis):
    """`sum_k q_k`, read off an integer label without a pass over the classes."""
    if labels.ndim == q.ndim:
        return jnp.sum(q, axis)
    labels = label_indices(labels, mask)
    return ((labels >= 0) & (labels < q.shape[axis])).astype(q.dtype)


def label_indices(labels, mask):
    """Integer labels wide enough to count any classes; a masked row's label is 0."""
    labels = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
    return labels if mask is None else jnp.where(mask, labels, 0)


def _class_weights(z, class_weights, axis):
    """`u`: the weight of each class that takes part, 0 for one that does not."""
    weights = 1 if class_weights is None else per_class(class_weights.astype(z.dtype), axis, z.ndim)
    return jnp.where(z > -jnp.inf, weights, jnp.zeros((), z.dtype))


def _weighted_sum(weights, gaps, axis):
    """`sum_k weights_k gaps_k`, in which a weight of 0 takes away even an infinite gap."""
    return jnp.sum(weights * jnp.where((weights == 0) & (gaps == jnp.inf), 0, gaps), axis)
