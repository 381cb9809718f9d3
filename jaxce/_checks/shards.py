"""The checks for classes that are split over a mesh axis."""

import jax
from jax import lax

from jaxce._jax.axes import ClassAxis
from jaxce._jax.mesh import is_tracked
from jaxce._types import Array


def axis_name(value):
    """Return the mesh axes over which the classes are split. Each must be in scope."""
    if value is None:
        return None
    names = (value,) if isinstance(value, str) else value
    if not (isinstance(names, tuple) and names and all(isinstance(name, str) for name in names)):
        raise TypeError(f"`axis_name` must be the name of a mesh axis, or a tuple of names; got {value!r}.")
    for name in names:
        try:
            lax.axis_size(name)
        except NameError:
            raise ValueError(
                f"`axis_name` must name an axis of the mesh of the `jax.shard_map` around this call; got {name!r}, which is not such an axis. "
                "Under plain jit leave `axis_name` out: sharded arrays need nothing."
            ) from None
    return names


def split_classes(name: str, value: Array, axis_name, axis: ClassAxis = -1) -> None:
    """Check that each device along `axis_name` holds its own classes of the array."""
    if isinstance(axis, tuple):
        raise ValueError(
            f"`axis_name` splits the classes of one axis; got `axis` {axis}. Reshape `{name}` to one class axis, or leave `axis_name` out."
        )
    # With check_vma=False, shard_map does not track which arrays vary over the devices, so nothing can be checked.
    missing = [n for n in axis_name if lax.axis_size(n) > 1 and n not in jax.typeof(value).manual_axis_type.varying]
    if missing and is_tracked(axis_name):
        raise ValueError(
            f"`{name}` must have its classes split over `axis_name` {missing[0]!r}; got the same {value.shape} on every device along it. "
            "Split its class axis in `in_specs`, or leave `axis_name` out."
        )
