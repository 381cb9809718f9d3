"""How long the programs of a problem take, in turns in one process."""

import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.cpu import in_jax, in_torch
from benchmarks.cpu.in_jax import OURS
from benchmarks.cpu.problems import Problem

# A sample is as many calls as take so long, a program gets so many samples, fewer if all of them together take longer than that.
SAMPLE_SECONDS, SAMPLES, PROBLEM_SECONDS = 0.01, 15, 3.0
FEWEST_SAMPLES = 3
# How far the mean loss, and its gradient as a vector, may be from ours: what rounding to the dtype does, and no mistake.
NEAR = {"float32": (1e-5, 1e-3), "bfloat16": (2e-2, 3e-2)}


@dataclasses.dataclass(frozen=True)
class Row:
    """A program of a problem. Seconds are of one call; `status` is "done", or why there are none."""

    loss: str
    shape: str
    dtype: str
    what: str
    program: str
    status: str = "done"
    samples: str = ""
    median: str = ""
    lower_quartile: str = ""
    upper_quartile: str = ""
    cpu_median: str = ""  # of the CPU-seconds of all cores
    temporary_mib: str = ""
    target: str = ""  # of the time over that of optax


def rows(problem: Problem, what: str, *, seconds: float = PROBLEM_SECONDS) -> Iterator[Row]:
    """One of each program, those that are not timed first."""
    arrays = problem.arrays()
    about = problem.loss, problem.shape, problem.dtype, what
    ready, ours = [], None
    for name, make in itertools.chain(in_jax.programs(problem, what, arrays), in_torch.programs(problem, what, arrays)):
        try:
            program = make()
            answer = program.answer and program.answer(program.run())
            ours = ours or answer
            if answer and (off := _difference(answer, ours, problem.dtype)):
                yield Row(*about, name, status=off)
                continue
            ready.append(program)
        except Exception as error:  # whatever stops one program must not stop the others
            yield Row(*about, name, status=f"{type(error).__name__}: {error}".splitlines()[0][:200])
    gc.collect()
    target = problem.targets.get(what)
    for program, (wall, cpu) in zip(ready, _in_turns([p.run for p in ready], seconds), strict=True):
        lower, median, upper = np.quantile(wall, [0.25, 0.5, 0.75])
        yield Row(
            *about,
            program.name,
            samples=str(len(wall)),
            median=f"{median:.6g}",
            lower_quartile=f"{lower:.6g}",
            upper_quartile=f"{upper:.6g}",
            cpu_median=f"{statistics.median(cpu):.6g}",
            temporary_mib="" if program.temporaries is None else f"{program.temporaries / 2**20:.6g}",
            target=f"{target:g}" if target and program.name == OURS else "",
        )


def _difference(answer, ours, dtype):
    """Why an answer is not ours; empty if it is."""
    of_value, of_gradient = NEAR[dtype]
    (value, gradient), (own, own_gradient) = answer, ours
    if not abs(value - own) <= of_value * abs(own):
        return f"another loss: {value:.6g} for {own:.6g}"
    if gradient is not None:
        off = float(np.linalg.norm(gradient - own_gradient) / np.linalg.norm(own_gradient))
        if not off <= of_gradient:
            return f"another gradient: {off:.2g} of ours off"
    return ""


def _in_turns(runs: list[Callable], seconds: float):
    """For each (seconds, CPU-seconds) of one call in every sample."""
    calls = [_calls(run) for run in runs]
    wall, cpu = [[] for _ in runs], [[] for _ in runs]
    end = time.monotonic() + seconds
    for sample in range(SAMPLES):
        if sample >= FEWEST_SAMPLES and time.monotonic() > end:
            break
        for i, run in enumerate(runs):
            start, start_cpu = time.perf_counter(), time.process_time()
            for _ in range(calls[i]):
                run()
            wall[i].append((time.perf_counter() - start) / calls[i])
            cpu[i].append((time.process_time() - start_cpu) / calls[i])
    return list(zip(wall, cpu, strict=True))


def _calls(run):
    run()
    start = time.perf_counter()
    run()
    return max(1, min(200, round(SAMPLE_SECONDS / max(time.perf_counter() - start, 1e-6))))
