"""The softmax cross-entropy as a formula over `LogitStats`. Dense logits and linear layers share one implementation of each option."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxce import _lazy as lazy
from jaxce._checks.rows import Arguments
from jaxce._core.labels import weight_of_label
from jaxce._jax.axes import per_class, per_row
from jaxce._jax.mesh import psum_over
from jaxce._jax.rules import keep_statistics
from jaxce._linear_logits import LinearLogits
from jaxce._loss_sum import LossSum
from jaxce._stats import LogitStats, dense_arguments, dense_stats, of_statistics
from jaxce._types import Array, working_dtype


class Options(NamedTuple):
    """The scalar options of a loss. An option that is None is not used."""

    label_smoothing: Array | None
    z_loss: Array | None


@functools.partial(jax.jit, static_argnames=("axis", "axis_name", "integer_labels"))
def losses(arguments: Arguments, options: Options, *, axis, axis_name, integer_labels):
    """Return the loss of each row."""
    if isinstance(arguments.logits, LinearLogits):
        layer, how = lazy.layer_of(arguments, axis, axis_name, integer_labels=integer_labels)
        return lazy.losses(_formula(layer), layer, options, how)
    return _dense_losses(arguments, options, axis, axis_name, integer_labels)


@functools.partial(jax.jit, static_argnames=("axis", "axis_name"))
def loss_sum(arguments: Arguments, options: Options, *, axis, axis_name):
    """Return the sum of the losses of the rows that count, and their number."""
    if isinstance(arguments.logits, LinearLogits):
        layer, how = lazy.layer_of(arguments, axis, axis_name, integer_labels=None)
        total, weight = lazy.total(_formula(layer), layer, options, how)
        zero = jnp.zeros((), total.dtype)
        return LossSum(total, weight, zero, zero)
    return LossSum.of(_dense_losses(arguments, options, axis, axis_name, None), mask=arguments.mask)


def _dense_losses(arguments: Arguments, options: Options, axis, axis_name, integer_labels):
    arguments, axis = dense_arguments(arguments, axis, axis_name, integer_labels=integer_labels)
    logits = arguments.logits
    integer_labels = arguments.labels.ndim < logits.ndim

    def of_rows(arguments: Arguments, options: Options):
        labels, mask, class_weights = arguments.labels, arguments.mask, arguments.class_weights
        label_weight = None
        if class_weights is not None and integer_labels:
            label_weight = psum_over(axis_name, weight_of_label(class_weights, labels, mask))
        elif class_weights is not None:
            dtype = working_dtype(logits)
            # A NaN label of a masked example must not reach the gradient with respect to the class weights.
            if mask is not None:
                labels = jnp.where(per_row(mask, axis), labels, 0)
            labels = labels.astype(dtype) * per_class(class_weights, axis, logits.ndim)
        stats = dense_stats(arguments._replace(labels=labels), axis=axis, axis_name=axis_name)
        return cross_entropy(stats, label_weight, mask, options)

    return keep_statistics(of_rows)(arguments, options)


def _formula(layer) -> lazy.Formula:
    """Return the cross-entropy as a formula over the statistics of a layer."""
    return _OF_INTEGER_LABELS if lazy.has_integer_labels(layer) else _OF_CLASS_PROBABILITIES


def _of_integer_labels(stats, label_weight, mask, options):
    return cross_entropy(of_statistics(stats, integer_labels=True), label_weight, mask, options)


def _of_class_probabilities(stats, label_weight, mask, options):
    return cross_entropy(of_statistics(stats, integer_labels=False), label_weight, mask, options)


def _used(options: Options) -> tuple[str, ...]:
    used = {"sum_exp_rest": options.z_loss, "label_nll": True, "uniform_nll": options.label_smoothing}
    return tuple(name for name, value in used.items() if value is not None)


_OF_INTEGER_LABELS = lazy.Formula(_of_integer_labels, _used)
_OF_CLASS_PROBABILITIES = lazy.Formula(_of_class_probabilities, _used)


def cross_entropy(stats: LogitStats, label_weight: Array | None, mask: Array | None, options: Options) -> Array:
    """Return the loss of each row from its statistics.

    `label_weight` is the class weight of each integer label. Class probabilities are already multiplied by their class weights.
    """
    dtype = stats.sum_exp_rest.dtype
    loss = stats.nll
    if label_weight is not None:
        loss = _weighted(label_weight.astype(dtype), loss)
    if options.label_smoothing is not None:
        s = options.label_smoothing.astype(dtype)
        loss = _weighted(1 - s, loss) + s * stats.smooth_nll
    if options.z_loss is not None:
        loss = loss + options.z_loss.astype(dtype) * jnp.square(stats.log_z)
    return loss if mask is None else jnp.where(mask, loss, 0)


def _weighted(weight, loss):
    """Return the product, which is 0 for a weight of 0 even if the loss is infinite."""
    return weight * jnp.where((weight == 0) & (loss == jnp.inf), 0, loss)
