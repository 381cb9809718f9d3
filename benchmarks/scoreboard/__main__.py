"""Print the scoreboard and write it to `benchmarks/results/scoreboard.md` and `.json`.

python -m benchmarks.scoreboard              # a quarter of an hour
python -m benchmarks.scoreboard --quick      # fewer rows, without the lines that run test files; writes nothing
python -m benchmarks.scoreboard --divergences    # writes divergences.csv, .md and .png alone, half a minute; a full run writes them too
python -m benchmarks.scoreboard --mutants    # adds the line of the mutants, which takes an hour
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks import plots
from benchmarks.machine import RESULTS, machine, table
from benchmarks.peers import libraries
from benchmarks.scoreboard import accuracy, divergences, hard_values, in_use
from examples import progress

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"

# The lines that run test files: the subject and the files.
TESTED = {
    "transform compositions": [
        "derivatives/test_compositions.py",
        "derivatives/test_transforms.py",
        "derivatives/test_hessians.py",
        "meshes/test_sharding.py",
    ],
    "configurations": ["package/test_configurations.py"],
    "residuals": ["derivatives/test_rule.py"],
    "determinism": ["package/test_determinism.py"],
    "fuzz": ["tables/test_fuzz.py"],
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the scoreboard: the subject, the target, and the result of each library."""

    what: str
    target: str
    reached: dict[str, str]


def accuracy_lines(dtype, *, quick: bool) -> list[Line]:
    """Return the worst errors of values and gradients, by kind of label."""
    worst: dict[str, dict[str, list[float]]] = {}
    others = list(libraries.installed()) if dtype is np.float32 else list(libraries.installed())[:1]
    cases = list(accuracy.cases(dtype, quick=quick))
    for case in progress.bar(cases, f"accuracy, {np.dtype(dtype)}", leave=False):
        truth = accuracy.exact(case)
        for library in others:
            if case.kind in library.losses:
                answer = library.with_gradient(library.losses[case.kind], *case.arguments)
                found = worst.setdefault(case.kind, {}).setdefault(library.name, [0.0, 0.0])
                found[:] = map(max, found, accuracy.worst_errors(truth, *answer))
    lines = []
    for part, name, target in ((0, "value", accuracy.VALUE_TARGET), (1, "gradient", accuracy.GRADIENT_TARGET)):
        for kind, reached in worst.items():
            shown = {library: f"{errors[part]:.3g}" for library, errors in reached.items()}
            lines.append(Line(f"{name}, {kind}, {np.dtype(dtype)}: worst error in ulps", f"<= {target:g}", shown))
    return lines


def hard_value_lines() -> list[Line]:
    """Count the cells of the non-finite matrix and of the label rule that hold, and the bad calls that raise an error."""
    compared = list(libraries.installed())
    asks = {
        "non-finite matrix, without options: cells": lambda x: hard_values.nonfinite(x, own_options=False),
        "label rule: cells": hard_values.labels,
        "bad logits and labels: calls refused": lambda x: hard_values.bad_input(x, own_options=False),
    }
    lines = [
        Line(what, "all", {x.name: _of(*ask(x)) for x in progress.bar(compared, what, leave=False)})
        for what, ask in asks.items()
    ]
    for what, ask in (
        ("non-finite matrix, whole: cells", hard_values.nonfinite),
        ("bad input, whole: calls refused, saying why", hard_values.bad_input),
    ):
        lines.append(Line(what, "all", {compared[0].name: _of(*ask(compared[0], own_options=True))}))
    return lines


def in_use_lines() -> list[Line]:
    """Return the number of second derivatives that are right, and the error of a mean over 100 million tokens."""
    compared = list(libraries.installed())
    what = "second derivatives, every dtype: right"
    with jax.enable_x64(True):
        found = {x.name: _of(*in_use.second_derivatives(x)) for x in progress.bar(compared, what, leave=False)}
    lines = [Line(what, "all", found)]
    means = {x.name: f"{in_use.long_mean(*x.long_mean):.1e}" for x in compared if x.long_mean}
    lines.append(Line("long means, 300,000 batches of 333 tokens: relative error", "<= 1e-6", means))
    return lines


def _of(cells: int, hold: int) -> str:
    return f"{hold} of {cells}"


def tested_lines() -> list[Line]:
    """Run the test files and count the tests that pass."""
    lines = []
    for what, files in progress.bar(TESTED.items(), "test files", leave=False):
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *files]
        output = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False).stdout
        counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|error)", output)}
        total = sum(counts.values())
        lines.append(Line(f"{what}: tests passed", "all", {"jaxce": f"{counts.get('passed', 0)} of {total}"}))
    return lines


def mutant_lines() -> list[Line]:
    """Run the mutants and return how many of them the tests refuse."""
    command = [sys.executable, "-m", "tests.mutation.run_mutants"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    killed = re.search(r"(\d+ of \d+) killed", output)
    return [Line("mutants refused by the tests", ">= 95 %", {"jaxce": killed[1] if killed else output[-200:]})]


def write_divergences(folder: Path) -> str:
    """Measure the divergences, and write their errors, a table and a plot. Return the table."""
    path = folder / "divergences.csv"
    divergences.write(path, divergences.rows())
    versions = ", ".join(f"{library.name} {library.version}" for library in libraries.installed())
    text = divergences.markdown(f"{versions}; {machine('jax')}", divergences.read(path))
    path.with_suffix(".md").write_text(text)
    plots.divergences(divergences.read(path), path.with_suffix(".png"))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--divergences", action="store_true")
    parser.add_argument("--mutants", action="store_true")
    options = parser.parse_args()
    if options.divergences:
        print(write_divergences(RESULTS))
        return
    lines = accuracy_lines(np.float32, quick=options.quick)
    with jax.enable_x64(True):
        lines += accuracy_lines(np.float64, quick=options.quick)
    lines += hard_value_lines()
    lines += in_use_lines()
    if not options.quick:
        lines += tested_lines()
    if options.mutants:
        lines += mutant_lines()
    compared = list(libraries.installed())
    names = [library.name for library in compared]
    versions = ", ".join(f"{library.name} {library.version}" for library in compared)
    ran_on = machine("jax")
    rows = [[line.what, line.target, *(line.reached.get(name, "") for name in names)] for line in lines]
    text = table(["", "target", *names], rows)
    print(f"{versions}\n{ran_on}\n\n{text}")
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        write_divergences(RESULTS)
        (RESULTS / "scoreboard.md").write_text(f"{versions}; {ran_on}.\n\n{text}\n")
        record = {"versions": versions, "machine": ran_on, "lines": [dataclasses.asdict(line) for line in lines]}
        (RESULTS / "scoreboard.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
