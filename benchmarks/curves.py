"""The curves of memory against the size of the vocabulary, and of errors against the size of the loss."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import in_jax, libraries
from benchmarks.problems import F32, GRADIENT, LAYER, LINEAR, Problem

TOKENS, FEATURES = 4096, 768
MARGINS = np.concatenate([np.linspace(-5, 20, 26), np.linspace(22, 74, 27)]).astype(np.float32)
_CLASSES = 16
MEMORY, VALUE_ERROR, GRADIENT_ERROR = "temporary MiB", "error of the loss", "error of the gradient"
# The losses of a linear layer whose memory is drawn.
_LOSSES = {
    "matmul, then optax": (in_jax.OPTAX, LAYER),
    "matmul, then jaxce": (in_jax.OURS, LAYER),
    "jaxce, linear sum": (in_jax.SUM, LINEAR),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a curve: MiB of temporaries against classes, or a relative error against the loss."""

    curve: str
    who: str
    x: str
    y: str


def memory(vocabulary: int) -> Iterator[Point]:
    """Yield the memory of value and gradients of a linear layer's mean loss, as XLA reports it. No program is run."""
    for who, (name, kind) in _LOSSES.items():
        problem = Problem(kind, TOKENS, vocabulary, F32, FEATURES)
        function = in_jax.with_gradient(problem, GRADIENT, in_jax.loss(name, problem))
        compiled = jax.jit(function).lower(*problem.shapes()).compile()
        yield Point(MEMORY, who, str(vocabulary), f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:.6g}")


def errors() -> Iterator[Point]:
    """Yield the errors for rows in which the logit of the label is a margin and all other logits are 0.

    The exact loss is `log1p(15 exp(-margin))`, computed in float64.
    """
    logits = np.zeros((len(MARGINS), _CLASSES), np.float32)
    logits[:, 0] = MARGINS
    loss = np.log1p((_CLASSES - 1) * np.exp(-MARGINS.astype(np.float64)))
    gradient = np.expm1(-loss)
    for library in libraries.installed():
        labels = np.zeros(len(MARGINS), np.int32)
        values, gradients = library.with_gradient(library.losses["integer"], logits, jnp.asarray(labels))
        for curve, got, right in ((VALUE_ERROR, values, loss), (GRADIENT_ERROR, gradients[:, 0], gradient)):
            for x, a, b in zip(loss, got, right, strict=True):
                yield Point(curve, library.name, f"{x:.6g}", f"{abs(float(a) - b) / abs(b):.6g}")
