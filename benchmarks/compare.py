"""Compare jaxce with another copy of it, for instance the release before, in one process.

python -m benchmarks.compare jaxce_before --path folder            # every problem of the dense and the linear tables
python -m benchmarks.compare jaxce_before --only sigmoid linear    # the problems whose line contains one of these words
python -m benchmarks.compare jaxce                                 # jaxce with itself: how much the machine's noise is

Needs the extra `benchmarks`. The other copy is a package under another name, whose modules import each other by that name. Every ratio is
that of jaxce over the other copy: below 1, jaxce is better. Calls alternate in the order new, old, old, new. A ratio is one of medians; the
brackets hold the quartiles of that ratio over parts of the run. Inputs are arguments of the compiled programs, so that temporaries are theirs alone.
"""

import argparse
import dataclasses
import gc
import importlib
import importlib.machinery
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from tqdm import tqdm

import jaxce
from benchmarks.cpu import problems as dense
from benchmarks.linear import programs as linear
from benchmarks.linear.__main__ import SHAPES
from benchmarks.machine import machine

QUICK_SHAPES = [((256, 64, 2048), "float32")]
SUM, LOSSES = "sum, value and gradients", "losses, value and gradients"
FEWEST_ROUNDS, MOST_ROUNDS = 2, 5000
TRACE_ROUNDS = 4
PARTS = 15  # of a run, for the quartiles
# Two answers that are further apart than this are reported.
NEAR = {"float32": 1e-5, "bfloat16": 1e-2}
COLUMNS = ("problem", "dtype", "what", "time", "CPU time", "temporaries, MiB", "equations", "trace + lower")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One line of the table: `loss(package)` returns the function of `arrays` that is compiled."""

    problem: str
    dtype: str
    what: str
    arrays: Callable[[], tuple[jax.Array, ...]]
    loss: Callable

    @property
    def name(self) -> str:
        """Return the words that `--only` searches."""
        return f"{self.problem} {self.dtype} {self.what}"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The program of one copy."""

    run: Callable
    temporaries: int
    equations: int


def cells(*, quick: bool) -> Iterator[Cell]:
    """Yield the dense problems, then the linear ones."""
    for problem in dense.problems(quick=quick):
        for what in (dense.VALUE, dense.GRADIENT):

            def loss(package, problem=problem, what=what):
                return _dense_loss(package, problem.loss, what)

            yield Cell(f"{problem.loss} {problem.shape}", problem.dtype, what, problem.arrays, loss)
    for shape, dtype in QUICK_SHAPES if quick else SHAPES:
        for what in (SUM, LOSSES):

            def arrays(shape=shape, dtype=dtype):
                problem = linear.problem(shape, dtype)
                return problem.hidden, problem.classifier, problem.labels

            yield Cell(f"linear {shape}", dtype, what, arrays, lambda package, what=what: _linear_loss(package, what))


def _dense_loss(package, kind, what):
    options = {"label_smoothing": dense.SMOOTHING, "z_loss": dense.Z_LOSS} if kind == dense.SMOOTHED else {}
    name = {dense.SOFT: "softmax_cross_entropy", dense.SIGMOID: "sigmoid_binary_cross_entropy"}
    function = getattr(package, name.get(kind, "softmax_cross_entropy_with_integer_labels"))
    in_layer = kind == dense.LAYER

    def mean(*args):
        *factors, labels = args
        logits = factors[0] @ factors[1] if in_layer else factors[0]
        return function(logits, labels, **options).mean()

    return mean if what == dense.VALUE else jax.value_and_grad(mean, (0, 1) if in_layer else 0)


def _linear_loss(package, what):
    name = "linear_softmax_cross_entropy_sum" if what == SUM else "linear_softmax_cross_entropy"
    return jax.value_and_grad(lambda *args: getattr(package, name)(*args).mean(), (0, 1))


