"""The check of labels that are the probabilities of a few classes."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxce import _checks as checks
from jaxce._jax.axes import ClassAxis, class_shape, row_shape, wide_indices
from jaxce._jax.mesh import AxisName, axis_size
from jaxce._types import working_dtype


class TopLabels(NamedTuple):
    """Some classes of each row and their probabilities. The same class may come twice: its probabilities add up."""

    indices: Any  # [..., k], wide integers. An index outside the classes adds nothing
    probabilities: Any  # [..., k], in the working dtype


def checked(indices, probabilities, logits, axis: ClassAxis, axis_name: AxisName) -> TopLabels:
    """Check `labels` and `label_probabilities`. A label that is no class makes the loss of its row NaN, unless its probability is 0."""
    rows = row_shape(logits.shape, axis)
    indices = checks.array("labels", indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(
            f"`labels` must be integers, the classes of which `label_probabilities` are; got {indices.dtype}. "
            "For the probabilities of all classes leave `label_probabilities` out."
        )
    probabilities = checks.weights("label_probabilities", probabilities)
    if probabilities.shape != indices.shape:
        hint = ""
        if probabilities.shape == logits.shape:
            hint = " Probabilities of all classes are the `labels` of softmax_cross_entropy, without `label_probabilities`."
        raise ValueError(
            f"`label_probabilities` must have the shape of `labels`, {indices.shape}; got {probabilities.shape}.{hint}"
        )
    if indices.ndim != len(rows) + 1 or indices.shape[:-1] != rows:
        raise ValueError(
            f"With `label_probabilities`, `labels` must have the shape of the loss and one more axis, {rows} and the number of classes per row; "
            f"got {indices.shape}. For one label per row without a probability leave `label_probabilities` out."
        )
    num_classes = math.prod(class_shape(logits.shape, axis)) * axis_size(axis_name)
    indices, probabilities = wide_indices(indices), probabilities.astype(working_dtype(logits))
    is_valid = (indices >= 0) & (indices < num_classes) | (probabilities == 0)
    return TopLabels(indices, jnp.where(is_valid, probabilities, jnp.nan))
