"""A problem, and the programs of its value and gradients: the floor, the naive composition and ours."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxce

FLOOR, OURS = "three matmuls", "sum"


@dataclasses.dataclass(frozen=True)
class Problem:
    """The same numbers for everybody."""

    hidden: jax.Array
    classifier: jax.Array
    labels: jax.Array
    slopes: jax.Array  # a gradient by the logits, for the bare matmuls


@dataclasses.dataclass(frozen=True)
class Program:
    """`run()` gives the mean loss and its gradients once they are there; `answer` turns them into a float and float32 arrays of NumPy."""

    name: str
    run: Callable[[], Any]
    answer: Callable[[Any], tuple[float, np.ndarray, np.ndarray]] | None
    temporaries: int | None  # bytes


def problem(shape: tuple[int, int, int], dtype: str) -> Problem:
    """Of (tokens, features, classes)."""
    tokens, features, classes = shape
    keys = jax.random.split(jax.random.key(0), 4)
    return Problem(
        jax.random.normal(keys[0], (tokens, features)).astype(dtype),
        (0.05 * jax.random.normal(keys[1], (features, classes))).astype(dtype),
        jax.random.randint(keys[3], (tokens,), 0, classes),
        (0.01 * jax.random.normal(keys[2], (tokens, classes))).astype(dtype),
    )


def in_jax(name: str, loss: Callable[..., jax.Array], *args: jax.Array, transposed: bool = False) -> Program:
    """The mean loss of the arguments with its gradients by the first two, the second of which may be `transposed`."""
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args).compile()

    def answer(found):
        value, (of_hidden, of_classifier) = found
        of_classifier = of_classifier.T if transposed else of_classifier
        return float(value), np.asarray(of_hidden, np.float32), np.asarray(of_classifier, np.float32)

    return Program(name, lambda: jax.block_until_ready(compiled(*args)), answer, _temporaries(compiled))


def own(problem: Problem) -> Iterator[Program]:
    """The floor first: the forward matmul and the two of the gradients."""
    args = problem.hidden, problem.classifier, problem.slopes
    compiled = jax.jit(lambda h, w, s: (h @ w, s @ w.T, h.T @ s)).lower(*args).compile()
    yield Program(FLOOR, lambda: jax.block_until_ready(compiled(*args)), None, _temporaries(compiled))

    def naive(hidden, classifier, labels):
        logits = (hidden @ classifier).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    losses = {
        OURS: lambda h, w, y: jaxce.linear_softmax_cross_entropy_sum(h, w, y).mean(),
        "losses": lambda h, w, y: jaxce.linear_softmax_cross_entropy(h, w, y).mean(),
        "naive": naive,
    }
    for name, loss in losses.items():
        yield in_jax(name, loss, problem.hidden, problem.classifier, problem.labels)


def _temporaries(compiled):
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes if memory else None
