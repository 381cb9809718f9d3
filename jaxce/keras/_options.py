"""The checks of the constructor arguments of a loss object. They create no array, so a loss can be created before JAX chooses its devices."""

import contextlib
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxce._checks import scalars
from jaxce._keras_hook import imported_keras
from jaxce.keras import _arguments as arguments


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the loss function as Python values that a saved model can store."""
    return {option: _CHECKS[option](option, value) for option, value in options.items()}


def name(value: str | None, *, default: str) -> str:
    """Return the name of a loss object. Keras shows the name in its logs."""
    if not (value is None or isinstance(value, str)):
        raise TypeError(f"`name` must be a string; got {value!r}.")
    return value or default


def dtype(value: Any) -> str:
    """Return the name of a floating dtype. `value` is anything that Keras accepts as a dtype; None is Keras's current `floatx`."""
    found = None
    with contextlib.suppress(TypeError, ValueError):
        found = _compute_dtype(value)
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise TypeError(f'`dtype` must be a floating dtype, such as "float32", or a keras.DTypePolicy; got {value!r}.')
    return found.name


def _compute_dtype(value):
    keras = imported_keras()
    if keras is not None:
        value = keras.dtype_policies.get(keras.config.floatx() if value is None else value)
    value = getattr(value, "compute_dtype", value)
    if value is None or value is float:  # Keras treats Python's float as float32
        value = "float32"
    return jnp.dtype(value.removeprefix("mixed_") if isinstance(value, str) else value)


def share(option: str, value: Any) -> Any:
    """Return a number from 0 to 1 as a Python value. A traced value is checked when the loss is called."""
    return _number(option, value, lambda number: 0 <= number <= 1, "from 0 to 1")


def _not_negative(option, value):
    return _number(option, value, lambda number: 0 <= number < math.inf, "finite and not negative")


def _exponent(option, value):
    return _number(option, value, lambda number: 0 < number < 1, "above 0 and below 1")


def _class_weights(option, value):
    """Return a number, or a list of numbers, which a saved model can store."""
    if isinstance(value, Tracer):
        return value
    if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1:
        return [_not_negative(option, each) for each in value]
    return _not_negative(option, value)


def _number(option, value, allows, rule):
    if isinstance(value, Tracer):
        return value  # checked when the loss is called
    if getattr(value, "shape", None) == ():
        value = np.asarray(value).item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{option}` must be a number; got {value!r}.")
    number = float(value)
    if not allows(number):
        raise ValueError(f"`{option}` must be {rule}; got {number}.")
    return number


def _ignore_class(option, value):
    return None if value is None else scalars.static_int(option, value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "from_logits": arguments.static_bool,
    "label_smoothing": share,
    "axis": scalars.static_int,
    "ignore_class": _ignore_class,
    "apply_class_balancing": arguments.static_bool,
    "alpha": _class_weights,
    "gamma": _not_negative,
    "q": _exponent,
}
