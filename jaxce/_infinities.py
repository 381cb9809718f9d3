"""Arithmetic with infinite logits and sizes.

In all sums the bound of a minimum or maximum comes first: XLA for CPU (jax 0.10.2 to 0.12) has loops in which a NaN that comes first is lost.
"""

import jax.numpy as jnp
from jax import lax


def capped(z):
    """A +inf logit as the largest number, so that alone it is its own maximum."""
    # By a select: the derivative of a minimum at the largest number itself would be a half.
    return jnp.where(z == jnp.inf, jnp.finfo(z.dtype).max, z)


def finite(shift):
    """`shift`, its infinities replaced by the largest numbers, so that it can be subtracted."""
    largest = jnp.finfo(shift.dtype).max
    return jnp.clip(shift, -largest, largest)


def weighted(weight, size, zero, half, one, largest):
    """The product of a weight and a size that is not negative, in which a weight of 0 takes away even an infinite size.

    In arithmetic: of a select, or of the clamp that XLA makes of a maximum and minimum with constants, XLA for CPU makes a loop of its own.
    """
    # Halved, a finite size is not at the bound of the minimum, where its derivative would be a half.
    part = weight * jnp.minimum(largest, half * size)
    is_infinite = jnp.minimum(one, jnp.maximum(zero, size - largest))
    finite = jnp.maximum(-largest, jnp.minimum(largest, part))
    return part + part + lax.stop_gradient(finite * is_infinite * largest)
