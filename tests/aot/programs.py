"""The programs that are compiled ahead of time: every public loss and its gradients, with their shapes, dtypes and arguments."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxce
from jaxce import keras

# (rows, classes), or (tokens, features, classes) of a linear layer.
DENSE_SHAPES = {"small": (8, 10), "real": (4096, 131072), "odd": (1023, 50257)}
LINEAR_SHAPES = {"small": (8, 16, 10), "real": (8192, 2048, 128256), "odd": (1023, 64, 5003)}


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss. The last argument of `function` has the labels: class indices ("integer"), or a number per logit ("soft").

    A divergence has a second layer of the same size instead ("teacher"), without gradients.
    """

    function: Callable[..., Any]
    labels: str
    linear: bool = False
    tied: bool = False  # the classifier is the transpose of an embedding `[classes, features]`
    brief: bool = False  # leave out the odd shape and the large shape in float32, where another loss is tested instead

    @property
    def shapes(self):
        return LINEAR_SHAPES if self.linear else DENSE_SHAPES

    def cells(self):
        """Yield (what, shape, dtype) of each program. Some losses also have a program of the forward pass alone."""
        if not (self.linear and self.brief):
            yield "forward", "real", "bfloat16"
        for shape in self.shapes:
            for dtype in ("bfloat16", "float32"):
                if not self.brief or shape == "small" or (shape == "real" and dtype == "bfloat16"):
                    yield "value and gradients", shape, dtype

    def program(self, what):
        """Return the losses, or their mean with its gradients with respect to the logits or to both operands of a linear layer."""
        if what == "forward":
            return self.function
        return jax.value_and_grad(lambda *arguments: _mean(self.function(*arguments)), tuple(range(1 + self.linear)))

    def arguments(self, shape, dtype):
        """Return (shape, dtype) of each argument."""
        *rows, classes = shape
        floating = (
            [((rows[0], rows[1]), dtype), ((classes, rows[1]) if self.tied else (rows[1], classes), dtype)]
            if self.linear
            else [(tuple(shape), dtype)]
        )
        if self.labels == "teacher":
            return [*floating, *floating]
        labels = ((rows[0],), "int32") if self.labels == "integer" else (tuple(shape), dtype)
        return [*floating, labels]


def _mean(losses):
    if isinstance(losses, jaxce.LossSum):
        return losses.mean()
    return jnp.mean(losses.astype(jnp.float32))


def _from_stats(stats):
    """Compute a custom loss from the statistics of the cross-entropy."""
    return stats.nll + 1e-4 * jnp.square(stats.log_z) + 0.1 * stats.smooth_nll


def _with_entropy(stats):
    return stats.nll - 0.01 * stats.entropy


def _policy(stats, advantage, old):
    """The clipped ratio of GRPO with a distance and an entropy."""
    ratio = jnp.exp(-stats.nll - old)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    return 0.04 * (jnp.expm1(old + stats.nll) - (old + stats.nll)) - 0.01 * stats.entropy - gain


def _policy_sum(hidden, classifier, labels):
    per_row = jnp.cos(labels.astype(jnp.float32)), -jnp.abs(jnp.sin(labels.astype(jnp.float32)))
    return jaxce.loss_sum(jaxce.LinearLogits(hidden, classifier), labels, _policy, per_row)


def _kl_sum(hidden, classifier, *teacher):
    return jaxce.softmax_kl_divergence_sum(jaxce.LinearLogits(*teacher), jaxce.LinearLogits(hidden, classifier))


def _every_option(logits, labels):
    mask, weights = labels != -100, jnp.arange(1.0, logits.shape[1] + 1) / logits.shape[1]
    return jaxce.softmax_cross_entropy_with_integer_labels(
        logits, labels, mask=mask, label_smoothing=0.1, class_weights=weights, z_loss=1e-4
    )


