"""The statistics of `reference` in plain XLA on any device, with at most one block of logits stored at a time.

The tokens are cut into blocks, and so are the classes. The statistics of blocks of classes are merged. The derivative with respect to a logit
needs only the statistics of its row. So the derivatives take a second pass over the blocks of classes. This pass recomputes the logits, unless
one block has all classes and its logits are still stored.
"""

import functools

import jax
import jax.numpy as jnp

from jaxce import _core as core
from jaxce._blocks import loops
from jaxce._blocks.reference import (
    Block,
    Layer,
    block_of,
    by_array,
    dot,
    logits_dtype,
    operand_dtype,
    shaped_logits,
    weighted_labels,
    without_masked,
)
from jaxce._blocks.sizes import Blocks, Plans
from jaxce._core.definition import Statistics
from jaxce._core.merge import merge, merge_devices
from jaxce._jax.axes import joined_first_axes
from jaxce._jax.mesh import AxisName, is_explicit, psum_over, varying_like
from jaxce._jax.rules import choose, linear, partial_jvp, with_rule

OF_TOKENS = ("hidden", "labels", "mask", "temperature", "top_labels")  # the fields of a layer with one row per token


@functools.cache
def statistics(plans: Plans, axis_name: AxisName = None):
    """Return the function of a `Layer` that computes the statistics of each token, with its derivative rule."""

    def value(layer):
        return merge_devices(plans.choose(value_in_blocks, layer), axis_name)

    def tangent(args, outs, tangents):
        return psum_over(axis_name, plans.choose(tangent_in_blocks, *args, outs, *tangents))

    return with_rule(value, tangent)


def value_in_blocks(blocks: Blocks, layer: Layer) -> Statistics:
    """Return the statistics of each token over the classes of the layer."""

    def of_tokens(rows):
        return statistics_of_tokens(without_masked(layer._replace(**rows)), blocks.classes)[0]

    return loops.map_tokens(of_tokens, token_rows(layer), blocks.tokens)


def tangent_in_blocks(blocks: Blocks, layer: Layer, stats: Statistics, dots: Layer) -> Statistics:
    """Return the contribution of the classes of the layer to the tangents of the statistics of each token, linear in `dots`."""
    dtype = stats.label_nll.dtype
    # Cast the tangents to the dtype of the statistics, because reverse mode sums their cotangents over blocks in the dtype of the tangents.
    dots = jax.tree.map(lambda dot: dot.astype(dtype), dots)
    of_tokens = functools.partial(_tangent_of_tokens, blocks, layer, dots)
    return loops.map_tokens(of_tokens, (token_rows(layer), token_rows(dots), stats), blocks.tokens)


def _tangent_of_tokens(blocks: Blocks, layer: Layer, dots: Layer, rows) -> Statistics:
    tokens, token_dots, stats = rows
    layer, dots = without_masked(layer._replace(**tokens)), dots._replace(**token_dots)

    # The checkpoint makes reverse mode recompute each block instead of storing residuals of every block.
    @functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=1)
    def of_classes(start, size):
        part, part_dots = loops.some_classes(layer, start, size), loops.some_classes(dots, start, size)
        return tangent_of_part(part, stats, part_dots)

    return loops.sum_over_classes(of_classes, layer.classifier.shape[1], blocks.classes, (layer, dots))


def tangent_of_part(part: Layer, stats: Statistics, dots: Layer) -> Statistics:
    """Return what some classes of some tokens contribute to the tangents of the statistics of these tokens, all at once."""
    raw_dot = raw_logits_dot(part, dots)
    others = {name: getattr(dots, name) for name in Block._fields if name != "raw"}
    return block_jvp(block_of(part), stats, Block(raw_dot, **others))


def raw_logits_dot(layer, dots):
    """Return the tangent of `raw_logits` of a layer; None if it is 0."""
    of_hidden, of_classifier = _products_with_tangents(operand_dtype(layer.hidden, layer.classifier))
    shape = *layer.hidden.shape[:-1], layer.classifier.shape[1]
    terms = [] if dots.hidden is None else [of_hidden(dots.hidden, layer.classifier)]
    terms += [] if dots.classifier is None else [of_classifier(dots.classifier, layer.hidden)]
    terms += [] if dots.bias is None else [jnp.broadcast_to(dots.bias, shape)]
    return sum(terms[1:], terms[0]) if terms else None


