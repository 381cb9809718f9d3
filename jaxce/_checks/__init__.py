"""Every check of a caller's arguments, with its error message. Each check returns the converted argument.

The checks run while tracing and read only shapes, dtypes and Python values. A message states the rule, the value received and the fix.
A wrong type or dtype raises `TypeError`; every other mistake raises `ValueError`.
"""

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from jaxce._jax.axes import ClassAxis, class_shape, row_shape
from jaxce._types import Array, ArrayLike


def array(name: str, value: ArrayLike) -> Array:
    """Return an array or a number as an array."""
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, numbers.Number)) and not hasattr(
        value, "__jax_array__"
    ):
        way = "It cannot be left out here." if value is None else f"Convert it first: jnp.asarray({name})."
        if hasattr(value, "classifier"):
            way = "Only the softmax losses and divergences, `logit_stats` and `loss_sum` take it. Elsewhere compute hidden @ classifier + bias."
        raise TypeError(f"`{name}` must be an array; got {type(value).__name__}. {way}")
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in "biufcV":
        raise TypeError(f"`{name}` must hold numbers; got an array of dtype {value.dtype}.")
    # A JAX array is not converted. Outside jit even a conversion without effect would make `jax_debug_nans` raise on masked entries.
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


def real(name: str, value: ArrayLike) -> Array:
    """Check for an array of floating-point numbers, integers or booleans."""
    value = array(name, value)
    if not (_is(value, jnp.floating) or _is(value, jnp.integer) or _is(value, jnp.bool_)):
        raise TypeError(f"`{name}` must be real numbers; got {value.dtype}.")
    return value


def floating(name: str, value: ArrayLike) -> Array:
    """Check for an array of floating-point numbers."""
    value = array(name, value)
    if not _is(value, jnp.floating):
        raise TypeError(
            f"`{name}` must be floating point; got {value.dtype}. Convert it first: {name}.astype(jnp.float32)."
        )
    return value


def logits(value: ArrayLike) -> Array:
    """Check for logits with a class axis."""
    value = array("logits", value)
    if _is(value, jnp.integer):
        raise TypeError(
            f"`logits` must be floating point; got {value.dtype}. The order of the arguments is logits, labels."
        )
    value = floating("logits", value)
    if value.ndim == 0:
        raise ValueError(
            "`logits` must have a class axis; got a scalar. For the logit of a binary label use sigmoid_binary_cross_entropy."
        )
    return value


def axis(value: int, of: Array, name: str, *, may_be_empty: bool = False) -> int:
    """Return an axis of the array called `name` as a non-negative index. The axis must have at least one class."""
    if not -of.ndim <= value < of.ndim:
        raise ValueError(
            f"`axis` must be an axis of `{name}`, from {-of.ndim} to {of.ndim - 1}; got {value} for shape {of.shape}."
        )
    value %= of.ndim
    if of.shape[value] == 0 and not may_be_empty:
        raise ValueError(f"`{name}` must have at least one class along `axis` {value}; got shape {of.shape}.")
    return value


def class_axis(value: ClassAxis, of: Array) -> ClassAxis:
    """Return the class axis of logits, or the tuple of class axes, all different."""
    if not isinstance(value, tuple):
        return axis(value, of, "logits")
    axes = tuple(axis(part, of, "logits") for part in value)
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"`axis` must be one or more different axes of `logits`; got {value} for shape {of.shape}.")
    return axes[0] if len(axes) == 1 else axes


def labels(value: ArrayLike, logits: Array, axis: ClassAxis) -> Array:
    """Integer labels or class probabilities, told apart by their rank."""
    value = array("labels", value)
    # Indices with an axis too many have as many numbers as there are rows.
    has_probabilities = value.ndim == logits.ndim and value.size != math.prod(row_shape(logits.shape, axis))
    is_one_class = value.shape == logits.shape
    if has_probabilities or is_one_class:
        return class_probabilities(value, logits)
    if not _is(value, jnp.integer):
        raise TypeError(
            f"`labels` must be integers {row_shape(logits.shape, axis)}, or class probabilities {logits.shape}; "
            f"got {value.dtype} {value.shape}. Convert class indices: labels.astype(jnp.int32)."
        )
    return class_indices(value, logits, axis)


def class_indices(value: ArrayLike, logits: Array, axis: ClassAxis) -> Array:
    """Check for one integer label per row of the logits."""
    value, rows = array("labels", value), row_shape(logits.shape, axis)
    if not _is(value, jnp.integer):
        raise TypeError(
            f"`labels` must be integers; got {value.dtype}. For class probabilities use softmax_cross_entropy; "
            "for class indices convert them: labels.astype(jnp.int32)."
        )
    if value.shape != rows:
        hint = ""
        if value.shape == logits.shape:
            hint = " For one-hot labels use softmax_cross_entropy."
        elif value.ndim == len(rows) + 1 and value.shape[:-1] == rows and value.shape[-1] > 1:
            hint = " For the labels of a few classes pass their `label_probabilities` too, to a loss of `logits`."
        elif _is_reshaped(value, rows):
            hint = f" Reshape them: labels.reshape({rows})."
        elif value.shape in (others := {row_shape(logits.shape, i): i for i in range(logits.ndim)}):
            hint = f" For classes on that axis pass axis={others[value.shape]}."
        raise ValueError(
            f"`labels` must have the shape of `logits` without axis {axis}, {rows}; got {value.shape}.{hint}"
        )
    return value


