"""Measure time, memory and errors of the losses on this machine's CPU, and of other libraries and the floors.

python -m benchmarks                       # about ten minutes; writes benchmarks/results/cpu*.csv, cpu.md and cpu-*.png
python -m benchmarks --quick               # small shapes, about a minute
python -m benchmarks --report              # writes the markdown and plots of the existing CSVs

Needs the extra `benchmarks`. Keras and PyTorch are timed if they can be imported. Every problem is written as soon as it is measured.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jaxce
from benchmarks import curves, markdown, measure, peers, plots, problems, report
from benchmarks.machine import RESULTS, exit_when_cut, machine
from benchmarks.peers.in_jax import COPY, KERAS, MATMULS, OPTAX, OPTAX_WIDE, OURS
from benchmarks.peers.in_torch import COMPILED, EAGER
from benchmarks.problems import GRADIENT, VALUE
from examples import progress

NAMES = (OURS, OPTAX, OPTAX_WIDE, KERAS, EAGER, COMPILED, COPY, MATMULS)
# A sample is as many calls as fit in SAMPLE_SECONDS. A program gets SAMPLES samples, or fewer once PROBLEM_SECONDS are over.
SAMPLE_SECONDS, SAMPLES, FEWEST_SAMPLES, PROBLEM_SECONDS = 0.01, 15, 3, 3.0
_IMPORT = "import jax, time; t = time.perf_counter(); import jaxce; print(time.perf_counter() - t)"


def run(folder: Path, *, quick: bool) -> None:
    """Write the CSVs."""
    times, drawn, about = _paths(folder)
    folder.mkdir(parents=True, exist_ok=True)
    versions = machine("jax", "jaxlib", "optax", "keras", "torch")
    about.write_text(f"{versions}, jaxce {jaxce.__version__}\n{_import_milliseconds(3 if quick else 9):.6g}\n")
    report.start(drawn, curves.Point)
    vocabularies = problems.VOCABULARIES[: 3 if quick else None]
    for vocabulary in progress.bar(vocabularies, "memory", leave=False):
        for point in curves.memory(vocabulary):
            report.append(drawn, point)
    for point in curves.errors():
        report.append(drawn, point)
    report.start(times, report.DenseRow)
    todo = [(problem, what) for problem in problems.dense(quick=quick) for what in (GRADIENT, VALUE)]
    for problem, what in (bar := progress.bar(todo, "times")):
        bar.set_postfix_str(f"{problem.kind} {problem.shape} {problem.dtype}")
        makes = peers.programs(problem, what, problem.arrays(), NAMES)
        time_programs(problem, what, makes, times, seconds=1.0 if quick else PROBLEM_SECONDS)


def time_programs(problem, what, makes, path, *, seconds):
    """Append a row for each program that is installed. If the run is cut, append rows for the programs that have run."""
    timed = [x for x in measure.all_prepared(makes, problem) if x.installed]
    try:
        measure.in_turns(timed, rounds=SAMPLES, fewest=FEWEST_SAMPLES, seconds=seconds, sample_seconds=SAMPLE_SECONDS)
    finally:
        for x in timed:
            report.append(path, report.dense_row(problem, what, x))


def write_report(folder: Path) -> list[Path]:
    """Write the markdown and the plots of the existing CSVs."""
    times, drawn, about = _paths(folder)
    rows = report.read(times, report.DenseRow) if times.exists() else []
    points = report.read(drawn, curves.Point) if drawn.exists() else []
    words, import_ms = about.read_text().splitlines() if about.exists() else ("", "")
    text = folder / "cpu.md"
    text.write_text(markdown.dense(words, rows, points, import_ms))
    return [text, *plots.dense(rows, points, folder / "cpu")]


def _paths(folder):
    return folder / "cpu.csv", folder / "cpu-curves.csv", folder / "cpu-machine.txt"


def _import_milliseconds(times):
    """Return the median time of `import jaxce` over new processes."""
    command = [sys.executable, "-c", _IMPORT]
    found = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(1 + times)
    ]
    return statistics.median(found[1:]) * 1e3  # the first process may compile bytecode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes and few samples")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, write the markdown and plots of the existing CSVs"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args()
    exit_when_cut()
    try:
        if not options.report:
            run(options.results, quick=options.quick)
    finally:
        print(*write_report(options.results), sep="\n")


if __name__ == "__main__":
    main()
