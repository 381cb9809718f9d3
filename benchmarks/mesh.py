"""Lazy logits on a mesh of eight devices: what one device stores, multiplies and sends for value and gradients, as the compiler reports it.

python -m benchmarks.mesh      # writes benchmarks/results/mesh.md; nothing runs, so any machine will do

The layouts and the figures come from tests/support/auto_mesh.py, and tests/meshes/test_auto_mesh.py asserts their limits.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import math
import pathlib

import jax

from tests.support.auto_mesh import LAYOUTS, figures_of, per_token, total

SIZES = 8, 1024, 1024, 65536
MODES = ("naive", "explicit", "auto", "split")
RESULT = pathlib.Path(__file__).parent / "results" / "mesh.md"


def line(layout, loss):
    found = {mode: figures_of(layout, loss, mode, SIZES) for mode in MODES}
    stored = [f"{found[mode].temporaries / 2**20:,.0f}" for mode in MODES]
    sent = [f"{(found[mode].sent + found[mode].sent_in_loops) / 2**20:,.0f}" for mode in MODES]
    work = [f"{found[mode].products / math.prod(SIZES):.3g}" for mode in MODES]
    return f"| {layout} | {loss.__name__} | " + " | ".join((*stored, *sent, *work)) + " |"


def main() -> None:
    batch, length, features, classes = SIZES
    head = [f"{what}, {mode}" for what in ("MiB stored", "MiB sent", "matmuls") for mode in MODES]
    lines = [
        "# Lazy logits on a mesh",
        "",
        f"Value and gradients of {batch} x {length} tokens, {features:,} features and {classes:,} classes in float32, on eight devices; jax "
        f"{jax.__version__}, compiled for CPUs. For one device: the temporary memory, the bytes that it sends, and its matmuls, in units of a",
        "matmul of the whole layer. Written by `python -m benchmarks.mesh`.",
        "",
        "| split | loss | " + " | ".join(head) + " |",
        "|---" * (2 + len(head)) + "|",
        *(line(layout, loss) for layout in LAYOUTS for loss in (total, per_token)),
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
