"""The losses of a linear layer, from checked arguments to kernels and formulas: what `_linear` shows to the user."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxce import _checks as checks
from jaxce import _dispatch as dispatch
from jaxce import _linear_checks as linear_checks
from jaxce._dense import label_indices
from jaxce._kernels import chunked, reference
from jaxce._loss_sum import LossSum
from jaxce._rule import keep_statistics, none_if_absent
from jaxce._softmax import cross_entropy
from jaxce._stats import LogitStats


@functools.partial(jax.jit, static_argnames="implementation")
def stats(hidden, classifier, labels, bias, class_weights, soft_cap, *, implementation):
    args, shape = _checked(hidden, classifier, bias, labels, None, class_weights, soft_cap)
    fields = keep_statistics(_kernel(args, implementation))(*args)
    return LogitStats(*(field.reshape(shape) for field in fields), integer_labels=True)


@functools.partial(jax.jit, static_argnames="implementation")
def losses(hidden, classifier, bias, labels, mask, class_weights, soft_cap, options, *, implementation):
    args, shape = _checked(hidden, classifier, bias, labels, mask, class_weights, soft_cap)
    kernel = _kernel(args, implementation)
    return keep_statistics(functools.partial(_of_tokens, kernel))(args, options).reshape(shape)


@functools.partial(jax.jit, static_argnames="implementation")
def loss_sum(hidden, classifier, bias, labels, mask, class_weights, soft_cap, options, *, implementation):
    args, _ = _checked(hidden, classifier, bias, labels, mask, class_weights, soft_cap)
    hidden, classifier, _, _, mask, _, _ = args
    blocks = dispatch.blocks(implementation, hidden.shape[0], classifier.shape[1], total=True)
    if blocks is None:
        total = jnp.sum(keep_statistics(functools.partial(_of_tokens, reference.statistics))(args, options))
    else:
        total = _total(blocks)(args, options)
    weight = jnp.asarray(hidden.shape[0], total.dtype) if mask is None else jnp.sum(mask, dtype=total.dtype)
    return LossSum(total, weight)


def _checked(hidden, classifier, bias, labels, mask, class_weights, soft_cap):
    """The arguments of the kernels' contract, and the shape of the tokens."""
    hidden = linear_checks.hidden(hidden)
    shape = hidden.shape[:-1]
    classifier = linear_checks.classifier(classifier, hidden)
    bias = linear_checks.bias(bias, classifier)
    labels = checks.class_indices(labels, hidden, hidden.ndim - 1, "hidden").reshape(-1)
    mask = checks.mask(mask, shape, hidden)
    class_weights = checks.class_weights(class_weights, classifier, 1)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    if class_weights is not None:
        class_weights = class_weights.astype(reference.dtype_of_logits(hidden, classifier))
    return (
        hidden,
        classifier,
        bias,
        labels,
        None if mask is None else mask.reshape(-1),
        class_weights,
        soft_cap,
    ), shape


def _kernel(args, implementation):
    hidden, classifier = args[:2]
    blocks = dispatch.blocks(implementation, hidden.shape[0], classifier.shape[1], total=False)
    return reference.statistics if blocks is None else chunked.statistics(blocks)


def _of_tokens(kernel, args, options):
    _, _, _, labels, mask, class_weights, _ = args
    return _formula(kernel(*args), labels, mask, class_weights, options)


def _formula(fields, labels, mask, class_weights, options):
    """The loss of each token from the fields of its `LogitStats`."""
    label_smoothing, z_loss = options
    label_weight = None
    if class_weights is not None:
        # Of a label that is no class the weight may be any, as its loss is NaN.
        label_weight = class_weights.at[label_indices(labels, mask)].get(mode="clip")
    return cross_entropy(LogitStats(*fields, integer_labels=True), mask, label_smoothing, label_weight, z_loss)


@functools.cache
def _total(blocks):
    """The sum of the losses as a function of `(args, options)`, with the rule that makes the gradients along with the value."""

    @jax.custom_jvp
    def total(args, options):
        return _plain_total(args, options, blocks)

    def rule(primals, tangents):
        args, options = primals
        tangents = _differentiable(*jax.tree.map(none_if_absent, tangents, is_leaf=lambda x: x is None))
        value, gradients = _with_gradients(blocks, tangents[0] is not None, tangents[1] is not None)(args, options)
        terms = jax.tree.map(
            lambda g, t: None if t is None else jnp.sum(g * t.astype(g.dtype)),
            gradients,
            tangents,
            is_leaf=lambda x: x is None,
        )
        return value, sum(jax.tree.leaves(terms), jnp.zeros_like(value))

    total.defjvp(rule, symbolic_zeros=True)
    return total


@functools.cache
def _with_gradients(blocks, of_hidden, of_classifier):
    """The sum with its gradients as a function of `(args, options)`; its own derivatives are those of the losses of each token."""

    @jax.custom_jvp
    def function(args, options):
        label_smoothing, z_loss = options
        uses = {"rest": z_loss is not None, "label_nll": True, "total_nll": label_smoothing is not None}
        used = tuple(i for i, field in enumerate(dataclasses.fields(LogitStats)) if uses.get(field.name))
        value, gradients = chunked.total_with_gradients(
            _formula, used, (*args, options), blocks, of_hidden=of_hidden, of_classifier=of_classifier
        )
        return value, gradients

    def again(args, options):
        def of(differentiable):
            hidden, classifier, bias, class_weights, soft_cap, options = differentiable
            return _plain_total((hidden, classifier, bias, *args[3:5], class_weights, soft_cap), options, blocks)

        value, gradients = jax.value_and_grad(of)(_differentiable(args, options))
        hidden, classifier, *rest = jax.tree.map(lambda g: g.astype(value.dtype), gradients)
        return value, (hidden if of_hidden else None, classifier if of_classifier else None, *rest)

    @function.defjvp
    def rule(primals, tangents):
        return jax.jvp(again, primals, tangents)

    return function


def _plain_total(args, options, blocks):
    return jnp.sum(keep_statistics(functools.partial(_of_tokens, chunked.statistics(blocks)))(args, options))


def _differentiable(args, options):
    hidden, classifier, bias, _, _, class_weights, soft_cap = args
    return hidden, classifier, bias, class_weights, soft_cap, options