def compare(cell: Cell, new, old, seconds: float) -> str:
    """Return the line of the table."""
    arrays = jax.block_until_ready(cell.arrays())
    tracing = _alternate(
        [lambda p=p: _trace(cell, p, arrays) for p in (new, old)], seconds, TRACE_ROUNDS, prepare=_clear
    )
    programs = [_compile(cell, package, arrays) for package in (new, old)]
    answers = [float(jax.tree.leaves(program.run())[0]) for program in programs]  # also the first, slower call
    wall_and_cpu = _alternate([program.run for program in programs], seconds, MOST_ROUNDS)
    figures = [_ratio(wall_and_cpu, 0), _ratio(wall_and_cpu, 1)]
    figures.append(" / ".join(f"{program.temporaries / 2**20:,.1f}" for program in programs))
    figures.append(" / ".join(str(program.equations) for program in programs))
    figures.append(_ratio(tracing, 0))
    if not math.isclose(*answers, rel_tol=NEAR[cell.dtype]):
        figures.append(f"another loss: {answers[0]:.8g} for {answers[1]:.8g}")
    return _line(cell.problem, cell.dtype, cell.what, *figures)


def _trace(cell, package, arrays):
    jax.jit(cell.loss(package)).trace(*arrays).lower()


def _clear():
    """Forget earlier traces, so that each is a first one, as in a program that compiles its step once."""
    jax.clear_caches()
    gc.collect()


def _compile(cell, package, arrays):
    traced = jax.jit(cell.loss(package)).trace(*arrays)
    compiled = traced.lower().compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return Compiled(lambda: jax.block_until_ready(compiled(*arrays)), temporaries, equations(traced.jaxpr))


def equations(jaxpr) -> int:
    """Count the equations of a jaxpr and of those inside it; every branch counts."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    inner = (leaf for eqn in jaxpr.eqns for value in eqn.params.values() for leaf in _flat(value))
    return len(jaxpr.eqns) + sum(equations(leaf) for leaf in inner if hasattr(getattr(leaf, "jaxpr", leaf), "eqns"))


def _flat(value):
    return value if isinstance(value, (tuple, list)) else (value,)


def _alternate(runs, seconds, most_rounds, prepare=lambda: None):
    """Return `[rounds, copy, first or second call, (seconds, CPU-seconds)]` of calls in the order new, old, old, new."""
    rounds = []
    gc.collect()
    gc.disable()  # a collection would fall into the call of one copy
    end = time.monotonic() + seconds
    try:
        while len(rounds) < most_rounds and (len(rounds) < FEWEST_ROUNDS or time.monotonic() < end):
            found = ([], [])
            for which in (0, 1, 1, 0):
                prepare()
                found[which].append(_timed(runs[which]))
            rounds.append(found)
    finally:
        gc.enable()
    return np.array(rounds)


def _timed(run):
    start, start_cpu = time.perf_counter(), time.process_time()
    result = run()
    cpu, wall = time.process_time() - start_cpu, time.perf_counter() - start
    del result  # once the clocks are read, before the next call needs the memory
    return wall, cpu


def _ratio(rounds, clock):
    """Return the ratio of the medians, and the quartiles of the ratios of medians in parts of the run."""

    def ratio(part):
        return np.median(part[:, 0, :, clock]) / np.median(part[:, 1, :, clock])

    parts = np.array_split(rounds, min(PARTS, len(rounds)))
    lower, upper = np.quantile([ratio(part) for part in parts], [0.25, 0.75])
    return f"{ratio(rounds):.3f} ({lower:.3f} to {upper:.3f})"


def _line(*parts):
    return "| " + " | ".join(parts) + " |"


def load(name: str, folder: Path | None):
    """Import a package, from `folder` if there is one; its modules are found by the path of the package."""
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
    parser.add_argument("--only", nargs="+", metavar="WORD", help="compare what has one of these in its line")
    parser.add_argument("--seconds", type=float, help="of calls for each line; 3 by default, 0.5 with --quick")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    options = parser.parse_args()
    other = load(options.other, options.path)
    seconds = options.seconds or (0.5 if options.quick else 3.0)
    todo = [cell for cell in cells(quick=options.quick) if any(word in cell.name for word in options.only or [""])]
    print(f"{machine('jax', 'jaxlib')}\nnew: {Path(jaxce.__file__).parent}\nold: {Path(other.__file__).parent}\n")
    print(_line(*COLUMNS), "|---" * len(COLUMNS) + "|", sep="\n", flush=True)
    for cell in tqdm(todo, leave=False):
        try:
            line = compare(cell, jaxce, other, seconds)
        except Exception as error:  # whatever stops one line must not stop the others
            line = _line(cell.problem, cell.dtype, cell.what, f"{type(error).__name__}: {error}".splitlines()[0])
        tqdm.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
