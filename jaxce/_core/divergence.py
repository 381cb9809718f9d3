"""Divergences of two softmaxes, as sums of terms that are not negative.

With the target `q = softmax(y)`, `p = softmax(z)` and `x = log p - log q`:

    KL(q || p)  sum_k q_k (exp(x_k) - 1 - x_k)                                   because sum_k q_k exp(x_k) = sum_k p_k = 1 = sum_k q_k
    JS(q, p)    w KL(q || m) + (1 - w) KL(p || m),  m = w q + (1 - w) p          with log m - log q = log1p((1 - w) (exp(x) - 1))

A term is of the order of `x^2`, so a tiny divergence keeps every digit if `x` does. So `x` is not a difference of two logarithms of sums. With the
maxima `m_y`, `m_z` and `d_k = (z_k - y_k) - (m_z - m_y)`:

    x_k = d_k - log1p(excess / target_sum),  target_sum = sum_k exp(y_k - m_y),  excess = sum_k (exp(z_k - m_z) - exp(y_k - m_y))

where a term of `excess` is `exp(y_k - m_y) (exp(d_k) - 1)` if `d_k` is small. An error of the logarithm, the same in every `x_k`, changes the
divergence in the second order only.

    derivative of KL with respect to z_k   p_k - q_k = q_k (exp(x_k) - 1)
                                     y_k   -q_k (x_k + KL)
    derivative of JS with respect to z_k   (1 - w) p_k (log(p_k / m_k) - KL(p || m))
                                     y_k   w q_k (log(q_k / m_k) - KL(q || m))

Devices that split the classes reduce three times: the maxima, then `target_sum` and `excess`, then the terms. A term needs the logarithm of all
classes, so one round cannot be enough for every divergence. Each round sends one or two numbers per row.
"""

import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxce._jax.axes import per_row
from jaxce._jax.programs import partial_jvp
from jaxce._jax.rules import with_jvp


class Rows(NamedTuple):
    """The logits of two softmaxes over the same classes, -inf for a class that takes no part, and numbers per row.

    The temperature divides both logits. The maxima are constants of differentiation. The sums are those over all classes, once they are known.
    """

    target: Any
    logits: Any
    temperature: Any  # positive; None for 1
    weight: Any  # of the target in the Jensen-Shannon divergence; None for that of Kullback and Leibler
    target_max: Any = None
    max: Any = None
    target_sum: Any = None  # at least 1
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
    d = (jnp.where(both, logits, 0) - jnp.where(both, target, 0)) - (max_ - target_max)
    differences = target - target_max, logits - max_, d
    if rows.temperature is None:
        return differences
    return tuple(_quotient(x, per_row(rows.temperature, axis)) for x in differences)


def _quotient(x, divisor):
    is_finite = x > -jnp.inf
    return jnp.where(is_finite, jnp.where(is_finite, x, 0) / divisor, x)


def sums(rows: Rows, *, axis):
    """Return `target_sum` and `excess` over the classes of the logits, whose maxima are known."""
    target_gap, gap, x = _differences(rows, axis)
    e, other = jnp.exp(target_gap), jnp.exp(gap)
    # If an exponential is 0 by rounding, the other one is all there is.
    excess = jnp.where(_is_near(x) & (e > 0) & (other > 0), e * _expm1(x), other - e)
    return jnp.sum(e, axis), jnp.sum(excess, axis)


def sums_jvp(rows: Rows, dots: Rows, *, axis):
    """Return what the tangents of the logits and of the temperature contribute to those of `sums`."""
    (target_gap, gap), (target_dot, dot) = partial_jvp(functools.partial(_gaps, axis=axis), (rows,), (dots,))
    of_target = jnp.sum(jnp.exp(target_gap) * target_dot, axis)
    return of_target, jnp.sum(jnp.exp(gap) * dot, axis) - of_target


def _gaps(rows: Rows, *, axis):
    return _differences(rows, axis)[:2]


