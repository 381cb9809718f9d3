"""The checks of `_checks` for the arguments of a linear layer."""

import math
import numbers

import jax.numpy as jnp

from jaxce import _checks as checks
from jaxce._types import Array, ArrayLike


def hidden(value: ArrayLike) -> Array:
    """Rows of features."""
    value = checks.floating("hidden", value)
    if value.ndim == 0:
        raise ValueError("`hidden` must have a feature axis, its last; got a scalar.")
    if value.shape[-1] == 0:
        raise ValueError(f"`hidden` must have at least one feature; got shape {value.shape}.")
    return value


def classifier(value: ArrayLike, hidden: Array) -> Array:
    """One column of weights per class."""
    value, features = checks.floating("classifier", value), hidden.shape[-1]
    if value.ndim != 2 or value.shape[0] != features:
        hint = ""
        if value.ndim == 2 and value.shape[1] == features:
            hint = " Pass the transpose: classifier.T."
        raise ValueError(
            f"`classifier` must have shape (features, num_classes) with the {features} features of `hidden`; got {value.shape}.{hint}"
        )
    if value.shape[1] == 0:
        raise ValueError(f"`classifier` must have at least one class; got shape {value.shape}.")
    return value


def bias(value: ArrayLike | None, classifier: Array) -> Array | None:
    """One number per class."""
    if value is None:
        return None
    value, num_classes = checks.floating("bias", value), classifier.shape[1]
    if value.shape != (num_classes,):
        raise ValueError(
            f"`bias` must have one number for each of the {num_classes} classes, shape ({num_classes},); got {value.shape}."
        )
    return value


def soft_cap(value: ArrayLike | None) -> Array | None:
    """A positive number, or a scalar array that may be traced."""
    if value is None:
        return None
    if isinstance(value, bool) or not (isinstance(value, numbers.Real) or hasattr(value, "dtype")):
        raise TypeError(f"`soft_cap` must be a number; got {value!r}.")
    if isinstance(value, numbers.Real):
        number = float(value)
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"`soft_cap` must be positive and finite; got {number}. For no cap pass None.")
        return jnp.asarray(number)
    value = checks.floating("soft_cap", value)
    if value.shape != ():
        raise ValueError(f"`soft_cap` must be a scalar; got shape {value.shape}.")
    return value
