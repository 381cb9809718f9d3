"""What a run leaves behind: rows of a dataclass of strings in a CSV that is complete after each of them."""

import csv
import dataclasses
from pathlib import Path


def start(path: Path, kind: type) -> None:
    """A CSV with no rows yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, "w", [field.name for field in dataclasses.fields(kind)])


def append(path: Path, row) -> None:
    """Writes it through."""
    _write(path, "a", dataclasses.astuple(row))


def read(path: Path, kind: type) -> list:
    """The rows of a CSV."""
    with path.open(newline="") as file:
        return [kind(**row) for row in csv.DictReader(file)]


def _write(path, mode, values):
    with path.open(mode, newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(values)