def divergence(rows: Rows, *, axis):
    """Return what the classes of the logits contribute to the divergence of each row, whose sums over all classes are known."""
    target_gap, gap, x = _differences(rows, axis)
    log_ratio = jnp.log1p(rows.excess / rows.target_sum)
    # A class that takes part in one softmax only has the limits for x -> inf and x -> -inf.
    x = jnp.where(rows.logits == -jnp.inf, -jnp.inf, x - per_row(log_ratio, axis))
    x = jnp.where(rows.target == -jnp.inf, _FAR, x)
    q = _Softmax(target_gap, per_row(1 / rows.target_sum, axis))
    p = _Softmax(gap, per_row(1 / (rows.target_sum + rows.excess), axis))
    terms = _kl_terms(q, p, x) if rows.weight is None else _js_terms(q, p, x, per_row(rows.weight, axis))
    return jnp.sum(terms, axis)


def _probability(softmax: _Softmax):
    return jnp.exp(softmax.gap) * softmax.inverse


def _log_dot(softmax: _Softmax, dot: _Softmax):
    """Return the tangent of the logarithms of the probabilities; 0 if both tangents are."""
    of_gap = 0 if dot.gap is None else dot.gap
    return of_gap if dot.inverse is None else of_gap + dot.inverse / softmax.inverse


def _term(q, p, x):
    """Return `q (exp(x) - 1 - x)`, where `p = q exp(x)`."""
    return jnp.where(_is_near(x), q * _expm1_minus_x(x), p - q - q * x)


def _kl_value(q: _Softmax, p: _Softmax, x):
    return _term(_positive(_probability(q), x), _probability(p), x)


def _kl_jvp(args, dots):
    (q, p, x), (q_dot, p_dot, _) = args, dots
    of_q, of_p = _positive(_probability(q), x), _probability(p)
    dot = 0
    if p_dot.gap is not None:
        # The differences p - q sum to 0 over the classes. So the inverse of p, which moves each log p by the same, does not move the divergence.
        difference = jnp.where(_is_near(x), of_q * _expm1(x), of_p - of_q)
        dot = dot + difference * p_dot.gap
    if q_dot.gap is not None or q_dot.inverse is not None:
        dot = dot - of_q * x * _log_dot(q, q_dot)
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
    # Each logarithm is that of a number which cannot overflow; the other one is far from it by x.
    above, below = jnp.maximum(x, 0), jnp.minimum(x, 0)
    is_near = _is_near(x)
    near = jnp.where(is_near, x, 0)
    of_above, of_below = jnp.log1p(weight * jnp.expm1(-above)), jnp.log1p((1 - weight) * jnp.expm1(below))
    log_m_p = jnp.where(is_near, jnp.log1p(weight * _expm1(-near)), jnp.where(x > 0, of_above, of_below - x))
    log_m_q = jnp.where(is_near, jnp.log1p((1 - weight) * _expm1(near)), jnp.where(x > 0, of_above + x, of_below))
    return (_term(of_q, m, log_m_q), _term(of_p, m, log_m_p)), (-log_m_q, -log_m_p)


_kl_terms, _js_terms = with_jvp(_kl_value, _kl_jvp), with_jvp(_js_value, _js_jvp)

_NEAR = 2.0


def _is_near(x):
    return jnp.abs(x) <= _NEAR


def _expm1(x):
    """Return `exp(x) - 1` where `x` is near 0, and some number elsewhere."""
    return jnp.where(_is_near(x), x, 0) + _expm1_minus_x(x)


def _expm1_minus_x(x):
    """Return `exp(x) - 1 - x` where `x` is near 0, without cancellation, and some number elsewhere."""
    half = jnp.where(_is_near(x), x, 0) / 2
    # The Taylor series of half of x, up to the precision. Then twice the argument: (exp(h) - 1)^2 + 2 (exp(h) - 1 - h).
    degree = 18 if x.dtype == jnp.float64 else 11
    series = jnp.zeros_like(half)
    for k in range(degree, 1, -1):
        series = series * half + 1 / math.factorial(k)
    of_half = half * half * series
    return jnp.square(half + of_half) + 2 * of_half
