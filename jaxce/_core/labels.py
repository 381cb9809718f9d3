"""Integer labels: counted from the first class of a device, and the class weight of each."""

import jax.numpy as jnp
from jax import lax

from jaxce._core.definition import is_class
from jaxce._jax.axes import wide_indices
from jaxce._jax.mesh import AxisName, is_explicit


def local_indices(labels, num_classes: int, axis_name: AxisName):
    """Return wide labels, counted from the first of the `num_classes` classes of this device. A class of another is outside them."""
    labels = wide_indices(labels)
    if axis_name is None:
        return labels
    # An unsigned label below the first class wraps around, to an index far beyond the last.
    return labels - first_local_class(num_classes, axis_name).astype(labels.dtype)


def first_local_class(num_classes: int, axis_name: AxisName):
    """Return the number of the first of the `num_classes` classes of this device."""
    return lax.axis_index(axis_name) * num_classes


def weight_of_label(class_weights, labels, mask):
    """Return the class weight of each integer label; 0 for one that is none of these classes. A masked row's label counts as 0."""
    if class_weights is None:
        return None
    labels = labels if mask is None else jnp.where(mask, labels, 0)
    if is_explicit(labels) or is_explicit(class_weights):
        # JAX can compare arrays whose types say that they are split over devices, but cannot index them.
        axes = tuple(range(labels.ndim))
        classes = jnp.expand_dims(lax.iota(labels.dtype, class_weights.shape[0]), axes)
        chosen = jnp.expand_dims(labels, labels.ndim) == classes
        return jnp.sum(jnp.where(chosen, jnp.expand_dims(class_weights, axes), 0), labels.ndim)
    return jnp.where(is_class(labels, class_weights.shape[0]), class_weights.at[labels].get(mode="clip"), 0)
