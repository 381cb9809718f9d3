"""The definition that the other modules must reproduce: the statistics of all logits at once. JAX differentiates the matmul."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxce import _core as core
from jaxce._core.definition import Statistics
from jaxce._core.shaping import counted_temperature, shaped
from jaxce._jax.axes import per_class
from jaxce._jax.mesh import AxisName
from jaxce._types import working_dtype


class Layer(NamedTuple):
    """A linear layer and its labels, all checked. The shapes below are for tokens with one axis; they may have any number."""

    hidden: Any  # [tokens, features]
    classifier: Any  # [features, num_classes]
    labels: Any  # [tokens], integer, or [tokens, num_classes]: class probabilities
    bias: Any = None  # [num_classes]
    where: Any = None  # [num_classes], boolean: the classes that take part
    mask: Any = None  # [tokens], boolean: the tokens that count
    label_weights: Any = None  # [num_classes], by which class probabilities are multiplied
    class_weights: Any = None  # [num_classes]
    soft_cap: Any = None  # a scalar
    temperature: Any = None  # [tokens]
    first_class: Any = None  # the number of the first of these classes, an integer; None for 0
    top_labels: Any = (
        None  # a `TopLabels` [tokens, k], instead of the labels, which are then integers that are no class
    )


class Block(NamedTuple):
    """The logits of some tokens for some classes before cap and temperature, with labels that count from the first of these classes."""

    raw: Any
    labels: Any
    where: Any = None
    label_weights: Any = None
    class_weights: Any = None
    soft_cap: Any = None
    temperature: Any = None
    first_class: Any = None
    top_labels: Any = None


def by_array(function, gradients: Layer, layer: Layer, *others: Layer) -> Layer:
    """Return `function(gradient, array, *others)` for each array of the layer; None where there is no gradient."""

    def of_field(gradient, arrays, *others):
        if gradient is None:
            return None
        tree = jax.tree.structure(arrays)
        parts = zip(*map(tree.flatten_up_to, (gradient, arrays, *others)), strict=True)
        return tree.unflatten([None if g is None else function(g, *rest) for g, *rest in parts])

    return Layer(*map(of_field, gradients, layer, *others))


def statistics(layer: Layer, axis_name: AxisName = None) -> Statistics:
    """Return the statistics of each token."""
    block = block_of(without_masked(layer))
    z, labels, mask = shaped_logits(block), weighted_labels(block), layer.mask
    arguments = z, labels, None, mask, layer.class_weights
    options = {"first_class": layer.first_class, "top_labels": block.top_labels}
    return core.statistics(*arguments, **options, axis=z.ndim - 1, axis_name=axis_name)


def without_masked(layer: Layer) -> Layer:
    """Return the layer with zeros and label 0 for masked tokens, so that their values cannot reach a gradient."""
    if layer.mask is None:
        return layer
    mask = layer.mask

    def of_classes(x):
        return jnp.where(mask[..., None], x, 0)

    labels = jnp.where(mask, layer.labels, 0) if layer.labels.ndim < layer.hidden.ndim else of_classes(layer.labels)
    temperature, top_labels = counted_temperature(layer.temperature, mask), jax.tree.map(of_classes, layer.top_labels)
    return layer._replace(
        hidden=of_classes(layer.hidden), labels=labels, temperature=temperature, top_labels=top_labels
    )


def has_integer_labels(layer: Layer) -> bool:
    """Return whether the labels are one class index per token, not class probabilities."""
    return layer.labels.ndim < layer.hidden.ndim and layer.top_labels is None


def block_of(layer: Layer, raw=None) -> Block:
    """Return the block of all tokens and classes of the layer; `raw` are its raw logits, if they are still stored."""
    raw = raw_logits(layer.hidden, layer.classifier, layer.bias) if raw is None else raw
    return Block(raw=raw, **{name: getattr(layer, name) for name in Block._fields if name != "raw"})


def raw_logits(hidden, classifier, bias):
    """Return `hidden @ classifier + bias` in the working dtype: the logits before cap and temperature."""
    raw = dot(hidden, classifier, -1, 0)
    return raw if bias is None else raw + per_class(bias.astype(raw.dtype), raw.ndim - 1, raw.ndim)


def shaped_logits(block: Block):
    """Return the logits that the loss is defined on."""
    axis = block.raw.ndim - 1
    where = None if block.where is None else per_class(block.where, axis, block.raw.ndim)
    return shaped(block.raw, block.soft_cap, block.temperature, where, axis=axis)


def weighted_labels(block: Block):
    """Return the integer labels, or the class probabilities times their weights."""
    labels, ndim, dtype = block.labels, block.raw.ndim, block.raw.dtype
    if labels.ndim < ndim:
        return labels
    labels = labels.astype(dtype)
    if block.label_weights is None:
        return labels
    return labels * per_class(block.label_weights.astype(dtype), ndim - 1, ndim)


def dot(a, b, over_a, over_b):
    """Contract two arrays over some axes of each. Sum and return the products in float32 (float64 if either operand is float64).

    Operands with the same dtype are multiplied in that dtype, other operands in the dtype of the result.
    """
    dtype = operand_dtype(a, b)
    a, b = a.astype(dtype), b.astype(dtype)
    return jnp.tensordot(a, b, (over_a, over_b), preferred_element_type=working_dtype(a))


def logits_dtype(hidden, classifier):
    """Return the working dtype of the logits: float64 if either operand is float64, otherwise float32."""
    return max(working_dtype(hidden), working_dtype(classifier), key=lambda dtype: dtype.itemsize)


def operand_dtype(a, b):
    """Return the dtype in which `dot` multiplies `a` and `b`."""
    return a.dtype if a.dtype == b.dtype else logits_dtype(a, b)


def narrows_gradients(hidden, classifier, *, on_cpu):
    """Return whether the gradients with respect to the logits are rounded to the dtype of the operands before they are multiplied.

    In bfloat16, GPU and TPU round them: a GPU does so in every matmul of a bfloat16 layer, and a TPU rounds the operands of a float32 matmul by
    default. A CPU does not round them, because the rounding errors are large if the columns of the classifier share a large mean. No platform
    rounds them to float16, because float16 cannot represent small gradients.
    """
    return not on_cpu and operand_dtype(hidden, classifier) == jnp.bfloat16
