"""Print memory and passes over the logits of each loss and of optax, as the compilers of accelerators report them, without the accelerators.

python -m benchmarks.aot                     # writes benchmarks/results/aot.md, aot.csv and the predicted times, roofline.md; some minutes
python -m benchmarks.aot --targets v5e h100  # prints the table of these targets

Needs the extra `aot`. The programs, the targets and the count of passes come from tests/aot, which asserts the limits.
"""

import argparse
import concurrent.futures
import csv
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import RESULTS, table
from examples import progress

ROOT = Path(__file__).parents[1]
TARGETS = ("v5e", "v5p", "v6e", "h100")
CSV_COLUMNS = (
    "target",
    "loss",
    "what",
    "shape",
    "dtype",
    "temporary_bytes",
    "argument_bytes",
    "output_bytes",
    "reads",
    "writes",
)
# The losses that are compared, in bfloat16 and in the largest shapes.
PAIRS = {
    "dense, integer labels, (4096, 131072)": (
        "integer",
        "optax integer",
        "optax integer, its loss in the logits' dtype",
    ),
    "dense, class probabilities, (4096, 131072)": ("soft", "optax soft"),
    "sigmoid, (4096, 131072)": ("sigmoid", "optax sigmoid"),
    "linear, (8192, 2048, 128256)": ("linear sum", "linear", "matmul, then optax integer"),
    "policy loss with entropy, (8192, 2048, 128256)": ("policy sum", "matmul, then the policy loss"),
}
OF_OPTAX = (
    "optax gets the logits in float32, so that its losses are float32 like jaxce's, unless the line says otherwise."
)


def figures(target):
    """Return the rows of a target, which a separate process measures."""
    losses = [name for names in PAIRS.values() for name in names]
    command = [sys.executable, "-m", "tests.aot.measure", target, "--shapes", "real", "--losses", *losses]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{target}: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def cell(row):
    """Return the text for memory and passes."""
    if "error" in row:
        return "does not compile"
    text = f"{row['temporary_bytes'] / 2**20:,.0f} MiB"
    if row["loss"].startswith(("linear", "matmul", "policy")):
        return text
    return f"{text}; {sum(row['reads'].values()):g} + {row['writes']:g}"


def pairs_table(rows, targets):
    """Return a markdown table of temporary memory, and of reads and writes of arrays as large as the logits."""
    found = {(r["target"], r["loss"], r["what"]): r for r in rows if r["shape"] == "real" and r["dtype"] == "bfloat16"}
    lines = []
    for title, losses in PAIRS.items():
        for what in ("forward", "value and gradients"):
            for loss in losses:
                name = loss if loss.startswith(("optax", "matmul")) else f"jaxce, {loss}"
                cells = [cell(found[target, loss, what]) for target in targets if (target, loss, what) in found]
                if cells:
                    lines.append([f"{title}: {what}", name, *cells])
    return table(["temporary memory; reads + writes of logits-sized arrays", "", *targets], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS)
    options = parser.parse_args()
    targets = options.targets or TARGETS
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        parts = list(progress.bar(pool.map(figures, targets), "targets", total=len(targets)))
    rows = [row for part in parts for row in part]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "libtpu", "optax"))
    text = pairs_table(rows, targets)
    print(f"{versions}\n\n{text}")
    if options.targets is None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "aot.md").write_text(f"bfloat16, compiled ahead of time: {versions}. {OF_OPTAX}\n\n{text}\n")
        with (RESULTS / "aot.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows({**row, "reads": sum(row.get("reads", {}).values())} for row in rows)
        subprocess.run([sys.executable, "-m", "benchmarks.roofline"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
