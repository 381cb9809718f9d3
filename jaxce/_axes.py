"""The class axis of an array: where it is, and how per-row and per-class arrays are laid along it.

Nothing is transposed. Every reduction over classes takes the axis itself, so channels-first logits are read as they lie.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from jaxce._types import Array

# The class axis of an array, or several that hold the classes together: an image, say. Not negative once checked.
ClassAxis = int | tuple[int, ...]


def row_shape(shape: tuple[int, ...], axis: ClassAxis) -> tuple[int, ...]:
    """The shape of one number per row: `shape` without `axis`, which is not negative."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    return tuple(size for i, size in enumerate(shape) if i not in axes)


def class_shape(shape: tuple[int, ...], axis: ClassAxis) -> tuple[int, ...]:
    """The shape of one number per class: the sizes of `axis`, in its order."""
    return tuple(shape[i] for i in (axis if isinstance(axis, tuple) else (axis,)))


def joined_axes(array: Array, axis: tuple[int, ...]) -> Array:
    """The array with some axes, in their order, as one axis that comes last."""
    moved = jnp.moveaxis(array, axis, range(-len(axis), 0))
    return moved.reshape(*moved.shape[: moved.ndim - len(axis)], math.prod(moved.shape[moved.ndim - len(axis) :]))


def per_row(rows: Array, axis: int) -> Array:
    """One number per row, laid so that it broadcasts against the logits."""
    return jnp.expand_dims(rows, axis)


def per_class(classes: Array, axis: int, ndim: int) -> Array:
    """One number per class, laid so that it broadcasts against logits of rank `ndim`."""
    return jnp.expand_dims(classes, tuple(i for i in range(ndim) if i != axis))


def is_known(*sizes: int) -> bool:
    """Whether all of these sizes are numbers. Under `jax.export` a size may be a symbol, which JAX refuses to compare with most numbers."""
    return all(isinstance(size, int) for size in sizes)


def is_tracked(axis_name: tuple[str, ...]) -> bool:
    """Whether `jax.shard_map` keeps track of what varies over these mesh axes; with check_vma=False it does not."""
    return set(axis_name) <= jax.typeof(lax.axis_index(axis_name)).manual_axis_type.varying


def is_on_auto_mesh(array: Array) -> bool:
    """Whether the array may lie on several devices in a way that its type does not say."""
    mesh = jax.typeof(array).sharding.mesh
    return any(n > 1 and kind == AxisType.Auto for n, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True))


def is_explicit(array: Array) -> bool:
    """Whether the type of the array says that it lies on several devices (a mesh of explicit axes)."""
    return any(part is not None for part in jax.typeof(array).sharding.spec)


def varying_like(arrays, others, *, but: tuple[str, ...] = ()):
    """`arrays` made to vary over every axis of `jax.shard_map`, `but` some, over which one of the `others` varies.

    As what a loop starts from must, if its results do. And what varies only from here on has the sum over devices that its gradient needs
    here, once, instead of in a loop.
    """
    axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(others))).difference(but)

    def vary(x):
        missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
        if not missing:
            return x
        if x.dtype == jnp.bfloat16 and not _is_whole_mesh_manual(x):
            # The transpose sums over devices. XLA for CPU (jax 0.10 to 0.12) aborts on a sum of bfloat16 numbers over some axes of a mesh if
            # other axes are not manual. So the transpose sums in float32; forward, XLA drops the two conversions.
            return lax.pcast(x.astype(jnp.float32), missing, to="varying").astype(x.dtype)
        return lax.pcast(x, missing, to="varying")

    return jax.tree.map(vary, arrays)


def _is_whole_mesh_manual(array):
    return all(kind == AxisType.Manual for kind in jax.typeof(array).sharding.mesh.axis_types)


def apart(indices: Array) -> Array:
    """`indices`, on a CPU in an array of their own.

    XLA for CPU (jax 0.10) would widen narrow ones again for each class, and aborts on some of the instructions that it makes for that.
    """

    def scattered(indices):
        flat = indices.reshape(-1)
        flat = jnp.zeros_like(flat).at[jnp.arange(flat.size)].set(flat, unique_indices=True, indices_are_sorted=True)
        return flat.reshape(indices.shape)

    if any(names is not None for names in jax.typeof(indices).sharding.spec):
        return indices  # a scatter over several devices
    return lax.platform_dependent(indices, cpu=scattered, default=lambda x: x)
