"""The masks that Keras attaches to arrays: which entries of an array count. A mean over the array is over these entries.

Keras stores a mask as the attribute `_keras_mask`. A tracer cannot have attributes, and Keras then uses a table of its own, which only Keras
may touch: a layer reads the mask of its input and gives a mask to its output, so a layer that returns its input does both.
"""

import contextlib
from typing import Any

from jax.core import Tracer

from jaxce._keras_hook import imported_keras
from jaxce._types import Array


def mask_of(value: Any) -> Array | None:
    """Return the mask that a Keras layer attached to an array, or None."""
    if not isinstance(value, Tracer):
        return getattr(value, "_keras_mask", None)
    seen = []

    def read(value, mask=None):
        seen.append(mask)
        return value

    _call_layer(value, read, lambda value, mask: mask)
    return seen[0] if seen else None


def attach_mask(value: Array, mask: Array | None) -> Array:
    """Return the array with a mask attached for Keras to find; without one if `mask` is None."""
    if mask is None:
        return value
    if isinstance(value, Tracer):
        return _call_layer(value, lambda value: value, lambda *_: mask)
    with contextlib.suppress(AttributeError):
        setattr(value, "_keras_mask", mask)  # noqa: B010  # no attribute that a type checker knows
    return value


def _call_layer(value, function, compute_mask):
    """Pass a tracer through a layer of Keras; without Keras on JAX return the tracer."""
    keras = imported_keras()
    if keras is None or keras.config.backend() != "jax":
        return value
    # A name keeps Keras from counting the layer, which would change the default names of the user's own layers.
    options = {"dtype": value.dtype.name, "autocast": False, "name": "jaxce_mask"}
    return keras.layers.Lambda(function, mask=compute_mask, **options)(value)
