"""The rows of a run: dataclasses of strings, in a CSV file that is complete after each row."""

import csv
import dataclasses
import statistics
from pathlib import Path

import numpy as np

from benchmarks.measure import Timed
from benchmarks.peers import fused, in_jax, in_torch
from benchmarks.peers.in_jax import COPY, MATMULS, NAIVE, OPTAX_WIDE, OURS, SUM
from benchmarks.problems import GRADIENT, LINEAR, VALUE, Problem

NUMERICS, TIMING = "numerics", "timing"
DENSE, FORWARD, GRADIENTS = "dense", "forward", "value and gradients"  # in the files of devices


@dataclasses.dataclass(frozen=True)
class DenseRow:
    """A program of a dense problem. Times are seconds of one call. `status` is "done", or the reason why there are no times."""

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
    cpu_median: str = ""  # CPU-seconds of all cores
    temporary_mib: str = ""
    target: str = ""  # for the time divided by optax's time


@dataclasses.dataclass(frozen=True)
class LinearRow:
    """A program of a linear layer. Fields that do not apply are empty. `status` is "done", or the reason why there are no times."""

    machine: str  # and the versions
    shape: str
    dtype: str
    program: str
    status: str = "done"
    runs: str = ""
    median: str = ""  # seconds, like the next two fields
    least: str = ""
    most: str = ""
    times_the_floor: str = ""
    temporary_mib: str = ""
    loss: str = ""


@dataclasses.dataclass(frozen=True)
class DeviceRow:
    """A check of the numerics on a device, or a program that was timed on a device. Fields that do not apply are empty."""

    part: str
    subject: str  # the loss that was checked, or the model
    kind: str
    dtype: str
    shape: str
    what: str
    who: str = "jaxce"
    status: str = "done"
    ulps: str = ""
    milliseconds: str = ""
    least: str = ""
    most: str = ""
    first_seconds: str = ""
    held_mib: str = ""
    logits_mib: str = ""
    loss: str = ""


# The names of programs in files of earlier versions.
_RENAMED = {
    LinearRow: {
        "three matmuls": MATMULS,
        "sum": SUM,
        "losses": in_jax.LOSSES,
        "naive": NAIVE,
        "torch": in_torch.LINEAR_LOSS,
        "torch, chunked": in_torch.LINEAR_CHUNKED,
        "tokamax, chunked": fused.TOKAMAX_CHUNKED,
    },
    DeviceRow: {
        "copy": COPY,
        "optax, float32 loss": OPTAX_WIDE,
        "naive, optax": NAIVE,
        "torch eager": in_torch.EAGER_WIDE,
        "torch compile": in_torch.COMPILED_WIDE,
    },
}


def start(path: Path, kind: type) -> None:
    """Make a CSV with no rows yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, "w", [field.name for field in dataclasses.fields(kind)])


def append(path: Path, row) -> None:
    """Append a row and close the file."""
    _write(path, "a", dataclasses.astuple(row))


def read(path: Path, kind: type) -> list:
    """Return the rows of a CSV."""
    renamed = _RENAMED.get(kind, {})
    with path.open(newline="") as file:
        return [kind(**{key: renamed.get(cell, cell) for key, cell in row.items()}) for row in csv.DictReader(file)]


def _write(path, mode, values):
    with path.open(mode, newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(values)


def dense_row(problem: Problem, what: str, timed: Timed) -> DenseRow:
    """Return the figures of a program of a dense problem."""
    about = problem.kind, f"{problem.rows} x {problem.classes}", problem.dtype, what, timed.name
    if not timed.wall:
        return DenseRow(*about, status=_why_not(timed))
    lower, median, upper = (f"{x:.6g}" for x in np.quantile(timed.wall, [0.25, 0.5, 0.75]))
    times = str(len(timed.wall)), median, lower, upper, f"{statistics.median(timed.cpu):.6g}"
    target = problem.targets.get(what) if timed.name == OURS else None
    return DenseRow(*about, "done", *times, mib(timed.program.temporaries), f"{target:g}" if target else "")


def linear_row(machine: str, problem: Problem, timed: Timed, floor: Timed) -> LinearRow:
    """Return the figures of a program of a linear layer."""
    row = LinearRow(machine, str(problem.shape), problem.dtype, timed.name, loss=_loss(timed, 6))
    if not timed.wall:
        return dataclasses.replace(row, status=_why_not(timed))
    median, least, most = statistics.median(timed.wall), min(timed.wall), max(timed.wall)
    return dataclasses.replace(
        row,
        runs=str(len(timed.wall)),
        median=f"{median:.6g}",
        least=f"{least:.6g}",
        most=f"{most:.6g}",
        times_the_floor=f"{median / statistics.median(floor.wall):.4g}" if floor.wall else "",
        temporary_mib=mib(timed.program.temporaries),
    )


def device_row(problem: Problem, what: str, timed: Timed) -> DeviceRow:
    """Return the figures of a program on a device."""
    kind = LINEAR if problem.kind == LINEAR else DENSE
    about = TIMING, problem.model, kind, problem.dtype, str(problem.shape), {VALUE: FORWARD, GRADIENT: GRADIENTS}[what]
    row = DeviceRow(*about, timed.name, logits_mib=mib(problem.logits_bytes))
    if not timed.wall:
        return dataclasses.replace(row, status=_why_not(timed))
    program = timed.program
    return dataclasses.replace(
        row,
        milliseconds=f"{statistics.median(timed.wall) * 1e3:.6g}",
        least=f"{min(timed.wall) * 1e3:.6g}",
        most=f"{max(timed.wall) * 1e3:.6g}",
        first_seconds=f"{timed.first:.3g}",
        held_mib=mib(None if program.temporaries is None else program.temporaries + program.results),
        loss=_loss(timed, 5),
    )


def _why_not(timed):
    return timed.status if timed.status != "done" else "cut before it was timed"


def _loss(timed, digits):
    return "" if timed.loss is None else f"{timed.loss:.{digits}f}"


def mib(size: int | None) -> str:
    """Format bytes as MiB. Return an empty string for None."""
    return "" if size is None else f"{size / 2**20:.6g}"
