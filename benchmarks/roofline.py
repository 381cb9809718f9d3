"""The times of the linear losses on accelerators, predicted without the device: from the matmuls and the bytes of the compiled programs.

python -m benchmarks.roofline                # writes benchmarks/results/roofline.md and roofline.png; some minutes. Needs the extra `aot`
python -m benchmarks.roofline --target h100  # prints a line of JSON for each program of a target

`benchmarks.work` says how a time is predicted. The peak and the bandwidth of the NVIDIA H200 are those that its copies and its large matmuls reached;
those of the TPUs are nominal.
"""

import argparse
import concurrent.futures
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from tests.aot import ahead  # before jax: this module sets the environment that jax reads on import

# isort: split
import jax
import jax.numpy as jnp
import optax

import jaxce
from benchmarks import report
from benchmarks.machine import RESULTS, table
from benchmarks.problems import MODELS
from benchmarks.work import Device, work

TOKENS = 8192
# By the target whose compiler makes the program. An H200 runs the programs of an H100.
DEVICES = {
    "h100": Device(674e12, 4.2e12),
    "v5e": Device(197e12, 819e9),
    "v5p": Device(459e12, 2765e9),
    "v6e": Device(918e12, 1640e9),
}
MATMULS, SUM, NAIVE = "three bare matmuls", "linear_softmax_cross_entropy_sum", "naive: matmul, then optax"
LOSSES, ENTROPY = "linear_softmax_cross_entropy", "loss_sum with an entropy"
BLOCK_TOKENS = (256, 512, 1024, 2048, 4096)  # the points of the curve, on the GPU
# The names in the results of the H200. Its `jaxce sum` had blocks of 256 tokens.
MEASURED = {
    f"{SUM}, blocks of 2048 tokens": "jaxce sum, 2,048 tokens",
    LOSSES: "jaxce losses",
    NAIVE: "matmul, then optax",
}


def programs(target: str):
    """Return the programs by name: value and gradients with respect to `hidden` and `classifier`, and the three matmuls alone."""

    def linear(function, **options):
        def mean(hidden, classifier, labels):
            return function(hidden, classifier, labels, **options).mean()

        return jax.value_and_grad(mean, (0, 1))

    def naive(hidden, classifier, labels):
        logits = (hidden @ classifier).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def with_entropy(hidden, classifier, labels):
        logits = jaxce.LinearLogits(hidden, classifier)
        return jaxce.loss_sum(logits, labels, lambda stats: stats.nll - 0.01 * stats.entropy)

    def matmuls(hidden, classifier, _):
        logits = hidden @ classifier
        return logits @ classifier.T, hidden.T @ logits

    loss_sum = jaxce.linear_softmax_cross_entropy_sum
    found = {MATMULS: matmuls, SUM: linear(loss_sum), ENTROPY: linear(with_entropy)}
    found |= {LOSSES: linear(jaxce.linear_softmax_cross_entropy), NAIVE: linear(naive)}
    for tokens in BLOCK_TOKENS if target == "h100" else ():
        chunked = jaxce.Chunked(block_tokens=tokens)
        found[f"{SUM}, blocks of {tokens} tokens"] = linear(loss_sum, implementation=chunked)
    return found


def print_work(target: str) -> None:
    """Print a line of JSON for each program of each model."""
    for model, (classes, features) in MODELS.items():
        arguments = [((TOKENS, features), "bfloat16"), ((features, classes), "bfloat16"), ((TOKENS,), "int32")]
        for name, function in programs(target).items():
            compiled = ahead.compiled_for(target, function, arguments)
            memory = compiled.memory_analysis()
            held = memory.temp_size_in_bytes + memory.output_size_in_bytes
            row = {"target": target, "model": model, "program": name, "held_bytes": held}
            print(json.dumps(row | work(compiled.as_text(), DEVICES[target])._asdict()), flush=True)


