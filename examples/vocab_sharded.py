"""Trains a language-model head whose vocabulary is split over devices, and compares it with the same training on one device.

python examples/vocab_sharded.py                  # on a mesh of 2 x 4 devices: the devices of the machine, or 8 virtual CPU devices
python examples/vocab_sharded.py --processes 2    # as two processes on this machine, with 4 devices each
"""

import argparse
import collections
import functools
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from corpus import IGNORED, UNKNOWN, standard_library
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce

DEVICES, FEATURES, BATCH, SEQUENCE, SEED, ALLOWED = 8, 64, 16, 64, 0, 1e-5
# The vocabulary is split over "model", the examples over "data". All other arrays are replicated.
SPECS = {"embedding": P("model"), "mix": P(), "classifier": P(None, "model")}
BY_CLASS, BY_EXAMPLE = P("model"), P("data")


def hidden_states(params, words, axis_name):
    """Return the embedding of each word, multiplied by a matrix. A device looks up only its own words."""
    table = params["embedding"]
    if axis_name is None:
        rows = table[words]
    else:
        places = words - lax.axis_index(axis_name) * len(table)
        own = (places >= 0) & (places < len(table))
        rows = lax.psum(jnp.where(own[..., None], table[jnp.where(own, places, 0)], 0), axis_name)
    return jnp.tanh(rows @ params["mix"])


def loss(params, bias, words, axis_name=None) -> jaxce.LossSum:
    """Return the sum of the losses of the words that count. With an `axis_name`, embedding, classifier and bias are one device's classes."""
    hidden = hidden_states(params, jnp.maximum(words[:, :-1], UNKNOWN), axis_name)
    labels = words[:, 1:]
    options = {"bias": bias, "mask": labels != IGNORED, "axis_name": axis_name}
    return jaxce.linear_softmax_cross_entropy_sum(hidden, params["classifier"], labels, **options)


def start(vocabulary: int, parts: int):
    """Return the parameters, padded so that `parts` divides the vocabulary, and a bias that is -inf for the padding classes."""
    rng, padded = np.random.default_rng(SEED), -(-vocabulary // parts) * parts
    shapes = {"embedding": (padded, FEATURES), "mix": (FEATURES, FEATURES), "classifier": (FEATURES, padded)}
    params = {name: (rng.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    return params, np.where(np.arange(padded) < vocabulary, 0, -np.inf).astype(np.float32)


def train(mean, optimizer, params, bias, batches, put, report=None) -> np.ndarray:
    """Return the loss of each step. `put` puts a batch of examples on its devices."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, bias, words):
        value, gradient = jax.value_and_grad(mean)(params, bias, words)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state = optimizer.init(params)
    compiled = step.lower(params, opt_state, bias, put(batches[0])).compile()
    if report:
        report(compiled, params)
    losses = []
    for words in batches:
        params, opt_state, value = compiled(params, opt_state, bias, put(words))
        losses.append(float(value))
    return np.asarray(losses)


def show(mesh, step, params) -> None:
    """Print the sharding of the classifier, the bytes that a step sends (a loop is counted once), and the memory of a step on each device."""
    print(f"mesh: {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}; on it the classifier:")
    jax.debug.visualize_array_sharding(params["classifier"])
    sent = collections.Counter()
    pattern = r"= (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
    for kind, operation in re.findall(pattern, step.as_text()):
        arrays = re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", kind)
        sent[operation] += sum(
            int(bits) // 8 * int(np.prod([int(n) for n in dims.split(",") if n])) for bits, dims in arrays
        )
    print("sent by a device in a step:", ", ".join(f"{operation} {size:,} bytes" for operation, size in sent.items()))
    use = step.memory_analysis()
    held = use.argument_size_in_bytes + use.output_size_in_bytes - use.alias_size_in_bytes + use.temp_size_in_bytes
    print(f"memory of a step on each device: {held / 2**20:.1f} MiB")


def launch(processes: int, arguments: list[str]) -> int:
    """Run this file once for each process. Return 0 if all succeed, otherwise the largest exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, *arguments, "--processes", str(processes), "--coordinator", address]
    children = [subprocess.Popen([*command, "--process", str(i)]) for i in range(processes)]
    return max(abs(child.wait()) for child in children)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="a few steps on some of the words")
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = standard_library(3, SEQUENCE, 60 if options.short else 400)
    if options.processes > 1 and options.coordinator is None:
        return launch(options.processes, ["--short"] * options.short)
    jax.config.update("jax_num_cpu_devices", DEVICES // options.processes)
    if options.coordinator:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    model = next(n for n in (4, 2, 1) if jax.device_count() % n == 0)
    mesh = jax.make_mesh((jax.device_count() // model, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    if jax.process_index() == 0:
        print("A language model of Python's standard library is trained twice: split over devices, and on one.")
        print(f"{rows.max() + 1:,} words; {jax.device_count()} devices; {options.processes} processes")
    params, bias = start(int(rows.max()) + 1, model)
    steps = 5 if options.short else 50
    batches = rows[np.random.default_rng(SEED).integers(len(rows), size=(steps, BATCH))]
    optimizer = optax.adam(1e-2)

    def put(array, spec):
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    placed = {name: put(array, SPECS[name]) for name, array in params.items()}
    report = functools.partial(show, mesh) if jax.process_index() == 0 else None

    def of_device(*arguments):
        return loss(*arguments, axis_name="model").psum("data").mean()

    mean = jax.shard_map(of_device, mesh=mesh, in_specs=(SPECS, BY_CLASS, BY_EXAMPLE), out_specs=P())
    to_devices = functools.partial(put, spec=BY_EXAMPLE)
    split = train(mean, optimizer, placed, put(bias, BY_CLASS), batches, to_devices, report)
    on_one = functools.partial(jax.device_put, device=jax.local_devices()[0])
    alone = train(lambda *a: loss(*a).mean(), optimizer, on_one(params), on_one(bias), batches, on_one)
    apart = np.max(np.abs(split / alone - 1))
    if jax.process_index() == 0:
        print(f"loss {split[0]:.4f} -> {split[-1]:.4f}; that of one device is {apart:.1e} apart, allowed {ALLOWED:.0e}")
    return int(not apart <= ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
