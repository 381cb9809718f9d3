"""How fast, how small and how exact the losses are on this machine's CPU, beside other libraries and the floors, in one command.

python -m benchmarks                       # about ten minutes; writes benchmarks/results/cpu*.csv, cpu.md and cpu-*.png
python -m benchmarks --quick               # small shapes, about a minute
python -m benchmarks --report              # the markdown and plots of the CSVs that are there

Needs the extra `benchmarks`. Keras and PyTorch are timed where they can be imported. Every row is written as soon as it is there.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads of PyTorch that wait take no core from whoever is next

from tqdm import tqdm

import jaxce
from benchmarks import records
from benchmarks.cpu import curves, report, timing
from benchmarks.cpu.problems import GRADIENT, VALUE, problems
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"
_IMPORT = "import jax, time; t = time.perf_counter(); import jaxce; print(time.perf_counter() - t)"


def run(folder: Path, *, quick: bool) -> None:
    """Writes the CSVs."""
    times, drawn, about = _paths(folder)
    folder.mkdir(parents=True, exist_ok=True)
    versions = machine("jax", "jaxlib", "optax", "keras", "torch")
    about.write_text(f"{versions}, jaxce {jaxce.__version__}\n{_import_milliseconds(3 if quick else 9):.6g}\n")
    records.start(drawn, curves.Point)
    vocabularies = curves.VOCABULARIES[: 3 if quick else None]
    for vocabulary in tqdm(vocabularies, desc="memory", leave=False):
        for point in curves.memory(vocabulary):
            records.append(drawn, point)
    for point in curves.errors():
        records.append(drawn, point)
    records.start(times, timing.Row)
    todo = [(problem, what) for problem in problems(quick=quick) for what in (GRADIENT, VALUE)]
    for problem, what in (progress := tqdm(todo, desc="times")):
        progress.set_postfix_str(f"{problem.loss} {problem.shape} {problem.dtype}")
        for row in timing.rows(problem, what, seconds=1.0 if quick else timing.PROBLEM_SECONDS):
            records.append(times, row)


def write_report(folder: Path) -> list[Path]:
    """The markdown and the plots, of what there is."""
    times, drawn, about = _paths(folder)
    rows = records.read(times, timing.Row) if times.exists() else []
    points = records.read(drawn, curves.Point) if drawn.exists() else []
    words, import_ms = about.read_text().splitlines() if about.exists() else ("", "")
    text = folder / "cpu.md"
    text.write_text(report.markdown(words, rows, points, import_ms))
    return [text, *report.plot(rows, points, folder / "cpu")]


def _paths(folder):
    return folder / "cpu.csv", folder / "cpu-curves.csv", folder / "cpu-machine.txt"


def _import_milliseconds(times):
    """The median over new processes."""
    command = [sys.executable, "-c", _IMPORT]
    found = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(1 + times)
    ]
    return statistics.median(found[1:]) * 1e3  # the first may have had to compile


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes and few samples")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, write markdown and plots of what there is"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # one that is cut still reports what it has
    try:
        if not options.report:
            run(options.results, quick=options.quick)
    finally:
        print(*write_report(options.results), sep="\n")


if __name__ == "__main__":
    main()
