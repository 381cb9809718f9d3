"""The definition that the other modules must reproduce: the statistics of all logits at once. JAX differentiates the matmul."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxce import _core as core
from jaxce._core.definition import Statistics
from jaxce._jax.mesh import AxisName
from jaxce._types import working_dtype


class Layer(NamedTuple):
    """A linear layer and its labels, all checked."""

    hidden: Any  # [tokens, features]
    classifier: Any  # [features, num_classes]
    labels: Any  # [tokens], integer
    bias: Any = None  # [num_classes]
    mask: Any = None  # [tokens]
    class_weights: Any = None  # [num_classes]
    soft_cap: Any = None  # a scalar; the only option that changes the logits


def statistics(layer: Layer, axis_name: AxisName = None) -> Statistics:
    """Return the statistics of each token."""
    raw = raw_logits(masked(layer.hidden, layer.mask), layer.classifier, layer.bias)
    logits = apply_soft_cap(raw, layer.soft_cap)
    return core.statistics(logits, layer.labels, None, layer.mask, layer.class_weights, axis=1, axis_name=axis_name)


def masked(hidden, mask):
    """Return `hidden` with zeros for masked tokens, so that their values cannot reach the gradient with respect to the classifier."""
    return hidden if mask is None else jnp.where(mask[:, None], hidden, 0)


def raw_logits(hidden, classifier, bias):
    """Return `hidden @ classifier + bias` in the working dtype: the logits before the soft cap."""
    raw = dot(hidden, classifier, (1, 0))
    return raw if bias is None else raw + bias.astype(raw.dtype)[None]


def apply_soft_cap(raw, soft_cap):
    """Return the logits, `soft_cap * tanh(raw / soft_cap)`. A class whose bias is -inf takes no part, with or without a cap."""
    if soft_cap is None:
        return raw
    cap, left_out = soft_cap.astype(raw.dtype), raw == -jnp.inf
    return jnp.where(left_out, -jnp.inf, cap * jnp.tanh(jnp.where(left_out, 0, raw) / cap))


def dot(a, b, contracting):
    """Contract two matrices over one axis of each. Sum and return the products in float32 (float64 if either operand is float64).

    Operands with the same dtype are multiplied in that dtype, other operands in the dtype of the result.
    """
    dtype = operand_dtype(a, b)
    a, b = a.astype(dtype), b.astype(dtype)
    dimensions = (((contracting[0],), (contracting[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=working_dtype(a))


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
