"""Labels that are the probabilities of a few classes: those which a teacher finds likeliest. They are never spread over all classes.

With the prediction `t`, the first maximal class, the negative log-likelihood against `q` is

    label_nll = label_mass (log_z - m) + sum_j q_j (m - z_j)

over the labels `j`: terms of one sign. The first one is that of the integer label `t`, so its derivative is that of an integer label, which is exact
where `p_t` is nearly 1. The derivative of the second is `-q_j` at each other `j`, and the sum of these `q_j` at `t`.
"""

import jax.numpy as jnp
from jax import lax

from jaxce._checks.top_labels import TopLabels
from jaxce._core.definition import Derivatives, Statistics, below_maximum, is_class
from jaxce._core.labels import weight_of_label
from jaxce._jax.axes import class_numbers
from jaxce._jax.mesh import is_explicit, psum_over


def at_classes(values, indices, axis):
    """Return the values of some classes of each row, `[..., k]`. For an index outside the classes the value is 0."""
    if is_explicit(values):
        # JAX can compare arrays whose types say that they are split over devices, but cannot index them.
        is_chosen = class_numbers(values, axis, indices.dtype)[..., None] == jnp.expand_dims(indices, axis)
        return jnp.sum(jnp.where(is_chosen, values[..., None], 0), axis)
    found = jnp.take_along_axis(values, jnp.moveaxis(indices, -1, axis), axis, mode="clip")
    return jnp.where(is_class(indices, values.shape[axis]), jnp.moveaxis(found, axis, -1), 0)


def with_top_labels(stats: Statistics, z, labels: TopLabels, *, axis) -> Statistics:
    """Return the statistics, completed with those of the labels."""
    at_labels, m = at_classes(z, labels.indices, axis), stats.max_logit[..., None]
    q, gap = _of_these_classes(z, labels, axis), -below_maximum(at_labels, stats.max_logit, -1)
    label_mass = jnp.sum(q, -1)
    of_gaps = jnp.sum(jnp.where(q == 0, 0.0, q * gap), -1)
    is_top = (at_labels == m) & (m > -jnp.inf)
    return stats._replace(
        label_nll=label_mass * jnp.log1p(stats.sum_exp_rest) + of_gaps,
        label_mass=label_mass,
        top_label_mass=jnp.sum(jnp.where(is_top, q, 0), -1),
    )


def of_prediction(stats: Statistics) -> Statistics:
    """Return the statistics of the integer label `t`."""
    return stats._replace(label_nll=stats.top_nll, label_mass=jnp.ones_like(stats.label_mass))


def label_nll_jvp(by_logits: Derivatives, z_dot, z, labels: TopLabels, stats: Statistics, *, axis):
    """Return what the tangent of the logits contributes to that of `label_nll`. `by_logits` has that of the integer label `t`."""
    prediction = stats.prediction[..., None].astype(labels.indices.dtype)
    is_other, q = labels.indices != prediction, labels.probabilities
    others = jnp.where(is_other, q, 0)
    # The value is the sum of the others, because XLA adds terms in any order, so that the mass less those of `t` could cancel. The tangent is that
    # of the mass less those of `t`: the probability of a label that takes no part may have a tangent, which the mass leaves out.
    mass = _with_tangent_of(jnp.sum(others, -1), stats.label_mass - jnp.sum(jnp.where(is_other, 0, q), -1))
    indices = jnp.concatenate((prediction, labels.indices), -1)
    coefficients = jnp.concatenate((mass[..., None], -others), -1)
    return stats.label_mass * by_logits.label_nll + jnp.sum(coefficients * at_classes(z_dot, indices, axis), -1)


def _with_tangent_of(value, x):
    return lax.stop_gradient(value) + (x - lax.stop_gradient(x))


def label_jvp(q_dot, z, labels: TopLabels, stats: Statistics, *, axis):
    """Return the tangents of `label_nll`, `label_mass` and `top_label_mass`, which are linear in the probabilities."""
    at_labels, m = at_classes(z, labels.indices, axis), stats.max_logit[..., None]
    takes_part = is_class(labels.indices, z.shape[axis]) & (at_labels > -jnp.inf)
    nll = jnp.log1p(stats.sum_exp_rest)[..., None] - below_maximum(at_labels, stats.max_logit, -1)
    nll = jnp.where(takes_part, jnp.minimum(jnp.finfo(nll.dtype).max, nll), 0)
    return (
        jnp.sum(nll * q_dot, -1),
        jnp.sum(jnp.where(takes_part, q_dot, 0), -1),
        jnp.sum(jnp.where(takes_part & (at_labels == m), q_dot, 0), -1),
    )


def weighted_top_labels(labels: TopLabels, class_weights, mask, axis_name) -> TopLabels:
    """Return the labels with their probabilities multiplied by the class weights. Those of masked rows are 0, so that a NaN reaches no gradient."""
    indices, q = labels
    if mask is not None:
        indices, q = jnp.where(mask[..., None], indices, 0), jnp.where(mask[..., None], q, 0)
    weights = psum_over(axis_name, weight_of_label(class_weights, indices, None))
    # A label that is no class has no weight, and may be NaN.
    return TopLabels(indices, q * jnp.asarray(weights, q.dtype))


def _of_these_classes(z, labels: TopLabels, axis):
    """Return the probabilities of the labels. For a class of another device or block it is 0. For a label that is no class of any, it is NaN."""
    q = labels.probabilities
    return jnp.where(is_class(labels.indices, z.shape[axis]) | jnp.isnan(q), q, 0)
