"""The losses on meshes, in each mode, with arguments and results split over examples and classes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce

SHAPES = [(1, 8), (8, 1), (2, 4), (4, 2)]
MODES = ("auto", "explicit", "shard_map", "shard_map unchecked", "split")
LOSSES = {
    "integer": jaxce.softmax_cross_entropy_with_integer_labels,
    "soft": jaxce.softmax_cross_entropy,
    "linear": jaxce.linear_softmax_cross_entropy,
    "linear sum": jaxce.linear_softmax_cross_entropy_sum,
}
SPECS = {
    **dict.fromkeys(("logits", "where", "probabilities"), P("data", "model")),
    **dict.fromkeys(("hidden", "labels", "mask", "temperature", "cotangent"), P("data")),
    **dict.fromkeys(("bias", "class_weights"), P("model")),
    "classifier": P(None, "model"),
}


def mesh_of(shape, mode, devices=None):
    """Return a mesh with the axes "data" (examples) and "model" (classes)."""
    kind = AxisType.Explicit if mode == "explicit" else AxisType.Auto
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices).reshape(shape), ("data", "model"), axis_types=(kind, kind))


def spec(name):
    return SPECS.get(name, P())


def put(arrays, mesh):
    """Place each array on the mesh by its spec."""
    return {name: jax.device_put(x, NamedSharding(mesh, spec(name))) for name, x in arrays.items()}


def loss_on_mesh(name, mesh, mode, **static):
    """Return a loss on the mesh, as a function of a dictionary of arguments. The labels of the soft loss are called `probabilities`."""
    inside = mode.startswith("shard_map")
    if inside:
        static["axis_name"] = "model"
    if mode == "split" and name.startswith("linear"):
        static["split"] = jaxce.Split("data", "model", mesh=mesh)

    def local(arguments):
        if "probabilities" in arguments:
            arguments = {**arguments, "labels": arguments["probabilities"]}
            del arguments["probabilities"]
        result = LOSSES[name](**arguments, **static)
        return result.psum("data") if inside and isinstance(result, jaxce.LossSum) else result

    def on_mesh(arguments):
        specs = ({name: spec(name) for name in arguments},)
        out = P() if name == "linear sum" else P("data")
        checked = mode != "shard_map unchecked"
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out, check_vma=checked)(arguments)

    return on_mesh if inside else local


def value_and_gradients(name, mesh, mode, **static):
    """Return a function of the differentiable arguments, the other arguments and the cotangent. A `LossSum` ignores the cotangent."""
    function = loss_on_mesh(name, mesh, mode, **static)

    def run(differentiable, others, cotangent):
        value, pull = jax.vjp(lambda x: function({**x, **others}), differentiable)
        if isinstance(value, jaxce.LossSum):
            cotangent = jaxce.LossSum(jnp.ones_like(value.total), jnp.zeros_like(value.weight))
        return value, pull(cotangent)[0]

    return run
