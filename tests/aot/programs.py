"""Every public loss and its gradients, as the programs that are compiled ahead of time: over which shapes, dtypes and arguments."""

import dataclasses
import os
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
    """A loss of arrays; `labels` says what the last of them holds: class indices, or a number per logit."""

    of: Callable[..., Any]
    labels: str
    linear: bool = False
    tied: bool = False  # to an embedding, `[classes, features]`
    brief: bool = False  # not the odd shape, nor the large one in float32: another loss stands for it there
    variant: bool = False  # of a loss that stands here too, or of what that is made of

    @property
    def shapes(self):
        return LINEAR_SHAPES if self.linear else DENSE_SHAPES

    def cells(self):
        """(what, shape, dtype) of each program. The forward pass alone where it says more than its gradients do."""
        if not (self.linear and self.brief):
            yield "forward", "real", "bfloat16"
        for shape in self.shapes:
            for dtype in ("bfloat16", "float32"):
                if not self.brief or shape == "small" or (shape == "real" and dtype == "bfloat16"):
                    yield "value and gradients", shape, dtype

    def is_for_every_target(self, what, shape, dtype):
        is_real = (what, shape, dtype) == ("value and gradients", "real", "bfloat16")
        return shape == "small" or (is_real and not self.variant)

    def program(self, what):
        """The losses, or their mean with its gradients by the logits or by both factors of a linear layer."""
        if what == "forward":
            return self.of
        return jax.value_and_grad(lambda *arguments: _mean(self.of(*arguments)), tuple(range(1 + self.linear)))

    def arguments(self, shape, dtype):
        """(shape, dtype) of each argument."""
        *rows, classes = shape
        floating = (
            [((rows[0], rows[1]), dtype), ((classes, rows[1]) if self.tied else (rows[1], classes), dtype)]
            if self.linear
            else [(tuple(shape), dtype)]
        )
        labels = ((rows[0],), "int32") if self.labels == "integer" else (tuple(shape), dtype)
        return [*floating, labels]


def _mean(losses):
    if isinstance(losses, jaxce.LossSum):
        return losses.mean()
    return jnp.mean(losses.astype(jnp.float32))


def _from_stats(stats):
    """A loss of one's own over every field that has a derivative."""
    return stats.nll + 1e-4 * jnp.square(stats.log_z) + 0.1 * stats.smooth_nll


def _every_option(logits, labels):
    mask, weights = labels != -100, jnp.arange(1.0, logits.shape[1] + 1) / logits.shape[1]
    return jaxce.softmax_cross_entropy_with_integer_labels(
        logits, labels, mask=mask, label_smoothing=0.1, class_weights=weights, z_loss=1e-4
    )


LOSSES = {
    "integer": Loss(jaxce.softmax_cross_entropy_with_integer_labels, "integer"),
    "integer, every option": Loss(_every_option, "integer", brief=True, variant=True),
    "soft": Loss(jaxce.softmax_cross_entropy, "soft"),
    "sigmoid": Loss(jaxce.sigmoid_binary_cross_entropy, "soft"),
    "logit_stats": Loss(lambda z, y: _from_stats(jaxce.logit_stats(z, y)), "integer"),
    "keras sparse": Loss(
        lambda z, y: keras.losses.sparse_categorical_crossentropy(y, z, from_logits=True),
        "integer",
        brief=True,
        variant=True,
    ),
    "keras categorical": Loss(
        lambda z, y: keras.losses.categorical_crossentropy(y, z, from_logits=True), "soft", brief=True, variant=True
    ),
    "keras binary": Loss(
        lambda z, y: keras.losses.binary_crossentropy(y, z, from_logits=True), "soft", brief=True, variant=True
    ),
    "linear": Loss(jaxce.linear_softmax_cross_entropy, "integer", linear=True, brief=True, variant=True),
    "linear sum": Loss(jaxce.linear_softmax_cross_entropy_sum, "integer", linear=True),
    "linear sum, whole rows": Loss(
        lambda *x: jaxce.linear_softmax_cross_entropy_sum(*x, implementation=jaxce.Chunked(block_tokens=256)),
        "integer",
        linear=True,
        brief=True,
        variant=True,
    ),
    "linear sum, tied": Loss(
        lambda h, e, y: jaxce.linear_softmax_cross_entropy_sum(
            h, e.T, y, implementation=jaxce.Chunked(block_classes=768)
        ),
        "integer",
        linear=True,
        tied=True,
        brief=True,
        variant=True,
    ),
    "linear_logit_stats": Loss(
        lambda *x: _from_stats(jaxce.linear_logit_stats(*x)), "integer", linear=True, brief=True, variant=True
    ),
}

# What they are compared with, and what the assertions must refuse. Of bfloat16 optax gives losses in bfloat16, unless it is asked for ours.
_optax_integer = optax.softmax_cross_entropy_with_integer_labels
OTHERS = {
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
    "what no compiler knows": Loss(
        lambda z, _: jax.ffi.ffi_call("absent", jax.ShapeDtypeStruct(z.shape, z.dtype))(z), "integer", brief=True
    ),
}

# What the tests ask of those: by the compiler of a GPU and by one of TPUs.
_ASKED = {
    ("optax integer", "value and gradients", "real", "bfloat16"),
    ("optax soft", "forward", "real", "bfloat16"),
    ("matmul, then optax integer", "value and gradients", "real", "bfloat16"),
    ("what no compiler knows", "forward", "real", "bfloat16"),
}
TPUS = ("v5e", "v5p", "v6e")
# Whether every program is compiled for every target.
EVERY = bool(os.environ.get("JAXCE_EVERY_PROGRAM"))


def cells_of(target, every=False):
    """(loss, what, shape, dtype) of what is compiled for a target by the tests.

    The gradients of a loss in a small shape, and of bfloat16 in its real one, for each. The rest for GPUs and for one kind of TPU, in turn, as
    those have one compiler; unless it is asked for `every`.
    """
    rest = 0
    for name, loss in LOSSES.items():
        for cell in loss.cells():
            turn = None if loss.is_for_every_target(*cell) else TPUS[rest % len(TPUS)]
            rest += turn is not None
            if every or turn in (None, target) or target not in TPUS:
                yield (name, *cell)
    if every or target in ("v5p", "h100"):
        yield from sorted(_ASKED)