def token_rows(layer: Layer) -> dict:
    """Return the arrays with one row per token."""
    return {name: getattr(layer, name) for name in OF_TOKENS}


def flat_layer(layer: Layer, ndim: int | None = None) -> Layer:
    """Return the layer with its tokens on one axis. `ndim` is the number of axes of the tokens, if the layer has no `hidden`."""
    number = layer.hidden.ndim - 1 if ndim is None else ndim
    return layer._replace(**jax.tree.map(lambda x: joined_first_axes(x, number), token_rows(layer)))


def shaped_like(gradients: Layer, layer: Layer) -> Layer:
    """Return the gradients with respect to a `flat_layer` in the shapes of the layer."""
    return by_array(lambda gradient, x: gradient.reshape(x.shape), gradients, layer)


def statistics_of_tokens(layer: Layer, size_of_block: int | None):
    """Return the statistics of a block of tokens, merged over blocks of classes. Also return the raw logits if one block has all classes."""
    num_classes = layer.classifier.shape[1]

    def of_classes(start, size):
        part = loops.some_classes(layer, start, size)
        block = block_of(part)
        z, labels = shaped_logits(block), weighted_labels(block)
        arguments = z, labels, None, None, part.class_weights
        options = {"first_class": part.first_class, "top_labels": block.top_labels}
        return core.statistics(*arguments, **options, axis=z.ndim - 1), block.raw

    if loops.has_all(size_of_block, num_classes):
        return of_classes(0, num_classes)
    zero = jnp.zeros(layer.hidden.shape[0], logits_dtype(layer.hidden, layer.classifier))
    empty = Statistics(*(zero,) * len(Statistics._fields))
    empty = empty._replace(max_logit=zero - jnp.inf, prediction=jnp.full(zero.shape, -1, jnp.int32))
    nothing = varying_like(empty, layer)
    merged = loops.over_classes(
        lambda stats, start, size: _merge(stats, of_classes(start, size)[0]), nothing, num_classes, size_of_block
    )
    return merged, None


_merge = jax.jit(merge, inline=True)  # traced once for all blocks of the same size


def block_jvp(block: Block, stats: Statistics, dots: Block) -> Statistics:
    """Return the contribution of a block of classes to the tangents of the statistics of its rows."""
    of_logits = Block(dots.raw, None, soft_cap=dots.soft_cap, temperature=dots.temperature)
    of_labels = Block(None, dots.labels, label_weights=dots.label_weights)
    top_labels, block = block.top_labels, block._replace(top_labels=None)
    z, z_dot = _with_tangent(shaped_logits, block, of_logits)
    labels, labels_dot = _with_tangent(weighted_labels, block, of_labels)
    rows = core.Rows(z, labels, block.class_weights, core.Source(z), block.first_class, top_labels)
    rows_dots = core.Rows(z_dot, labels_dot, dots.class_weights, None, top_labels=dots.top_labels)
    return core.statistics_jvp(rows, stats, rows_dots, axis=z.ndim - 1)


def _with_tangent(function, block: Block, dots: Block):
    """Return a function of the block and its tangent; None for a tangent that is 0."""
    if all(dot is None for dot in dots):
        return function(block), None
    # A tangent has the dtype of the statistics, and JAX wants that of its array.
    arrays = (x if dot is None else x.astype(dot.dtype) for x, dot in zip(block, dots, strict=True))
    return partial_jvp(function, (Block(*arrays),), (dots,))


def _products_with_tangents(operands):
    """Return `hidden_dot @ classifier` and `hidden @ classifier_dot` as functions that are linear in the tangent, their first argument.

    If the operands are bfloat16, a GPU multiplies the cotangent in bfloat16 too, as for any matmul of the layer. The range of float16 is too small.
    """

    def of_hidden(hidden_dot, classifier):
        return dot(hidden_dot, classifier, -1, 0)

    def of_classifier(classifier_dot, hidden):
        return dot(hidden, classifier_dot, -1, 0)

    if operands != jnp.bfloat16:
        return of_hidden, of_classifier
    transposes = (lambda ct, classifier: dot(ct, classifier, -1, 1), lambda ct, hidden: over_tokens(hidden, ct))
    return tuple(map(_narrowed_on_gpu, (of_hidden, of_classifier), transposes))


def over_tokens(a, b):
    """Return the products of the numbers per token in `a` and in `b`, summed over all tokens."""
    tokens = tuple(range(a.ndim - 1))
    return dot(a, b, tokens, tokens)


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
