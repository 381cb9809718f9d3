"""Arithmetic with infinite logits and sizes.

In all sums the bound of a minimum or maximum comes first: XLA for CPU (jax 0.10.2 to 0.12) has loops in which a NaN that comes first is lost.
"""

import jax.numpy as jnp


def capped(z):
    """A +inf logit as the largest number, so that alone it is its own maximum."""
    # By a select: the derivative of a minimum at the largest number itself would be a half.
    return jnp.where(z == jnp.inf, jnp.finfo(z.dtype).max, z)


def times_excess(product, size, one, largest):
    """`product`, one of whose factors is `size` cut down to the largest number, infinite again where `size` is; but 0 times that is 0."""
    return product * jnp.minimum(largest, jnp.maximum(one, size - largest))


def finite(shift):
    """`shift`, its infinities replaced by the largest numbers, so that it can be subtracted."""
    largest = jnp.finfo(shift.dtype).max
    return jnp.clip(shift, -largest, largest)
