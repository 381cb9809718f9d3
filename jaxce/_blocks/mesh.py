"""A linear layer on a mesh with explicit axes. The types of the arrays give their shardings, and this module adds the `jax.shard_map`."""

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxce._blocks.reference import Layer
from jaxce._jax.mesh import AxisName, is_explicit, psum_over


def by_type(function, layer: Layer, options, axis_name: AxisName, *, is_sum: bool = False):
    """Return `function(layer, options, axis_name)`. If the arrays are on an explicit mesh, each device computes its own tokens and classes.

    Args:
      function: Returns a pytree of arrays with one row per token, or a pytree of sums over the tokens.
      layer: The layer. Its tokens may have any shape.
      options: A pytree of scalars.
      axis_name: The caller's `axis_name`. If it is not None, the caller is already inside `jax.shard_map`.
      is_sum: Whether the results are sums over the tokens.

    Returns:
      The result of `function`. A result per token is sharded like the labels.
    """
    mesh, of_labels = _explicit_mesh(layer), jax.typeof(layer.labels).sharding.spec
    if axis_name is not None or mesh is None:
        return function(layer, options, axis_name)
    of_classes = _axes(jax.typeof(layer.classifier).sharding.spec[1])
    # The devices that split the classes between them need the same tokens, so tokens are not split over the mesh axes of the classes.
    split = jax.typeof(layer.hidden).sharding.spec[:-1]
    tokens = [tuple(a for a in _axes(part) if a not in of_classes) for part in split]
    over = tuple(axis for part in tokens for axis in part)
    by_token, by_class = P(*(part or None for part in tokens)), P(of_classes or None)
    specs = Layer(
        hidden=P(*by_token, None),
        classifier=P(None, *by_class),
        labels=by_token,
        bias=by_class,
        mask=by_token,
        class_weights=by_class,
        soft_cap=P(),
    )

    def on_device(layer, options):
        result = function(layer, options, of_classes or None)
        return psum_over(over or None, result) if is_sum else result

    layer = Layer(
        *(
            None if x is None else jax.sharding.reshard(x, NamedSharding(mesh, spec))
            for x, spec in zip(layer, specs, strict=True)
        )
    )
    # Name only these axes: a `jax.vmap` around this call may use another axis. If `names` is empty, JAX takes all axes that no `jax.vmap` uses.
    names, out_specs = {*over, *of_classes}, P() if is_sum else by_token
    local = on_device
    if names or _is_explicit(mesh):
        local = jax.shard_map(on_device, mesh=mesh, in_specs=(specs, P()), out_specs=out_specs, axis_names=names)
    result = local(layer, options)
    if is_sum:
        return result
    return jax.tree.map(lambda x: jax.sharding.reshard(x, NamedSharding(mesh, of_labels)), result)


def _explicit_mesh(layer):
    """Return the explicit mesh of the arguments, or None.

    The mesh is that of an argument that is split, otherwise that of any argument on a mesh with explicit axes. Unsplit arguments need the
    mesh too: outside `jax.set_mesh`, jax 0.12 cannot transpose slices of arrays on such a mesh, but inside `jax.shard_map` it can.
    """
    arrays = [x for x in layer if x is not None]
    meshes = [jax.typeof(x).sharding.mesh for x in arrays]
    split = [mesh for x, mesh in zip(arrays, meshes, strict=True) if is_explicit(x)]
    return next(iter([*split, *filter(_is_explicit, meshes)]), None)


def _is_explicit(mesh):
    return bool(mesh.axis_names) and all(kind == AxisType.Explicit for kind in mesh.axis_types)


def _axes(part):
    """Return the mesh axes over which an entry of a `PartitionSpec` splits an array axis."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
