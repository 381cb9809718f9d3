"""The losses in JAX that are timed, and what they are held against: the matmuls alone, and a copy of the logits."""

import functools

import jax
import jax.numpy as jnp
import optax

import jaxce
from benchmarks.accelerator import clock
from benchmarks.accelerator.problems import DENSE, FORWARD

COPY, MATMULS = "copy", "bare matmuls"
OURS = {DENSE: "jaxce", "linear": "jaxce sum"}

_optax = optax.softmax_cross_entropy_with_integer_labels


def _in_blocks(tokens):
    """The sum in larger blocks of tokens than jaxce takes of itself: faster, for more memory."""
    return functools.partial(jaxce.linear_softmax_cross_entropy_sum, implementation=jaxce.Chunked(block_tokens=tokens))


_LOSSES = {
    DENSE: {
        "jaxce": lambda z, y: jaxce.softmax_cross_entropy_with_integer_labels(z, y).mean(),
        "optax": lambda z, y: _optax(z, y).mean(),
        "optax, float32 loss": lambda z, y: _optax(z.astype(jnp.float32), y).mean(),
    },
    "linear": {
        "jaxce sum": lambda h, w, y: jaxce.linear_softmax_cross_entropy_sum(h, w, y).mean(),
        "jaxce sum, 2,048 tokens": lambda h, w, y: _in_blocks(2048)(h, w, y).mean(),
        "jaxce losses": lambda h, w, y: jaxce.linear_softmax_cross_entropy(h, w, y).mean(),
        "naive, optax": lambda h, w, y: _optax((h @ w).astype(jnp.float32), y).mean(),
    },
}


def names(problem, what):
    """What is measured of a problem; the floor first."""
    floor = COPY if problem.kind == DENSE else MATMULS
    same = {"optax, float32 loss"} if problem.dtype == "float32" else set()
    if what == FORWARD:
        same |= {name for name in _LOSSES[problem.kind] if name.endswith("tokens")}  # only gradients depend on them
    return [floor, *(name for name in _LOSSES[problem.kind] if name not in same)]


def measured(problem, name, what, arrays):
    """(timing, bytes held beyond the arguments, the loss) of one program."""
    compiled = jax.jit(_program(problem, name, what)).lower(*arrays).compile()
    timing = clock.timed(lambda: compiled(*arrays), jax.block_until_ready)
    memory = compiled.memory_analysis()
    held = memory.temp_size_in_bytes + memory.output_size_in_bytes if memory else None
    value = None if name in (COPY, MATMULS) else float(jax.tree.leaves(compiled(*arrays))[0])
    return timing, held, value


def _program(problem, name, what):
    if name == COPY:
        return lambda z, _: jnp.array(z, copy=True)  # a read and a write, whatever `what` is
    if name == MATMULS:
        return _matmuls if what != FORWARD else lambda h, w, _: h @ w
    loss = _LOSSES[problem.kind][name]
    return loss if what == FORWARD else jax.value_and_grad(loss, (0,) if problem.kind == DENSE else (0, 1))


def _matmuls(hidden, classifier, _):
    """The forward matmul and the two of the gradients."""
    logits = hidden @ classifier
    return logits @ classifier.T, hidden.T @ logits
