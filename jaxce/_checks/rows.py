"""The checks of the arguments that all functions of rows of logits share."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxce import _checks as checks
from jaxce._checks import shards, top_labels
from jaxce._jax.axes import ClassAxis, row_shape
from jaxce._jax.mesh import AxisName
from jaxce._types import Array, ArrayLike


class Arguments(NamedTuple):
    """Logits with their labels, and the options that change the statistics of a row."""

    logits: Any
    labels: Any
    where: Any = None
    mask: Any = None
    class_weights: Any = None
    soft_cap: Any = None
    temperature: Any = None
    first_class: Any = None  # the number of the first class of the logits, if a device has some of the classes
    top_labels: Any = None  # the argument `label_probabilities`; once checked, a `TopLabels`, and then the labels are integers that are no class


Labels = Literal["integer", "probabilities", "either", "optional"]


def checked(
    arguments: Arguments, axis: ClassAxis, labels: Labels, axis_name: AxisName = None
) -> tuple[Arguments, ClassAxis]:
    """Return the converted arguments and the class axis, not negative. The logits have been checked.

    `labels` says which labels a function takes. If it takes either kind, they are told apart by their rank. "optional" labels may be None: they
    become integers that are no class. The temperature becomes one number per row.
    """
    logits = arguments.logits
    axis = checks.class_axis(axis, logits)
    if arguments.top_labels is not None:
        top = top_labels.checked(arguments.labels, arguments.top_labels, logits, axis, axis_name)
        arguments = arguments._replace(labels=None, top_labels=top)
    rows = row_shape(logits.shape, axis)
    of_labels = {"integer": checks.class_indices, "probabilities": _class_probabilities}.get(labels, checks.labels)
    is_none = arguments.labels is None and (labels == "optional" or arguments.top_labels is not None)
    arguments = arguments._replace(
        labels=_no_labels(logits, axis) if is_none else of_labels(arguments.labels, logits, axis),
        where=checks.where(arguments.where, logits, axis),
        mask=checks.mask(arguments.mask, rows, logits),
        class_weights=checks.class_weights(arguments.class_weights, logits, axis),
        temperature=temperature(arguments.temperature, rows),
    )
    return arguments, axis


def last_axis(axis: ClassAxis, logits) -> int:
    """Check for the only class axis that logits of a linear layer have."""
    last = logits.ndim - 1
    if axis not in (last, -1, (last,), (-1,)):
        raise ValueError(f"`axis` must be the last axis of a LinearLogits, {last} or -1; got {axis}.")
    return last


def of_linear_logits(arguments: Arguments, axis_name: AxisName) -> Arguments:
    """Check what logits of a linear layer do not allow. `where` becomes one boolean per class."""
    logits = arguments.logits
    where = where_of_classes(arguments.where, logits)
    if arguments.soft_cap is not None and logits.soft_cap is not None:
        raise ValueError("`soft_cap` must be given once, to the LinearLogits or to the loss; got both.")
    if axis_name is not None:
        shards.split_classes("classifier", logits.classifier, axis_name)
        no_split_in_shard_map(logits, axis_name)
    return arguments._replace(where=where)


def where_of_classes(where: Array | None, logits) -> Array | None:
    """Return one boolean per class. Logits of a linear layer do not allow one per logit."""
    if where is None:
        return None
    if any(n != 1 for n in where.shape[:-1]):
        raise ValueError(
            f"`where` must be the same for all rows of a LinearLogits, shape {(1,) * (logits.ndim - 1) + logits.shape[-1:]}; got {where.shape}. "
            "An array of a boolean per logit would be as large as the logits that are not stored. To leave out examples pass `mask`."
        )
    return jnp.broadcast_to(where.reshape(-1), logits.shape[-1:])


def no_split_in_shard_map(logits, axis_name: AxisName) -> None:
    """Check that a `LinearLogits` has no `split` where `axis_name` is given."""
    if logits.split is not None:
        raise ValueError(
            f"`axis_name` {axis_name} says how the classes are split inside of `jax.shard_map`, and `split` outside of it; give one of them."
        )


def _no_labels(logits, axis) -> Array:
    """Return an integer label for each row that is no class."""
    array, axes = getattr(logits, "hidden", logits), axis if isinstance(axis, tuple) else (axis,)
    sharding = jax.typeof(array).sharding
    of_rows = [part for i, part in enumerate(sharding.spec) if i not in axes]
    is_split = any(part is not None for part in of_rows)
    sharding = NamedSharding(sharding.mesh, PartitionSpec(*of_rows)) if is_split else None
    return lax.full(row_shape(array.shape, axis), -1, jnp.int32, sharding=sharding)


def _class_probabilities(value: ArrayLike, logits: Array, _) -> Array:
    return checks.class_probabilities(value, logits)


def temperature(value: Array | None, rows: tuple[int, ...]) -> Array | None:
    """Check for a scalar or one number per row, and return one number per row."""
    if value is None:
        return None
    if value.shape not in ((), rows):
        hint = ""
        if value.ndim < len(rows) and value.shape == rows[: value.ndim]:
            of_rows = ", ".join([":"] * value.ndim + ["None"] * (len(rows) - value.ndim))
            hint = f" Broadcast it first: jnp.broadcast_to(temperature[{of_rows}], {rows})."
        raise ValueError(
            f"`temperature` must be a scalar or have the shape of the loss, {rows}; got {value.shape}.{hint}"
        )
    return jnp.broadcast_to(value, rows)
