"""A few steps of training on a mesh of 2 x 4 devices, which may belong to several processes. `test_processes.py` runs this program.

python -m tests.support.training OUTPUT.npz NUMBER_OF_PROCESSES [PROCESS_INDEX COORDINATOR_ADDRESS]
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from tests.support import sharded

TOKENS, FEATURES, CLASSES, STEPS = 16, 8, 32, 5


def start(processes, index=None, address=None):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8 // processes)
    if address is not None:
        jax.distributed.initialize(address, num_processes=processes, process_id=int(index))
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (processes, 8, 8 // processes)


def main(out, processes, *rest):
    start(int(processes), *(rest if int(processes) > 1 else ()))
    rng = np.random.default_rng(0)
    classifier = rng.standard_normal((FEATURES, CLASSES)).astype(np.float32)
    fixed = {
        "hidden": rng.standard_normal((TOKENS, FEATURES)).astype(np.float32),
        "labels": rng.integers(0, CLASSES, TOKENS).astype(np.int32),
        "mask": rng.random(TOKENS) < 0.6,
    }
    found = {}
    for mode in sharded.MODES:
        mesh = sharded.mesh_of((2, 4), mode)

        def put(name, array, mesh=mesh):
            where = NamedSharding(mesh, sharded.spec(name))
            return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

        losses, total = (sharded.loss_on_mesh(name, mesh, mode) for name in ("linear", "linear sum"))

        def step(w, fixed, losses=losses, total=total):
            def mean(w):
                arguments = {"classifier": w, **fixed}
                return total(arguments).mean() + jnp.sum(losses(arguments)) / fixed["mask"].sum()

            return w - 0.1 * jax.grad(mean)(w)

        w, arrays, step = put("classifier", classifier), {n: put(n, x) for n, x in fixed.items()}, jax.jit(step)
        for _ in range(STEPS):
            w = step(w, arrays)
        found[mode] = multihost_utils.process_allgather(w, tiled=True)
    if jax.process_index() == 0:
        np.savez(out, start=classifier, **{mode.replace(" ", "_"): w for mode, w in found.items()})


main(*sys.argv[1:])
