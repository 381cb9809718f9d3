"""The sum of the losses of a linear layer and its gradients, computed in one pass over blocks of tokens. `chunked` defines a block of logits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxce._blocks import loops
from jaxce._blocks.chunked import block_jvp, statistics_of_tokens, token_rows
from jaxce._blocks.inputs import Inputs, replaced, selected
from jaxce._blocks.reference import Layer, block_of, dot, logits_dtype, operand_dtype, without_masked
from jaxce._blocks.sizes import Blocks
from jaxce._core.definition import Derivatives, Statistics
from jaxce._core.merge import merge_devices
from jaxce._jax.mesh import AxisName, varying_like


class Loss(NamedTuple):
    """A loss over the statistics of a token, and the gradients that are wanted."""

    function: Callable[..., Any]  # function(stats, mask, inputs) -> (losses, metrics) of some tokens, metrics by name
    used: tuple[str, ...]  # the statistics that the derivative of the losses depends on
    of_hidden: bool  # whether the gradient with respect to `hidden` is wanted, which takes one of the matmuls
    of_classifier: bool
    of_inputs: Inputs  # booleans
    metrics: tuple[str, ...]  # the names of the metrics
    axis_name: AxisName = None


class Sums(NamedTuple):
    """The sums over tokens: the loss, the metrics, and the gradients with respect to arrays without a token axis. None is not wanted."""

    loss: Any
    metrics: Any
    classifier: Any
    bias: Any
    label_weights: Any
    class_weights: Any
    soft_cap: Any
    bound: Any


class _Results(NamedTuple):
    """Gradients with one row per token. None is not wanted, or not computed yet."""

    hidden: Any = None
    temperature: Any = None
    per_row: Any = None
    logits: Any = None  # those of whole rows, which `_of_group` multiplies


class _Tokens(NamedTuple):
    """A block of tokens: its layer, the statistics of its rows, their cotangents, and the raw logits if they are still stored."""

    layer: Layer
    stats: Statistics
    cotangents: dict
    raw: Any
    hidden_transposed: Any


def value_and_gradients(loss: Loss, blocks: Blocks, layer: Layer, inputs: Inputs):
    """Return `((value, metrics), (of_layer, of_inputs))`: the sums of the losses and the metrics of all tokens, and the gradients of the value.

    Masked tokens come last, and blocks with only masked tokens are skipped, so with a mask the number of blocks is dynamic. If a block has all
    classes, value and gradients take three matmuls, otherwise four. Devices communicate only to merge the statistics of a block of tokens. So the
    gradients with respect to the layer are the contributions of the given classes. They have the dtype of the statistics. The labels have none.
    """
    dtype = logits_dtype(layer.hidden, layer.classifier)
    zeros = functools.partial(_zeros, dtype, (layer, inputs))
    replicated = functools.partial(zeros, but=loss.axis_name or ())
    wanted = selected(inputs, loss.of_inputs)
    rows = token_rows(layer) | {"per_row": inputs.per_row}
    of_block = functools.partial(_of_block, loss, blocks, layer, inputs)
    sums = Sums(
        loss=replicated(jnp.zeros(())),
        metrics=replicated(dict.fromkeys(loss.metrics, jnp.zeros(()))),
        classifier=zeros(layer.classifier if loss.of_classifier else None),
        bias=zeros(layer.bias),
        label_weights=zeros(layer.label_weights),
        class_weights=zeros(layer.class_weights),
        soft_cap=zeros(layer.soft_cap),
        bound=replicated(wanted.bound),
    )
    of_group = functools.partial(_of_group, loss, blocks, layer)
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
    return (sums.loss, sums.metrics), (gradients, Inputs(results.per_row, sums.bound))


def _of_block(loss: Loss, blocks: Blocks, layer: Layer, inputs: Inputs, sums: Sums, rows):
    """Add the losses and gradients of a block of tokens. The results are gradients of these tokens."""
    layer, inputs = _of_rows(layer, inputs, rows)
    layer = without_masked(layer)
    own_stats, raw = statistics_of_tokens(layer, blocks.classes)
    stats = merge_devices(own_stats, loss.axis_name)

    def total(used: dict, wanted: Inputs):
        whole = stats._replace(**used)
        losses, metrics = loss.function(whole, layer.mask, replaced(inputs, wanted))
        return jnp.sum(losses), jax.tree.map(jnp.sum, metrics)

    used, wanted = {name: getattr(stats, name) for name in loss.used}, selected(inputs, loss.of_inputs)
    value, pull, metrics = jax.vjp(total, used, wanted, has_aux=True)
    cotangents, inputs_ct = pull(jnp.ones_like(value))
    cotangents = varying_like(cotangents, (layer, inputs))
    sums = sums._replace(
        loss=sums.loss + value, metrics=_plus(sums.metrics, metrics), bound=_plus(sums.bound, inputs_ct.bound)
    )
    tokens = _Tokens(layer, stats, cotangents, raw, loops.transposed(layer.hidden))
    of_classes = functools.partial(_of_classes, loss, blocks, tokens)
    zeros = functools.partial(_zeros, value.dtype, (layer, inputs))
    hidden_ct = zeros(layer.hidden) if loss.of_hidden and raw is None else None
    results = _Results(hidden=hidden_ct, temperature=zeros(layer.temperature), per_row=inputs_ct.per_row)
    return loops.over_classes(of_classes, (sums, results), layer.classifier.shape[1], blocks.classes)


def _of_rows(layer: Layer, inputs: Inputs, rows: dict) -> tuple[Layer, Inputs]:
    """Return the layer and the inputs of some tokens."""
    of_layer = {name: row for name, row in rows.items() if name != "per_row"}
    return layer._replace(**of_layer), inputs._replace(per_row=rows["per_row"])


def _of_classes(loss: Loss, blocks: Blocks, tokens: _Tokens, carry, start, size):
    """Add the gradients of a block of classes."""
    sums, results = carry
    part = loops.some_classes(tokens.layer, start, size)
    block = block_of(part, tokens.raw)

    def jvp(dots):
        stats_dots = block_jvp(block, tokens.stats, dots)
        # The mass of an integer label has no tangent.
        return {name: dot for name in loss.used if (dot := getattr(stats_dots, name)) is not None}

    zeros = _zeros(
        block.raw.dtype,
        (tokens.layer, tokens.cotangents),
        block._replace(labels=None, where=None, first_class=None, top_labels=None),
    )
    moving = loss.used if set(loss.used) <= set(Derivatives._fields) else jax.eval_shape(jvp, zeros)
    cotangents = {name: tokens.cotangents[name] for name in moving}
    (cts,) = jax.linear_transpose(jvp, zeros)(cotangents)
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
    hidden = without_masked(layer._replace(**{name: rows[name] for name in token_rows(layer)})).hidden
    hidden_ct = _zeros(sums.loss.dtype, layer, hidden) if loss.of_hidden else None
    results = results._replace(hidden=hidden_ct, logits=None)
    return _add_products(loss, sums, results, logits_ct, loops.transposed(hidden), layer.classifier, 0)


def _add_products(loss: Loss, sums: Sums, results: _Results, logits_ct, hidden_transposed, classifier, start):
    if loss.of_hidden:
        results = results._replace(hidden=results.hidden + dot(logits_ct, classifier, 1, 1))
    if loss.of_classifier:
        sums = sums._replace(classifier=loops.add_matmul(sums.classifier, hidden_transposed, logits_ct, start))
    return sums, results


def _plus(sums, parts):
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, parts)


def _plus_at(sums, part, start):
    return None if sums is None else loops.add_at(sums, part, start)


def _zeros(dtype, vary_like, arrays, but=()):
    return varying_like(jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), arrays), vary_like, but=but)
