"""The clock of all commands. It runs programs in turns in one process, and compares their answers before it times them."""

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
    """`start` starts the mean loss with its gradients, `wait` waits for the results, and `answer` converts the results to numbers."""

    start: Callable[[], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready
    answer: Callable[[Any], Answer] | None = None
    temporaries: int | None = None  # bytes, as the compiler reports them
    results: int = 0  # bytes


@dataclasses.dataclass
class Timed:
    """A program with the seconds and CPU-seconds of its calls. `status` is "done", or the reason why it was not timed."""

    name: str
    program: Program | None = None
    status: str = "done"
    loss: float | None = None
    first: float = 0.0  # seconds until the first result, including compilation
    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)

    @property
    def installed(self) -> bool:
        """Return whether the library could be imported."""
        return not self.status.startswith("left out")


def compiled(
    function: Callable, arrays: tuple[jax.Array, ...], answer: Callable[[Any], Answer] | None = None
) -> Program:
    """Compile a function for these arrays. The arrays are arguments of the program."""
    program = jax.jit(function).lower(*arrays).compile()
    memory = program.memory_analysis()
    held = (memory.temp_size_in_bytes, memory.output_size_in_bytes) if memory else (None, 0)
    return Program(lambda: program(*arrays), jax.block_until_ready, answer, *held)


def prepared(
    name: str, make: Callable[[], Program], problem: Problem, ours: Answer | None
) -> tuple[Timed, Answer | None]:
    """Make a program and run it once. The status is an error of the program, or the difference between its answer and jaxce's."""
    try:
        start = time.perf_counter()
        program = make()
        found = program.wait(program.start())
        timed = Timed(name, program, first=time.perf_counter() - start)
        answer = program.answer and program.answer(found)
    except Exception as error:  # an error in one program must not stop the other programs
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
    """Prepare every program, until `time.monotonic()` reaches `end`. The first program with an answer is jaxce's."""
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
    """Describe how an answer differs from jaxce's answer. Return an empty string if it does not differ."""
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
    """Fill `wall` and `cpu` of the programs. Each round takes a sample of each program, in the order A B, B A, A B, ...

    Args:
      timed: The programs. An entry without a program is skipped.
      rounds: The number of samples of each program.
      fewest: The number of samples after which the run may stop once `seconds` are over.
      seconds: The time for all programs together.
      sample_seconds: A sample is as many calls as fit in this time; by default one call.
      queued: Wait only for the last call of a sample. This hides the work of the host, as in training.
      slow: A program that takes more than this many times as long as the first program gets a fifth of the samples.
      before: Called before each sample, outside the timed part.
    """
    running = [x for x in timed if x.program]
    calls = [_calls(x.program, sample_seconds) if sample_seconds else 1 for x in running]
    gc.collect()
    gc.disable()  # a garbage collection would count in the time of one program
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