def class_probabilities(value: ArrayLike, logits: Array) -> Array:
    """Check for one probability per logit."""
    value = real("labels", value)
    if value.shape != logits.shape:
        hint = ""
        if value.ndim == logits.ndim - 1:
            hint = " For class indices use softmax_cross_entropy_with_integer_labels."
        elif value.ndim == logits.ndim and all(
            n in (1, full) for n, full in zip(value.shape, logits.shape, strict=True)
        ):
            hint = " Broadcast them first: jnp.broadcast_to(labels, logits.shape)."
        raise ValueError(f"`labels` must have the shape of `logits`, {logits.shape}; got {value.shape}.{hint}")
    return value


def binary_labels(value: ArrayLike, logits: Array) -> Array:
    """Check for one label per logit."""
    value = real("labels", value)
    if value.shape != logits.shape:
        raise ValueError(
            f"`labels` must have the shape of `logits`, {logits.shape}; got {value.shape}. Broadcast or reshape them first."
        )
    return value


def where(value: ArrayLike | None, logits: Array, axis: ClassAxis) -> Array | None:
    """Check the mask of the classes that take part."""
    if value is None:
        return None
    value = _boolean("where", value)
    fits = value.ndim == logits.ndim and all(n in (1, full) for n, full in zip(value.shape, logits.shape, strict=True))
    if not fits:
        hint = " To leave out examples pass `mask`." if value.shape == row_shape(logits.shape, axis) else ""
        if value.shape == class_shape(logits.shape, axis):
            hint = f" For one boolean per class pass where.reshape({_only_classes(logits.shape, axis)})."
        raise ValueError(
            f"`where` selects classes: it must have the rank of `logits` {logits.shape} and broadcast to it; got {value.shape}.{hint}"
        )
    return value


def _only_classes(shape, axis: ClassAxis):
    """Return the shape of one number per class that broadcasts to logits."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    return tuple(size if i in axes else 1 for i, size in enumerate(shape))


def mask(value: ArrayLike | None, shape: tuple[int, ...], logits: Array) -> Array | None:
    """Check the mask of the examples that count."""
    if value is None:
        return None
    value = _boolean("mask", value)
    if value.shape != shape:
        hint = f" Reshape it: mask.reshape({shape})." if _is_reshaped(value, shape) else ""
        if value.shape == logits.shape and logits.ndim > len(shape):
            hint = " To leave out classes pass `where`."
        raise ValueError(
            f"`mask` selects examples: it must have the shape of the loss, {shape}; got {value.shape}.{hint}"
        )
    return value


def weights(name: str, value: ArrayLike) -> Array:
    """Check for real numbers that are not booleans."""
    value = real(name, value)
    if _is(value, jnp.bool_):
        raise TypeError(f"`{name}` must be numbers; got booleans. Convert them: {name}.astype(jnp.float32).")
    return value


def class_weights(value: ArrayLike | None, logits: Array, axis: ClassAxis) -> Array | None:
    """Check for one weight per class."""
    if value is None:
        return None
    value, classes = weights("class_weights", value), class_shape(logits.shape, axis)
    is_of_rows = value.shape == row_shape(logits.shape, axis)
    hint = " For one weight per example pass `weights` to a sum or to LossSum.of." if is_of_rows else ""
    return per_class(value, classes, "class_weights", hint)


def per_class(value: Array, classes: tuple[int, ...], name: str, hint: str = "") -> Array:
    """Check for one number per class."""
    if value.shape != classes:
        raise ValueError(
            f"`{name}` must have one number for each of the {math.prod(classes)} classes, shape {classes}; got {value.shape}.{hint}"
        )
    return value


def pos_weight(value: ArrayLike | None, logits: Array) -> Array | None:
    """Check the weight of positive labels: a scalar, or an array that broadcasts to the last axes of the logits."""
    if value is None:
        return None
    value = weights("pos_weight", value)
    last = logits.shape[logits.ndim - value.ndim :] if value.ndim <= logits.ndim else None
    if last is None or any(n not in (1, full) for n, full in zip(value.shape, last, strict=True)):
        raise ValueError(
            f"`pos_weight` must be a scalar or fit the last axes of `logits` {logits.shape}; got {value.shape}."
        )
    return value.reshape((1,) * (logits.ndim - value.ndim) + value.shape)


def _is_reshaped(value, shape):
    """Return whether an array has other axes, but as many entries. With the same number of axes the order of the entries may be another."""
    return value.size == math.prod(shape) and value.ndim != len(shape)


def _boolean(name, value):
    value = array(name, value)
    if not _is(value, jnp.bool_):
        raise TypeError(f"`{name}` must be boolean; got {value.dtype}. Compare it first: {name} != 0.")
    return value


def _is(value, kind):
    return jnp.issubdtype(value.dtype, kind)
