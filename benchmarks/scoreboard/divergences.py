"""Errors of the Kullback-Leibler divergence of two softmaxes and of its gradient, against the size of the divergence.

The target has random logits, and the student has these logits plus a random direction. Its length gives the divergence. Both are rounded to float32
before the exact results are computed from them with 50 digits. The gradient is that with respect to the student's logits; its error is that of the
whole row, as a vector.
"""

import csv
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import mpmath
import numpy as np

from benchmarks.machine import table
from benchmarks.peers import libraries

DIGITS = 50
SIZES = tuple(10.0 ** np.arange(-14, 1.1, 0.5))  # of the divergences
ROWS, CLASSES = 8, 100
BANDS = ((1e-15, 1e-10), (1e-10, 1e-6), (1e-6, 1e-2), (1e-2, 100.0))


@dataclasses.dataclass(frozen=True)
class Row:
    """The errors of a function for one row of logits. The errors are relative."""

    function: str
    size: str  # the divergence that was asked for
    divergence: str  # the exact divergence
    value: str
    value_error: str
    gradient_error: str


def logits_of(size: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 logits of the target and of the student, whose divergences are about `size`."""
    target = (3 * rng.normal(size=(ROWS, CLASSES))).astype(np.float32)
    direction = rng.normal(size=target.shape)
    lower, upper = np.zeros((ROWS, 1)), np.full((ROWS, 1), 200.0)
    for _ in range(60):
        middle = (lower + upper) / 2
        is_less = _divergence(target, target + middle * direction)[:, None] < size
        lower, upper = np.where(is_less, middle, lower), np.where(is_less, upper, middle)
    return target, (target + upper * direction).astype(np.float32)


def _divergence(target, logits):
    """Return the divergences in float64, as sums of terms that are not negative."""

    def log_softmax(z):
        z = z - z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    log_q = log_softmax(target.astype(np.float64))
    x = log_softmax(logits) - log_q
    terms = np.where(np.abs(x) < 1e-3, x**2 / 2 + x**3 / 6, np.expm1(x) - x)
    return (np.exp(log_q) * terms).sum(1)


def exact(target: np.ndarray, logits: np.ndarray) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """Return the divergence of one row and its gradient with respect to the student's logits."""
    with mpmath.workdps(DIGITS):
        y, z = ([mpmath.mpf(float(v)) for v in row] for row in (target, logits))
        e, f = [mpmath.exp(v) for v in y], [mpmath.exp(v) for v in z]
        e_sum, f_sum = mpmath.fsum(e), mpmath.fsum(f)
        log_ratio = mpmath.log(e_sum) - mpmath.log(f_sum)
        q, p = [v / e_sum for v in e], [v / f_sum for v in f]
        value = mpmath.fsum(a * (b - c - log_ratio) for a, b, c in zip(q, y, z, strict=True))
        return value, [b - a for a, b in zip(q, p, strict=True)]


def rows(sizes: tuple[float, ...] = SIZES) -> Iterator[Row]:
    """Yield the errors of every function of every library that can be imported."""
    functions = [
        (name, library, function) for library in libraries.installed() for name, function in library.divergences.items()
    ]
    rng = np.random.default_rng(0)
    for size in sizes:
        target, logits = logits_of(size, rng)
        truth = [exact(*row) for row in zip(target, logits, strict=True)]
        for name, library, function in functions:
            values, gradients = library.with_gradient(function, logits, target)
            for value, gradient, (right, slopes) in zip(values, gradients, truth, strict=True):
                off = mpmath.norm([mpmath.mpf(float(g)) - s for g, s in zip(gradient, slopes, strict=True)])
                numbers = right, value, abs(mpmath.mpf(float(value)) - right) / right, off / mpmath.norm(slopes)
                yield Row(name, f"{size:.3g}", *(f"{float(x):.6g}" for x in numbers))


def not_positive(mine: list[Row]) -> tuple[int, int]:
    """Return the number of negative values and of zeros. Every exact divergence is positive."""
    values = [float(row.value) for row in mine]
    return sum(v < 0 for v in values), sum(v == 0 for v in values)


def by_function(found: Iterable[Row]) -> dict[str, list[Row]]:
    groups = {}
    for row in found:
        groups.setdefault(row.function, []).append(row)
    return groups


def markdown(about: str, found: list[Row]) -> str:
    """Return the worst errors of each function, by the size of the divergence."""
    header = ["", *(f"{_power(a)} to {_power(b)}" for a, b in BANDS)]
    groups = by_function(found)
    count = len(next(iter(groups.values())))

    def worst(kind):
        for name, mine in groups.items():
            cells = [
                max((float(getattr(r, kind)) for r in mine if a <= float(r.divergence) < b), default=float("nan"))
                for a, b in BANDS
            ]
            yield [name, *(f"{cell:.1e}" for cell in cells)]

    signs = [[name, *map(str, not_positive(mine))] for name, mine in groups.items()]
    parts = [
        f"{about}.",
        f"Kullback-Leibler divergences of two softmaxes of {CLASSES} classes, float32, {count} rows. Worst relative error of the value, for exact "
        "divergences in these ranges:",
        table(header, list(worst("value_error"))),
        "The other libraries get the softmax of the target's logits and the softmax, or `log_softmax`, of the student's, as their documentation "
        "says. Keras replaces probabilities below 1e-7 by 1e-7, so its large divergences and their gradients are those of other probabilities.",
        "Worst relative error of the gradient with respect to the student's logits, as a vector:",
        table(header, list(worst("gradient_error"))),
        f"Values that are negative or 0, of {count}. Every exact divergence is positive:",
        table(["", "negative", "0"], signs),
    ]
    return "\n\n".join(parts) + "\n"


def _power(x):
    return f"{x:.0e}".replace("e-0", "e-").replace("e+0", "e") if x < 0.1 else f"{x:g}"


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def write(path: Path, found: Iterable[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Row))
        writer.writerows(dataclasses.astuple(row) for row in found)
