"""The one clock: programs in turns in one process, their answers compared before they are timed."""

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from benchmarks.problems import Problem

Answer = tuple[float, dict[str, np.ndarray]]
OUT_OF_TIME = "out of time"


@dataclasses.dataclass(frozen=True)
class Program:
    """`wait(start())` returns the mean loss with its gradients once they are there; `answer` turns them into numbers."""

    start: Callable[[], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready
    answer: Callable[[Any], Answer] | None = None
    temporaries: int | None = None  # bytes, as the compiler says
    results: int = 0  # bytes


@dataclasses.dataclass
class Timed:
    """A program with the seconds and CPU-seconds of its calls; `status` is "done", or why there are none."""

    name: str
    program: Program | None = None
    status: str = "done"
    loss: float | None = None
    first: float = 0.0  # seconds until the first answer, compilation included
    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)

    @property
    def installed(self) -> bool:
        """Return whether the library could be imported."""
        return not self.status.startswith("left out")


def compiled(
    function: Callable, arrays: tuple[jax.Array, ...], answer: Callable[[Any], Answer] | None = None
) -> Program:
    """Compile a function for these arrays, which are arguments of the program."""
    program = jax.jit(function).lower(*arrays).compile()
    memory = program.memory_analysis()
    held = (memory.temp_size_in_bytes, memory.output_size_in_bytes) if memory else (None, 0)
    return Program(lambda: program(*arrays), jax.block_until_ready, answer, *held)


def prepared(
    name: str, make: Callable[[], Program], problem: Problem, ours: Answer | None
) -> tuple[Timed, Answer | None]:
    """Make a program and run it once. Whatever stops it, or an answer that is not ours, is its status."""
    try:
        start = time.perf_counter()
        program = make()
        found = program.wait(program.start())
        timed = Timed(name, program, first=time.perf_counter() - start)
        answer = program.answer and program.answer(found)
    except Exception as error:  # whatever stops one program must not stop the others
        status = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return Timed(name, status=f"left out: {status}" if isinstance(error, ImportError) else status), None
    if answer is not None:
        timed.loss = answer[0]
        if ours is not None and (off := difference(answer, ours, problem.near)):
            timed.program, timed.status = None, off
    return timed, answer


def all_prepared(
    makes: Iterable[tuple[str, Callable[[], Program]]],
    problem: Problem,
    *,
    compare: bool = True,
    end: float = math.inf,
) -> list[Timed]:
    """Prepare every program, until the clock `time.monotonic` shows `end`; ours is the first with an answer."""
    found, ours = [], None
    for name, make in makes:
        if time.monotonic() > end:
            found.append(Timed(name, status=OUT_OF_TIME))
            continue
        timed, answer = prepared(name, make, problem, ours if compare else None)
        ours = ours if ours is not None else answer
        found.append(timed)
    return found


def difference(answer: Answer, ours: Answer, near: tuple[float, float]) -> str:
    """Return why an answer is not ours; nothing if it is."""
    (value, gradients), (own, own_gradients) = answer, ours
    if not abs(value - own) <= near[0] * abs(own):
        return f"another answer: loss {value:.6f} for {own:.6f}"
    for by, gradient in gradients.items():
        off = float(np.linalg.norm(gradient - own_gradients[by]) / np.linalg.norm(own_gradients[by]))
        if not off <= near[1]:
            return f"another answer: its gradient by {by} is {off:.2g} of ours off"
    return ""


def in_turns(
    timed: list[Timed],
    *,
    rounds: int,
    fewest: int = 1,
    seconds: float = math.inf,
    sample_seconds: float = 0.0,
    queued: bool = False,
    slow: float = math.inf,
    before: Callable[[], Any] = lambda: None,
) -> None:
    """Fill `wall` and `cpu` of the programs, each round a sample of each, in the order A B, B A, A B, ...

    Args:
      timed: The programs; those without one are skipped.
      rounds: How many samples of each program.
      fewest: How many are enough once `seconds` are over.
      seconds: How long the programs together may take.
      sample_seconds: A sample is as many calls as take so long; by default one call.
      queued: Wait for the last call of a sample alone, which hides what the host does, as in training.
      slow: A program that takes so many times as long as the first is asked for a fifth of the samples.
      before: Called before each sample, not timed.
    """
    running = [x for x in timed if x.program]
    calls = [_calls(x.program, sample_seconds) if sample_seconds else 1 for x in running]
    gc.collect()
    gc.disable()  # a collection would fall into the sample of one program
    end = time.monotonic() + seconds
    try:
        for i in range(rounds):
            if i >= fewest and time.monotonic() > end:
                return
            for x, n in list(zip(running, calls, strict=True))[:: -1 if i % 2 else 1]:
                if i < max(1, rounds // 5) or x.wall[0] <= slow * running[0].wall[0]:
                    before()
                    _sample(x, n, queued)
    finally:
        gc.enable()


def _sample(timed, calls, queued):
    start_program, wait = timed.program.start, timed.program.wait
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = start_program()
        if not queued:
            wait(result)
    wait(result)
    timed.cpu.append((time.process_time() - start_cpu) / calls)
    timed.wall.append((time.perf_counter() - start) / calls)


def _calls(program, seconds):
    program.wait(program.start())
    start = time.perf_counter()
    program.wait(program.start())
    return max(1, min(200, round(seconds / max(time.perf_counter() - start, 1e-6))))
