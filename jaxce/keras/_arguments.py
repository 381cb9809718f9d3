"""The checks of `jaxce.keras`. Like Keras, they accept lists, labels of any dtype and a class axis of size 1, and nothing beyond that."""

import numbers
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxce import _checks as checks
from jaxce._checks import scalars
from jaxce._jax.axes import per_class, row_shape
from jaxce._types import Array, ArrayLike, NestedArrayLike

# Keras's default `backend.epsilon()`: the bound to which probabilities are clipped.
EPSILON = 1e-7


def array(name: str, value: NestedArrayLike) -> Array:
    """Return an array. Like Keras, accept nested lists."""
    if isinstance(value, Sequence):
        try:
            value = jnp.asarray(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"`{name}` must be an array or nested lists of numbers; {error}") from None
    return checks.real(name, value)


def static_bool(name: str, value: object) -> bool:
    """Check for a Python boolean that is known while tracing."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, numbers.Integral) and value in (0, 1)):
        return bool(value)
    shown = "a traced value" if isinstance(value, Tracer) else repr(value)
    raise TypeError(f"`{name}` must be True or False, not traced; got {shown}.")


def number(name: str, value: ArrayLike, allows: Callable[[float], bool], rule: str) -> Array:
    """Check for a Python number that `allows` accepts, or a scalar array that may be traced."""
    return jnp.asarray(scalars.scalar(name, value, allows, rule))


def number_per_class(name: str, value: NestedArrayLike) -> Array:
    """Check for a number that is not negative, or for an array. `along_classes` checks its shape."""
    if isinstance(value, Sequence) or getattr(value, "ndim", 0):
        return checks.weights(name, array(name, value))
    return number(name, value, lambda number: number >= 0, "finite and not negative")


def along_classes(name: str, value: Array, of: Array, axis: int) -> Array:
    """Check for a scalar or one number per class, and return an array that broadcasts against `of`."""
    if value.ndim == 0:
        return value
    return per_class(checks.per_class(value, (of.shape[axis],), name), axis, of.ndim)


def predictions(name: str, value: Array, axis: int, *, may_be_empty: bool = False) -> tuple[Array, int]:
    """Return the checked predictions, and one of their axes as a non-negative index."""
    value = checks.floating(name, value)
    if value.ndim == 0:
        raise ValueError(f"`{name}` must have an axis to sum over; got a scalar.")
    return value, checks.axis(axis, value, name, may_be_empty=may_be_empty)


def same_shape(name: str, value: Array, of: Array, of_name: str, *, indices: str = "") -> Array:
    """Check that the labels have the shape of the predictions. They are never broadcast. `indices` ends the message for class indices."""
    if value.shape != of.shape:
        hint = f" {indices}" if indices and value.ndim < of.ndim else ""
        if value.size == of.size and value.ndim != of.ndim:
            hint = f" Reshape them: jnp.reshape({name}, {of.shape})."
        raise ValueError(f"`{name}` must have the shape of `{of_name}`, {of.shape}; got {value.shape}.{hint}")
    return value


def class_indices(
    name: str,
    value: Array,
    of: Array,
    of_name: str,
    axis: int,
    *,
    one_hot: str = "For one-hot labels use categorical_crossentropy.",
) -> Array:
    """Return one class index per row from labels of any dtype. A class axis of size 1 is dropped. `one_hot` ends the message for one-hot labels."""
    rows = row_shape(of.shape, axis)
    if value.ndim == of.ndim and row_shape(value.shape, axis) == rows and value.shape[axis] == 1:
        value = jnp.squeeze(value, axis)
    if value.shape != rows:
        hint = f" {one_hot}" if value.shape == of.shape else ""
        raise ValueError(
            f"`{name}` must have the shape of `{of_name}` without axis {axis}, {rows}; got {value.shape}.{hint}"
        )
    if jnp.issubdtype(value.dtype, jnp.floating):
        # A cast would turn a NaN into class 0. For other values the cast drops the fraction, as Keras does, and saturates.
        return jnp.where(jnp.isnan(value), -1, value).astype(jnp.int32)
    return value.astype(jnp.uint8) if value.dtype == jnp.bool_ else value
