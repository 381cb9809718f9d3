"""The statistics of a row of logits and their derivatives, as a mathematician writes them.

With logits `z` over the classes `k` of a row, `m = max_k z_k`, `p = softmax(z)`, the label distribution `q` and class weights `u`:

    statistic                                        derivative with respect to z_k
    sum_exp_rest  sum_k exp(z_k - m) - 1             exp(z_k - m)
    label_nll     sum_k q_k (log_z - z_k)            label_mass * p_k - q_k
    uniform_nll   sum_k u_k (log_z - z_k)            weight_sum * p_k - u_k
    spread        sum_k p_k (m - z_k)                p_k ((m - z_k) - spread - 1)
    expected_nll  sum_k p_k (log_z - z_k)            p_k ((m - z_k) - spread)
    top_nll       log_z - m                          p_k, less 1 at the prediction

`log_z = m + log1p(sum_exp_rest)`. `label_mass = sum_k q_k`, `weight_sum = sum_k u_k`, the number of classes and the `prediction`, the first maximal
class, do not depend on `z`. Differentiation takes `m` in `sum_exp_rest` and `spread` for a constant: `log_z`, from which losses are computed, has
the right derivative all the same. `top_label_mass` is the sum of `q_k` over the maximal classes. A class whose logit is -inf takes no part. If `q`
and `u` are not negative, every value is a sum of terms of one sign, so a tiny one keeps every digit.

Every platform runs this code by default. The forms in `cpu` and `gpu` compute the same functions.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxce._jax.axes import class_numbers, per_class, per_row


class Statistics(NamedTuple):
    """One number per row of each; `jaxce.LogitStats` says what they are."""

    max_logit: Any
    sum_exp_rest: Any
    label_nll: Any
    label_mass: Any
    uniform_nll: Any
    weight_sum: Any
    num_classes: Any
    top_label_mass: Any
    spread: Any
    expected_nll: Any
    top_nll: Any
    prediction: Any


class Derivatives(NamedTuple):
    """One array for each statistic that depends on the logits: its derivative with respect to each logit, its tangent or its cotangent."""

    sum_exp_rest: Any = None
    label_nll: Any = None
    uniform_nll: Any = None
    spread: Any = None
    expected_nll: Any = None
    top_nll: Any = None


def statistics(z, labels, class_weights, *, axis) -> Statistics:
    """Return the statistics of each row. `labels` are integers, one per row, or probabilities, one per logit."""
    m = jnp.max(z, axis)
    gap, is_top = below_maximum(z, m, axis), z == per_row(m, axis)
    # Each maximal class contributes exactly 1. So the others are summed, and the number of maximal classes but one is added.
    num_tops = jnp.sum(is_top.astype(z.dtype), axis)
    rest = jnp.sum(jnp.where(is_top, 0.0, jnp.exp(gap)), axis) + jnp.where(m == -jnp.inf, 0.0, num_tops - 1)
    return with_maximum(m, rest, gap, z, labels, class_weights, axis=axis)


def with_maximum(m, rest, gap, z, labels, class_weights, *, axis) -> Statistics:
    """Return the statistics of rows whose maximum `m` and `sum_exp_rest` are known, and `gap = z - m`."""
    q, ones, u = label_distribution(z, labels, axis), weights(z, None, axis), weights(z, class_weights, axis)
    log_norm, num_classes = jnp.log1p(rest), jnp.sum(ones, axis)
    label_mass = jnp.sum(q, axis) if labels.ndim == z.ndim else is_class(labels, z.shape[axis]).astype(z.dtype)
    weight_sum = num_classes if class_weights is None else jnp.sum(u, axis)
    is_top = z == per_row(m, axis)
    spread = spread_of(jnp.sum(gap_times_exp(gap), axis), rest)
    return Statistics(
        max_logit=m,
        sum_exp_rest=rest,
        label_nll=label_mass * log_norm - jnp.sum(_weighted(q, gap), axis),
        label_mass=label_mass,
        uniform_nll=weight_sum * log_norm - jnp.sum(_weighted(u, gap), axis),
        weight_sum=weight_sum,
        num_classes=num_classes,
        top_label_mass=jnp.sum(jnp.where(is_top, ones * q, 0.0), axis),
        spread=spread,
        expected_nll=log_norm + spread,
        top_nll=log_norm,
        prediction=first_true(is_top, axis),
    )


def gap_times_exp(gap):
    """Return `exp(z_k - m) (m - z_k)` of each class, 0 for one that takes no part."""
    return jnp.exp(gap) * jnp.minimum(jnp.finfo(gap.dtype).max, -gap)


def spread_of(sum_gap_times_exp, rest):
    """Return the spread of rows from the sum of their `gap_times_exp`."""
    return sum_gap_times_exp / (1 + rest)


def first_true(values, axis):
    """Return the index of the first true value. Without a true value, return the number of values."""
    number = values.shape[axis]
    return jnp.min(jnp.where(values, class_numbers(values, axis, jnp.int32), number), axis)


def logits_derivatives(z, labels, class_weights, stats: Statistics, *, axis) -> Derivatives:
    """Return the derivatives with respect to each logit. Labels and predictions count from the first class of `z`."""
    gap = below_maximum(z, stats.max_logit, axis)
    e, inverse = jnp.exp(gap), 1 / (1 + stats.sum_exp_rest)  # p = e * inverse
    if labels.ndim < z.ndim:
        of_others = per_row(stats.label_mass * inverse, axis) * e
        of_label = jnp.where(is_label(z, labels, axis), per_row(_p_minus_1(stats.label_nll), axis), of_others)
    else:
        # Where p and q / mass are both nearly 1, the derivative is mass (p - 1) + (mass - q), two small terms, instead of mass p - q.
        q, mass = labels.astype(z.dtype), per_row(stats.label_mass, axis)
        p_minus_1 = ((e - 1) - per_row(stats.sum_exp_rest, axis)) * per_row(inverse, axis)
        is_certain = (gap == 0) & (2 * q > mass)
        of_others = per_row(stats.label_mass * inverse, axis) * e
        of_label = jnp.where(is_certain, mass * p_minus_1 + (mass - q), of_others - q)
    p = per_row(inverse, axis) * e
    below = jnp.where(e == 0, 0.0, -gap)  # an infinite difference would make derivatives of this product NaN
    of_expected = p * (below - per_row(stats.spread, axis))
    return Derivatives(
        sum_exp_rest=jnp.where(z == jnp.inf, 0.0, e),  # the derivative of exp(z - m) at z = +inf is 0
        label_nll=of_label,
        uniform_nll=per_row(stats.weight_sum * inverse, axis) * e - weights(z, class_weights, axis),
        spread=of_expected - p,
        expected_nll=of_expected,
        top_nll=jnp.where(is_label(z, stats.prediction, axis), per_row(_p_minus_1(stats.top_nll), axis), p),
    )


def _p_minus_1(nll):
    """Return `p - 1` of the class with this negative log-likelihood."""
    # JAX differentiates expm1(x) as expm1(x) + 1, which cancels for a small p; the derivative of exp(x) is exp(x).
    return jnp.where(-nll > -0.5, jnp.expm1(-nll), jnp.exp(-nll) - 1)


def logits_jvp(z_dot, z, labels, class_weights, stats: Statistics, *, axis) -> Derivatives:
    """Return what the tangent of the logits contributes to those of the statistics."""
    derivatives = logits_derivatives(z, labels, class_weights, stats, axis=axis)
    return Derivatives(*(jnp.sum(d * z_dot, axis) for d in derivatives))


def logits_vjp(cotangents: Derivatives, z, labels, class_weights, stats: Statistics, *, axis):
    """Return the cotangent of the logits: the transpose of `logits_jvp`. A cotangent is None where a statistic is not used."""
    derivatives = logits_derivatives(z, labels, class_weights, stats, axis=axis)
    used = [per_row(ct, axis) * d for ct, d in zip(cotangents, derivatives, strict=True) if ct is not None]
    return sum(used[1:], used[0])


def label_jvp(q_dot, z, stats: Statistics, *, axis):
    """Return the tangents of `label_nll`, `label_mass` and `top_label_mass`, which are linear in the label distribution."""
    is_top = (z == per_row(stats.max_logit, axis)) & (z > -jnp.inf)
    of_nll = jnp.sum(class_nll(z, stats, axis) * q_dot, axis)
    # A class that takes no part has no `p`, so its `q` does not move the `label_mass` by which the gradient multiplies the other `p`.
    of_mass = jnp.sum(jnp.where(z == -jnp.inf, 0, q_dot), axis)
    return of_nll, of_mass, jnp.sum(jnp.where(is_top, q_dot, 0), axis)


def weights_jvp(class_weights_dot, z, stats: Statistics, *, axis):
    """Return the tangents of `uniform_nll` and `weight_sum`, which are linear in the class weights."""
    u_dot = weights(z, class_weights_dot, axis)
    return jnp.sum(class_nll(z, stats, axis) * u_dot, axis), jnp.sum(u_dot, axis)


def class_nll(z, stats: Statistics, axis):
    """Return `log_z - z_k` of each class, at most the largest number, so that 0 times it is 0; 0 where a class takes no part."""
    nll = per_row(jnp.log1p(stats.sum_exp_rest), axis) - below_maximum(z, stats.max_logit, axis)
    return jnp.where(z > -jnp.inf, jnp.minimum(jnp.finfo(z.dtype).max, nll), 0.0)


def label_distribution(z, labels, axis):
    """Return `q`: the labels themselves, or 1 at the class of an integer label and 0 elsewhere."""
    return (labels if labels.ndim == z.ndim else is_label(z, labels, axis)).astype(z.dtype)


def is_label(z, labels, axis):
    """Return whether a class is that of the integer label."""
    return class_numbers(z, axis, labels.dtype) == per_row(labels, axis)


def is_class(labels, num_classes):
    """Return whether an integer label is one of the classes."""
    return (labels >= 0) & (labels < num_classes)


def weights(z, class_weights, axis):
    """Return `u`: the weight of each class that takes part, 1 by default; 0 for one that does not."""
    takes_part = (z > -jnp.inf).astype(z.dtype)
    return takes_part if class_weights is None else takes_part * per_class(class_weights.astype(z.dtype), axis, z.ndim)


def below_maximum(z, m, axis):
    """Return `z - m`, which is at most 0: 0 for a logit of +inf, and -inf for one of -inf, whatever the maximum is."""
    lowest = jnp.finfo(z.dtype).min
    return jnp.where(z == jnp.inf, 0.0, z - per_row(jnp.maximum(m, lowest), axis))


def _weighted(weights, gap):
    """Return `weights * gap`, where a weight of 0 takes away even an infinite gap."""
    return jnp.where(weights == 0, 0.0, weights * gap)
