"""A linear layer on a mesh of explicit axes, whose arrays say by their types how they lie on it: inside `jax.shard_map` of our own."""

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxce._axes import is_explicit
from jaxce._sharded import AxisName


def by_type(function, args, options, axis_name: AxisName, *, total: bool = False):
    """`function(args, options, axis_name)`, each device with its own tokens and classes where the types of `args` say which.

    Args:
      function: It gives a pytree of what is per token, or of a `total`.
      args: The arguments of the kernels' contract, but with tokens of any shape.
      options: Scalars.
      axis_name: That of the caller, who then is inside `jax.shard_map` already.
      total: Whether the results are sums over the tokens.

    Returns:
      The result of `function`. If it is per token, it is split as `labels` are.
    """
    hidden, classifier, _, labels, *_ = args
    mesh = _explicit_mesh(args)
    if axis_name is not None or mesh is None:
        return function(args, options, axis_name)
    of_classes = _axes(jax.typeof(classifier).sharding.spec[1])
    # A device needs the tokens whole whose classes it has: over the mesh axes of the classes, tokens are not split.
    tokens = [tuple(a for a in _axes(part) if a not in of_classes) for part in jax.typeof(hidden).sharding.spec[:-1]]
    over = tuple(axis for part in tokens for axis in part)
    token, by_class = P(*(part or None for part in tokens)), P(of_classes or None)
    # Of hidden, classifier, bias, labels, mask, class_weights, soft_cap.
    specs = P(*token, None), P(None, *by_class), by_class, token, token, by_class, P()

    def of_shard(args, options):
        result = function(args, options, of_classes or None)
        return jax.tree.map(lambda x: lax.psum(x, over), result) if total and over else result

    args = tuple(
        None if x is None else jax.sharding.reshard(x, NamedSharding(mesh, spec))
        for x, spec in zip(args, specs, strict=True)
    )
    # Over these axes alone: another may belong to a `jax.vmap` around this. If there are no names, JAX takes all axes that no `jax.vmap` has.
    names, out = {*over, *of_classes}, P() if total else token
    local = of_shard
    if names or _is_explicit(mesh):
        local = jax.shard_map(of_shard, mesh=mesh, in_specs=(specs, P()), out_specs=out, axis_names=names)
    result = local(args, options)
    if total:
        return result
    of_labels = NamedSharding(mesh, jax.typeof(labels).sharding.spec)
    return jax.tree.map(lambda x: jax.sharding.reshard(x, of_labels), result)


def _explicit_mesh(args):
    """Return the explicit mesh of the arguments, or None.

    An argument that is split decides. If no argument is split, one that is on a mesh of explicit axes decides: outside `jax.set_mesh`, jax 0.12
    cannot transpose slices of arrays on such a mesh, but inside `jax.shard_map` it can.
    """
    arrays = [x for x in args if x is not None]
    meshes = [jax.typeof(x).sharding.mesh for x in arrays]
    split = [mesh for x, mesh in zip(arrays, meshes, strict=True) if is_explicit(x)]
    return next(iter([*split, *filter(_is_explicit, meshes)]), None)


def _is_explicit(mesh):
    return bool(mesh.axis_names) and all(kind == AxisType.Explicit for kind in mesh.axis_types)


def _axes(part):
    """The mesh axes over which a part of a `PartitionSpec` splits an axis of an array."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
