"""The programs in JAX: ours, optax's, Keras's on JAX, and the floor."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxce
from benchmarks.cpu.problems import GRADIENT, INTEGER, LAYER, SIGMOID, SMOOTHING, SOFT, Z_LOSS, Problem
from benchmarks.peers import libraries

OURS, OPTAX, OPTAX_WIDE, KERAS = "jaxce", "optax", "optax in float32", "Keras on JAX"
COPY, MATMULS = "a copy", "bare matmuls"  # the floors


@dataclasses.dataclass(frozen=True)
class Program:
    """`run()` returns what it made once it is there: the mean loss, or that and its gradients; the copy has no such answer."""

    name: str
    run: Callable[[], Any]
    answer: Callable[[Any], tuple[float, np.ndarray | None]] | None
    temporaries: int | None = None  # bytes


def programs(problem: Problem, what: str, arrays: tuple[jax.Array, ...]) -> Iterator[tuple[str, Callable[[], Program]]]:
    """The name of each library that offers the loss, and what makes its program; then the floor."""
    for name, loss in _losses(problem).items():
        yield name, functools.partial(_program, name, _of_mean(loss, what, problem.loss == LAYER), arrays, _answer)
    floor, function = COPY, lambda logits, *_: logits * 2
    if problem.loss == LAYER:
        floor, function = MATMULS, _matmuls if what == GRADIENT else lambda h, w, _: h @ w
    yield floor, functools.partial(_program, floor, function, arrays, None)


def _losses(problem):
    by_library = {library.name: library.losses for library in libraries.installed()}
    kind = {INTEGER: "integer", LAYER: "integer", SOFT: "soft", SIGMOID: "sigmoid"}.get(problem.loss)
    if kind is None:
        losses = {OURS: _ours_smoothed, OPTAX: _optax_smoothed}
    else:
        losses = {name: by_library[name][kind] for name in (OURS, OPTAX, KERAS) if name in by_library}
    if problem.dtype != "float32":
        narrow = losses[OPTAX]
        losses[OPTAX_WIDE] = lambda logits, labels: narrow(logits.astype(jnp.float32), _wide(labels))
    return losses


def _matmuls(hidden, classifier, _):
    """That of the logits, and those of the gradients by both, with the logits for their cotangent."""
    logits = hidden @ classifier
    return logits, logits @ classifier.T, hidden.T @ logits


def _wide(labels):
    return labels.astype(jnp.float32) if jnp.issubdtype(labels.dtype, jnp.floating) else labels


def _ours_smoothed(logits, labels):
    return jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, label_smoothing=SMOOTHING, z_loss=Z_LOSS)


def _optax_smoothed(logits, labels):
    labels = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), SMOOTHING)
    return optax.softmax_cross_entropy(logits, labels) + Z_LOSS * jnp.square(jax.nn.logsumexp(logits, axis=-1))


def _of_mean(loss, what, in_layer):
    def mean(*args):
        *factors, labels = args
        logits = factors[0] @ factors[1] if in_layer else factors[0]
        return loss(logits, labels).mean()

    return jax.value_and_grad(mean, (0, 1) if in_layer else 0) if what == GRADIENT else mean


def _program(name, function, arrays, answer):
    compiled = jax.jit(function).lower(*arrays).compile()
    memory = compiled.memory_analysis()
    return Program(name, lambda: jax.block_until_ready(compiled(*arrays)), answer, memory and memory.temp_size_in_bytes)


def _answer(found):
    value, gradient = found if isinstance(found, (tuple, list)) else (found, None)
    gradient = gradient[0] if isinstance(gradient, (tuple, list)) else gradient
    return float(value), gradient if gradient is None else np.asarray(gradient[:8], np.float32)
