"""The checks of options that are numbers: integers that are known while tracing, and scalars that may be traced."""

import math
import numbers
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxce import _checks as checks
from jaxce._jax.axes import ClassAxis
from jaxce._types import Array, ArrayLike


def static_int(name: str, value) -> int:
    """Check for a Python integer that is known while tracing."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be an integer; got {value!r}.")
    try:
        return operator.index(value)
    except (TypeError, jax.errors.JAXTypeError):
        raise TypeError(f"`{name}` must be a Python integer, not traced; got {_show(value)}.") from None


def static_axis(value) -> ClassAxis:
    """Check for a class axis, or a tuple of class axes, that is known while tracing."""
    if isinstance(value, tuple):
        return tuple(static_int("axis", part) for part in value)
    if value is None or isinstance(value, (list, range, float)) or np.ndim(value):
        raise TypeError(f"`axis` must be an integer or a tuple of integers; got {value!r}.")
    return static_int("axis", value)


def label_smoothing(value: ArrayLike) -> Array | None:
    """Check for a number in [0, 1], or a scalar array that may be traced. Return None for the number 0, so that the option costs nothing."""
    value = scalar("label_smoothing", value, lambda number: 0 <= number <= 1, "from 0 to 1")
    return None if _is_zero(value) else jnp.asarray(value)


def z_loss(value: ArrayLike) -> Array | None:
    """Check for a non-negative number, or a scalar array that may be traced. Return None for the number 0, so that the option costs nothing."""
    value = scalar("z_loss", value, lambda number: number >= 0, "finite and not negative")
    return None if _is_zero(value) else jnp.asarray(value)


def soft_cap(value: ArrayLike | None) -> Array | None:
    """Check for a positive number, or a scalar array that may be traced."""
    if value is None:
        return None
    return jnp.asarray(
        scalar("soft_cap", value, lambda number: number > 0, "positive and finite", " For no cap pass None.")
    )


def temperature(value: ArrayLike | None) -> Array | None:
    """Check for a positive number, or a floating array that may be traced. Its shape is checked later."""
    if value is None:
        return None
    if np.ndim(value) == 0:
        hint = " For greedy choices take the argmax of the logits."
        return jnp.asarray(scalar("temperature", value, lambda number: number > 0, "positive and finite", hint))
    return checks.floating("temperature", value)


def js_weight(value: ArrayLike) -> Array:
    """Check for a number between 0 and 1, or a scalar array that may be traced."""
    hint = " At 0 and 1 the divergence is 0 for all logits; for its limits use softmax_kl_divergence."
    return jnp.asarray(scalar("weight", value, lambda number: 0 < number < 1, "between 0 and 1, both excluded", hint))


def scalar(name: str, value, allows: Callable[[float], bool], rule: str, hint: str = ""):
    """Check for a Python number that `allows` accepts, or a floating scalar array."""
    if isinstance(value, (bool, np.bool_)) or not (isinstance(value, numbers.Real) or hasattr(value, "dtype")):
        raise TypeError(f"`{name}` must be a number; got {_show(value)}.")
    if isinstance(value, numbers.Real):
        number = float(value)
        if not (math.isfinite(number) and allows(number)):
            raise ValueError(f"`{name}` must be {rule}; got {number}.{hint}")
        return number
    if value.shape != ():
        raise ValueError(f"`{name}` must be a scalar; got shape {value.shape}.")
    return checks.floating(name, value)


def _is_zero(value) -> bool:
    return isinstance(value, float) and value == 0


def _show(value):
    return f"a traced {value.aval.str_short()}" if isinstance(value, Tracer) else repr(value)
