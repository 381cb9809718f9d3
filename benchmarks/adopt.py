"""Three training steps, before and after a change of the loss. The guide "Adopt" describes the public codebases that have these shapes.

python -m benchmarks.adopt               # writes benchmarks/results/adopt.md; ten minutes on two cores
python -m benchmarks.adopt --quick       # prints the lines of small shapes

A step is the value and the gradients of all parameters, without the optimizer. Each step is compared with the step before the change. Times are
medians of interleaved calls, divided by the time before the change. The devices are eight virtual ones of one CPU; only the last program uses all.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import argparse
import importlib.util
import statistics
from collections.abc import Iterator

import jax
import numpy as np

import jaxce
from benchmarks import measure
from benchmarks.adopt_steps import Program, Sizes, flax_program, mesh_program, vmap_program
from benchmarks.machine import RESULTS, machine, table
from benchmarks.measure import Timed

FULL = Sizes(8, 256, 256, 4, 2, 50257, 32000)
QUICK = Sizes(4, 16, 16, 2, 1, 211, 192)
HEADER = [
    "loss",
    "temporaries, MiB",
    "time / before",
    "CPU-seconds / before",
    "seconds",
    "loss: difference",
    "gradients: difference",
]


def programs(sizes: Sizes) -> Iterator[Program]:
    """Make the programs, without that of flax if flax is not installed."""
    if importlib.util.find_spec("flax"):
        yield flax_program(sizes)
    else:
        print("flax is not installed: its program is left out")
    yield vmap_program(sizes)
    yield mesh_program(sizes)


def difference(found, first) -> float:
    """Return the norm of the difference of two pytrees, relative to the norm of `first`."""

    def norm(trees):
        return np.sqrt(sum(float(np.sum(np.square(x))) for x in trees))

    found, first = ([np.asarray(x, np.float64) for x in jax.tree.leaves(tree)] for tree in (found, first))
    return norm([x - y for x, y in zip(found, first, strict=True)]) / norm(first)


def lines(program: Program, repeats: int) -> list[list[str]]:
    """Compile and time the steps of a program, and compare them with the first."""
    timed, answers = [], []
    for name, step in program.steps.items():
        compiled = measure.compiled(step, program.arrays)
        answers.append(jax.device_get(compiled.wait(compiled.start())))
        timed.append(Timed(name, compiled))
    measure.in_turns(timed, rounds=repeats)
    return [line(x, timed[0], answer, answers[0]) for x, answer in zip(timed, answers, strict=True)]


def line(timed: Timed, first: Timed, answer, before) -> list[str]:
    wall, cpu, first_wall, first_cpu = map(statistics.median, (timed.wall, timed.cpu, first.wall, first.cpu))
    (loss, gradients, _), (loss_before, gradients_before, _) = answer, before
    gaps = difference(loss, loss_before), difference(gradients, gradients_before)
    ratios = f"{wall / first_wall:.2f}", f"{cpu / first_cpu:.2f}", f"{wall:.3g}"
    return [timed.name, f"{timed.program.temporaries / 2**20:,.0f}", *ratios, *(f"{gap:.1e}" for gap in gaps)]


def report(parts: list[tuple[str, list[list[str]]]], sizes: Sizes, repeats: int) -> str:
    about = (
        f"{machine('jax', 'jaxlib', 'flax', 'optax')}, jaxce {jaxce.__version__}. Value and gradients of a step of {sizes.batch} x {sizes.length} "
        f"tokens, {sizes.features} features, {sizes.layers} layers, float32. Medians of {repeats} interleaved calls; the load average of the machine "
        f"was {os.getloadavg()[1]:.1f}. The compiler reports the temporaries of one device; arguments and results do not count. The differences are "
        "relative to the step before the change."
    )
    tables = (f"**{title}**\n\n{table(HEADER, rows)}" for title, rows in parts)
    return "\n\n".join(["# A loss that is changed", about, *tables]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes; writes nothing")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    parts = [(program.title, lines(program, options.repeats)) for program in programs(sizes)]
    text = report(parts, sizes, options.repeats)
    if not options.quick:
        (RESULTS / "adopt.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
