"""Exponentials and logarithms near 0, to the last digits in every dtype."""

import math

import jax.numpy as jnp

LIMIT = 2.0


def is_near(x):
    return jnp.abs(x) <= LIMIT


def log1p(x):
    """Return `log(1 + x)`. For float64 numbers from -0.42 to -0.2 that of XLA for CPU, with jax 0.10, has an error of 120 ulps."""
    if x.dtype != jnp.float64:
        return jnp.log1p(x)
    is_less = x < 0
    size = jnp.log1p(jnp.where(is_less, -x / jnp.where(is_less, 1 + x, 1), x))
    return jnp.where(is_less, -size, size)


def expm1(x):
    """Return `exp(x) - 1` where `x` is near 0, and some number elsewhere."""
    return jnp.where(is_near(x), x, 0) + expm1_minus_x(x)


def expm1_minus_x(x):
    """Return `exp(x) - 1 - x` where `x` is near 0, without cancellation, and some number elsewhere."""
    half = jnp.where(is_near(x), x, 0) / 2
    # The Taylor series of half of x, up to the precision. Then twice the argument: (exp(h) - 1)^2 + 2 (exp(h) - 1 - h).
    degree = 18 if x.dtype == jnp.float64 else 11
    series = jnp.zeros_like(half)
    for k in range(degree, 1, -1):
        series = series * half + 1 / math.factorial(k)
    of_half = half * half * series
    return jnp.square(half + of_half) + 2 * of_half
