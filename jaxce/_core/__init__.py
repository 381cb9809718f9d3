"""The statistics of dense logits, with their derivative rule: the definition, and the forms that compilers turn into better code.

`definition` says what is computed. Here it gets its forms and its rule: the value and the first derivatives are computed by the form of the
platform, where there is one. Derivatives of higher order are those of the definition.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxce._checks.top_labels import TopLabels
from jaxce._core import cpu, definition, gpu
from jaxce._core.definition import Derivatives, Statistics
from jaxce._core.merge import merge_devices, without_nan_rows
from jaxce._core.shaping import counted_temperature, shaped
from jaxce._core.top_labels import label_jvp as top_label_jvp
from jaxce._core.top_labels import label_nll_jvp, of_prediction, with_top_labels
from jaxce._jax.axes import per_row, wide_indices
from jaxce._jax.mesh import AxisName, psum_over, varying_like
from jaxce._jax.rules import choose, inlined, linear, with_rule
from jaxce._types import Array, working_dtype

_OF_ONE_CERTAIN_CLASS = Statistics(
    max_logit=0,
    sum_exp_rest=0,
    label_nll=0,
    label_mass=1,
    uniform_nll=0,
    weight_sum=1,
    num_classes=1,
    top_label_mass=1,
    spread=0,
    expected_nll=0,
    top_nll=0,
    prediction=0,
)


class Source(NamedTuple):
    """The user's arrays, from which `Rows.z` is computed. The forms read them. They are never differentiated."""

    logits: Array
    where: Any = None
    mask: Any = None


class Rows(NamedTuple):
    """Logits in the working dtype, where a class that is left out is -inf and a masked row is 0, with their labels and class weights."""

    z: Any
    labels: Any
    class_weights: Any
    source: Any  # a Source
    first_class: Any = None  # the number of the first of these classes, an integer; None for 0
    top_labels: TopLabels | None = None  # instead of the labels, which are then integers that are no class


def statistics(
    logits,
    labels,
    where,
    mask,
    class_weights,
    soft_cap=None,
    temperature=None,
    first_class=None,
    top_labels: TopLabels | None = None,
    *,
    axis: int,
    axis_name: AxisName = None,
) -> Statistics:
    """Return the statistics of each row. A row whose `mask` is false has those of one certain class, whatever it holds.

    The arguments may be those of some of the classes. The labels count from the first of them, whose number is `first_class`. With an `axis_name`,
    the statistics are those of the classes of all devices.
    """
    logits, labels = varying_like((logits, labels), (logits, labels))
    if labels.ndim < logits.ndim:
        labels = wide_indices(labels)
    z = logits
    if mask is not None:
        z = jnp.where(per_row(mask, axis), z, 0)
        labels = jnp.where(per_row(mask, axis) if labels.ndim == z.ndim else mask, labels, 0)
        temperature = counted_temperature(temperature, mask)
        if top_labels is not None:
            top_labels = TopLabels(*(jnp.where(mask[..., None], x, 0) for x in top_labels))
    z = z.astype(working_dtype(z))
    if soft_cap is not None or temperature is not None:
        z = logits = shaped(z, soft_cap, temperature, None, axis=axis)
    z = shaped(z, None, None, where, axis=axis)
    return _with_rule(axis, axis_name)(
        Rows(z, labels, class_weights, Source(logits, where, mask), first_class, top_labels)
    )


@functools.cache
def _with_rule(axis, axis_name):
    def value(rows):
        return merge_devices(_value(rows, axis), axis_name)

    def tangent(args, stats, tangents, **options):
        (rows,), (dots,) = args, tangents
        # Given the statistics of its row, the derivative with respect to a logit depends on this logit alone. So each device differentiates the
        # statistics with respect to its own classes, and the contributions are summed.
        return psum_over(axis_name, statistics_jvp(rows, stats, dots, axis=axis, **options))

    return with_rule(value, tangent, higher=functools.partial(tangent, with_forms=False))


@inlined
def statistics_jvp(rows: Rows, stats: Statistics, dots: Rows, *, axis, with_forms=True) -> Statistics:
    """Return the tangents of the statistics, linear in those of the rows; None where a tangent is 0.

    `rows` may hold some of the classes of the rows whose statistics are `stats`. The tangents are then the part of these classes.
    """
    by_logits, by_labels, by_weights = Derivatives(), (None,) * 3, (None,) * 2
    stats = stats._replace(prediction=_moved(stats.prediction, rows.first_class, -1))
    if dots.z is not None:
        by_logits = _by_logits(dots.z, rows, stats, axis=axis, with_forms=with_forms)
    if dots.labels is not None:
        by_labels = definition.label_jvp(dots.labels.astype(rows.z.dtype), rows.z, stats, axis=axis)
    if rows.top_labels is not None and dots.top_labels is not None and dots.top_labels.probabilities is not None:
        by_labels = top_label_jvp(dots.top_labels.probabilities, rows.z, rows.top_labels, stats, axis=axis)
    if dots.class_weights is not None:
        by_weights = definition.weights_jvp(dots.class_weights, rows.z, stats, axis=axis)
    return Statistics(
        max_logit=None,
        sum_exp_rest=by_logits.sum_exp_rest,
        label_nll=_sum(by_logits.label_nll, by_labels[0]),
        label_mass=by_labels[1],
        uniform_nll=_sum(by_logits.uniform_nll, by_weights[0]),
        weight_sum=by_weights[1],
        num_classes=None,
        top_label_mass=by_labels[2],
        spread=by_logits.spread,
        expected_nll=by_logits.expected_nll,
        top_nll=by_logits.top_nll,
        prediction=None,
    )


