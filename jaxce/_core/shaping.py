"""The options that change the logits themselves: the softmax is that of `cap(logits) / temperature`, over the classes that take part."""

import jax.numpy as jnp
from jax import lax

from jaxce._jax.axes import per_row
from jaxce._jax.rules import with_jvp


def shaped(logits, soft_cap, temperature, where, *, axis):
    """Return the logits that the loss is defined on, with -inf for a class that takes no part. An option that is None changes nothing.

    A class whose logit is -inf takes no part, with or without an option. A cap or temperature that is not positive gives NaN.

    Args:
      logits: In the working dtype.
      soft_cap: A scalar: the logits become `soft_cap * tanh(logits / soft_cap)`.
      temperature: One number per row, by which the capped logits are divided.
      where: Boolean, broadcasts to the logits.
      axis: The class axis.
    """
    if soft_cap is not None:
        capped = _capped(logits, nan_unless_positive(soft_cap.astype(logits.dtype)))
        logits = jnp.where(logits == -jnp.inf, -jnp.inf, capped)
    if temperature is not None:
        # The quotient of an infinite logit is not differentiated: its derivative would be NaN.
        is_finite = jnp.abs(logits) != jnp.inf
        divisor = per_row(nan_unless_positive(temperature.astype(logits.dtype)), axis)
        quotient = jnp.where(is_finite, logits, 0) / divisor
        logits = jnp.where(is_finite, quotient, logits)
    return logits if where is None else jnp.where(where, logits, -jnp.inf)


def counted_temperature(temperature, mask):
    """Return the temperature of each row, and 1 for a row whose `mask` is false, so that a NaN there cannot reach a gradient."""
    return temperature if temperature is None or mask is None else jnp.where(mask, temperature, 1)


def nan_unless_positive(values):
    return jnp.where(values > 0, values, jnp.nan)


def _capped(logits, cap):
    is_far = jnp.abs(logits) > 400 * cap  # where tanh is 1 or -1 and its derivative is 0, in every dtype
    return cap * jnp.where(is_far, jnp.sign(logits), _tanh(jnp.where(is_far, 0, logits) / cap))


def _tanh_jvp(args, tangents):
    (x,), (x_dot,) = args, tangents
    # JAX differentiates tanh to (1 + tanh) (1 - tanh), which cancels near the cap. This product keeps every digit.
    return jnp.tanh(x), 4 * lax.logistic(2 * x) * lax.logistic(-2 * x) * x_dot


_tanh = with_jvp(jnp.tanh, _tanh_jvp)
