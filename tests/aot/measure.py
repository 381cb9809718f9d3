"""Compiles the linear losses for accelerators that are not here, and prints the compiler's figures as JSON. Imports nothing that it need not.

python measure.py v5e h100
"""

import json
import os
import sys

os.environ.update(
    JAX_PLATFORMS="cpu",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_LOG_DIR="disabled",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    NPROC="16",
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1",
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxce

# What XLA has to know of an H100 of 80 GB, in its own text format.
H100 = """
gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
TOPOLOGIES = {
    "v5e": {"platform": "tpu", "topology_name": "v5e:2x2"},
    "h100": {"platform": "cuda", "target_config": H100, "topology": "1x1x1"},
}
SHAPE = (8192, 2048, 128256)  # tokens, features, classes
IMPLEMENTATIONS = {
    "default": None,
    "whole rows": jaxce.Chunked(block_tokens=256),
    "reference": "reference",  # the control: it holds the logits
}


def value_and_gradients(implementation):
    def mean(hidden, classifier, labels):
        return jaxce.linear_softmax_cross_entropy_sum(hidden, classifier, labels, implementation=implementation).mean()

    return jax.value_and_grad(mean, (0, 1))


def temporary_bytes(target, implementation):
    """The temporary memory of `linear_softmax_cross_entropy_sum`, value and gradients, in bfloat16."""
    devices = topologies.get_topology_desc(**TOPOLOGIES[target]).devices
    mesh = Mesh(np.array(devices[:1]), ("x",))
    tokens, features, classes = SHAPE
    shapes = {(tokens, features): jnp.bfloat16, (features, classes): jnp.bfloat16, (tokens,): jnp.int32}
    whole = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for shape, dtype in shapes.items()]
    with jax.set_mesh(mesh):
        compiled = jax.jit(value_and_gradients(implementation)).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    found = {t: {name: temporary_bytes(t, i) for name, i in IMPLEMENTATIONS.items()} for t in sys.argv[1:]}
    print(json.dumps(found))
