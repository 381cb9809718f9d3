"""What is drawn as curves: memory against the size of the vocabulary, and errors against the size of the loss."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxce
from benchmarks.peers import libraries

TOKENS, FEATURES = 4096, 768
VOCABULARIES = (2**10, 2**12, 2**14, 2**15, 2**16, 2**17, 2**18)
MARGINS = np.concatenate([np.linspace(-5, 20, 26), np.linspace(22, 74, 27)]).astype(np.float32)
_CLASSES = 16


@dataclasses.dataclass(frozen=True)
class Point:
    """Of one curve: MiB of temporaries by classes, or relative errors by the loss."""

    curve: str
    who: str
    x: str
    y: str


MEMORY, VALUE_ERROR, GRADIENT_ERROR = "temporary MiB", "error of the loss", "error of the gradient"


def memory(vocabulary: int) -> Iterator[Point]:
    """Of value and gradients of a linear layer's mean loss, by XLA's own figure; nothing is run."""

    def over_logits(loss):
        return lambda hidden, classifier, labels: loss(hidden @ classifier, labels).mean()

    losses = {
        "matmul, then optax": over_logits(optax.softmax_cross_entropy_with_integer_labels),
        "matmul, then jaxce": over_logits(jaxce.softmax_cross_entropy_with_integer_labels),
        "jaxce, linear sum": lambda h, w, y: jaxce.linear_softmax_cross_entropy_sum(h, w, y).mean(),
    }
    shapes = ((TOKENS, FEATURES), "float32"), ((FEATURES, vocabulary), "float32"), ((TOKENS,), "int32")
    args = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    for who, loss in losses.items():
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args).compile()
        yield Point(MEMORY, who, str(vocabulary), f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:.6g}")


def errors() -> Iterator[Point]:
    """Of rows whose true logit is so much more than all others, which are 0: the truth is `log1p(15 exp(-margin))`, in float64."""
    logits = np.zeros((len(MARGINS), _CLASSES), np.float32)
    logits[:, 0] = MARGINS
    loss = np.log1p((_CLASSES - 1) * np.exp(-MARGINS.astype(np.float64)))
    slope = np.expm1(-loss)
    for library in libraries.installed():
        labels = np.zeros(len(MARGINS), np.int32)
        values, gradients = library.with_gradient(library.losses["integer"], logits, jnp.asarray(labels))
        for curve, got, right in ((VALUE_ERROR, values, loss), (GRADIENT_ERROR, gradients[:, 0], slope)):
            for x, a, b in zip(loss, got, right, strict=True):
                yield Point(curve, library.name, f"{x:.6g}", f"{abs(float(a) - b) / abs(b):.6g}")
