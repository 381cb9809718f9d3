"""Compile programs ahead of time for accelerators, without the devices. This module sets the environment of the process: import it before jax."""

import os

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
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# The properties of an H100 with 80 GB that XLA needs, in the text format of XLA.
H100 = """
gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_TOPOLOGIES = {
    "v5e": {"platform": "tpu", "topology_name": "v5e:2x2"},
    "v5p": {"platform": "tpu", "topology_name": "v5p:2x2x1"},
    "v6e": {"platform": "tpu", "topology_name": "v6e:2x2"},
    "h100": {"platform": "cuda", "target_config": H100, "topology": "1x1x1"},
}
TARGETS = tuple(_TOPOLOGIES)


def compiled_for(target, function, arguments):
    """Compile `function` for one device of a target. The arguments are given as (shape, dtype)."""
    devices = topologies.get_topology_desc(**_TOPOLOGIES[target]).devices
    mesh = Mesh(np.array(devices[:1]), ("x",))
    whole = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for shape, dtype in arguments]
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*arguments).compile()
