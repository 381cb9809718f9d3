"""The softmax cross-entropy as a formula over `LogitStats`. Dense logits and linear layers share one implementation of each option."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxce import _dense as dense
from jaxce import _formula as formula
from jaxce import _lazy as lazy
from jaxce._checks.rows import Arguments, Labels
from jaxce._core import statistics
from jaxce._core.weighting import times_loss
from jaxce._jax.rules import keep_statistics
from jaxce._linear_logits import LinearLogits
from jaxce._logit_stats import LogitStats, of_statistics
from jaxce._loss_sum import LossSum
from jaxce._types import Array


class Options(NamedTuple):
    """The scalar options of a loss. An option that is None is not used."""

    label_smoothing: Array | None
    z_loss: Array | None


@functools.partial(jax.jit, static_argnames=("axis", "axis_name", "labels"))
def losses(arguments: Arguments, options: Options, *, axis, axis_name, labels: Labels):
    """Return the loss of each row."""
    if isinstance(arguments.logits, LinearLogits):
        layer, how = lazy.layer_of(arguments, axis, axis_name, labels)
        return lazy.losses(functools.partial(_of_rows, lazy.has_integer_labels(layer)), layer, options, how)
    arguments, axis = dense.arguments_of(arguments, axis, axis_name, labels)

    def of_arguments(arguments: Arguments, options: Options):
        arguments, label_weight = dense.weigh_labels(arguments, axis, axis_name)
        stats = statistics(*arguments, axis=axis, axis_name=axis_name)
        has_integer_labels = dense.has_integer_labels(arguments)
        return _of_rows(has_integer_labels, stats, label_weight, arguments.mask, options)

    return keep_statistics(of_arguments)(arguments, options)


def loss_sum(arguments: Arguments, options: Options, weights, *, axis, axis_name) -> LossSum:
    """Return the sum of the losses of the rows that count, and that of their weights."""
    loss = functools.partial(_of_row, options=options)
    return formula.sum_of_rows(loss, arguments, (), weights, "either", axis, axis_name, weighs_labels=True)[0]


def _of_row(stats: LogitStats, label_weight: Array | None = None, *, options: Options):
    return cross_entropy(stats, label_weight, options)


def _of_rows(has_integer_labels, stats, label_weight, mask, options: Options):
    loss = cross_entropy(of_statistics(stats, 0, integer_labels=has_integer_labels), label_weight, options)
    return loss if mask is None else jnp.where(mask, loss, 0)


def cross_entropy(stats: LogitStats, label_weight: Array | None, options: Options) -> Array:
    """Return the loss of each row from its statistics.

    `label_weight` is the class weight of each integer label. Class probabilities are already multiplied by their class weights.
    """
    dtype = stats.sum_exp_rest.dtype
    loss = stats.nll
    if label_weight is not None:
        loss = times_loss(label_weight.astype(dtype), loss)
    if options.label_smoothing is not None:
        s = options.label_smoothing.astype(dtype)
        loss = times_loss(1 - s, loss) + s * stats.smooth_nll
    if options.z_loss is not None:
        loss = loss + options.z_loss.astype(dtype) * jnp.square(stats.log_z)
    return loss
