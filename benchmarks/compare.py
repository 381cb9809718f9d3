"""Compare jaxce with another copy of jaxce, for instance the previous release, in one process.

python -m benchmarks.compare jaxce_before --path folder            # every problem of the dense and the linear tables
python -m benchmarks.compare jaxce_before --only sigmoid linear    # the problems whose line contains one of these words
python -m benchmarks.compare jaxce                                 # jaxce with itself, which shows the noise of the machine

Needs the extra `benchmarks`. The other copy is a package under another name; its modules must import each other by this name. Every ratio is jaxce
divided by the other copy: below 1, jaxce is better. Calls alternate in the order new, old, old, new. A ratio is a ratio of medians. The brackets
have the quartiles of this ratio over parts of the run. The inputs are arguments of the compiled programs, so they do not count as temporaries.
"""

import argparse
import gc
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

import jaxce
from benchmarks import problems
from benchmarks.machine import machine, table
from benchmarks.measure import Program, Timed, compiled, in_turns
from benchmarks.peers import in_jax
from benchmarks.problems import GRADIENT, LINEAR, VALUE, Problem
from examples import progress

MOST_ROUNDS, TRACE_ROUNDS = 10_000, 20  # a round has two calls of each copy
FEWEST_ROUNDS = 4
PARTS = 15  # of a run, for the quartiles
COLUMNS = ("problem", "dtype", "what", "time", "CPU time", "temporaries, MiB", "equations", "trace + lower")

Line = tuple[Problem, str, str]


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the problem, the name of the loss, and value or gradient: first the dense problems, then the linear problems."""
    for problem in problems.dense(quick=quick):
        for what in (VALUE, GRADIENT):
            yield problem, in_jax.OURS, what
    for problem in problems.linear(quick=quick):
        for name in (in_jax.SUM, in_jax.LOSSES):
            yield problem, name, GRADIENT


def words(line: Line) -> tuple[str, str, str]:
    """Return the first cells of a line."""
    problem, name, what = line
    if problem.kind == LINEAR:
        return f"{LINEAR} {problem.shape}", problem.dtype, f"{name.removeprefix('jaxce ')}, {what}"
    return f"{problem.kind} {' x '.join(map(str, problem.shape))}", problem.dtype, what


def compare(line: Line, new, old, seconds: float) -> list[str]:
    """Return the cells of a line."""
    problem, name, what = line
    arrays = problem.arrays()

    def function(package):
        return in_jax.with_gradient(problem, what, in_jax.own(problem, package)[name])

    def first_trace(package):
        return lambda: jax.jit(function(package)).trace(*arrays).lower()

    tracing = [Timed("", Program(first_trace(package), wait=lambda lowered: lowered)) for package in (new, old)]
    in_turns(tracing, rounds=TRACE_ROUNDS, fewest=FEWEST_ROUNDS, seconds=seconds, before=_forget_traces)
    programs = [compiled(function(package), arrays) for package in (new, old)]
    losses = [
        float(jax.tree.leaves(program.wait(program.start()))[0]) for program in programs
    ]  # also makes the first call, which is slower
    calls = [Timed("", program) for program in programs]
    in_turns(calls, rounds=MOST_ROUNDS, fewest=FEWEST_ROUNDS, seconds=seconds)
    counts = [equations(jax.make_jaxpr(function(package))(*arrays)) for package in (new, old)]
    cells = [*words(line), _ratio(*(x.wall for x in calls)), _ratio(*(x.cpu for x in calls))]
    cells.append(" / ".join(f"{program.temporaries / 2**20:,.1f}" for program in programs))
    cells += [" / ".join(map(str, counts)), _ratio(*(x.wall for x in tracing))]
    if not abs(losses[0] - losses[1]) <= problem.near[0] * abs(losses[1]):
        cells.append(f"another loss: {losses[0]:.8g} for {losses[1]:.8g}")
    return cells


def _forget_traces():
    """Clear the caches, so that the next trace is a first trace, as in a program that compiles its step once."""
    jax.clear_caches()
    gc.collect()


def equations(jaxpr) -> int:
    """Count the equations of a jaxpr and of the jaxprs inside it. Every branch counts."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    inner = (leaf for eqn in jaxpr.eqns for leaf in jax.tree.leaves(list(eqn.params.values())))
    return len(jaxpr.eqns) + sum(equations(leaf) for leaf in inner if hasattr(getattr(leaf, "jaxpr", leaf), "eqns"))


def _ratio(new, old):
    """Return the ratio of the medians, and the quartiles of this ratio over parts of the run."""
    both = np.array([new, old])
    parts = np.array_split(both, min(PARTS, both.shape[1] // 2), axis=1)
    lower, upper = np.quantile([np.divide(*np.median(part, 1)) for part in parts], [0.25, 0.75])
    return f"{np.divide(*np.median(both, 1)):.3f} ({lower:.3f} to {upper:.3f})"


def load(name: str, folder: Path | None):
    """Import a package, from `folder` if it is given. Python finds the modules of the package by the path of the package."""
    if folder is None or name == jaxce.__name__:
        return importlib.import_module(name)
    spec = importlib.machinery.PathFinder.find_spec(name, [str(folder.resolve())])
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no package {name} in {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", help="the name of the other package")
    parser.add_argument("--path", type=Path, help="the folder that holds the other package")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="compare only lines that contain one of these words")
    parser.add_argument("--seconds", type=float, help="seconds of calls for each line; 3 by default, 0.5 with --quick")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    options = parser.parse_args()
    other = load(options.other, options.path)
    seconds = options.seconds or (0.5 if options.quick else 3.0)
    todo = [x for x in lines(quick=options.quick) if any(word in " ".join(words(x)) for word in options.only or [""])]
    print(f"{machine('jax', 'jaxlib')}\nnew: {Path(jaxce.__file__).parent}\nold: {Path(other.__file__).parent}\n")
    print(table(COLUMNS, []), flush=True)
    for line in progress.bar(todo, leave=False):
        try:
            cells = compare(line, jaxce, other, seconds)
        except Exception as error:  # an error in one line must not stop the other lines
            cells = [*words(line), f"{type(error).__name__}: {error}".splitlines()[0]]
        progress.write(f"| {' | '.join(cells)} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
