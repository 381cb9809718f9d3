"""Times the linear losses, value and gradients, beside the three bare matmuls and the naive composition, interleaved in one process.

python -m benchmarks.linear                                   # the shapes of README
python -m benchmarks.linear 2048 512 32768 --dtype bfloat16 --repeats 9
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import jaxce

SHAPES = [
    ((2048, 512, 32768), "float32"),
    ((4096, 768, 50257), "float32"),
    ((1024, 2048, 128256), "float32"),
    ((4096, 768, 50257), "bfloat16"),
]


def programs(labels):
    """By name: value and gradients by hidden and classifier. The first is the floor: the forward matmul and the two of the gradients."""

    def mean(loss):
        return lambda hidden, classifier, _: jax.value_and_grad(loss, (0, 1))(hidden, classifier)

    def naive(hidden, classifier):
        logits = (hidden @ classifier).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return {
        "three matmuls": lambda hidden, classifier, slopes: (
            hidden @ classifier,
            slopes @ classifier.T,
            hidden.T @ slopes,
        ),
        "naive": mean(naive),
        "sum": mean(lambda h, w: jaxce.linear_softmax_cross_entropy_sum(h, w, labels).mean()),
        "losses": mean(lambda h, w: jaxce.linear_softmax_cross_entropy(h, w, labels).mean()),
    }


def measure(shape, dtype, repeats):
    """(median seconds, smallest, largest, MiB of temporaries) by name."""
    tokens, features, classes = shape
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (tokens, features)).astype(dtype)
    classifier = (0.05 * jax.random.normal(keys[1], (features, classes))).astype(dtype)
    slopes = (0.01 * jax.random.normal(keys[2], (tokens, classes))).astype(dtype)
    labels = jax.random.randint(keys[3], (tokens,), 0, classes)
    args = hidden, classifier, slopes
    compiled = {name: jax.jit(f).lower(*args).compile() for name, f in programs(labels).items()}
    for program in compiled.values():
        jax.block_until_ready(program(*args))
    seconds = {name: [] for name in compiled}
    for _ in tqdm(range(repeats), desc=f"{shape} {dtype}", leave=False):
        for name, program in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            seconds[name].append(time.perf_counter() - start)
    memory = {name: program.memory_analysis().temp_size_in_bytes / 2**20 for name, program in compiled.items()}
    return {name: (float(np.median(s)), min(s), max(s), memory[name]) for name, s in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="*", type=int, help="tokens, features and classes")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if len(options.shape) not in (0, 3):
        parser.error("a shape is three numbers: tokens, features, classes")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; times over that of the three matmuls")
    for shape, dtype in [(tuple(options.shape), options.dtype)] if options.shape else SHAPES:
        found = measure(shape, dtype, options.repeats)
        floor = found["three matmuls"][0]
        for name, (median, least, most, memory) in found.items():
            print(
                f"{shape} {dtype:9} {name:14} {median / floor:5.2f} x  ({least:.3f} to {most:.3f} s)  {memory:7.0f} MiB of temporaries"
            )


if __name__ == "__main__":
    main()
