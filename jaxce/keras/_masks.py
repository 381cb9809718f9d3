"""The masks that Keras attaches to arrays. A mask says which entries of an array count; a mean over the array is over these entries.

Keras stores a mask as the attribute `_keras_mask`. A tracer cannot have attributes, so Keras stores its mask in a private table. A Keras layer
reads the mask of its input and attaches a mask to its output. So a layer that returns its input can read and attach the mask of a tracer.
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
    """Attach a mask to the array for Keras, unless `mask` is None, and return the array."""
    if mask is None:
        return value
    if isinstance(value, Tracer):
        return _call_layer(value, lambda value: value, lambda *_: mask)
    with contextlib.suppress(AttributeError):
        setattr(value, "_keras_mask", mask)  # noqa: B010  # no attribute that a type checker knows
    return value


def _call_layer(value, function, compute_mask):
    """Pass a tracer through a Keras layer. Return the tracer itself if Keras is not imported or its backend is not JAX."""
    keras = imported_keras()
    if keras is None or keras.config.backend() != "jax":
        return value
    # Name the layer. Otherwise Keras would count the layer, and the default names of the user's layers would change.
    options = {"dtype": value.dtype.name, "autocast": False, "name": "jaxce_mask"}
    return keras.layers.Lambda(function, mask=compute_mask, **options)(value)
