"""The losses of `LinearLogits`, from the caller's arguments to blocks and a formula over statistics. `_softmax` has the public functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxce._blocks import auto_mesh, chunked, reference
from jaxce._blocks import plans as choice
from jaxce._blocks.choice import Implementation, Split
from jaxce._blocks.inputs import NO_INPUTS, Inputs, flat_inputs, inputs_like, replaced, selected, with_row
from jaxce._blocks.mesh import on_devices
from jaxce._blocks.reference import Layer
from jaxce._blocks.reference import has_integer_labels as has_integer_labels
from jaxce._blocks.sizes import Plans
from jaxce._blocks.value_and_gradients import Loss, value_and_gradients
from jaxce._checks import rows as row_checks
from jaxce._checks.rows import Arguments, Labels
from jaxce._core import of_counted_rows
from jaxce._core.definition import Statistics
from jaxce._core.labels import weight_of_label
from jaxce._core.top_labels import weighted_top_labels
from jaxce._jax.mesh import AxisName, cotangent_share, psum_over, varying_like
from jaxce._jax.rules import keep_statistics, partial_jvp, with_definition, with_jvp


class How(NamedTuple):
    """How the statistics of a layer are computed."""

    axis_name: AxisName
    split: Split | None
    implementation: Implementation


class Formula(NamedTuple):
    """A loss over the statistics of rows."""

    function: Callable[..., Any]  # function(stats, mask, inputs) -> (losses, metrics) of some rows, metrics by name
    used: tuple[str, ...]  # the statistics that the derivative of the losses depends on
    metrics: tuple[str, ...]  # the names of the metrics
    weighs_labels: bool  # whether labels are weighted by the class weights; `function` then takes the weight of an integer label as its last input


def layer_of(arguments: Arguments, axis, axis_name, labels: Labels) -> tuple[Layer, How]:
    """Return the checked layer of the `LinearLogits` in the arguments, and how to compute its statistics."""
    logits = arguments.logits
    axis = row_checks.last_axis(axis, logits)
    arguments, _ = row_checks.checked(arguments, axis, labels, axis_name)
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
        top_labels=arguments.top_labels,
    )
    return layer, How(axis_name, logits.split, logits.implementation)


def statistics(layer: Layer, how: How) -> Statistics:
    """Return the statistics of each token."""

    def on_device(layer, _, axis_name):
        return of_counted_rows(_statistics(layer, axis_name, how.implementation), layer.mask)

    return on_devices(on_device, layer, NO_INPUTS, how.axis_name, how.split)


def losses(function: Callable[..., Any], layer: Layer, options, how: How):
    """Return `function(stats, label_weight, mask, options)`, the loss of each token, with labels weighted by the class weights."""

    def on_device(layer, inputs: Inputs, axis_name):
        layer = _with_weighted_top_labels(layer, axis_name)
        # The statistics of a masked token may be infinite, if its label became class 0.
        stats = of_counted_rows(_statistics(layer, axis_name, how.implementation), layer.mask)
        return function(stats, _label_weight(layer, axis_name), layer.mask, inputs.bound)

    return on_devices(on_device, _with_weighted_labels(layer), Inputs([], options), how.axis_name, how.split)


def total(formula: Formula, *, layer: Layer, inputs: Inputs, how: How):
    """Return the sum of the losses of all tokens that count, and the sums of their metrics."""

    def on_device(layer, inputs: Inputs, axis_name):
        layer = _with_weighted_top_labels(layer, axis_name)
        inputs = with_row(inputs, _label_weight(layer, axis_name) if formula.weighs_labels else None)
        inputs = varying_like(inputs, (layer, inputs), but=axis_name or ())
        return _total(formula, axis_name, how.implementation, layer, inputs)

    layer = _with_weighted_labels(layer) if formula.weighs_labels else layer
    return on_devices(on_device, layer, inputs, how.axis_name, how.split, is_sum=True)


def _with_weighted_labels(layer: Layer) -> Layer:
    """Return the layer whose class probabilities are multiplied by the class weights."""
    return layer if has_integer_labels(layer) else layer._replace(label_weights=layer.class_weights)


def _with_weighted_top_labels(layer: Layer, axis_name: AxisName) -> Layer:
    """Return the layer whose likeliest labels are multiplied by their weights, which then stand in the layer no more."""
    if layer.top_labels is None or layer.label_weights is None:
        return layer
    top_labels = weighted_top_labels(layer.top_labels, layer.label_weights, layer.mask, axis_name)
    return layer._replace(top_labels=top_labels, label_weights=None)


def _label_weight(layer: Layer, axis_name: AxisName):
    """Return the class weight of each integer label, or None."""
    if not has_integer_labels(layer) or layer.class_weights is None:
        return None
    return psum_over(axis_name, weight_of_label(layer.class_weights, layer.labels, layer.mask))


def _statistics(layer: Layer, axis_name: AxisName, implementation, plans_of=choice.plans_of_statistics) -> Statistics:
    if choice.is_partitioned_by_compiler(implementation, layer.hidden, layer.classifier):
        return auto_mesh.statistics(implementation, plans_of)(layer)
    plans = plans_of(implementation, layer.hidden, layer.classifier)
    if plans is None:
        return reference.statistics(layer, axis_name)
    stats = chunked.statistics(plans, axis_name)(chunked.flat_layer(layer))
    return jax.tree.map(lambda x: x.reshape(layer.hidden.shape[:-1]), stats)


def _total(formula: Formula, axis_name: AxisName, implementation: Implementation, layer: Layer, inputs: Inputs):
    """Return the sums over the tokens. The rule computes the gradients together with the value."""

    def of_tokens(layer, inputs):
        stats = _statistics(layer, axis_name, implementation, choice.plans_of_value)
        return formula.function(stats, layer.mask, inputs)

    def plain(layer, inputs):
        return jax.tree.map(jnp.sum, keep_statistics(of_tokens)(layer, inputs))

    def jvp(args, dots):
        # The gradient of class probabilities is as large as the logits: no sum can share it.
        if jax.tree.leaves((dots[0].labels, dots[0].top_labels)):
            return partial_jvp(plain, args, dots)
        dots = dots[0]._replace(top_labels=None), dots[1]
        (value, metrics), gradients = _with_gradients(formula, plain, axis_name, implementation, args, dots)
        of_layer, of_inputs = (
            sum(map(_inner, *_pairs(gradient, dot)), jnp.zeros_like(value))
            for gradient, dot in zip(gradients, dots, strict=True)
        )
        return (value, metrics), (psum_over(axis_name, of_layer) + of_inputs, dict.fromkeys(metrics))

    of_layer = implementation, layer.hidden, layer.classifier
    in_one_pass = choice.is_partitioned_by_compiler(*of_layer) or choice.plans_of_gradients(*of_layer) is not None
    return with_jvp(plain, jvp)(layer, inputs) if in_one_pass and formula.used else plain(layer, inputs)


def _pairs(gradients, dots):
    """Return the gradients and the tangents of the arrays whose tangent is not a symbolic zero."""
    gradients, dots = ([*jax.tree.leaves(tree, is_leaf=lambda x: x is None)] for tree in (gradients, dots))
    pairs = [(g, t) for g, t in zip(gradients, dots, strict=True) if g is not None and t is not None]
    return zip(*pairs, strict=True) if pairs else ((), ())


def _inner(gradient, dot):
    return jnp.sum(gradient * dot.astype(gradient.dtype))


def _with_gradients(formula: Formula, plain, axis_name: AxisName, implementation, args, dots):
    """Return the sums, and the gradients of the sum of the losses. Their derivatives are those of `plain`.

    The gradients with respect to the layer are the contributions of this device's classes.
    """
    layer, inputs = args
    of_hidden, of_classifier = dots[0].hidden is not None, dots[0].classifier is not None
    of_inputs = jax.tree.map(lambda _, dot: dot is not None, inputs, dots[1])
    loss = Loss(formula.function, formula.used, of_hidden, of_classifier, of_inputs, formula.metrics, axis_name)

    def by_definition(layer, inputs):
        constants = {name: getattr(layer, name) for name in ("labels", "where", "mask", "first_class", "top_labels")}
        arrays = layer._replace(**dict.fromkeys(constants)), selected(inputs, of_inputs)
        of_arrays = functools.partial(_of_arrays, plain, constants, inputs)
        value, pull, metrics = jax.vjp(of_arrays, *arrays, has_aux=True)
        share, whole = cotangent_share(axis_name)
        layer_ct, inputs_ct = jax.tree.map(lambda g: g.astype(value.dtype), pull(jnp.ones_like(value) * share))
        layer_ct = layer_ct._replace(
            hidden=layer_ct.hidden if of_hidden else None, classifier=layer_ct.classifier if of_classifier else None
        )
        return (value, metrics), (layer_ct, jax.tree.map(whole, inputs_ct))

    if choice.is_partitioned_by_compiler(implementation, layer.hidden, layer.classifier):
        return auto_mesh.value_with_gradients(loss, implementation, by_definition)(layer, inputs)
    plans = choice.plans_of_gradients(implementation, layer.hidden, layer.classifier)
    if plans is None:
        return by_definition(layer, inputs)
    return with_definition(functools.partial(_in_one_pass, loss, plans), by_definition)(layer, inputs)


def _of_arrays(plain, constants: dict, inputs: Inputs, layer: Layer, moving: Inputs):
    return plain(layer._replace(**constants), replaced(inputs, moving))


def _in_one_pass(loss: Loss, plans: Plans, layer: Layer, inputs: Inputs):
    flat = chunked.flat_layer(layer), flat_inputs(inputs, layer)
    sums, (of_layer, of_inputs) = plans.choose(functools.partial(value_and_gradients, loss), *flat)
    return sums, (chunked.shaped_like(of_layer, layer), inputs_like(of_inputs, inputs))
