"""The class axis of an array, and how numbers per row or per class broadcast along it.

Nothing is transposed. Every reduction over classes takes the axis itself, so channels-first logits are read in their own layout.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._types import Array

# The class axis of an array, or several that hold the classes together: an image, say. Not negative once checked.
ClassAxis = int | tuple[int, ...]


def row_shape(shape: tuple[int, ...], axis: ClassAxis) -> tuple[int, ...]:
    """Return the shape of one number per row: `shape` without `axis`, which is not negative."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    return tuple(size for i, size in enumerate(shape) if i not in axes)


def class_shape(shape: tuple[int, ...], axis: ClassAxis) -> tuple[int, ...]:
    """Return the shape of one number per class: the sizes of `axis`, in its order."""
    return tuple(shape[i] for i in (axis if isinstance(axis, tuple) else (axis,)))


def joined_axes(array: Array, axis: tuple[int, ...]) -> Array:
    """Return the array with some axes, in their order, joined into one axis that comes last."""
    moved = jnp.moveaxis(array, axis, range(-len(axis), 0))
    return moved.reshape(*moved.shape[: moved.ndim - len(axis)], math.prod(moved.shape[moved.ndim - len(axis) :]))


def joined_first_axes(array: Array, number: int) -> Array:
    """Return the array with its first axes, `number` of them, joined into one. Any axis may be empty, so -1 cannot stand for the new size."""
    return array.reshape(math.prod(array.shape[:number]), *array.shape[number:])


def per_row(rows: Array, axis: int) -> Array:
    """Return one number per row, in a shape that broadcasts against the logits."""
    return jnp.expand_dims(rows, axis)


def per_class(classes: Array, axis: int, ndim: int) -> Array:
    """Return one number per class, in a shape that broadcasts against logits of rank `ndim`."""
    return jnp.expand_dims(classes, tuple(i for i in range(ndim) if i != axis))


def class_numbers(logits: Array, axis: int, dtype) -> Array:
    """Return the number of each class, in an array of the shape of the logits that is split over devices as they are."""
    sharding = jax.typeof(logits).sharding
    is_split = any(part is not None for part in sharding.spec)
    return lax.broadcasted_iota(dtype, logits.shape, axis, out_sharding=sharding if is_split else None)


def wide_indices(indices: Array) -> Array:
    """Return integers in a dtype that can count any classes or segments."""
    return indices if indices.dtype.itemsize >= 4 else indices.astype(jnp.int32)


def is_known(*sizes: int) -> bool:
    """Whether all of these sizes are numbers. Under `jax.export` a size may be a symbol, which JAX refuses to compare with most numbers."""
    return all(isinstance(size, int) for size in sizes)