def rows_of(target: str) -> list[dict]:
    """Return the rows of a target, which a separate process compiles, with their time divided by that of the bare matmuls."""
    command = [sys.executable, "-m", "benchmarks.roofline", "--target", target]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{target}: {done.stderr[-2000:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    floor = {row["model"]: row["seconds"] for row in rows if row["program"] == MATMULS}
    return [row | {"ratio": row["seconds"] / floor[row["model"]]} for row in rows]


def measured() -> dict[tuple[str, str], float]:
    """Return the times that an H200 took, divided by that of the bare matmuls, by model and program."""
    rows = report.read(RESULTS / "nvidia-h200.csv", report.DeviceRow)
    mine = [row for row in rows if (row.kind, row.dtype, row.what) == ("linear", "bfloat16", report.GRADIENTS)]
    times = {(row.subject, row.who): float(row.milliseconds) for row in mine if row.milliseconds}
    return {(model, who): ms / times[model, "bare matmuls"] for (model, who), ms in times.items()}


def gpu_table(rows: list[dict]) -> str:
    """Return the table of the GPU, with the measured times where they are known."""
    known, lines = measured(), []
    for row in rows:
        time = known.get((row["model"], MEASURED.get(row["program"], "")))
        lines.append(
            [
                row["model"],
                row["program"],
                f"{row['ratio']:.2f}",
                f"{time:.2f}" if time else "",
                f"{row['launches']:,.0f}",
                f"{row['fused_sums']:.0f}",
                f"{row['bytes_beside'] / 2**30:.1f}",
                f"{row['held_bytes'] / 2**20:,.0f}",
            ]
        )
    header = ["", "", "predicted", "measured", "launches", "fused sums", "GiB beside the matmuls", "MiB held"]
    return table(header, lines)


def tpu_table(by_target: dict[str, list[dict]]) -> str:
    """Return the table of the TPUs: predicted time, and GiB beside the matmuls."""
    cells: dict[tuple[str, str], list[str]] = {}
    for rows in by_target.values():
        for row in rows:
            cells.setdefault((row["model"], row["program"]), []).append(
                f"{row['ratio']:.2f}; {row['bytes_beside'] / 2**30:.1f}; {row['held_bytes'] / 2**20:,.0f}"
            )
    return table(["", "", *by_target], [[*names, *values] for names, values in cells.items()])


def draw_curve(rows: list[dict], path: Path) -> None:
    """Draw the predicted time against the memory for blocks of different sizes, and the default."""
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for model, color in zip(MODELS, ("#d55e00", "#999999", "#0072b2", "#009e73"), strict=True):
        mine = [row for row in rows if row["model"] == model]
        points = [(row["held_bytes"] / 2**30, row["ratio"], row["program"]) for row in mine]
        curve = sorted(point for point in points if "blocks of" in point[2])
        axes.plot([x for x, *_ in curve], [y for _, y, _ in curve], ".-", color=color, label=model)
        for x, y, name in points:
            if name in (SUM, NAIVE):
                axes.plot(x, y, "o" if name == SUM else "x", color=color, markersize=8)
    axes.set(xlabel="GiB held, gradients included", ylabel="predicted time / three bare matmuls", xscale="log")
    axes.set_title("Blocks of 256 to 4,096 tokens; o: the default, x: matmul, then optax", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


ABOUT = """# Predicted times of the linear losses

Value and gradients of 8,192 tokens in bfloat16, compiled ahead of time: {versions}. Nothing here ran on a device, but the column "measured" (an
NVIDIA H200, `nvidia-h200.md`). Times are divided by that of three bare matmuls. `benchmarks/work.py` says how they are predicted.

## H200, by the compiler for an H100

A fused sum is a matmul that adds its product to an array in the same launch. GPT-2's rows are not aligned, which the prediction does not know: its
bare matmuls took three times as long as predicted.

<!-- --8<-- [start:gpu] -->
{gpu}
<!-- --8<-- [end:gpu] -->

![Predicted time against memory](roofline.png)

## TPUs

A cell has three numbers: the predicted time, the GiB that are read and written beside the matmuls, and the MiB that are held, with the gradients.
No TPU has been measured. How near such predictions are is known for the GPU alone.

{tpus}
"""


def write_report() -> str:
    """Compile all programs for all targets, write the report and the picture, and return the report."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        by_target = dict(zip(DEVICES, pool.map(rows_of, DEVICES), strict=True))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "libtpu", "optax"))
    gpu = by_target.pop("h100")
    text = ABOUT.format(versions=versions, gpu=gpu_table(gpu), tpus=tpu_table(by_target))
    (RESULTS / "roofline.md").write_text(text)
    draw_curve(gpu, RESULTS / "roofline.png")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=DEVICES)
    options = parser.parse_args()
    if options.target:
        print_work(options.target)
    else:
        print(write_report())


if __name__ == "__main__":
    main()
