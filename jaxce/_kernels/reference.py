"""The definition: the statistics of all the logits at once. It holds them, and JAX differentiates the matmul."""

import jax.numpy as jnp
from jax import lax

from jaxce import _dense as dense
from jaxce._sharded import AxisName
from jaxce._types import working_dtype


def statistics(axis_name: AxisName = None):
    """The fields of `LogitStats` for each token as a function of the arguments of the contract."""

    def of(hidden, classifier, bias, labels, mask, class_weights, soft_cap):
        logits = capped(raw_logits(masked(hidden, mask), classifier, bias), soft_cap)
        return dense.statistics(1, axis_name)(logits, labels, None, mask, class_weights)

    return of


def masked(hidden, mask):
    """`hidden` with a masked token as zeros, so that what it holds cannot reach the classifier's gradient."""
    return hidden if mask is None else jnp.where(mask[:, None], hidden, 0)


def raw_logits(hidden, classifier, bias):
    """`hidden @ classifier + bias`, in the dtype to work in."""
    raw = dot(hidden, classifier, (1, 0))
    return raw if bias is None else raw + bias.astype(raw.dtype)[None]


def dtype_of_logits(hidden, classifier):
    """The dtype to work in: float64 if either is, otherwise float32."""
    return max(working_dtype(hidden), working_dtype(classifier), key=lambda dtype: dtype.itemsize)


def capped(raw, soft_cap):
    """`soft_cap * tanh(raw / soft_cap)`: the logits. A class whose bias is -inf takes no part, with a cap as without."""
    if soft_cap is None:
        return raw
    cap, left_out = soft_cap.astype(raw.dtype), raw == -jnp.inf
    return jnp.where(left_out, -jnp.inf, cap * jnp.tanh(jnp.where(left_out, 0, raw) / cap))


def dot(a, b, contracting):
    """The product of two matrices over one axis of each, summed and returned in float32 (float64 if either is).

    Operands of one dtype are multiplied as they are, others in the dtype of the result.
    """
    dtype = dtype_of_operands(a, b)
    a, b = a.astype(dtype), b.astype(dtype)
    dimensions = (((contracting[0],), (contracting[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=working_dtype(a))


def dtype_of_operands(a, b):
    """The dtype in which `dot` multiplies the two."""
    return a.dtype if a.dtype == b.dtype else dtype_of_logits(a, b)


def narrows_gradients(hidden, classifier, *, on_cpu):
    """Whether the gradients with respect to the logits are rounded to the dtype of the operands before they are multiplied.

    In bfloat16 a GPU and a TPU do so: a GPU multiplies any matmul of a bfloat16 layer like this, and a TPU rounds the operands of a float32
    matmul by default. A CPU does not: the rounding errors are large where the columns of the classifier share a large mean. No platform
    rounds to float16, because float16 cannot represent small gradients.
    """
    return not on_cpu and dtype_of_operands(hidden, classifier) == jnp.bfloat16
