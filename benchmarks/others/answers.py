"""The form of a case, and the test of an answer."""

import dataclasses
from collections.abc import Callable

import numpy as np

RTOL = 1e-5

# The text, and whether the answer is right: None for neither, where a library says that it does not offer this. Or None for no such function.
Answer = tuple[str, bool | None] | None


@dataclasses.dataclass(frozen=True)
class Case:
    """A question with its right answer in words, and how to put it to a library."""

    question: str
    right: str
    ask: Callable[..., Answer]


def close(found, right, rtol: float = RTOL) -> bool:
    return bool(np.allclose(np.asarray(found, np.float64), right, rtol=rtol, atol=0, equal_nan=False))


def shown(number) -> str:
    return f"{float(number) + 0.0:.5g}"  # -0 as 0


def row(numbers) -> str:
    return " ".join(f"{float(x) + 0.0:.2f}" for x in numbers)


def log_sum_exp(z: np.ndarray) -> np.ndarray:
    """Return the logarithm of the sum of exponentials over the last axis, in float64."""
    z = np.asarray(z, np.float64)
    largest = z.max(-1, keepdims=True)
    return (largest + np.log(np.exp(z - largest).sum(-1, keepdims=True)))[..., 0]
