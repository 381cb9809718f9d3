"""Functions that XLA asks how to partition them, for a mesh of `AxisType.Auto`, where only XLA knows how arrays are split.

`jax.experimental.custom_partitioning` does it on CPU and GPU; TPU compilers refuse it. What it lacks, and what is done about it:

- It has no batching rule and no derivatives. `jaxce._jax.primitives` uses it in a primitive that has both.
- A program that contains it cannot be exported. The primitive leaves it out of such a program.
- Its call holds an address of the process, so that the persistent compilation cache would never find the program again.
  `jax_remove_custom_partitioning_ptr_from_cache_key` removes the address from the key, but nothing else in the key says what the call computes.
  So our call also holds a fingerprint of its code. Without that flag, a program for the cache does not use it, and warns.
  https://github.com/jax-ml/jax/issues/21159 asks for a better key.

The reproducers are in `tests/meshes/test_auto_mesh.py`.
"""

import contextlib
import functools
import hashlib
import itertools
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxce._jax.primitives import run
from jaxce._jax.programs import trace


def partitioned(work: Callable[..., Any], layout_of: Callable[..., Any], args, dims, out_dims, *, mesh):
    """Return `work` of whole arrays. For several devices, XLA computes the work of each device on its parts of the arrays.

    Args:
      work: `work(layout, *parts)` returns the device's parts of the results. It may use collectives over the mesh axes of the layout.
      layout_of: Returns the layout of the work, if `axes` maps each letter to the mesh axes that split the array axes of this letter.
        `layout.axes()` is such a map: how the parts must be split for the work.
      args: Pytrees of whole arrays.
      dims: For each array the letters of its axes, in pytrees like `args`.
      out_dims: The same for the results.
      mesh: The abstract mesh.
    """
    program, (leaves, tree) = trace(functools.partial(work, layout_of({})), args), jax.tree.flatten(tuple(args))
    of_leaves, of_outs = tree.flatten_up_to(tuple(dims)), program.out_tree.flatten_up_to(out_dims)
    fingerprint = _fingerprint(f"{program.code} {of_leaves} {of_outs}")

    @custom_partitioning
    def call(_, *leaves):
        return run(program, *leaves)

    settings = _settings()

    def work_of_leaves(layout, _, *leaves):
        with settings():
            return program.out_tree.flatten_up_to(work(layout, *tree.unflatten(leaves)))

    of_operands = [(), *of_leaves]
    call.def_partition(
        partition=functools.partial(_partition, work_of_leaves, layout_of, of_operands, of_outs, mesh),
        decode_shardings=False,
        sharding_rule=f"{_text([('fingerprint',), *of_leaves])} -> {_text(of_outs)}",
    )
    return program.out_tree.unflatten(call(fingerprint, *leaves))


def _settings():
    """Return a context manager with the settings of this thread under which JAX traces. XLA asks in another thread."""
    names = ("enable_x64", "default_matmul_precision", "numpy_dtype_promotion", "numpy_rank_promotion")
    values = {name: getattr(jax.config, f"jax_{name}") for name in names}

    @contextlib.contextmanager
    def settings():
        with contextlib.ExitStack() as stack:
            for name, value in values.items():
                stack.enter_context(getattr(jax, name)(value))
            yield

    return settings


def _text(all_letters):
    return ", ".join(" ".join(letters) for letters in all_letters)


def _partition(work, layout_of, of_operands, of_outs, abstract_mesh, _, operands, __):
    """Answer XLA: the mesh, the function of a device, and how results and operands must be split. The first operand is the fingerprint."""
    sharding = next(operand.sharding for operand in operands if operand.sharding is not None)
    devices = list(sharding.devices_indices_map(()))
    mesh = Mesh(np.asarray(devices).reshape(abstract_mesh.axis_sizes), abstract_mesh.axis_names)
    axes = {}
    for letters, operand in zip(of_operands[1:], operands[1:], strict=True):
        for letter, part in zip(letters, _parts(operand, mesh), strict=True):
            if part:
                axes.setdefault(letter, part)
    layout = layout_of(axes)
    results, arguments = (_shardings(mesh, layout.axes(), letters) for letters in (of_outs, of_operands))
    return mesh, functools.partial(work, layout), results, tuple(arguments)


def _shardings(mesh, axes, all_letters):
    return [NamedSharding(mesh, P(*(axes.get(x) or None for x in letters))) for letters in all_letters]


def _parts(operand, mesh) -> list[tuple[str, ...]]:
    """Return the mesh axes that split each axis of an operand evenly; none where XLA splits it in a way that a `PartitionSpec` cannot say."""
    ndim = len(operand.shape)
    if operand.sharding is None:
        return [()] * ndim
    # XLA also splits sizes unevenly, and JAX cannot say how. So ask about axes that any number of devices splits evenly.
    slices = operand.sharding.devices_indices_map((mesh.size,) * ndim).values()
    starts = [np.asarray([of_device[i].start or 0 for of_device in slices]) for i in range(ndim)]
    parts = [_part(of_axis, mesh) for of_axis in starts]
    counts = [math.prod(mesh.shape[axis] for axis in part) for part in parts]
    return [part if size % n == 0 else () for part, size, n in zip(parts, operand.shape, counts, strict=True)]


def _part(starts, mesh) -> tuple[str, ...]:
    """Return the mesh axes that split an array axis as long as there are devices, where the part of each device begins at `starts`."""
    sizes_of_mesh = mesh.axis_sizes
    grid, numbers = starts.reshape(sizes_of_mesh), np.indices(sizes_of_mesh)
    used = [i for i in range(grid.ndim) if np.any(np.diff(grid, axis=i))]
    for order in itertools.permutations(used):
        sizes = [sizes_of_mesh[i] for i in order]
        number = np.ravel_multi_index([numbers[i] for i in order], sizes) if order else 0
        if np.array_equal(number * mesh.size, grid * math.prod(sizes)):
            return tuple(mesh.axis_names[i] for i in order)
    return ()


def _fingerprint(text):
    """Return a constant that depends on the text, less the addresses of this process, and on the code of the package."""
    digest = hashlib.sha256(_code_of_package() + re.sub("0x[0-9a-f]+", "", text).encode()).digest()
    return jnp.asarray(np.frombuffer(digest, np.uint32))


@functools.cache
def _code_of_package():
    package = pathlib.Path(__file__).parents[1]
    return b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")))
