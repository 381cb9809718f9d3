"""The losses of a linear layer, from checked arguments to kernels and formulas: what `_linear` shows to the user."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxce import _checks as checks
from jaxce import _dispatch as dispatch
from jaxce import _linear_checks as linear_checks
from jaxce import _sharded_checks as sharded_checks
from jaxce._axes import varying_like
from jaxce._kernels import chunked, reference
from jaxce._kernels.total import total_with_gradients
from jaxce._linear_mesh import by_type
from jaxce._loss_sum import LossSum
from jaxce._reading import label_indices
from jaxce._rule import derived, keep_statistics, made_of, none_if_absent
from jaxce._sharded import local_indices, over_all, share_of_cotangent, weight_of_label
from jaxce._softmax import cross_entropy
from jaxce._stats import LogitStats, of_fields


@functools.partial(jax.jit, static_argnames=("axis_name", "implementation"))
def stats(hidden, classifier, labels, bias, class_weights, soft_cap, *, axis_name, implementation):
    def of_shard(args, _, axis_name):
        flat, shape = _flat(args, axis_name)
        fields = keep_statistics(_kernel(flat, axis_name, implementation))(*flat)
        return of_fields((field.reshape(shape) for field in fields), integer_labels=True)

    args = _checked(hidden, classifier, bias, labels, None, class_weights, soft_cap, axis_name)
    return by_type(of_shard, args, None, axis_name)


@functools.partial(jax.jit, static_argnames=("axis_name", "implementation"))
def losses(hidden, classifier, bias, labels, mask, class_weights, soft_cap, options, *, axis_name, implementation):
    def of_shard(args, options, axis_name):
        flat, shape = _flat(args, axis_name)
        kernel = _kernel(flat, axis_name, implementation)
        return keep_statistics(functools.partial(_of_tokens, kernel, axis_name))(flat, options).reshape(shape)

    args = _checked(hidden, classifier, bias, labels, mask, class_weights, soft_cap, axis_name)
    return by_type(of_shard, args, options, axis_name)


@functools.partial(jax.jit, static_argnames=("axis_name", "implementation"))
def loss_sum(hidden, classifier, bias, labels, mask, class_weights, soft_cap, options, *, axis_name, implementation):
    def of_shard(args, options, axis_name):
        args, _ = _flat(args, axis_name)
        hidden, classifier, _, _, mask, _, _ = args
        options = varying_like(options, (args, options), but=axis_name or ())
        blocks = dispatch.blocks_of_total(implementation, hidden, classifier)
        if blocks is None:
            of_tokens = functools.partial(_of_tokens, reference.statistics(axis_name), axis_name)
            total = jnp.sum(keep_statistics(of_tokens)(args, options))
        else:
            total = _total(*blocks, axis_name)(args, options)
        weight = jnp.asarray(hidden.shape[0], total.dtype) if mask is None else jnp.sum(mask, dtype=total.dtype)
        zero = jnp.zeros((), total.dtype)
        return LossSum(total, weight, zero, zero)

    args = _checked(hidden, classifier, bias, labels, mask, class_weights, soft_cap, axis_name)
    return by_type(of_shard, args, options, axis_name, total=True)


def _checked(hidden, classifier, bias, labels, mask, class_weights, soft_cap, axis_name):
    """The arguments, converted; tokens of any shape."""
    hidden = linear_checks.hidden(hidden)
    classifier = linear_checks.classifier(classifier, hidden)
    bias = linear_checks.bias(bias, classifier)
    labels = checks.class_indices(labels, hidden, hidden.ndim - 1, "hidden")
    mask = checks.mask(mask, hidden.shape[:-1], hidden)
    class_weights = checks.class_weights(class_weights, classifier, 1)
    if axis_name is not None:
        sharded_checks.split_classes("classifier", classifier, axis_name)
    if class_weights is not None:
        class_weights = class_weights.astype(reference.dtype_of_logits(hidden, classifier))
    return hidden, classifier, bias, labels, mask, class_weights, soft_cap


def _flat(args, axis_name):
    """The arguments of the kernels' contract, and the shape of the tokens."""
    hidden, classifier, bias, labels, mask, class_weights, soft_cap = args
    shape = hidden.shape[:-1]
    labels = local_indices(labels.reshape(-1), classifier.shape[1], axis_name)
    # Gradients of what is the same on several devices are summed over them once, not in every block.
    hidden, classifier, bias, class_weights, soft_cap = varying_like(
        (hidden.reshape(-1, hidden.shape[-1]), classifier, bias, class_weights, soft_cap), (args, labels)
    )
    mask = None if mask is None else varying_like(mask.reshape(-1), args, but=axis_name or ())
    return (hidden, classifier, bias, labels, mask, class_weights, soft_cap), shape


