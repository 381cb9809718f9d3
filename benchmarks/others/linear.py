"""The cases for the losses of a linear layer that do not store all logits, and the JAX libraries that have such a loss."""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import jaxce
from benchmarks.others.answers import Answer, Case, close, log_sum_exp, shown
from benchmarks.peers import fused

TOKENS = FEATURES = 128
MARGIN, CONFIDENT = 20.0, math.log1p(2047 * math.exp(-20.0))
BLOCKS = jaxce.Chunked(block_tokens=32, block_classes=1024)


def libraries() -> Iterator[tuple[str, str, Callable]]:
    """Yield (name, version, mean loss of hidden, classifier and labels) of each installed library."""
    # By default jaxce may store all of these few logits. With explicit blocks it does not.
    yield (
        "jaxce",
        jaxce.__version__,
        lambda h, w, y: jaxce.linear_softmax_cross_entropy_sum(h, w, y, implementation=BLOCKS).mean(),
    )
    for x in fused.installed(fused.TOKAMAX_XLA, fused.TOKAMAX_CHUNKED, fused.JAX_CCE):
        yield x.name, x.version, lambda h, w, y, x=x: x.loss(h, w.T if x.transposed else w, y)


def problem(num_classes: int):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(TOKENS, FEATURES)).astype(np.float32)
    classifier = (0.01 * rng.normal(size=(FEATURES, num_classes))).astype(np.float32)
    return hidden, classifier, rng.integers(num_classes, size=TOKENS).astype(np.int32)


def right_mean(num_classes: int) -> float:
    hidden, classifier, labels = problem(num_classes)
    logits = hidden.astype(np.float64) @ classifier
    return float(np.mean(log_sum_exp(logits) - logits[np.arange(TOKENS), labels]))


def vocabulary(num_classes: int, loss) -> Answer:
    value = loss(*map(jnp.asarray, problem(num_classes)))
    return f"{value:.4f}", close(value, right_mean(num_classes))


def bad_label(label: int, loss) -> Answer:
    hidden, classifier, labels = problem(2048)
    labels[0] = label
    try:
        value, gradient = jax.value_and_grad(loss)(*map(jnp.asarray, (hidden, classifier, labels)))
    except (IndexError, ValueError) as error:
        return f"raises {type(error).__name__}", True
    loud = bool(np.isnan(value) and np.isnan(gradient[0]).any())
    return f"loss {value:.4f}" + ("" if np.isnan(gradient[0]).any() else ", a finite gradient"), loud


def confident(loss) -> Answer:
    hidden, classifier = np.zeros((TOKENS, FEATURES), np.float32), np.zeros((FEATURES, 2048), np.float32)
    hidden[:, 0], classifier[0, 0] = MARGIN, 1
    value = loss(*map(jnp.asarray, (hidden, classifier, np.zeros(TOKENS, np.int32))))
    return shown(value), close(value, CONFIDENT)


def forward_mode(loss) -> Answer:
    """Differentiate in the direction of `hidden`. The derivative of a row's loss is then sum_k p_k z_k - z_y."""
    hidden, classifier, labels = problem(2048)
    logits = hidden.astype(np.float64) @ classifier
    p = np.exp(logits - log_sum_exp(logits)[:, None])
    right = np.mean((p * logits).sum(-1) - logits[np.arange(TOKENS), labels])
    try:
        _, slope = jax.jvp(lambda h: loss(h, jnp.asarray(classifier), jnp.asarray(labels)), (hidden,), (hidden,))
    except (TypeError, NotImplementedError, ValueError) as error:
        return f"not offered: {type(error).__name__}", None
    return f"{slope:.5f}", close(slope, right, 1e-4)


CASES = [
    Case("2,048 classes", f"{right_mean(2048):.4f}", lambda x: vocabulary(2048, x)),
    Case("2,049 classes", f"{right_mean(2049):.4f}", lambda x: vocabulary(2049, x)),
    Case("the true class ahead of 2,047 others by 20", shown(CONFIDENT), confident),
    Case("one label of -1 among 128", "NaN, or raises", lambda x: bad_label(-1, x)),
    Case("one label of 2,048 among 128, 2,048 classes", "NaN, or raises", lambda x: bad_label(2048, x)),
    Case("forward-mode derivative", "a number", forward_mode),
]
