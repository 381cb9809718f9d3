"""The arguments of dense logits, checked and brought into the form that `_core` takes: one class axis, and labels of the device's own classes."""

import jax.numpy as jnp

from jaxce import _checks as checks
from jaxce._checks import rows as row_checks
from jaxce._checks import shards as sharded_checks
from jaxce._checks.rows import Arguments, Labels
from jaxce._core.labels import first_local_class, local_indices, weight_of_label
from jaxce._core.top_labels import weighted_top_labels
from jaxce._jax.axes import joined_axes, per_class, per_row
from jaxce._jax.mesh import psum_over, varying_like
from jaxce._types import working_dtype


def arguments_of(arguments: Arguments, axis, axis_name, labels: Labels) -> tuple[Arguments, int]:
    """Check the arguments of dense logits. Return them with one class axis, integer labels counted from the first local class, and this axis."""
    arguments = arguments._replace(logits=checks.logits(arguments.logits))
    arguments, axis = row_checks.checked(arguments, axis, labels, axis_name)
    if axis_name is not None:
        sharded_checks.split_classes("logits", arguments.logits, axis_name, axis)
    if isinstance(axis, tuple):
        arguments, axis = _with_one_class_axis(arguments, axis)
    logits, class_weights, num_classes = arguments.logits, arguments.class_weights, arguments.logits.shape[axis]
    if class_weights is not None:  # used twice; the sum of its two cotangents is rounded once
        arguments = arguments._replace(class_weights=class_weights.astype(working_dtype(logits)))
    if axis_name is not None:
        arguments = arguments._replace(first_class=first_local_class(num_classes, axis_name))
    if arguments.labels.ndim < logits.ndim:
        own_labels = local_indices(arguments.labels, num_classes, axis_name)
        arguments = arguments._replace(logits=varying_like(logits, own_labels), labels=own_labels)
    if arguments.top_labels is not None:
        top = arguments.top_labels
        top = top._replace(indices=local_indices(top.indices, num_classes, axis_name))
        arguments = arguments._replace(top_labels=top)
    return arguments, axis


def _with_one_class_axis(arguments: Arguments, axis: tuple[int, ...]) -> tuple[Arguments, int]:
    """Return the arguments with several class axes merged into one, the last."""
    logits, labels, where, weights = arguments.logits, arguments.labels, arguments.where, arguments.class_weights
    if labels.ndim == logits.ndim:
        labels = joined_axes(labels, axis)
    if where is not None:
        full = [size if i in axis else where.shape[i] for i, size in enumerate(logits.shape)]
        where = joined_axes(jnp.broadcast_to(where, full), axis)
    weights = None if weights is None else weights.reshape(-1)
    logits = joined_axes(logits, axis)
    return arguments._replace(logits=logits, labels=labels, where=where, class_weights=weights), logits.ndim - 1


def has_integer_labels(arguments: Arguments) -> bool:
    """Return whether the labels are one class index per row, not class probabilities."""
    return arguments.labels.ndim < arguments.logits.ndim and arguments.top_labels is None


def weigh_labels(arguments: Arguments, axis: int, axis_name):
    """Return the arguments with class probabilities multiplied by the class weights, and the class weight of each integer label, or None."""
    logits, labels, mask, class_weights = arguments.logits, arguments.labels, arguments.mask, arguments.class_weights
    if class_weights is None:
        return arguments, None
    if arguments.top_labels is not None:
        return arguments._replace(
            top_labels=weighted_top_labels(arguments.top_labels, class_weights, mask, axis_name)
        ), None
    if labels.ndim < logits.ndim:
        return arguments, psum_over(axis_name, weight_of_label(class_weights, labels, mask))
    # A NaN label of a masked example must not reach the gradient with respect to the class weights.
    if mask is not None:
        labels = jnp.where(per_row(mask, axis), labels, 0)
    labels = labels.astype(working_dtype(logits)) * per_class(class_weights, axis, logits.ndim)
    return arguments._replace(labels=labels), None
