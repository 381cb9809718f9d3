"""Divergences of two softmaxes, as sums of terms that are not negative.

With the target `q = softmax(y)`, `p = softmax(z)` and `x = log p - log q`:

    KL(q || p)  sum_k q_k (exp(x_k) - 1 - x_k)                                   because sum_k q_k exp(x_k) = sum_k p_k = 1 = sum_k q_k
    JS(q, p)    w KL(q || m) + (1 - w) KL(p || m),  m = w q + (1 - w) p          with log m - log q = log1p((1 - w) (exp(x) - 1))

A term is of the order of `x^2`, so a tiny divergence keeps every digit if `x` does. So `x` is not a difference of two logarithms of sums. With the
maxima `m_y`, `m_z` and `d_k = (z_k - y_k) - (m_z - m_y)`:

    x_k = d_k - log_ratio,  log_ratio = log1p(excess / target_sum) = -log1p(-excess / sum)
    target_sum = sum_k exp(y_k - m_y),  sum = sum_k exp(z_k - m_z),  excess = sum_k (exp(z_k - m_z) - exp(y_k - m_y))

where a term of `excess` is `exp(y_k - m_y) (exp(d_k) - 1)` if `d_k` is small. The form of `log_ratio` with a positive quotient does not cancel.
An error of `log_ratio`, the same in every `x_k`, changes the divergence of Kullback and Leibler in the second order only.

    derivative of KL with respect to z_k   p_k - q_k = q_k (exp(x_k) - 1)
                                     y_k   -q_k (x_k + KL)
    derivative of JS with respect to z_k   (1 - w) p_k (log(p_k / m_k) - KL(p || m))
                                     y_k   w q_k (log(q_k / m_k) - KL(q || m))

Devices that split the classes reduce three times: the maxima, then the three sums, then the terms. A term needs the logarithm of all classes, so
one round cannot be enough for every divergence. Each round sends one to three numbers per row.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxce._core import near_zero
from jaxce._jax.axes import per_row
from jaxce._jax.programs import partial_jvp
from jaxce._jax.rules import with_jvp


class Rows(NamedTuple):
    """The logits of two softmaxes over the same classes, -inf for a class that takes no part, and numbers per row.

    The temperature divides both logits. The sums are those over all classes, once they are known. The maxima and `excess` are constants of
    differentiation: the two other sums give the derivatives of all that depends on `excess`.
    """

    target: Any
    logits: Any
    temperature: Any  # positive; None for 1
    weight: Any  # of the target in the Jensen-Shannon divergence; None for that of Kullback and Leibler
    target_max: Any = None
    max: Any = None
    target_sum: Any = None  # at least 1
    sum: Any = None  # at least 1
    excess: Any = None


class _Softmax(NamedTuple):
    """The probabilities `exp(gap) * inverse`."""

    gap: Any
    inverse: Any


_FAR = 1e4  # an `x` of which `exp(-x)` is 0 in every dtype


def _differences(rows: Rows, axis):
    """Return `y - m_y`, `z - m_z` and `d`, each divided by the temperature. Where `d` is infinite or not a number, it is another number."""
    target, logits = rows.target, rows.logits
    target_max, max_ = (per_row(jnp.maximum(m, jnp.finfo(m.dtype).min), axis) for m in (rows.target_max, rows.max))
    both = (target > -jnp.inf) & (logits > -jnp.inf)
    differences = (
        target - target_max,
        logits - max_,
        _difference(jnp.where(both, target, 0), jnp.where(both, logits, 0), target_max, max_),
    )
    if rows.temperature is None:
        return differences
    return tuple(_quotient(x, per_row(rows.temperature, axis)) for x in differences)


def _difference(target, logits, target_max, max_):
    """Return `(z - y) - (m_z - m_y)`, computed from these or from the gaps, whichever are smaller: their rounding is the error."""
    direct, apart, gap, target_gap = logits - target, max_ - target_max, logits - max_, target - target_max
    is_direct = jnp.abs(direct) + jnp.abs(apart) <= jnp.abs(gap) + jnp.abs(target_gap)
    return jnp.where(is_direct, direct - apart, gap - target_gap)


def _quotient(x, divisor):
    is_finite = x > -jnp.inf
    return jnp.where(is_finite, jnp.where(is_finite, x, 0) / divisor, x)


def sums(rows: Rows, *, axis):
    """Return `target_sum`, `sum` and `excess` over the classes of the logits, whose maxima are known."""
    target_gap, gap, x = _differences(rows, axis)
    e, other = jnp.exp(target_gap), jnp.exp(gap)
    # If an exponential is 0 by rounding, the other one is all there is.
    excess = jnp.where(near_zero.is_near(x) & (e > 0) & (other > 0), e * near_zero.expm1(x), other - e)
    return jnp.sum(e, axis), jnp.sum(other, axis), jnp.sum(excess, axis)


def sums_jvp(rows: Rows, dots: Rows, *, axis):
    """Return what the tangents of the logits and of the temperature contribute to those of `target_sum` and `sum`; None for one that is 0."""
    gaps, gap_dots = partial_jvp(functools.partial(_gaps, axis=axis), (rows,), (dots,))
    of_both = zip(gaps, gap_dots, (dots.target, dots.logits), strict=True)
    return tuple(
        None if dots.temperature is None and dot is None else jnp.sum(jnp.exp(gap) * gap_dot, axis)
        for gap, gap_dot, dot in of_both
    )


def _gaps(rows: Rows, *, axis):
    return _differences(rows, axis)[:2]


def divergence(rows: Rows, *, axis):
    """Return what the classes of the logits contribute to the divergence of each row, whose sums over all classes are known."""
    target_gap, gap, x = _differences(rows, axis)
    x = x - per_row(_log_ratio(rows.target_sum, rows.sum, rows.excess), axis)
    # Differences that overflow stay finite: a probability that is 0 by rounding is multiplied by x.
    x = jnp.clip(x, jnp.finfo(x.dtype).min, _FAR)
    # A class that takes part in one softmax only has the limits for x -> inf and x -> -inf.
    x = jnp.where(rows.logits == -jnp.inf, -jnp.inf, x)
    x = jnp.where(rows.target == -jnp.inf, _FAR, x)
    q = _Softmax(target_gap, per_row(1 / rows.target_sum, axis))
    p = _Softmax(gap, per_row(1 / rows.sum, axis))
    terms = _kl_terms(q, p, x) if rows.weight is None else _js_terms(q, p, x, per_row(rows.weight, axis))
    return jnp.sum(terms, axis)


def _log_ratio_value(target_sum, sum_, excess):
    """Return `log(sum / target_sum)`."""
    is_more = excess >= 0
    size = jnp.log1p(jnp.where(is_more, excess, -excess) / jnp.where(is_more, target_sum, sum_))
    return jnp.where(is_more, size, -size)


def _log_ratio_jvp(sums, dots):
    (target_sum, sum_, _), (target_dot, dot, _) = sums, dots
    # `_log_ratio`, not its value: this rule is differentiated for derivatives of the second order.
    return _log_ratio(*sums), (0 if dot is None else dot / sum_) - (
        0 if target_dot is None else target_dot / target_sum
    )


_log_ratio = with_jvp(_log_ratio_value, _log_ratio_jvp)


def _probability(softmax: _Softmax):
    return jnp.exp(softmax.gap) * softmax.inverse


def _log_dot(softmax: _Softmax, dot: _Softmax):
    """Return the tangent of the logarithms of the probabilities; 0 if both tangents are."""
    of_gap = 0 if dot.gap is None else dot.gap
    return of_gap if dot.inverse is None else of_gap + dot.inverse / softmax.inverse


def _term(q, p, x):
    """Return `q (exp(x) - 1 - x)`, where `p = q exp(x)`."""
    return jnp.where(near_zero.is_near(x), q * near_zero.expm1_minus_x(x), p - q - q * x)


def _kl_value(q: _Softmax, p: _Softmax, x):
    return _term(_positive(_probability(q), x), _probability(p), x)


def _kl_jvp(args, dots):
    (q, p, x), (q_dot, p_dot, _) = args, dots
    of_q, of_p = _positive(_probability(q), x), _probability(p)
    dot = 0
    if p_dot.gap is not None:
        # The differences p - q sum to 0 over the classes. So the inverse of p, which moves each log p by the same, does not move the divergence.
        difference = jnp.where(near_zero.is_near(x), of_q * near_zero.expm1(x), of_p - of_q)
        dot = dot + difference * p_dot.gap
    if q_dot.gap is not None or q_dot.inverse is not None:
        # Where x is -inf, a cotangent of 0 must give 0.
        dot = dot - of_q * jnp.maximum(x, jnp.finfo(x.dtype).min) * _log_dot(q, q_dot)
    return _kl_value(q, p, x), dot


def _positive(q, x):
    """Return `q`, and a positive number where it is 0 by rounding at a class that `p` leaves out, whose term is infinite."""
    return jnp.where(x == -jnp.inf, jnp.maximum(q, jnp.finfo(q.dtype).tiny), q)


def _js_value(q: _Softmax, p: _Softmax, x, weight):
    return sum(w * term for w, term in zip((weight, 1 - weight), _js_parts(q, p, x, weight)[0], strict=True))


def _js_jvp(args, dots):
    (q, p, x, weight), (q_dot, p_dot, _, weight_dot) = args, dots
    (of_q, of_p), (log_q, log_p) = _js_parts(q, p, x, weight)
    dot = weight * _probability(q) * log_q * _log_dot(q, q_dot) + (1 - weight) * _probability(p) * log_p * _log_dot(
        p, p_dot
    )
    if weight_dot is not None:
        dot = dot + (of_q - of_p) * weight_dot
    return weight * of_q + (1 - weight) * of_p, dot


def _js_parts(q: _Softmax, p: _Softmax, x, weight):
    """Return the terms of `KL(q || m)` and of `KL(p || m)`, and the logarithms of `q / m` and of `p / m`."""
    of_q, of_p, x = _probability(q), _probability(p), jnp.clip(x, -_FAR, _FAR)
    m = weight * of_q + (1 - weight) * of_p
    log_m_q, log_m_p = _log_mean(x, 1 - weight, weight), _log_mean(-x, weight, 1 - weight)
    return (_term(of_q, m, log_m_q), _term(of_p, m, log_m_p)), (-log_m_q, -log_m_p)


def _log_mean(x, weight, rest):
    """Return `log(rest + weight * exp(x))`, where `rest` is `1 - weight`."""
    most = 40  # `exp(most)` is finite in every dtype
    e = jnp.where(near_zero.is_near(x), near_zero.expm1(x), jnp.expm1(jnp.minimum(x, most)))
    # If `rest` is small, `rest + weight * exp(x)` is a sum of two small numbers. The other form is `1 + weight * (exp(x) - 1)`.
    is_small = (x < -near_zero.LIMIT) & (rest < weight)
    part = jnp.where(is_small, weight / rest * jnp.exp(jnp.minimum(x, 0)), weight * e)
    return near_zero.log1p(part) + jnp.where(is_small, jnp.log(rest), jnp.maximum(x - most, 0))


_kl_terms, _js_terms = with_jvp(_kl_value, _kl_jvp), with_jvp(_js_value, _js_jvp)
