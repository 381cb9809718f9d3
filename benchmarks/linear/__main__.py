"""Times the linear losses, value and gradients, beside three bare matmuls, the naive composition and others', interleaved in one process.

python -m benchmarks.linear                                   # the shapes of README; writes benchmarks/results/linear.csv and linear.md
python -m benchmarks.linear 2048 512 32768 --dtype bfloat16 --repeats 9      # prints those of one shape

Needs the extra `benchmarks`. Of tokamax, jax-cce and PyTorch it times what it can import, if its loss and gradients are ours; what takes more
than 20 times as long as the matmuls, fewer times. Every shape is written as soon as it is there. Where no environment has them all, run it in
each, with `--add` from the second on: every ratio is over the matmuls of its own process.
"""

import argparse
import functools
import os
import signal
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads of PyTorch that wait take no core from whoever is next

import numpy as np
from tqdm import tqdm

import jaxce
from benchmarks.linear import peers, programs, report
from benchmarks.linear.programs import FLOOR
from benchmarks.machine import machine

RESULTS = Path(__file__).parents[1] / "results"
SHAPES = [
    ((2048, 512, 32768), "float32"),
    ((4096, 768, 50257), "float32"),
    ((1024, 2048, 128256), "float32"),
    ((4096, 768, 50257), "bfloat16"),
]
SLOW = 20  # times the floor
# How far a loss, and a gradient as a vector, may be from ours: what rounding does to either, and no mistake.
NEAR = {"float32": (1e-5, 1e-3), "bfloat16": (1e-2, 2e-2), "float16": (1e-3, 1e-2)}


def measure(shape, dtype, repeats, others, writer):
    """Writes the row of each program of one shape; those that have run, also when it is cut."""
    row = functools.partial(report.Row, writer.machine, str(shape), dtype)
    problem, name = programs.problem(shape, dtype), f"{shape} {dtype}"
    ready, losses, ours = {}, {}, None
    makes = [(p.name, lambda _, p=p: p) for p in programs.own(problem)] + others
    for who, make in tqdm(makes, desc=f"{name}: compiling, comparing", leave=False):
        try:
            program, answer = _tried(make, problem)
            if answer:
                ours, losses[who] = ours or answer, f"{answer[0]:.6f}"
                _compare(answer, ours, dtype)
            ready[who] = program
        except Exception as error:  # whatever stops one program must not stop the others
            reason = str(error) if isinstance(error, _NotTimed) else f"{type(error).__name__}: {error}"
            writer.add(row(who, reason.splitlines()[0][:300], loss=losses.get(who, "")))
    answer = ours = None
    seconds = {who: [] for who in ready}
    try:
        for i in tqdm(range(repeats), desc=name, leave=False):
            for who, program in ready.items():
                if i >= max(1, repeats // 5) and seconds[who][0] > SLOW * seconds[FLOOR][0]:
                    continue
                start = time.perf_counter()
                program.run()
                seconds[who].append(time.perf_counter() - start)
    finally:
        for who, program in ready.items():
            writer.add(row(who, **_figures(program, seconds[who], seconds[FLOOR]), loss=losses.get(who, "")))


class _NotTimed(Exception):
    """Why a program is not timed."""


def _tried(make, problem):
    """The program, and its answer if it has one."""
    if isinstance(make, str):
        raise _NotTimed(make)
    program = make(problem)
    found = program.run()
    return program, program.answer and program.answer(found)


def _compare(answer, ours, dtype):
    """Raises where an answer is not ours."""
    of_value, of_gradients = NEAR.get(dtype, NEAR["bfloat16"])
    (value, *gradients), (own, *own_gradients) = answer, ours
    if not abs(value - own) <= of_value * abs(own):
        raise _NotTimed(f"another answer: loss {value:.6f} for {own:.6f}")
    for by, gradient, own in zip(("hidden", "classifier"), gradients, own_gradients, strict=True):
        off = float(np.linalg.norm(gradient - own) / np.linalg.norm(own))
        if not off <= of_gradients:
            raise _NotTimed(f"another answer: its gradient by {by} is {off:.2g} of ours off")


def _figures(program, seconds, of_floor):
    if not seconds:
        return {"status": "cut before it was timed"}
    median = statistics.median(seconds)
    return {
        "runs": str(len(seconds)),
        "median": f"{median:.6g}",
        "least": f"{min(seconds):.6g}",
        "most": f"{max(seconds):.6g}",
        "times_the_floor": f"{median / statistics.median(of_floor):.4g}",
        "temporary_mib": "" if program.temporaries is None else f"{program.temporaries / 2**20:.6g}",
    }


def _about():
    """What it runs on, and the versions."""
    return f"{machine('jax', 'jaxlib', *peers.PACKAGES)}, jaxce {jaxce.__version__}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="*", type=int, help="tokens, features and classes")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, help="the folder to write to; of one shape, none by default")
    parser.add_argument("--add", action="store_true", help="keep what linear.csv has, of another environment, say")
    options = parser.parse_args()
    if len(options.shape) not in (0, 3):
        parser.error("a shape is three numbers: tokens, features, classes")
    cells = [(tuple(options.shape), options.dtype)] if options.shape else SHAPES
    folder = options.results or (None if options.shape else RESULTS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # one that is cut still reports what it has
    path = folder and folder / "linear.csv"
    writer, others = report.Writer(_about(), path, add=options.add), list(peers.installed())
    print(f"{writer.machine}; times over that of the three matmuls", flush=True)
    try:
        for shape, dtype in cells:
            measure(shape, dtype, options.repeats, others, writer)
    finally:
        if path:
            path.with_suffix(".md").write_text(report.markdown(report.read(path)))
            print(path, path.with_suffix(".md"), sep="\n")


if __name__ == "__main__":
    main()
