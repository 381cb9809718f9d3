"""The statistics of `reference` in plain XLA on any device, with at most one block of logits stored at a time.

The tokens are cut into blocks, and so are the classes. The statistics of blocks of classes are merged. The derivative with respect to a logit
needs only the statistics of its row. So the derivatives take a second pass over the blocks of classes. This pass recomputes the logits, unless
one block has all classes and its logits are still stored.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxce import _core as core
from jaxce._blocks import loops
from jaxce._blocks.reference import Layer, apply_soft_cap, dot, logits_dtype, masked, operand_dtype, raw_logits
from jaxce._blocks.sizes import Blocks, Plans
from jaxce._core.definition import Statistics
from jaxce._core.merge import merge, merge_devices
from jaxce._jax.mesh import AxisName, is_explicit, psum_over, varying_like
from jaxce._jax.rules import choose, linear, with_rule


class Block(NamedTuple):
    """The logits of some tokens for some classes, before the soft cap, with labels that count from the first of these classes."""

    raw: Any
    labels: Any
    class_weights: Any = None
    soft_cap: Any = None


@functools.cache
def statistics(plans: Plans, axis_name: AxisName = None):
    """Return the function of a `Layer` that computes the statistics of each token, with its derivative rule."""

    def value(layer):
        own = plans.choose(_value, layer)
        return merge_devices(own, axis_name)

    def tangent(args, outs, tangents):
        return psum_over(axis_name, plans.choose(_tangent, *args, outs, *tangents))

    return with_rule(value, tangent)


def _value(blocks: Blocks, layer: Layer) -> Statistics:
    def of_tokens(rows):
        return statistics_of_tokens(layer._replace(**rows), blocks.classes)[0]

    return loops.map_tokens(of_tokens, token_rows(layer), blocks.tokens)


def _tangent(blocks: Blocks, layer: Layer, stats: Statistics, dots: Layer) -> Statistics:
    dtype = stats.label_nll.dtype
    # Cast the tangents to the dtype of the statistics, because reverse mode sums their cotangents over blocks in the dtype of the tangents.
    dots = jax.tree.map(lambda dot: dot.astype(dtype), dots)
    of_tokens = functools.partial(_tangent_of_tokens, blocks, layer, dots)
    return loops.map_tokens(of_tokens, (token_rows(layer), dots.hidden, stats), blocks.tokens)


def _tangent_of_tokens(blocks: Blocks, layer: Layer, dots: Layer, rows) -> Statistics:
    tokens, hidden_dot, stats = rows
    layer, dots = layer._replace(**tokens), dots._replace(hidden=hidden_dot)

    # The checkpoint makes reverse mode recompute each block instead of storing residuals of every block.
    @functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=1)
    def of_classes(start, size):
        part, part_dots = loops.some_classes(layer, start, size), loops.some_classes(dots, start, size)
        raw = raw_logits(part.hidden, part.classifier, part.bias)
        block = Block(raw, part.labels, part.class_weights, part.soft_cap)
        return block_jvp(
            block, stats, Block(_raw_logits_dot(part, part_dots), None, part_dots.class_weights, dots.soft_cap)
        )

    return loops.sum_over_classes(of_classes, layer.classifier.shape[1], blocks.classes, (layer, dots))


def _raw_logits_dot(layer: Layer, dots: Layer):
    """Return the tangent of `raw_logits`; None if it is 0."""
    of_hidden, of_classifier = _products_with_tangents(operand_dtype(layer.hidden, layer.classifier))
    shape = layer.hidden.shape[0], layer.classifier.shape[1]
    terms = [] if dots.hidden is None else [of_hidden(dots.hidden, layer.classifier)]
    terms += [] if dots.classifier is None else [of_classifier(dots.classifier, layer.hidden)]
    terms += [] if dots.bias is None else [jnp.broadcast_to(dots.bias, shape)]
    return sum(terms[1:], terms[0]) if terms else None


def token_rows(layer: Layer) -> dict:
    """Return the arrays with one row per token. A masked token becomes zeros with label 0, so that its NaNs cannot spread."""
    labels = layer.labels if layer.mask is None else jnp.where(layer.mask, layer.labels, 0)
    return {"hidden": masked(layer.hidden, layer.mask), "labels": labels}


def statistics_of_tokens(layer: Layer, block: int | None):
    """Return the statistics of a block of tokens, merged over blocks of classes. Also return the raw logits if one block has all classes."""
    num_classes = layer.classifier.shape[1]

    def of_classes(start, size):
        part = loops.some_classes(layer, start, size)
        raw = raw_logits(part.hidden, part.classifier, part.bias)
        logits = apply_soft_cap(raw, layer.soft_cap)
        return core.statistics(logits, part.labels, None, None, part.class_weights, axis=1), raw

    if loops.has_all(block, num_classes):
        return of_classes(0, num_classes)
    zero = jnp.zeros(layer.hidden.shape[0], logits_dtype(layer.hidden, layer.classifier))
    nothing = varying_like(Statistics(jnp.full_like(zero, -jnp.inf), *(zero,) * 7), layer)
    merged = loops.over_classes(
        lambda stats, start, size: _merge(stats, of_classes(start, size)[0]), nothing, num_classes, block
    )
    return merged, None


_merge = jax.jit(merge, inline=True)  # traced once for all blocks of the same size


def block_jvp(block: Block, stats: Statistics, dots: Block) -> Statistics:
    """Return the contribution of a block of classes to the tangents of the statistics of its rows."""
    logits, logits_dot = block.raw, dots.raw
    if block.soft_cap is not None:
        raw_dot = jnp.zeros_like(block.raw) if dots.raw is None else dots.raw
        cap_dot = (
            jnp.zeros_like(block.soft_cap) if dots.soft_cap is None else dots.soft_cap.astype(block.soft_cap.dtype)
        )
        logits, logits_dot = jax.jvp(apply_soft_cap, (block.raw, block.soft_cap), (raw_dot, cap_dot))
    rows = core.Rows(logits, block.labels, block.class_weights, core.Source(logits))
    return core.statistics_jvp(rows, stats, core.Rows(logits_dot, None, dots.class_weights, None), axis=1)


def _products_with_tangents(operands):
    """Return `hidden_dot @ classifier` and `hidden @ classifier_dot` as functions that are linear in the tangent, their first argument.

    If the operands are bfloat16, a GPU multiplies the cotangent in bfloat16 too, as for any matmul of the layer. The range of float16 is too small.
    """

    def of_hidden(hidden_dot, classifier):
        return dot(hidden_dot, classifier, (1, 0))

    def of_classifier(classifier_dot, hidden):
        return dot(hidden, classifier_dot, (1, 0))

    if operands != jnp.bfloat16:
        return of_hidden, of_classifier
    transposes = (lambda ct, classifier: dot(ct, classifier, (1, 1)), lambda ct, hidden: dot(hidden, ct, (0, 0)))
    return tuple(map(_narrowed_on_gpu, (of_hidden, of_classifier), transposes))


def _narrowed_on_gpu(product, transpose):
    def narrowed(ct, other):
        return transpose(ct.astype(other.dtype), other)

    def by_platform(ct, other):
        return choose(transpose, ct, other, gpu=narrowed)

    def function(tangent, other):
        if is_explicit(tangent) or is_explicit(other):
            return product(tangent, other)
        return linear(product, by_platform, tangent, other)

    return function
