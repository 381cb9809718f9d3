"""Compile the losses ahead of time for eight accelerators, in the shape of a language model. Print their communication and memory as JSON.

python -m tests.aot.communicate v5e h100
"""

import itertools
import json
import sys

from tests.aot.ahead import H100  # before jax: this module sets the environment that jax reads on import

# isort: split
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

import jaxce
from tests.support import communication, covering, sharded

TOPOLOGIES = {
    "v5e": {"platform": "tpu", "topology_name": "v5e:2x4"},
    "h100": {"platform": "cuda", "target_config": H100, "topology": "1x1x8"},
}
_ALL = list(itertools.product(TOPOLOGIES, ("integer", "linear", "linear sum"), sharded.MODES))
# A covering selection: every pair of a target, a loss and a mode.
PROGRAMS = [_ALL[i] for i in covering.selection([dict(zip("tlm", row, strict=True)) for row in _ALL], 2)]
# The features of the classifier are split too, over the axis of the tokens. XLA for TPU has to be told how.
FULLY_SHARDED = [
    (target, f"{name}, fully sharded", mode)
    for target, name in itertools.product(TOPOLOGIES, ("linear", "linear sum"))
    for mode in ("explicit", "split" if target == "v5e" else "auto")
]
ROWS, FEATURES, CLASSES = 8192, 1024, 131072
SHAPES = {
    "logits": ((ROWS, CLASSES), jnp.bfloat16),
    "hidden": ((ROWS, FEATURES), jnp.bfloat16),
    "classifier": ((FEATURES, CLASSES), jnp.bfloat16),
    "labels": ((ROWS,), jnp.int32),
}


def compiled(target, name, mode):
    """Compile the value and the gradients of a sum, on a mesh of 2 x 4."""
    devices = topologies.get_topology_desc(**TOPOLOGIES[target]).devices
    mesh = sharded.mesh_of((2, 4), mode, devices)
    name, _, is_fully_sharded = name.partition(", ")
    names = ("hidden", "classifier") if name.startswith("linear") else ("logits",)
    arguments = {
        n: jax.ShapeDtypeStruct(*SHAPES[n], sharding=NamedSharding(mesh, sharded.spec(n))) for n in (*names, "labels")
    }
    labels = arguments.pop("labels")
    static = {}
    if is_fully_sharded:
        whole = arguments["classifier"]
        spec = NamedSharding(mesh, PartitionSpec("data", "model"))
        arguments["classifier"] = jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=spec)
        static = {"split": jaxce.Split("data", "model", "data", mesh=mesh)} if mode == "split" else {}
    loss = sharded.loss_on_mesh(name, mesh, "auto" if static else mode, **static)

    def total(arguments, labels):
        return jax.tree.leaves(loss({**arguments, "labels": labels}))[0].sum()

    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(total)).lower(arguments, labels).compile()


if __name__ == "__main__":
    for target in sys.argv[1:]:
        for _, name, mode in (row for row in (*PROGRAMS, *FULLY_SHARDED) if row[0] == target):
            program = compiled(target, name, mode)
            operations = communication.sent(program.as_text())
            temporary = program.memory_analysis().temp_size_in_bytes
            print(json.dumps([target, name, mode, temporary, operations]), flush=True)
