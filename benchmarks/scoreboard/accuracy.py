"""Errors of values and gradients against mpmath, in ulps of the exact result.

No formula can avoid one error: `z_k - max_k z_k` is rounded by up to half an ulp, and its exponential changes accordingly. This unavoidable error is
subtracted from the error of every library.
"""

import dataclasses
from collections.abc import Iterator

import mpmath
import numpy as np

DIGITS = 50
VALUE_TARGET, GRADIENT_TARGET = 4.0, 6.0


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows of logits with their labels and at most one option."""

    name: str
    kind: str
    logits: np.ndarray
    labels: np.ndarray
    option: np.ndarray | np.floating | None = None

    @property
    def arguments(self) -> tuple:
        return (self.logits, self.labels) if self.option is None else (self.logits, self.labels, self.option)


@dataclasses.dataclass(frozen=True)
class Exact:
    """An exact number, the unavoidable error in units of eps, and the size of the terms whose difference is the number."""

    value: mpmath.mpf
    unavoidable: mpmath.mpf
    size: mpmath.mpf


def cases(dtype: np.dtype, *, quick: bool, seed: int = 0) -> Iterator[Case]:
    """Yield random and adversarial rows: near ties, margins, offsets, few and many classes, every kind of label."""
    rng = np.random.default_rng(seed)
    rows = 8 if quick else 60

    def normal(count, classes, size=3.0):
        return (size * rng.normal(size=(count, classes))).astype(dtype)

    def labels_of(z):
        """Choose the class with the largest logit, the class with the second largest logit, or any class."""
        order = np.argsort(z, -1)
        pick = rng.integers(0, 3, len(z))
        other = order[np.arange(len(z)), rng.integers(0, z.shape[1], len(z))]
        return np.where(pick == 0, order[:, -1], np.where(pick == 1, order[:, -2], other)).astype(np.int32)

    regimes = {}
    for classes in (2, 10, 40, 1000):
        regimes[f"random, {classes} classes"] = normal(max(2, min(rows, rows * 40 // classes)), classes)
    regimes["all near zero"] = normal(rows, 10, 1e-6)
    regimes["offset by 1e4"] = normal(rows, 40) + dtype(1e4)
    margins = 10.0 ** rng.uniform(-8, 2, (rows, 1))
    regimes["margins of 1e-8 to 100"] = np.concatenate([margins, -rng.uniform(0, 1, (rows, 9)) * margins], 1).astype(
        dtype
    )
    near = np.repeat(normal(rows, 1), 10, 1)
    regimes["near ties"] = near * (1 + rng.integers(-2, 3, near.shape) * np.finfo(dtype).eps).astype(dtype)
    for margin in (10, 20, 60):
        confident = normal(rows, 40, 1.0)
        confident[np.arange(rows), rng.integers(0, 40, rows)] += margin
        regimes[f"confident by {margin}"] = confident
    if not quick:
        regimes["random, 100000 classes"] = normal(2, 100_000)
    for name, z in regimes.items():
        y = labels_of(z)
        yield Case(name, "integer", z, y)
        if z.shape[1] > 1000:
            continue
        q = rng.dirichlet(np.full(z.shape[1], 0.3), len(z)).astype(dtype)
        weights = rng.uniform(0.1, 5, z.shape[1]).astype(dtype)
        yield Case(name, "soft", z, q)
        yield Case(name, "smoothed", z, y, dtype(0.1))
        yield Case(name, "weighted", z, y, weights)
        yield Case(name, "z-loss", z, y, dtype(1e-4))
    for size in (1e-6, 1.0, 10.0, 60.0):
        x = normal(rows * 4, 1, size)[:, 0]
        hard = rng.integers(0, 2, x.shape).astype(dtype)
        yield Case(f"logits of size {size:g}, hard", "sigmoid", x, hard)
        yield Case(f"logits of size {size:g}, soft", "sigmoid", x, rng.uniform(0, 1, x.shape).astype(dtype))
        yield Case(f"logits of size {size:g}", "pos_weight", x, hard, dtype(2.5))


def exact(case: Case) -> list[tuple[Exact, list[Exact]]]:
    """Return the loss and the gradient of each example."""
    with mpmath.workdps(DIGITS):
        if case.kind in ("sigmoid", "pos_weight"):
            weight = 1 if case.option is None else mpmath.mpf(float(case.option))
            return [_sigmoid(float(x), float(y), weight) for x, y in zip(case.logits, case.labels, strict=True)]
        return [_softmax(case, i) for i in range(len(case.logits))]


def _softmax(case, i):
    z = [mpmath.mpf(float(v)) for v in case.logits[i]]
    n = len(z)
    hot = [mpmath.mpf(0)] * n
    zeta = mpmath.mpf(0)
    if case.kind == "soft":
        q = [mpmath.mpf(float(v)) for v in case.labels[i]]
    else:
        y = int(case.labels[i])
        hot[y] = mpmath.mpf(1)
        q = hot
    if case.kind == "smoothed":
        s = mpmath.mpf(float(case.option))
        q = [(1 - s) * v + s / n for v in hot]
    elif case.kind == "weighted":
        q = [mpmath.mpf(float(case.option[y])) * v for v in hot]
    elif case.kind == "z-loss":
        zeta = mpmath.mpf(float(case.option))
    shift = max(z)
    top = z.index(shift)
    below = [shift - v for v in z]
    e = [mpmath.exp(-d) for d in below]
    rest = mpmath.fsum(v for k, v in enumerate(e) if k != top)
    total, log_norm = 1 + rest, mpmath.log1p(rest)
    log_z, mass = shift + log_norm, mpmath.fsum(q)
    spread = mpmath.fsum(v * d for v, d in zip(e, below, strict=True)) / total
    value = mass * log_norm + mpmath.fsum(a * d for a, d in zip(q, below, strict=True))
    unavoidable = (mass * spread + mpmath.fsum(a * d for a, d in zip(q, below, strict=True))) / 2
    # Near log_z = 0 the square of shift + log_norm is ill-conditioned in every formula. So its size is the size of shift and log_norm.
    log_z_size = abs(shift) + log_norm + spread
    size = value + zeta * abs(log_z) * (abs(log_z) + 2 * log_z_size)
    gradient = []
    for k in range(n):
        p = e[k] / total
        not_p = (total - e[k] if k != top else rest) / total
        # mass * p - q_k, as a sum of terms that do not cancel.
        slope = (mass - q[k]) * p - q[k] * not_p + 2 * zeta * log_z * p
        moved = (spread if k == top else p * (below[k] + spread)) / 2
        hard = case.kind in ("integer", "weighted")
        slope_size = abs(slope) if hard else max(mass * p, q[k]) + 2 * zeta * (abs(log_z) + log_z_size) * p
        gradient.append(Exact(slope, mass * moved, slope_size))
    return Exact(value + zeta * log_z**2, unavoidable, size), gradient


def _sigmoid(x, y, weight):
    x, yes, no = mpmath.mpf(x), weight * mpmath.mpf(y), 1 - mpmath.mpf(y)
    p, not_p = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
    value = yes * mpmath.log1p(mpmath.exp(-x)) + no * mpmath.log1p(mpmath.exp(x))
    return Exact(value, mpmath.mpf(0), value), [Exact(no * p - yes * not_p, mpmath.mpf(0), max(no * p, yes * not_p))]


def worst_errors(truth, values: np.ndarray, gradients: np.ndarray) -> tuple[float, float]:
    """Return the largest error of a value and of an element of a gradient, in ulps."""
    info = np.finfo(values.dtype)
    gradients = gradients.reshape(len(values), -1)
    value_error = max(_ulps(v, t, info) for v, (t, _) in zip(values, truth, strict=True))
    gradient_error = max(
        _ulps(g, t, info)
        for row, (_, slopes) in zip(gradients, truth, strict=True)
        for g, t in zip(row, slopes, strict=True)
    )
    return value_error, gradient_error


def _ulps(got, want, info):
    """Return `|got - want|` in ulps of the size, minus the unavoidable error. An error below the smallest normal number does not count."""
    eps, got = float(info.eps), float(got)
    if not np.isfinite(got):
        return float("inf")
    beyond = abs(mpmath.mpf(got) - want.value) - eps * want.unavoidable - float(info.tiny)
    ulp = mpmath.mpf(2) ** (mpmath.floor(mpmath.log(want.size, 2)) if want.size > 0 else -1000) * eps
    return max(0.0, float(beyond / ulp))
