"""How a primal and its derivatives read what they are given: all that takes no part, and rows that are masked, as plain numbers."""

import jax.numpy as jnp

from jaxce._axes import apart, per_class, per_row
from jaxce._infinities import capped, finite
from jaxce._types import working_dtype


def read(logits, where, mask=None, axis=-1):
    """The logits in the dtype to work in: a class that is left out as -inf, a masked row as zeros."""
    z = logits.astype(working_dtype(logits))
    z = z if where is None else jnp.where(where, z, -jnp.inf)
    return z if mask is None else jnp.where(per_row(mask, axis), z, 0)


def below(z, shift, axis):
    """`z - shift`, not above 0."""
    return capped(z) - per_row(finite(shift), axis)


def label_probabilities(labels, mask, axis):
    """`q` in its own dtype, with a masked row of zeros."""
    return labels if mask is None else jnp.where(per_row(mask, axis), labels, jnp.zeros((), labels.dtype))


def label_indices(labels, mask):
    """Integer labels wide enough to count any classes; a masked row's label is 0."""
    labels = labels if labels.dtype.itemsize >= 4 else apart(labels.astype(jnp.int32))
    return labels if mask is None else jnp.where(mask, labels, 0)


def weights_of_classes(z, class_weights, axis):
    """`u`: the weight of each class that takes part, 0 for one that does not."""
    weights = 1 if class_weights is None else per_class(class_weights.astype(z.dtype), axis, z.ndim)
    return jnp.where(z > -jnp.inf, weights, jnp.zeros((), z.dtype))
