"""The losses of `LinearLogits`, from the caller's arguments to blocks and a formula over statistics. `_softmax` has the public functions."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxce._blocks import auto_mesh, choice, chunked, reference
from jaxce._blocks.choice import Implementation, Split
from jaxce._blocks.mesh import on_devices
from jaxce._blocks.reference import Layer
from jaxce._blocks.reference import has_integer_labels as has_integer_labels
from jaxce._blocks.sizes import Plans
from jaxce._blocks.value_and_gradients import Loss, value_and_gradients
from jaxce._checks import rows as row_checks
from jaxce._checks.rows import Arguments
from jaxce._core import of_counted_rows
from jaxce._core.definition import Statistics
from jaxce._core.labels import weight_of_label
from jaxce._jax.mesh import AxisName, cotangent_share, psum_over, varying_like
from jaxce._jax.rules import keep_statistics, partial_jvp, with_definition, with_jvp


class How(NamedTuple):
    """How the statistics of a layer are computed."""

    axis_name: AxisName
    split: Split | None
    implementation: Implementation


class Formula(NamedTuple):
    """A loss over the statistics of a token."""

    losses: Callable[
        ..., Any
    ]  # losses(stats, label_weight, mask, options) -> losses of some tokens; a function of a module
    used: Callable[..., tuple[str, ...]]  # used(options) -> the statistics that the losses depend on


def layer_of(arguments: Arguments, axis, axis_name, *, integer_labels) -> tuple[Layer, How]:
    """Return the checked layer of the `LinearLogits` in the arguments, and how to compute its statistics."""
    logits = arguments.logits
    axis = row_checks.last_axis(axis, logits)
    arguments, _ = row_checks.checked(arguments, axis, integer_labels=integer_labels)
    arguments = row_checks.of_linear_logits(arguments, axis_name)
    class_weights = arguments.class_weights
    layer = Layer(
        hidden=logits.hidden,
        classifier=logits.classifier,
        labels=arguments.labels,
        bias=logits.bias,
        where=arguments.where,
        mask=arguments.mask,
        class_weights=None if class_weights is None else class_weights.astype(logits.dtype),
        soft_cap=logits.soft_cap if arguments.soft_cap is None else arguments.soft_cap,
        temperature=arguments.temperature,
    )
    return layer, How(axis_name, logits.split, logits.implementation)


def statistics(layer: Layer, how: How) -> Statistics:
    """Return the statistics of each token."""

    def on_device(layer, _, axis_name):
        return _statistics(layer, axis_name, how.implementation)

    return on_devices(on_device, layer, None, how.axis_name, how.split)


def losses(formula: Formula, layer: Layer, options, how: How):
    """Return the loss of each token. `options` are scalars that the formula takes."""

    def on_device(layer, options, axis_name):
        stats = _statistics(layer, axis_name, how.implementation)
        return _losses(formula, layer, stats, options, axis_name)

    return on_devices(on_device, _with_label_weights(layer), options, how.axis_name, how.split)


def total(formula: Formula, layer: Layer, options, how: How):
    """Return the sum of the losses of all tokens that count, and their number."""

    def on_device(layer, options, axis_name):
        options = varying_like(options, (layer, options), but=axis_name or ())
        value = _total(formula, axis_name, how.implementation)(layer, options)
        tokens, mask = math.prod(layer.hidden.shape[:-1]), layer.mask
        return value, jnp.asarray(tokens, value.dtype) if mask is None else jnp.sum(mask, dtype=value.dtype)

    return on_devices(on_device, _with_label_weights(layer), options, how.axis_name, how.split, is_sum=True)


def _with_label_weights(layer: Layer) -> Layer:
    """Return the layer whose class probabilities are multiplied by the class weights, as every loss does."""
    return layer if has_integer_labels(layer) else layer._replace(label_weights=layer.class_weights)


def _statistics(layer: Layer, axis_name: AxisName, implementation, plans_of=choice.plans_of_statistics) -> Statistics:
    if choice.is_partitioned_by_compiler(implementation, layer.hidden, layer.classifier):
        return auto_mesh.statistics(implementation, plans_of)(layer)
    plans = plans_of(implementation, layer.hidden, layer.classifier)
    if plans is None:
        return reference.statistics(layer, axis_name)
    stats = chunked.statistics(plans, axis_name)(chunked.flat_layer(layer))
    return jax.tree.map(lambda x: x.reshape(layer.hidden.shape[:-1]), stats)


def _losses(formula: Formula, layer: Layer, stats: Statistics, options, axis_name: AxisName):
    label_weight = None
    if has_integer_labels(layer):
        label_weight = psum_over(axis_name, weight_of_label(layer.class_weights, layer.labels, layer.mask))
    return _of_counted(formula, stats, label_weight, layer.mask, options)


def _of_counted(formula: Formula, stats: Statistics, label_weight, mask, options):
    """Return the loss of each token. The statistics of a masked token may be infinite, if its label became class 0."""
    return formula.losses(of_counted_rows(stats, mask), label_weight, mask, options)


@functools.cache
def _total(formula: Formula, axis_name: AxisName, implementation: Implementation):
    """Return the function of a layer and options that computes the sum. Its rule computes the gradients together with the value."""

    def of_tokens(layer, options):
        stats = _statistics(layer, axis_name, implementation, choice.plans_of_value)
        return _losses(formula, layer, stats, options, axis_name)

    def plain(layer, options):
        return jnp.sum(keep_statistics(of_tokens)(layer, options))

    def jvp(args, dots):
        if dots[0].labels is not None:  # a gradient as large as the logits, which no sum can share
            return partial_jvp(plain, args, dots)
        layer, options = args
        gradients_of = _gradients(formula, plain, axis_name, implementation, layer, options, dots[0])
        value, gradients = gradients_of(layer, options)
        of_layer, of_options = (
            sum(map(_inner, *_pairs(gradient, dot)), jnp.zeros_like(value))
            for gradient, dot in zip(gradients, dots, strict=True)
        )
        return value, psum_over(axis_name, of_layer) + of_options

    def function(layer, options):
        of_layer = implementation, layer.hidden, layer.classifier
        if choice.is_partitioned_by_compiler(*of_layer) or choice.plans_of_gradients(*of_layer) is not None:
            return with_jvp(plain, jvp)(layer, options)
        return plain(layer, options)

    return function


def _pairs(gradients, dots):
    """Return the gradients and the tangents of the arrays whose tangent is not a symbolic zero."""
    pairs = [(g, t) for g, t in zip(gradients, dots, strict=True) if g is not None and t is not None]
    return zip(*pairs, strict=True) if pairs else ((), ())


def _inner(gradient, dot):
    return jnp.sum(gradient * dot.astype(gradient.dtype))


def _gradients(formula: Formula, plain, axis_name: AxisName, implementation, layer: Layer, options, dots: Layer):
    """Return the function of a layer and options that computes the sum and its gradients. Its derivatives are those of `plain`.

    The gradients with respect to the layer are the contributions of this device's classes.
    """
    of_hidden, of_classifier = dots.hidden is not None, dots.classifier is not None
    loss = Loss(functools.partial(_of_counted, formula), formula.used(options), of_hidden, of_classifier, axis_name)

    def by_definition(layer, options):
        arrays = layer._replace(labels=None, where=None, mask=None)
        value, pull = jax.vjp(
            lambda x, y: plain(x._replace(labels=layer.labels, where=layer.where, mask=layer.mask), y), arrays, options
        )
        share, whole = cotangent_share(axis_name)
        layer_ct, options_ct = jax.tree.map(lambda g: g.astype(value.dtype), pull(jnp.ones_like(value) * share))
        layer_ct = layer_ct._replace(
            hidden=layer_ct.hidden if of_hidden else None, classifier=layer_ct.classifier if of_classifier else None
        )
        return value, (layer_ct, jax.tree.map(whole, options_ct))

    if choice.is_partitioned_by_compiler(implementation, layer.hidden, layer.classifier):
        return auto_mesh.value_with_gradients(loss, implementation, by_definition)
    plans = choice.plans_of_gradients(implementation, layer.hidden, layer.classifier)
    if plans is None:
        return by_definition
    return with_definition(functools.partial(_in_one_pass, loss, plans), by_definition)


def _in_one_pass(loss: Loss, plans: Plans, layer: Layer, options):
    flat = chunked.flat_layer(layer)
    value, gradients, of_options = plans.choose(functools.partial(value_and_gradients, loss), flat, options)
    return value, (chunked.shaped_like(gradients, layer), of_options)
