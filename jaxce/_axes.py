"""The class axis of an array: where it is, and how per-row and per-class arrays are laid along it.

Nothing is transposed. Every reduction over classes takes the axis itself, so channels-first logits are read as they lie.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._types import Array


def row_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape of one number per row: `shape` without `axis`, which is not negative."""
    return shape[:axis] + shape[axis + 1 :]


def per_row(rows: Array, axis: int) -> Array:
    """One number per row, laid so that it broadcasts against the logits."""
    return jnp.expand_dims(rows, axis)


def per_class(classes: Array, axis: int, ndim: int) -> Array:
    """One number per class, laid so that it broadcasts against logits of rank `ndim`."""
    return jnp.expand_dims(classes, tuple(i for i in range(ndim) if i != axis))


def is_split(logits: Array, axis: int) -> bool:
    """Whether the type of the logits says that their classes lie on several devices (a mesh of explicit axes)."""
    return jax.typeof(logits).sharding.spec[axis] is not None


def varying_like(arrays, others):
    """`arrays`, what a loop starts from, made to vary over every axis of `jax.shard_map` over which the `others` vary, as its results do."""
    axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(others)))

    def vary(x):
        missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, arrays)