def _kernel(args, axis_name, implementation):
    blocks = dispatch.blocks(implementation, *args[:2])
    return reference.statistics(axis_name) if blocks is None else chunked.statistics(*blocks, axis_name)


def _of_tokens(kernel, axis_name, args, options):
    _, _, _, labels, mask, class_weights, _ = args
    label_weight = over_all(weight_of_label(class_weights, label_indices(labels, mask)), axis_name)
    return _formula(kernel(*args), label_weight, mask, options)


def _formula(fields, label_weight, mask, options):
    """The loss of each token from the fields of its `LogitStats`."""
    label_smoothing, z_loss = options
    return cross_entropy(LogitStats(*fields, integer_labels=True), mask, label_smoothing, label_weight, z_loss)


@functools.cache
def _total(of_value, on_cpu, on_gpu, elsewhere, axis_name):
    """The sum of the losses as a function of `(args, options)`, with the rule that makes the gradients along with the value."""

    @jax.custom_jvp
    def total(args, options):
        return _plain_total(args, options, of_value, axis_name)

    def rule(primals, tangents):
        args, options = primals
        tangents = _differentiable(*jax.tree.map(none_if_absent, tangents, is_leaf=lambda x: x is None))
        wanted = (tangents[0] is not None, tangents[1] is not None)
        value, gradients = _with_gradients(of_value, (on_cpu, on_gpu, elsewhere), axis_name, *wanted)(args, options)
        *of_args, of_options = jax.tree.map(
            lambda g, t: None if t is None else jnp.sum(g * t.astype(g.dtype)),
            gradients,
            tangents,
            is_leaf=lambda x: x is None,
        )
        zero = jnp.zeros_like(value)
        contributed = sum(jax.tree.leaves(of_args), zero)
        return value, over_all(contributed, axis_name) + sum(jax.tree.leaves(of_options), zero)

    total.defjvp(rule, symbolic_zeros=True)
    return total


@functools.cache
def _with_gradients(of_value, blocks, axis_name, of_hidden, of_classifier):
    """The sum with its gradients as a function of `(args, options)`; its own derivatives are those of the losses of each token.

    The gradients by `args` are what the classes of this device contribute.
    """

    def in_one_pass(args, options):
        label_smoothing, z_loss = options
        uses = {"rest": z_loss is not None, "label_nll": True, "total_nll": label_smoothing is not None}
        used = tuple(i for i, field in enumerate(dataclasses.fields(LogitStats)) if uses.get(field.name))
        total = functools.partial(
            total_with_gradients,
            _formula,
            used,
            axis_name=axis_name,
            of_hidden=of_hidden,
            of_classifier=of_classifier,
        )
        narrows = [reference.narrows_gradients(*args[:2], on_cpu=on_cpu) for on_cpu in (True, False, False)]
        ways = list(zip(blocks, narrows, strict=True))
        cpu, cuda, elsewhere = (functools.partial(total, blocks=b, narrow=n) for b, n in ways)
        if len(set(ways)) == 1:
            return elsewhere((*args, options))
        return lax.platform_dependent((*args, options), cpu=cpu, cuda=cuda, default=elsewhere)

    def again(args, options):
        def of(differentiable):
            hidden, classifier, bias, class_weights, soft_cap, options = differentiable
            args_ = (hidden, classifier, bias, *args[3:5], class_weights, soft_cap)
            return _plain_total(args_, options, of_value, axis_name)

        value, pull = jax.vjp(of, _differentiable(args, options))
        share, whole = share_of_cotangent(axis_name)
        (gradients,) = pull(jnp.ones_like(value) * share)
        gradients = *gradients[:-1], jax.tree.map(whole, gradients[-1])
        hidden, classifier, *rest = jax.tree.map(lambda g: g.astype(value.dtype), gradients)
        return value, (hidden if of_hidden else None, classifier if of_classifier else None, *rest)

    @jax.custom_jvp
    def function(args, options):
        outs, tree = jax.tree.flatten(in_one_pass(*jax.tree.map(lax.stop_gradient, (args, options))))
        return tree.unflatten(made_of(outs, (args, options), derived(again)))

    @function.defjvp
    def rule(primals, tangents):
        return jax.jvp(again, primals, tangents)

    return function


def _plain_total(args, options, blocks, axis_name):
    of_tokens = functools.partial(_of_tokens, chunked.statistics(blocks, blocks, axis_name), axis_name)
    return jnp.sum(keep_statistics(of_tokens)(args, options))


def _differentiable(args, options):
    hidden, classifier, bias, _, _, class_weights, soft_cap = args
    return hidden, classifier, bias, class_weights, soft_cap, options
