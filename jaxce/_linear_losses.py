"""The losses of a linear layer, from the caller's arguments to blocks and formulas. `_linear` has the public functions."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxce import _checks as checks
from jaxce._blocks import choice, chunked, reference
from jaxce._blocks.mesh import by_type
from jaxce._blocks.reference import Layer
from jaxce._blocks.sizes import Plans
from jaxce._blocks.value_and_gradients import Loss, value_and_gradients
from jaxce._checks import linear as linear_checks
from jaxce._checks import shards as sharded_checks
from jaxce._core import of_counted_rows
from jaxce._core.labels import local_indices, weight_of_label
from jaxce._jax.mesh import AxisName, cotangent_share, psum_over, varying_like
from jaxce._jax.rules import keep_statistics, with_definition, with_jvp
from jaxce._loss_sum import LossSum
from jaxce._softmax import cross_entropy
from jaxce._stats import of_statistics


class Options(NamedTuple):
    """The scalar options of a loss. An option that is None is not used."""

    label_smoothing: Any
    z_loss: Any


@functools.partial(jax.jit, static_argnames=("axis_name", "implementation"))
def stats(layer, *, axis_name, implementation):
    def on_device(layer, _, axis_name):
        flat, shape = _flat(layer, axis_name)
        fields = keep_statistics(_statistics(flat, axis_name, implementation))(flat)
        return of_statistics(jax.tree.map(lambda x: x.reshape(shape), fields), integer_labels=True)

    return by_type(on_device, _checked(layer, axis_name), None, axis_name)


@functools.partial(jax.jit, static_argnames=("axis_name", "implementation"))
def losses(layer, options, *, axis_name, implementation):
    def on_device(layer, options, axis_name):
        flat, shape = _flat(layer, axis_name)
        of_tokens = functools.partial(_of_tokens, _statistics(flat, axis_name, implementation), axis_name)
        return keep_statistics(of_tokens)(flat, options).reshape(shape)

    return by_type(on_device, _checked(layer, axis_name), options, axis_name)


@functools.partial(jax.jit, static_argnames=("axis_name", "implementation"))
def loss_sum(layer, options, *, axis_name, implementation):
    def on_device(layer, options, axis_name):
        flat, _ = _flat(layer, axis_name)
        options = varying_like(options, (flat, options), but=axis_name or ())
        plans = choice.plans_of_sum(implementation, flat.hidden, flat.classifier)
        if plans is None:
            total = _sum_of_losses(
                functools.partial(reference.statistics, axis_name=axis_name), axis_name, flat, options
            )
        else:
            total = _sum_with_rule(*plans, axis_name)(flat, options)
        mask, zero = flat.mask, jnp.zeros((), total.dtype)
        weight = jnp.asarray(flat.hidden.shape[0], total.dtype) if mask is None else jnp.sum(mask, dtype=total.dtype)
        return LossSum(total, weight, zero, zero)

    return by_type(on_device, _checked(layer, axis_name), options, axis_name, is_sum=True)


def _checked(layer: Layer, axis_name: AxisName) -> Layer:
    """Check and convert the arguments. The tokens may have any shape."""
    hidden = linear_checks.hidden(layer.hidden)
    classifier = linear_checks.classifier(layer.classifier, hidden)
    bias = linear_checks.bias(layer.bias, classifier)
    labels = checks.class_indices(layer.labels, hidden, hidden.ndim - 1, "hidden")
    mask = checks.mask(layer.mask, hidden.shape[:-1], hidden)
    class_weights = checks.class_weights(layer.class_weights, classifier, 1)
    if axis_name is not None:
        sharded_checks.split_classes("classifier", classifier, axis_name)
    if class_weights is not None:
        class_weights = class_weights.astype(reference.logits_dtype(hidden, classifier))
    return layer._replace(
        hidden=hidden, classifier=classifier, labels=labels, bias=bias, mask=mask, class_weights=class_weights
    )


def _flat(layer: Layer, axis_name: AxisName):
    """Return the layer with its tokens on one axis and its labels counted from the first local class, and the shape of the tokens."""
    shape, mask = layer.hidden.shape[:-1], layer.mask
    labels = local_indices(layer.labels.reshape(-1), layer.classifier.shape[1], axis_name)
    flat = layer._replace(hidden=layer.hidden.reshape(-1, layer.hidden.shape[-1]), labels=None, mask=None)
    # The gradient with respect to a replicated array is summed over the devices once, not in every block.
    flat = varying_like(flat, (layer, labels))
    mask = None if mask is None else varying_like(mask.reshape(-1), layer, but=axis_name or ())
    return flat._replace(labels=labels, mask=mask), shape


def _statistics(layer: Layer, axis_name: AxisName, implementation):
    plans = choice.plans_of_statistics(implementation, layer.hidden, layer.classifier)
    if plans is None:
        return functools.partial(reference.statistics, axis_name=axis_name)
    return chunked.statistics(plans, axis_name)


def _of_tokens(statistics, axis_name, layer: Layer, options: Options):
    label_weight = psum_over(axis_name, weight_of_label(layer.class_weights, layer.labels, layer.mask))
    return _formula(statistics(layer), label_weight, layer.mask, options)


def _formula(fields, label_weight, mask, options: Options):
    """Return the loss of each token from its statistics. Those of a masked token may be infinite, if its label became class 0."""
    stats = of_statistics(of_counted_rows(fields, mask), integer_labels=True)
    return cross_entropy(stats, mask, options.label_smoothing, label_weight, options.z_loss)


def _sum_of_losses(statistics, axis_name, layer: Layer, options: Options):
    return jnp.sum(keep_statistics(functools.partial(_of_tokens, statistics, axis_name))(layer, options))


@functools.cache
def _sum_with_rule(of_value: Plans, of_gradients: Plans, axis_name: AxisName):
    """Return the function of a layer and options that computes the sum. Its rule computes the gradients together with the value."""
    plain = functools.partial(_sum_of_losses, chunked.statistics(of_value, axis_name), axis_name)

    def jvp(args, dots):
        of_hidden, of_classifier = dots[0].hidden is not None, dots[0].classifier is not None
        value, gradients = _with_gradients(plain, of_gradients, of_hidden, of_classifier, axis_name)(*args)
        of_layer, of_options = (
            sum(map(_inner, *_pairs(gradient, dot)), jnp.zeros_like(value))
            for gradient, dot in zip(gradients, dots, strict=True)
        )
        return value, psum_over(axis_name, of_layer) + of_options

    return with_jvp(plain, jvp)


def _pairs(gradients, dots):
    """Return the gradients and the tangents of the arrays whose tangent is not a symbolic zero."""
    pairs = [(g, t) for g, t in zip(gradients, dots, strict=True) if g is not None and t is not None]
    return zip(*pairs, strict=True) if pairs else ((), ())


def _inner(gradient, dot):
    return jnp.sum(gradient * dot.astype(gradient.dtype))


@functools.cache
def _with_gradients(plain, plans: Plans, of_hidden: bool, of_classifier: bool, axis_name: AxisName):
    """Return the function of a layer and options that computes the sum and its gradients. Its derivatives are those of `plain`.

    The gradients with respect to the layer are the contributions of this device's classes.
    """

    def in_one_pass(layer, options):
        used = {"sum_exp_rest": options.z_loss, "label_nll": True, "uniform_nll": options.label_smoothing}
        used = tuple(name for name, value in used.items() if value is not None)
        loss = Loss(_formula, used, of_hidden, of_classifier, axis_name)
        value, *gradients = plans.choose(functools.partial(value_and_gradients, loss), layer, options)
        return value, tuple(gradients)

    def by_definition(layer, options):
        arrays = layer._replace(labels=None, mask=None)
        value, pull = jax.vjp(lambda x, y: plain(x._replace(labels=layer.labels, mask=layer.mask), y), arrays, options)
        share, whole = cotangent_share(axis_name)
        layer_ct, options_ct = jax.tree.map(lambda g: g.astype(value.dtype), pull(jnp.ones_like(value) * share))
        hidden_ct, classifier_ct = (
            g if wanted else None for g, wanted in ((layer_ct.hidden, of_hidden), (layer_ct.classifier, of_classifier))
        )
        return value, (layer_ct._replace(hidden=hidden_ct, classifier=classifier_ct), jax.tree.map(whole, options_ct))

    return with_definition(in_one_pass, by_definition)
