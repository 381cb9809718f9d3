"""The statistics of dense logits, with their derivative rule: the definition, and the forms that compilers turn into better code.

`definition` says what is computed. Here it gets its forms and its rule: the value and the first derivatives are computed by the form of the
platform, where there is one. Derivatives of higher order are those of the definition.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from jaxce._core import cpu, definition, gpu, sigmoid
from jaxce._core.definition import Statistics
from jaxce._core.labels import wide_indices
from jaxce._core.merge import merge_devices, without_nan_rows
from jaxce._jax.axes import per_row
from jaxce._jax.mesh import AxisName, psum_over, varying_like
from jaxce._jax.rules import choose, linear, with_rule
from jaxce._types import Array, working_dtype

# What a masked row is given: the statistics of a row of one certain class, whose logit is 0.
_OF_ONE_CLASS = Statistics(0, 0, 0, 1, 0, 1, 1, 1)


class Source(NamedTuple):
    """Where logits in the working dtype come from. Forms read this; it is never differentiated."""

    logits: Array  # in the user's dtype
    where: Array | None = None
    mask: Array | None = None


def statistics(logits, labels, where, mask, class_weights, *, axis: int, axis_name: AxisName = None) -> Statistics:
    """Return the statistics of each row. A row whose `mask` is false has those of one certain class, whatever it holds.

    With an `axis_name` the arguments are those of some of the classes, the labels are counted from the first of them, and the statistics are
    those of all the classes.
    """
    logits, labels = varying_like((logits, labels), (logits, labels))
    if labels.ndim < logits.ndim:
        labels = wide_indices(labels)
    z = logits
    if mask is not None:
        z = jnp.where(per_row(mask, axis), z, 0)
        labels = jnp.where(per_row(mask, axis) if labels.ndim == z.ndim else mask, labels, 0)
    z = z.astype(working_dtype(z))
    z = z if where is None else jnp.where(where, z, -jnp.inf)
    return _with_rule(axis, axis_name)(z, labels, class_weights, Source(logits, where, mask))


@functools.cache
def _with_rule(axis, axis_name):
    def value(z, labels, class_weights, source):
        return merge_devices(_value(z, labels, class_weights, source, axis=axis), axis_name)

    def tangent(args, outs, tangents, **options):
        # The derivative by a logit needs the statistics of its whole row and nothing else of it. So each device contributes a part.
        dots = statistics_jvp(args, outs, tangents, axis=axis, **options)
        return psum_over(axis_name, dots)

    return with_rule(value, tangent, higher=functools.partial(tangent, with_forms=False))


def statistics_jvp(args, stats: Statistics, tangents, *, axis, with_forms=True) -> Statistics:
    """Return the tangents of the statistics, linear in those of `(z, labels, class_weights)`; None where a tangent is 0.

    `z` may be some of the classes of a row whose statistics are `stats`: its tangents then are the part that they contribute.
    """
    z, labels, class_weights, source = args
    z_dot, labels_dot, class_weights_dot, _ = tangents
    by_logits = by_labels = by_weights = (None, None, None)
    if z_dot is not None:
        jvp, operands = functools.partial(_logits_jvp, axis=axis), (z_dot, z, labels, class_weights, stats, source)
        if with_forms and _has_form_of_vjp(labels, class_weights, source, axis):
            by_logits = linear(jvp, functools.partial(_logits_vjp, axis=axis), *operands)
        else:
            by_logits = jvp(*operands)
    if labels_dot is not None:
        by_labels = definition.label_jvp(labels_dot.astype(z.dtype), z, stats, axis=axis)
    if class_weights_dot is not None:
        by_weights = (*definition.weights_jvp(class_weights_dot, z, stats, axis=axis), None)
    return Statistics(
        max_logit=None,
        sum_exp_rest=by_logits[0],
        label_nll=_sum(by_logits[1], by_labels[0]),
        label_mass=by_labels[1],
        uniform_nll=_sum(by_logits[2], by_weights[0]),
        weight_sum=by_weights[1],
        num_classes=None,
        top_label_mass=by_labels[2],
    )


def _value(z, labels, class_weights, source, *, axis):
    """The statistics, without derivatives."""

    def by_definition(z, labels, class_weights, _):
        return definition.statistics(z, labels, class_weights, axis=axis)

    def on_cpu(_, labels, class_weights, source):
        return cpu.statistics(source.logits, source.where, labels, class_weights, axis=axis)

    def on_gpu(_, labels, class_weights, source):
        return gpu.statistics(source.logits, labels, class_weights)

    stats = choose(
        by_definition,
        z,
        labels,
        class_weights,
        source,
        cpu=on_cpu if cpu.suits(source.logits) else None,
        gpu=on_gpu if gpu.suits(source.logits, source.where, axis) else None,
    )
    stats = without_nan_rows(stats)
    if source.mask is None:
        return stats
    return Statistics(*(jnp.where(source.mask, x, y) for x, y in zip(stats, _OF_ONE_CLASS, strict=True)))


def _has_form_of_vjp(labels, class_weights, source, axis):
    is_by_number = labels.ndim < source.logits.ndim and class_weights is None
    return cpu.suits(source.logits) or (is_by_number and gpu.suits(source.logits, source.where, axis))


def _logits_jvp(z_dot, z, labels, class_weights, stats, _, *, axis):
    return definition.logits_jvp(z_dot, z, labels, class_weights, stats, axis=axis)


def _logits_vjp(cotangents, z, labels, class_weights, stats, source, *, axis):
    """`definition.logits_vjp` by the form of the platform."""

    def by_definition(cotangents, z, labels, class_weights, stats, _):
        return definition.logits_vjp(cotangents, z, labels, class_weights, stats, axis=axis)

    def on_cpu(cotangents, z, labels, class_weights, stats, source):
        z_ct = cpu.logits_vjp(cotangents, source.logits, source.where, labels, class_weights, stats, axis=axis)
        return z_ct.astype(z.dtype)

    def on_gpu(cotangents, z, labels, _, stats, source):
        return gpu.logits_vjp(cotangents, source.logits, labels, source.mask, stats).astype(z.dtype)

    is_by_number = labels.ndim < z.ndim and class_weights is None
    return choose(
        by_definition,
        cotangents,
        z,
        labels,
        class_weights,
        stats,
        source,
        cpu=on_cpu if cpu.suits(source.logits) else None,
        gpu=on_gpu if is_by_number and gpu.suits(source.logits, source.where, axis) else None,
    )


def sigmoid_losses(logits, labels, mask, label_smoothing, pos_weight):
    """Return the sigmoid loss of each logit. One whose `mask` is false has a finite loss, whatever it holds."""
    source = (logits, labels, mask, label_smoothing, pos_weight)
    (loss,) = _sigmoid_with_rule(*sigmoid.logits_and_weights(*source), source)
    return loss


def _sigmoid_value(x, yes, no, source):
    def by_definition(x, yes, no, _):
        return sigmoid.losses(x, yes, no)

    def on_cpu(*args):
        return cpu.sigmoid_losses(args[-1])

    return (choose(by_definition, x, yes, no, source, cpu=on_cpu if cpu.suits(source[0]) else None),)


def _sigmoid_jvp(args, _, tangents, *, with_forms=True):
    (x, yes, no, source), (x_dot, yes_dot, no_dot, _) = args, tangents
    by_logits = by_weights = None
    if x_dot is not None:
        if with_forms and cpu.suits(source[0]):
            by_logits = linear(_times_sigmoid_derivative, _sigmoid_vjp, x_dot, x, yes, no, source)
        else:
            by_logits = _times_sigmoid_derivative(x_dot, x, yes, no, source)
    if not (yes_dot is None and no_dot is None):
        by_weights = sigmoid.weights_jvp(yes_dot, no_dot, x)
    return (_sum(by_logits, by_weights),)


def _times_sigmoid_derivative(x_dot, x, yes, no, _):
    return x_dot * sigmoid.derivative(x, yes, no)


def _sigmoid_vjp(loss_ct, x, yes, no, source):
    def on_cpu(loss_ct, x, _, __, source):
        return cpu.sigmoid_vjp(loss_ct, source).astype(x.dtype)

    return choose(_times_sigmoid_derivative, loss_ct, x, yes, no, source, cpu=on_cpu)


_sigmoid_with_rule = with_rule(_sigmoid_value, _sigmoid_jvp, functools.partial(_sigmoid_jvp, with_forms=False))


def _sum(a, b):
    return a if b is None else b if a is None else a + b
