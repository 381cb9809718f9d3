"""The class of a case, and the comparison of an answer with the right number."""

import dataclasses
from collections.abc import Callable

import numpy as np

RTOL = 1e-5

# The text, and whether the answer is right. The second is None if the library says that it does not offer this. The whole answer is None if the
# library has no such function.
Answer = tuple[str, bool | None] | None


@dataclasses.dataclass(frozen=True)
class Case:
    """A question with its right answer in words, and the function that asks a library."""

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
