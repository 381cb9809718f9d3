"""The divergences of two softmaxes, for dense and lazy logits in any combination. `_divergence` has the public functions."""

import functools

import jax
import jax.numpy as jnp

from jaxce import _lazy_pairs as lazy
from jaxce._blocks.pairs import Side, Sides
from jaxce._checks import pairs as pair_checks
from jaxce._checks import results as result_checks
from jaxce._checks.pairs import PairArguments
from jaxce._core.pairs import divergences
from jaxce._jax.axes import joined_axes, row_shape
from jaxce._jax.mesh import AxisName
from jaxce._jax.rules import keep_statistics
from jaxce._lazy_pairs import How
from jaxce._linear_logits import LinearLogits
from jaxce._loss_sum import LossSum
from jaxce._types import working_dtype

_STATIC = ("axis", "axis_name")


@functools.partial(jax.jit, static_argnames=_STATIC)
def losses(arguments: PairArguments, *, axis, axis_name: AxisName):
    """Return the divergence of each row."""
    arguments, axis = pair_checks.checked(arguments, axis, axis_name)
    if _is_lazy(arguments):
        return lazy.losses(*_sides_and_how(arguments, axis_name))
    return _dense_losses(arguments, axis, axis_name)


@functools.partial(jax.jit, static_argnames=_STATIC)
def loss_sum(arguments: PairArguments, weights, *, axis, axis_name: AxisName) -> LossSum:
    """Return the sum of the divergences of the rows that count, and that of their weights."""
    arguments, axis = pair_checks.checked(arguments, axis, axis_name)
    rows = row_shape(arguments.logits.shape, axis)
    weights = result_checks.loss_weights(weights, rows)
    if not _is_lazy(arguments):
        return LossSum.of(_dense_losses(arguments, axis, axis_name), weights, arguments.mask)
    sides, how = _sides_and_how(arguments, axis_name)
    dtype = max(
        x.dtype if isinstance(x, LinearLogits) else working_dtype(x)
        for x in (arguments.target_logits, arguments.logits)
    )
    weights = jnp.ones(rows, dtype) if weights is None else weights.astype(dtype)
    if arguments.mask is not None:
        weights = jnp.where(arguments.mask, weights, 0)
    total = lazy.total(sides, weights, how)
    weight = LossSum.of(jnp.ones(rows, dtype), weights, arguments.mask).weight
    zero = jnp.zeros((), dtype)
    return LossSum(total, weight, zero, zero)


def _is_lazy(arguments: PairArguments) -> bool:
    return isinstance(arguments.target_logits, LinearLogits) or isinstance(arguments.logits, LinearLogits)


def _dense_losses(arguments: PairArguments, axis, axis_name: AxisName):
    if isinstance(axis, tuple):
        arguments, axis = _with_one_class_axis(arguments, axis)

    def of_arguments(arguments: PairArguments):
        target, logits = arguments.target_logits, arguments.logits
        dtype = max(working_dtype(target), working_dtype(logits))
        options = arguments.temperature, arguments.where, arguments.mask, arguments.weight
        return divergences(target.astype(dtype), logits.astype(dtype), *options, axis=axis, axis_name=axis_name)

    return keep_statistics(of_arguments)(arguments)


def _with_one_class_axis(arguments: PairArguments, axis: tuple[int, ...]) -> tuple[PairArguments, int]:
    """Return the arguments with several class axes merged into one, the last."""
    target, logits, where = arguments.target_logits, arguments.logits, arguments.where
    if where is not None:
        full = [size if i in axis else where.shape[i] for i, size in enumerate(logits.shape)]
        where = joined_axes(jnp.broadcast_to(where, full), axis)
    target, logits = joined_axes(target, axis), joined_axes(logits, axis)
    return arguments._replace(target_logits=target, logits=logits, where=where), logits.ndim - 1


def _sides_and_how(arguments: PairArguments, axis_name: AxisName) -> tuple[Sides, How]:
    both = arguments.target_logits, arguments.logits
    layers = [logits for logits in both if isinstance(logits, LinearLogits)]
    target, student = map(_side, both)
    sides = Sides(target, student, arguments.where, arguments.mask, arguments.temperature, arguments.weight)
    split = next((layer.split for layer in layers if layer.split is not None), None)
    return sides, How(axis_name, split, tuple(layer.implementation for layer in layers))


def _side(logits) -> Side:
    if isinstance(logits, LinearLogits):
        return Side(logits.hidden, logits.classifier, logits.bias, logits.soft_cap)
    return Side(logits)