LOSSES = {
    "integer": Loss(jaxce.softmax_cross_entropy_with_integer_labels, "integer"),
    "integer, every option": Loss(_every_option, "integer", brief=True),
    "soft": Loss(jaxce.softmax_cross_entropy, "soft"),
    "sigmoid": Loss(jaxce.sigmoid_binary_cross_entropy, "soft"),
    "logit_stats": Loss(lambda z, y: _from_stats(jaxce.logit_stats(z, y)), "integer"),
    "nll and entropy": Loss(lambda z, y: _with_entropy(jaxce.logit_stats(z, y)), "integer", brief=True),
    "keras sparse": Loss(
        lambda z, y: keras.losses.sparse_categorical_crossentropy(y, z, from_logits=True),
        "integer",
        brief=True,
    ),
    "keras categorical": Loss(
        lambda z, y: keras.losses.categorical_crossentropy(y, z, from_logits=True), "soft", brief=True
    ),
    "keras binary": Loss(lambda z, y: keras.losses.binary_crossentropy(y, z, from_logits=True), "soft", brief=True),
    "linear": Loss(jaxce.linear_softmax_cross_entropy, "integer", linear=True, brief=True),
    "linear sum": Loss(jaxce.linear_softmax_cross_entropy_sum, "integer", linear=True),
    "linear sum, whole rows": Loss(
        lambda *x: jaxce.linear_softmax_cross_entropy_sum(*x, implementation=jaxce.Chunked(block_tokens=256)),
        "integer",
        linear=True,
        brief=True,
    ),
    "linear sum, tied": Loss(
        lambda h, e, y: jaxce.linear_softmax_cross_entropy_sum(
            h, e.T, y, implementation=jaxce.Chunked(block_classes=768)
        ),
        "integer",
        linear=True,
        tied=True,
        brief=True,
    ),
    "policy sum": Loss(_policy_sum, "integer", linear=True, brief=True),
    "kl sum": Loss(_kl_sum, "teacher", linear=True, brief=True),
    "linear_logit_stats": Loss(
        lambda *x: _from_stats(jaxce.linear_logit_stats(*x)), "integer", linear=True, brief=True
    ),
}


def _policy_of_logits(logits, labels):
    """Compute the policy loss from whole rows of logits, by the textbook formulas."""
    log_p = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
    log_p = jnp.take_along_axis(log_p, labels[:, None], -1)[:, 0]
    advantage, old = jnp.cos(labels.astype(jnp.float32)), -jnp.abs(jnp.sin(labels.astype(jnp.float32)))
    ratio = jnp.exp(log_p - old)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    return 0.04 * (jnp.expm1(old - log_p) - (old - log_p)) - 0.01 * entropy - gain


# Losses for comparison, for which the assertions must fail. For bfloat16 logits, optax returns bfloat16 losses unless the logits are converted.
_optax_integer = optax.softmax_cross_entropy_with_integer_labels
OTHERS = {
    "matmul, then the policy loss": Loss(
        lambda h, w, y: _policy_of_logits((h @ w).astype(jnp.float32), y), "integer", linear=True, brief=True
    ),
    "optax integer": Loss(lambda z, y: _optax_integer(z.astype(jnp.float32), y), "integer", brief=True),
    "optax integer, its loss in the logits' dtype": Loss(_optax_integer, "integer", brief=True),
    "optax soft": Loss(
        lambda z, q: optax.softmax_cross_entropy(z.astype(jnp.float32), q.astype(jnp.float32)), "soft", brief=True
    ),
    "optax sigmoid": Loss(
        lambda z, y: optax.sigmoid_binary_cross_entropy(z.astype(jnp.float32), y.astype(jnp.float32)),
        "soft",
        brief=True,
    ),
    "matmul, then optax integer": Loss(
        lambda h, w, y: _optax_integer((h @ w).astype(jnp.float32), y), "integer", linear=True, brief=True
    ),
    "unknown custom call": Loss(
        lambda z, _: jax.ffi.ffi_call("absent", jax.ShapeDtypeStruct(z.shape, z.dtype))(z), "integer", brief=True
    ),
}

# The programs of OTHERS that the tests use, for one GPU and one TPU.
_OTHERS_TESTED = {
    ("optax integer", "value and gradients", "real", "bfloat16"),
    ("optax soft", "forward", "real", "bfloat16"),
    ("matmul, then optax integer", "value and gradients", "real", "bfloat16"),
    ("unknown custom call", "forward", "real", "bfloat16"),
}


def cells_of(target):
    """Yield (loss, what, shape, dtype) of the programs that the tests compile for a target: all of the losses, and some of others."""
    for name, loss in LOSSES.items():
        for cell in loss.cells():
            yield (name, *cell)
    if target in ("v5e", "h100"):
        yield from sorted(_OTHERS_TESTED)
