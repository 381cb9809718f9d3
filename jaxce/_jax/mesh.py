"""How an array is split over a mesh of devices, as far as its type says."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxce._types import Array

AxisName = tuple[str, ...] | None  # the mesh axes that split the classes, inside `jax.shard_map`


def is_tracked(axis_name: tuple[str, ...]) -> bool:
    """Whether `jax.shard_map` keeps track of what varies over these mesh axes; with check_vma=False it does not."""
    return set(axis_name) <= jax.typeof(lax.axis_index(axis_name)).manual_axis_type.varying


def is_on_auto_mesh(array: Array) -> bool:
    """Whether the array may be split over devices in a way that its type does not say."""
    mesh = mesh_of(array)
    return any(n > 1 and kind == AxisType.Auto for n, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True))


def is_inside_shard_map(array: Array) -> bool:
    """Whether `jax.shard_map` has split arrays over an axis of the mesh."""
    return AxisType.Manual in mesh_of(array).axis_types


def mesh_of(*arrays: Array):
    """Return the abstract mesh of the type of one of the arrays, or that of `jax.set_mesh`."""
    meshes = (jax.typeof(array).sharding.mesh for array in arrays)
    return next((mesh for mesh in meshes if mesh.axis_names), jax.sharding.get_abstract_mesh())


def is_explicit(array: Array) -> bool:
    """Whether the type of the array says that it is split over devices (on a mesh with explicit axes)."""
    return any(part is not None for part in jax.typeof(array).sharding.spec)


def gathered(array: Array) -> Array:
    """Return the array, whole on each device if its type says that it is split."""
    whole = NamedSharding(jax.typeof(array).sharding.mesh, PartitionSpec())
    return jax.sharding.reshard(array, whole) if is_explicit(array) else array


def varying_like(arrays, others, *, but: tuple[str, ...] = ()):
    """Return `arrays` that vary over each axis of `jax.shard_map` over which one of `others` varies, except the axes in `but`.

    The initial values of a loop must vary like its results. The gradient of an array that starts to vary here is summed over devices here: once,
    not inside a loop.
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


def psum_over(axis_name: AxisName, values):
    """Return the sum over devices, or the values themselves without an `axis_name`. None stays None."""
    return values if axis_name is None else jax.tree.map(lambda x: lax.psum(x, axis_name), values)


def axis_size(axis_name: AxisName) -> int:
    """Return the number of devices along the mesh axes; 1 without an `axis_name`."""
    return 1 if axis_name is None else lax.axis_size(axis_name)


def cotangent_share(axis_name: AxisName):
    """Return the share of each device in the cotangent of a merged value, and the function that completes gradients which no merge has summed.

    Where JAX tracks what varies over devices, the share is 1 and the function does nothing. Where JAX does not, the transpose of a sum over n
    devices is this sum again. So each device pulls back 1 / n of the cotangent, and the function sums a gradient over devices.
    """
    if axis_name is None or is_tracked(axis_name):
        return 1, lambda gradient: gradient
    return 1 / lax.axis_size(axis_name), functools.partial(psum_over, axis_name)
