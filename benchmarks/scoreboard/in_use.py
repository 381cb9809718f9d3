"""Measure second derivatives in every dtype, and means over so many batches that float32 sums stop counting."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.peers.libraries import Library

DTYPES = ("float64", "float32", "bfloat16", "float16")
KINDS = ("integer", "soft", "sigmoid")
ROWS = 3
# A derivative is right if its error is at most a tenth of its largest element. This allows rounding to bfloat16, but finds a lost derivative rule.
NEAR = 0.1
BATCHES, TOKENS = 300_000, 333


def second_derivatives(library: Library, kinds: tuple[str, ...] = KINDS) -> tuple[int, int]:
    """Return the number of second derivatives and how many are right: each loss, each dtype, short and long rows, several ways."""
    asked = right = 0
    for kind in kinds:
        for classes in (5, 1002):
            for dtype in DTYPES:
                logits, labels, direction = _problem(kind, classes, dtype)
                want = _exact(kind, *(x.astype(np.float64) for x in (logits, direction)))
                for way in library.second_derivatives:
                    asked += 1
                    right += _is_near(way, library.losses[kind], logits, labels, direction, want)
    return asked, right


def long_mean(add: Callable[[Any, jax.Array, jax.Array], Any], start: Any, mean: Callable[[Any], jax.Array]) -> float:
    """Return the relative error of the mean over 100 million tokens, which `add(state, total, weight)` adds up in one jitted loop."""

    def total(i):  # 7001 times the last index fits in 32 bits
        return (i * 7001 % BATCHES).astype(jnp.float32) / np.float32(BATCHES / 2)

    def step(i, state):
        return add(state, total(i) * np.float32(TOKENS), jnp.float32(TOKENS))

    found = float(jax.jit(lambda start: mean(lax.fori_loop(0, BATCHES, step, start)))(start))
    exact = (np.arange(BATCHES) * 7001 % BATCHES / (BATCHES / 2)).mean()
    return abs(found - exact) / exact


def _problem(kind, classes, dtype):
    rng = np.random.default_rng(classes)
    logits, direction = (np.asarray(x, jnp.dtype(dtype)) for x in rng.standard_normal((2, ROWS, classes)))
    labels = {
        "integer": rng.integers(0, classes, ROWS).astype(np.int32),
        "soft": rng.dirichlet(np.ones(classes), ROWS).astype(jnp.dtype(dtype)),
        "sigmoid": rng.integers(0, 2, (ROWS, classes)).astype(jnp.dtype(dtype)),
    }
    return logits, labels[kind], direction


def _exact(kind, z, v):
    """Return the Hessian of the sum of the losses times a direction, in float64."""
    if kind == "sigmoid":
        return v / ((1 + np.exp(-z)) * (1 + np.exp(z)))
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p * (v - (p * v).sum(1, keepdims=True))


def _is_near(way, loss, logits, labels, direction, want):
    try:
        found = np.asarray(way(loss, logits, labels, direction)).astype(np.float64)
    except Exception:  # a library that raises is wrong
        return False
    return found.shape == want.shape and bool(np.max(abs(found - want)) <= NEAR * np.max(abs(want)))
