"""The sum of the losses of a linear layer and its gradients, computed in one pass over blocks of tokens. `chunked` defines a block of logits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._blocks import loops
from jaxce._blocks.chunked import block_jvp, statistics_of_tokens, token_rows
from jaxce._blocks.reference import (
    Layer,
    block_of,
    dot,
    has_integer_labels,
    logits_dtype,
    operand_dtype,
    without_masked,
)
from jaxce._blocks.sizes import Blocks
from jaxce._core.definition import Statistics
from jaxce._core.labels import weight_of_label
from jaxce._core.merge import merge_devices
from jaxce._jax.mesh import AxisName, psum_over, varying_like


class Loss(NamedTuple):
    """A loss over the statistics of a token, and the gradients that are wanted."""

    function: Callable[..., Any]  # function(stats, label_weight, mask, options) -> losses of some tokens
    used: tuple[str, ...]  # the statistics that the loss depends on
    of_hidden: bool  # whether the gradient with respect to `hidden` is wanted, which takes one of the matmuls
    of_classifier: bool
    axis_name: AxisName = None


class Sums(NamedTuple):
    """The sums over tokens: the loss, and the gradients with respect to arrays without a token axis. None is not wanted."""

    loss: Any
    classifier: Any
    bias: Any
    label_weights: Any
    class_weights: Any
    soft_cap: Any
    options: Any


class _Results(NamedTuple):
    """Gradients with one row per token. None is not wanted, or not computed yet."""

    hidden: Any = None
    temperature: Any = None
    logits: Any = None  # those of whole rows, which `_of_group` multiplies


class _Tokens(NamedTuple):
    """A block of tokens: its layer, the statistics of its rows, their cotangents, and the raw logits if they are still stored."""

    layer: Layer
    stats: Statistics
    cotangents: tuple
    raw: Any
    hidden_transposed: Any


def value_and_gradients(loss: Loss, blocks: Blocks, layer: Layer, options) -> tuple[Any, Layer, Any]:
    """Return the sum of the losses of all tokens, and its gradients with respect to the layer and to the options, a pytree of scalars.

    Masked tokens come last, and blocks with only masked tokens are skipped, so with a mask the number of blocks is dynamic. If a block has all
    classes, value and gradients take three matmuls, otherwise four. Devices communicate only to merge the statistics of a block of tokens. So the
    gradients with respect to the layer are the contributions of the given classes. They have the dtype of the statistics. The labels have none.
    """
    dtype = logits_dtype(layer.hidden, layer.classifier)
    zeros = functools.partial(_zeros, dtype, (layer, options))
    replicated = functools.partial(zeros, but=loss.axis_name or ())
    sums = Sums(
        loss=replicated(jnp.zeros(())),
        classifier=zeros(layer.classifier if loss.of_classifier else None),
        bias=zeros(layer.bias),
        label_weights=zeros(layer.label_weights),
        class_weights=zeros(layer.class_weights),
        soft_cap=zeros(layer.soft_cap),
        options=replicated(options),
    )
    of_block = functools.partial(_of_block, loss, blocks, layer, options)
    of_group = functools.partial(_of_group, loss, blocks, layer)
    rows = token_rows(layer)
    if loops.has_all(blocks.tokens, layer.hidden.shape[0]):
        sums, results = of_block(sums, rows)
        sums, results = of_group(sums, rows, results)
    else:
        # If devices communicate, each must visit all blocks, because all devices must take part in the same number of merges.
        skips = loss.axis_name is None and layer.mask is not None
        sums, results = loops.over_valid_tokens(of_block, of_group, sums, rows, blocks, skips=skips)
    gradients = Layer(
        hidden=results.hidden,
        classifier=sums.classifier,
        labels=None,
        bias=sums.bias,
        label_weights=sums.label_weights,
        class_weights=sums.class_weights,
        soft_cap=sums.soft_cap,
        temperature=results.temperature,
    )
    return sums.loss, gradients, sums.options


def _of_block(loss: Loss, blocks: Blocks, layer: Layer, options, sums: Sums, rows):
    """Add the losses and gradients of a block of tokens. The results are gradients of these tokens."""
    layer = without_masked(layer._replace(**rows))
    own_stats, raw = statistics_of_tokens(layer, blocks.classes)
    stats = merge_devices(own_stats, loss.axis_name)
    own_weight, pull_weight = jax.vjp(functools.partial(_weight_of_label, layer), layer.class_weights)
    label_weight = psum_over(loss.axis_name, own_weight)

    def total(used, label_weight, options):
        whole = stats._replace(**dict(zip(loss.used, used, strict=True)))
        return jnp.sum(loss.function(whole, label_weight, layer.mask, options))

    value, pull = jax.vjp(total, tuple(getattr(stats, name) for name in loss.used), label_weight, options)
    cotangents, weight_ct, options_ct = pull(jnp.ones_like(value))
    cotangents, weight_ct = varying_like((cotangents, weight_ct), (layer, options))
    (class_weights_ct,) = pull_weight(weight_ct)
    sums = sums._replace(
        loss=sums.loss + value,
        class_weights=_plus(sums.class_weights, class_weights_ct),
        options=_plus(sums.options, options_ct),
    )
    tokens = _Tokens(layer, stats, cotangents, raw, _transposed(layer.hidden))
    of_classes = functools.partial(_of_classes, loss, blocks, tokens)
    zeros = functools.partial(_zeros, value.dtype, (layer, options))
    hidden_ct = zeros(layer.hidden) if loss.of_hidden and raw is None else None
    results = _Results(hidden=hidden_ct, temperature=zeros(layer.temperature))
    return loops.over_classes(of_classes, (sums, results), layer.classifier.shape[1], blocks.classes)


def _weight_of_label(layer: Layer, class_weights):
    """Return the class weight of each integer label, or None. Class probabilities have been multiplied by theirs."""
    return weight_of_label(class_weights, layer.labels, None) if has_integer_labels(layer) else None


def _of_classes(loss: Loss, blocks: Blocks, tokens: _Tokens, carry, start, size):
    """Add the gradients of a block of classes."""
    sums, results = carry
    part = loops.some_classes(tokens.layer, start, size)
    block = block_of(part, tokens.raw)

    def jvp(dots):
        stats_dots = block_jvp(block, tokens.stats, dots)
        return tuple(getattr(stats_dots, name) for name in loss.used)

    zeros = _zeros(block.raw.dtype, (tokens.layer, tokens.cotangents), block._replace(labels=None, where=None))
    (cts,) = jax.linear_transpose(jvp, zeros)(tokens.cotangents)
    narrow_ct = cts.raw.astype(operand_dtype(part.hidden, part.classifier)) if blocks.narrow else cts.raw
    results = results._replace(temperature=_plus(results.temperature, cts.temperature))
    if tokens.raw is not None:
        results = results._replace(logits=narrow_ct if loss.of_hidden or loss.of_classifier else None)
    else:
        sums, results = _add_products(loss, sums, results, narrow_ct, tokens.hidden_transposed, part.classifier, start)
    sums = sums._replace(
        bias=None if sums.bias is None else loops.add_at(sums.bias, jnp.sum(cts.raw, 0), start),
        label_weights=_plus_at(sums.label_weights, cts.label_weights, start),
        class_weights=_plus_at(sums.class_weights, cts.class_weights, start),
        soft_cap=_plus(sums.soft_cap, cts.soft_cap),
    )
    return sums, results


def _of_group(loss: Loss, blocks: Blocks, layer: Layer, sums: Sums, rows, results: _Results):
    """Multiply gradients with respect to whole rows of logits into the gradients of hidden and classifier, for all tokens of a group at once."""
    logits_ct = results.logits
    if logits_ct is None:
        return sums, results
    hidden = without_masked(layer._replace(**rows)).hidden
    hidden_ct = _zeros(sums.loss.dtype, layer, hidden) if loss.of_hidden else None
    results = results._replace(hidden=hidden_ct, logits=None)
    return _add_products(loss, sums, results, logits_ct, _transposed(hidden), layer.classifier, 0)


def _add_products(loss: Loss, sums: Sums, results: _Results, logits_ct, hidden_transposed, classifier, start):
    if loss.of_hidden:
        results = results._replace(hidden=results.hidden + dot(logits_ct, classifier, 1, 1))
    if loss.of_classifier:
        sums = sums._replace(classifier=loops.add_matmul(sums.classifier, hidden_transposed, logits_ct, start))
    return sums, results


def _transposed(hidden):
    """Return the transpose, computed once: a matmul with a transposed operand is slower on a CPU."""
    return lax.optimization_barrier(hidden.T)


def _plus(sums, parts):
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, parts)


def _plus_at(sums, part, start):
    return None if sums is None else loops.add_at(sums, part, start)


def _zeros(dtype, vary_like, arrays, but=()):
    return varying_like(jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), arrays), vary_like, but=but)