def _by_logits(z_dot, rows: Rows, stats: Statistics, *, axis, with_forms) -> Derivatives:
    """Return the tangents of the statistics that come from those of the logits."""
    top_labels = rows.top_labels
    if top_labels is not None:
        of_one = rows._replace(labels=stats.prediction, top_labels=None)
        by_logits = _by_logits(z_dot, of_one, of_prediction(stats), axis=axis, with_forms=with_forms)
        return by_logits._replace(label_nll=label_nll_jvp(by_logits, z_dot, rows.z, top_labels, stats, axis=axis))
    jvp = functools.partial(_logits_jvp, axis=axis)
    if with_forms and _vjp_forms(rows, axis):
        return linear(jvp, functools.partial(_logits_vjp, axis=axis), z_dot, rows, stats)
    return jvp(z_dot, rows, stats)


@inlined
def _value(rows: Rows, axis) -> Statistics:
    """Compute the statistics by the form of the platform."""

    def by_definition(rows):
        return definition.statistics(rows.z, rows.labels, rows.class_weights, axis=axis)

    @inlined
    def on_cpu(rows):
        source = rows.source
        return cpu.statistics(source.logits, source.where, rows.labels, rows.class_weights, axis=axis)

    @inlined
    def on_gpu(rows):
        return gpu.statistics(rows.source.logits, rows.labels, rows.class_weights)

    logits, where, mask = rows.source
    forms = {"cpu": on_cpu if cpu.suits(logits) else None, "gpu": on_gpu if gpu.suits(logits, where, axis) else None}
    top_labels, rows = rows.top_labels, rows._replace(top_labels=None)
    stats = choose(by_definition, rows, **forms)
    if top_labels is not None:
        stats = with_top_labels(stats, rows.z, top_labels, axis=axis)
    stats = without_nan_rows(stats)
    prediction = jnp.where(stats.prediction < 0, -1, _moved(stats.prediction, rows.first_class, 1))
    stats = stats._replace(prediction=jnp.where(stats.max_logit == -jnp.inf, -1, prediction))
    return of_counted_rows(stats, mask)


def _moved(prediction, first_class, direction):
    """Return the prediction, counted from the first class of all or of these classes."""
    return prediction if first_class is None else prediction + direction * first_class


def of_counted_rows(stats: Statistics, mask) -> Statistics:
    """Return the statistics, where a masked row has those of a row of one certain class, whose logit is 0."""
    if mask is None:
        return stats
    return Statistics(*(jnp.where(mask, x, y) for x, y in zip(stats, _OF_ONE_CERTAIN_CLASS, strict=True)))


def _logits_jvp(z_dot, rows: Rows, stats: Statistics, *, axis):
    return definition.logits_jvp(z_dot, rows.z, rows.labels, rows.class_weights, stats, axis=axis)


@inlined
def _logits_vjp(cotangents, rows: Rows, stats: Statistics, *, axis):
    """Compute `definition.logits_vjp` by the form of the platform."""

    def by_definition(cotangents, rows, stats):
        return definition.logits_vjp(cotangents, rows.z, rows.labels, rows.class_weights, stats, axis=axis)

    forms = _vjp_forms(rows, axis) if cotangents.top_nll is None else {}
    return choose(by_definition, cotangents, rows, stats, **forms)


def _vjp_forms(rows: Rows, axis) -> dict:
    """Return the forms of `definition.logits_vjp` for these rows, by platform."""

    @inlined
    def on_cpu(cotangents, rows, stats):
        source = rows.source
        z_ct = cpu.logits_vjp(
            cotangents, source.logits, source.where, rows.labels, rows.class_weights, stats, axis=axis
        )
        return z_ct.astype(rows.z.dtype)

    @inlined
    def on_gpu(cotangents, rows, stats):
        z_ct = gpu.logits_vjp(cotangents, rows.source.logits, rows.labels, rows.source.mask, stats)
        return z_ct.astype(rows.z.dtype)

    logits, where, _ = rows.source
    has_integer_labels = rows.labels.ndim < logits.ndim and rows.class_weights is None
    forms = {"cpu": on_cpu} if cpu.suits(logits) else {}
    return forms | ({"gpu": on_gpu} if has_integer_labels and gpu.suits(logits, where, axis) else {})


def _sum(a, b):
    return a if b is None else b if a is None else a + b
