"""What a run leaves behind: one CSV, complete after each of its lines, and the markdown that is made from it."""

import dataclasses
from pathlib import Path

from tqdm import tqdm

from benchmarks import records
from benchmarks.linear.programs import FLOOR


@dataclasses.dataclass(frozen=True)
class Row:
    """A program of a shape. What does not apply is empty; `status` is "done", or why there are no times."""

    machine: str  # and the versions
    shape: str
    dtype: str
    program: str
    status: str = "done"
    runs: str = ""
    median: str = ""  # of seconds, as the next two
    least: str = ""
    most: str = ""
    times_the_floor: str = ""
    temporary_mib: str = ""
    loss: str = ""


class Writer:
    """Appends rows to a CSV, and prints them; without a path it only prints."""

    def __init__(self, machine: str, path: Path | None, *, add: bool = False):
        self.machine, self._path = machine, path
        if path and not (add and path.exists()):
            records.start(path, Row)

    def add(self, row: Row) -> None:
        """Writes it through."""
        tqdm.write(line(row))
        if self._path:
            records.append(self._path, row)


def line(row: Row) -> str:
    """For the terminal."""
    start = f"{row.shape} {row.dtype:9} {row.program:16}"
    if row.status != "done":
        return f"{start} {row.status}"
    seconds = f"({float(row.least):.3f} to {float(row.most):.3f} s, {row.runs} runs)"
    memory = f"{float(row.temporary_mib):7,.0f} MiB of temporaries" if row.temporary_mib else ""
    return f"{start} {float(row.times_the_floor or 'nan'):6.2f} x  {seconds}  {memory}"


def read(path: Path) -> list[Row]:
    """The rows of a CSV."""
    return records.read(path, Row)


def markdown(rows: list[Row]) -> str:
    """A table for each machine, shape and dtype."""
    parts = [
        "# The linear losses, value and gradients by hidden and classifier",
        f'Medians of runs that took turns in one process, over that of "{FLOOR}", which a value with its gradients needs at least. Temporaries '
        "by XLA's own figures; of PyTorch there are none on a CPU. What has another loss or other gradients than `sum` is not timed.",
    ]
    for machine in dict.fromkeys(row.machine for row in rows):
        parts.append(f"## {machine}")
        here = [row for row in rows if row.machine == machine]
        for shape, dtype in dict.fromkeys((row.shape, row.dtype) for row in here):
            parts.append(f"{shape} {dtype}\n\n{_table([r for r in here if (r.shape, r.dtype) == (shape, dtype)])}")
    return "\n\n".join(parts) + "\n"


def _table(rows):
    lines = ["| | times the floor | seconds | runs | temporaries, MiB | loss |", "|---|---|---|---|---|---|"]
    for r in sorted(rows, key=lambda r: r.status != "done"):
        if r.status != "done":
            lines.append(f"| {r.program} | {r.status} | | | | {r.loss} |")
            continue
        by_floor = f"{float(r.times_the_floor):.2f}" if r.times_the_floor else ""
        memory = f"{float(r.temporary_mib):,.0f}" if r.temporary_mib else ""
        seconds = f"{float(r.median):.3f} ({float(r.least):.3f} to {float(r.most):.3f})"
        lines.append(f"| {r.program} | {by_floor} | {seconds} | {r.runs} | {memory} | {r.loss} |")
    return "\n".join(lines)
