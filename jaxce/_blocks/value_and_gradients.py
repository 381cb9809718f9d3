"""The sum of the losses of a linear layer and its gradients, computed in one pass over blocks of tokens. `chunked` defines a block of logits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._blocks import loops
from jaxce._blocks.chunked import Block, block_jvp, statistics_of_tokens, token_rows
from jaxce._blocks.reference import Layer, dot, logits_dtype, operand_dtype, raw_logits
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
    class_weights: Any
    soft_cap: Any
    options: Any


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
    gradients with respect to the layer are the contributions of the given classes. They have the dtype of the statistics.
    """
    dtype = logits_dtype(layer.hidden, layer.classifier)
    zeros = functools.partial(_zeros, dtype, (layer, options))
    replicated = functools.partial(zeros, but=loss.axis_name or ())
    sums = Sums(
        loss=replicated(jnp.zeros(())),
        classifier=zeros(layer.classifier if loss.of_classifier else None),
        bias=zeros(layer.bias),
        class_weights=zeros(layer.class_weights),
        soft_cap=zeros(layer.soft_cap),
        options=replicated(options),
    )
    of_block = functools.partial(_of_block, loss, blocks, layer, options)
    of_group = functools.partial(_of_group, loss, blocks, layer)
    rows = token_rows(layer) | {"mask": layer.mask}
    if loops.has_all(blocks.tokens, layer.hidden.shape[0]):
        sums, results = of_block(sums, rows)
        sums, hidden_ct = of_group(sums, rows, results)
    else:
        # If devices communicate, each must visit all blocks, because all devices must take part in the same number of merges.
        skips = loss.axis_name is None and layer.mask is not None
        sums, hidden_ct = loops.over_valid_tokens(of_block, of_group, sums, rows, blocks, skips=skips)
    gradients = Layer(
        hidden=hidden_ct,
        classifier=sums.classifier,
        labels=None,
        bias=sums.bias,
        class_weights=sums.class_weights,
        soft_cap=sums.soft_cap,
    )
    return sums.loss, gradients, sums.options


def _of_block(loss: Loss, blocks: Blocks, layer: Layer, options, sums: Sums, rows):
    """Add the losses and gradients of a block of tokens.

    The results are gradients with respect to `hidden`, or gradients with respect to whole rows of logits, which `_of_group` multiplies.
    """
    layer = layer._replace(**rows)
    own_stats, raw = statistics_of_tokens(layer, blocks.classes)
    stats = merge_devices(own_stats, loss.axis_name)
    own_weight, pull_weight = jax.vjp(lambda u: weight_of_label(u, layer.labels, None), layer.class_weights)
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
    hidden_ct = _zeros(value.dtype, (layer, options), layer.hidden) if loss.of_hidden and raw is None else None
    return loops.over_classes(of_classes, (sums, hidden_ct), layer.classifier.shape[1], blocks.classes)


def _of_classes(loss: Loss, blocks: Blocks, tokens: _Tokens, carry, start, size):
    """Add the gradients of a block of classes."""
    sums, results = carry
    part = loops.some_classes(tokens.layer, start, size)
    raw = raw_logits(part.hidden, part.classifier, part.bias) if tokens.raw is None else tokens.raw
    block = Block(raw, part.labels, part.class_weights, part.soft_cap)

    def jvp(raw_dot, class_weights_dot, soft_cap_dot):
        dots = block_jvp(block, tokens.stats, Block(raw_dot, None, class_weights_dot, soft_cap_dot))
        return tuple(getattr(dots, name) for name in loss.used)

    zeros = _zeros(raw.dtype, (tokens.layer, tokens.cotangents), (part.class_weights, part.soft_cap))
    raw_ct, class_weights_ct, soft_cap_ct = jax.linear_transpose(jvp, raw, *zeros)(tokens.cotangents)
    narrow_ct = raw_ct.astype(operand_dtype(part.hidden, part.classifier)) if blocks.narrow else raw_ct
    if tokens.raw is not None:
        results = narrow_ct if loss.of_hidden or loss.of_classifier else None
    else:
        sums, results = _add_products(loss, sums, results, narrow_ct, tokens.hidden_transposed, part.classifier, start)
    sums = sums._replace(
        bias=None if sums.bias is None else loops.add_at(sums.bias, jnp.sum(raw_ct, 0), start),
        class_weights=None if class_weights_ct is None else loops.add_at(sums.class_weights, class_weights_ct, start),
        soft_cap=_plus(sums.soft_cap, soft_cap_ct),
    )
    return sums, results


def _of_group(loss: Loss, blocks: Blocks, layer: Layer, sums: Sums, rows, results):
    """Multiply gradients with respect to whole rows of logits into the gradients of hidden and classifier, for all tokens of a group at once."""
    if results is None or not loops.has_all(blocks.classes, layer.classifier.shape[1]):
        return sums, results
    hidden = rows["hidden"]
    hidden_ct = _zeros(sums.loss.dtype, layer, hidden) if loss.of_hidden else None
    return _add_products(loss, sums, hidden_ct, results, _transposed(hidden), layer.classifier, 0)


def _add_products(loss: Loss, sums: Sums, hidden_ct, logits_ct, hidden_transposed, classifier, start):
    if loss.of_hidden:
        hidden_ct = hidden_ct + dot(logits_ct, classifier, (1, 1))
    if loss.of_classifier:
        sums = sums._replace(classifier=loops.add_matmul(sums.classifier, hidden_transposed, logits_ct, start))
    return sums, hidden_ct


def _transposed(hidden):
    """Return the transpose, computed once: a matmul with a transposed operand is slower on a CPU."""
    return lax.optimization_barrier(hidden.T)


def _plus(sums, parts):
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, parts)


def _zeros(dtype, vary_like, arrays, but=()):
    return varying_like(jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), arrays), vary_like, but=but)
