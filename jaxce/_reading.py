"""How a primal and its derivatives read what they are given: all that takes no part, and rows that are masked, as plain numbers."""

import jax.numpy as jnp
from jax import lax

from jaxce._axes import apart, per_class, per_row
from jaxce._infinities import capped, finite
from jaxce._transpose import with_transpose
from jaxce._types import working_dtype


def read(logits, where, mask=None, axis=-1):
    """The logits in the dtype to work in: a class that is left out as -inf, a masked row as zeros."""
    z = logits.astype(working_dtype(logits))
    z = z if where is None else jnp.where(where, z, -jnp.inf)
    return z if mask is None else jnp.where(per_row(mask, axis), z, 0)


def below(z, shift, axis):
    """`z - shift`, not above 0."""
    return capped(z) - per_row(finite(shift), axis)


def label_probabilities(labels, mask, axis):
    """`q` in its own dtype, with a masked row of zeros."""
    return labels if mask is None else jnp.where(per_row(mask, axis), labels, jnp.zeros((), labels.dtype))


def label_indices(labels, mask):
    """Integer labels wide enough to count any classes; a masked row's label is 0."""
    labels = labels if labels.dtype.itemsize >= 4 else apart(labels.astype(jnp.int32))
    return labels if mask is None else jnp.where(mask, labels, 0)


def weights_of_classes(z, class_weights, axis):
    """`u`: the weight of each class that takes part, 0 for one that does not."""
    weights = 1 if class_weights is None else per_class(class_weights.astype(z.dtype), axis, z.ndim)
    return jnp.where(z > -jnp.inf, weights, jnp.zeros((), z.dtype))


def is_narrow(logits):
    return logits.dtype.itemsize <= 2


def halves(pairs, dtype):
    """The two numbers of this dtype, of 16 bits, that each integer of 32 holds, in the dtype to work in: the lower half is the first."""
    if dtype == jnp.bfloat16:  # which is the upper half of a float32
        return [lax.bitcast_convert_type(x, jnp.float32) for x in (pairs << 16, pairs & jnp.uint32(0xFFFF0000))]
    return [lax.bitcast_convert_type((pairs >> bits).astype(jnp.uint16), dtype).astype(jnp.float32) for bits in (0, 16)]


def looked_up(look, values, indices):
    """`look(values, indices)`, which picks some of the values, without derivatives.

    XLA for CPU would make a wide copy of all narrow ones for that, but of integers.
    """
    if not is_narrow(values):
        return look(values, indices)
    integers = lax.bitcast_convert_type(values, f"uint{8 * values.dtype.itemsize}")
    return lax.bitcast_convert_type(look(integers, indices), values.dtype)


def widened(values, dtype):
    """`values.astype(dtype)`, whose transpose is `rounded`."""
    if values.dtype != jnp.bfloat16:
        return values.astype(dtype)
    (wide,) = with_transpose(lambda x, _: [x.astype(dtype)], lambda cts, _: rounded(cts[0], jnp.bfloat16), values, ())
    return wide


def rounded(values, dtype):
    """`values.astype(dtype)`. XLA for CPU rounds to bfloat16 with a select, which takes longer than all the rest of a gradient."""
    if (values.dtype, dtype) != (jnp.float32, jnp.bfloat16):
        return values.astype(dtype)

    def on_cpu(values):
        bits = lax.bitcast_convert_type(lax.reduce_precision(values, 8, 7), jnp.uint32) >> 16
        # What tells a NaN from infinity may be in the half that is cut off.
        return lax.bitcast_convert_type(jnp.where(jnp.isnan(values), 0x7FC0, bits).astype(jnp.uint16), dtype)

    def linear(values, _):
        return [lax.platform_dependent(values, cpu=on_cpu, default=lambda values: values.astype(dtype))]

    (narrow,) = with_transpose(linear, lambda cts, _: cts[0].astype(jnp.float32), values, ())
    return narrow
