"""How long a call takes on the device: the median over batches of calls, each batch waited for at its end."""

import dataclasses
import statistics
import time


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call, and the seconds before the first was ready, compilation included."""

    median: float
    least: float
    most: float
    first: float


def timed(run, wait, *, batches: int = 7, batch_seconds: float = 0.05, most_seconds: float = 2.0) -> Timing:
    """Times `run()`; `wait(result)` returns once the device is done.

    Calls of a batch are queued behind each other, so what the host does between them is hidden as it is in training.
    """
    start = time.perf_counter()
    wait(run())
    first = time.perf_counter() - start
    start = time.perf_counter()
    wait(run())
    once = time.perf_counter() - start
    calls = max(1, min(100, round(batch_seconds / max(once, 1e-6))))
    batches = max(3, min(batches, int(most_seconds / max(once * calls, 1e-6))))
    seconds = []
    for _ in range(batches):
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        wait(result)
        seconds.append((time.perf_counter() - start) / calls)
    return Timing(statistics.median(seconds), min(seconds), max(seconds), first)


class Budget:
    """The seconds that a run may still take."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Negative once it is spent."""
        return self._end - time.monotonic()
