"""The checks of two softmaxes over the same classes."""

from typing import Any, NamedTuple

from jaxce import _checks as checks
from jaxce._checks import rows as row_checks
from jaxce._checks import shards
from jaxce._jax.axes import ClassAxis, row_shape
from jaxce._jax.mesh import AxisName


class PairArguments(NamedTuple):
    """The arguments of a divergence."""

    target_logits: Any
    logits: Any
    where: Any = None
    mask: Any = None
    temperature: Any = None
    weight: Any = None


def checked(arguments: PairArguments, axis: ClassAxis, axis_name: AxisName) -> tuple[PairArguments, ClassAxis]:
    """Return the converted arguments and the class axis, not negative. If logits are lazy, `where` becomes one boolean per class."""
    target = _logits("target_logits", arguments.target_logits)
    logits = _logits("logits", arguments.logits)
    if target.shape != logits.shape:
        raise ValueError(
            f"`target_logits` must have the shape of `logits`, {logits.shape}; got {target.shape}. "
            "Both are over the same classes; a LinearLogits may have any number of features."
        )
    layers = [(name, x) for name, x in (("target_logits", target), ("logits", logits)) if _is_lazy(x)]
    for _, layer in layers:
        axis = row_checks.last_axis(axis, layer)
    axis = checks.class_axis(axis, logits)
    where = checks.where(arguments.where, logits, axis)
    if layers:
        where = row_checks.where_of_classes(where, logits)
        _same_split([layer for _, layer in layers])
    if axis_name is not None:
        _split_classes(target, logits, axis_name, axis)
    rows = row_shape(logits.shape, axis)
    mask = checks.mask(arguments.mask, rows, logits)
    temperature = row_checks.temperature(arguments.temperature, rows)
    return PairArguments(target, logits, where, mask, temperature, arguments.weight), axis


def _is_lazy(logits) -> bool:
    return hasattr(logits, "classifier")


def _logits(name, value):
    if _is_lazy(value):
        return value
    value = checks.floating(name, value)
    if value.ndim == 0:
        raise ValueError(f"`{name}` must have a class axis; got a scalar.")
    return value


def _same_split(layers) -> None:
    splits = [layer.split for layer in layers if layer.split is not None]
    if splits and any(split != splits[0] for split in splits):
        raise ValueError(f"`split` must be the same for both LinearLogits; got {splits[0]} and {splits[1]}.")


def _split_classes(target, logits, axis_name, axis) -> None:
    for name, value in (("target_logits", target), ("logits", logits)):
        if not _is_lazy(value):
            shards.split_classes(name, value, axis_name, axis)
            continue
        shards.split_classes("classifier", value.classifier, axis_name)
        row_checks.no_split_in_shard_map(value, axis_name)
