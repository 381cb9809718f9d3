"""The dense losses of each library, one loss per example. A loss that a library does not offer is absent.

Every function takes NumPy arrays and returns the loss of each example. `with_gradient` also returns the gradient of the sum of the losses with
respect to the logits.
"""

import dataclasses
import importlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxce

Losses = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Library:
    """A library: name, version, losses by kind, and functions that differentiate the losses."""

    name: str
    version: str
    losses: dict[str, Losses]
    with_gradient: Callable[..., tuple[np.ndarray, np.ndarray]]
    # Each `(loss, logits, labels, direction)` returns the Hessian of the sum of the losses times the direction.
    second_derivatives: tuple[Callable[..., Any], ...] = ()
    # The functions for a mean over many batches: `add(state, total, weight)`, the initial state, and the mean of a state.
    long_mean: tuple[Callable[..., Any], Any, Callable[..., Any]] | None = None
    # Kullback-Leibler divergences by the name that is shown, each `function(logits, target_logits)`.
    divergences: dict[str, Losses] = dataclasses.field(default_factory=dict)


def _with_gradient(loss, logits, *rest):
    values, vjp = jax.vjp(lambda z: loss(z, *rest), jnp.asarray(logits))
    return np.asarray(values), np.asarray(vjp(jnp.ones_like(values))[0])


def _rows(loss, labels, transform):
    """Return the function that computes the gradient of each row's loss. `transform` maps over the rows."""
    return lambda z: transform(lambda row: jax.grad(lambda z, y: jnp.sum(loss(z[None], y[None])))(*row))((z, labels))


def _in_reverse(transform):
    def second(loss, logits, labels, direction):
        gradients = _rows(loss, labels, transform)
        return jax.jit(jax.grad(lambda z: jnp.sum(gradients(z).astype(jnp.float32) * direction.astype(jnp.float32))))(
            logits
        )

    return second


def _forward(transform):
    def second(loss, logits, labels, direction):
        gradients = _rows(loss, labels, transform)
        return jax.jit(lambda z: jax.jvp(gradients, (z,), (direction,))[1])(logits)

    return second


def _mapped(function):
    return lambda rows: jax.lax.map(function, rows)


_IN_JAX = tuple(mode(transform) for mode in (_in_reverse, _forward) for transform in (jax.vmap, _mapped))


def _version(package):
    return importlib.metadata.version(package)


def _jaxce():
    losses = {
        "integer": jaxce.softmax_cross_entropy_with_integer_labels,
        "soft": jaxce.softmax_cross_entropy,
        "smoothed": lambda z, y, s: jaxce.softmax_cross_entropy_with_integer_labels(z, y, label_smoothing=s),
        "weighted": lambda z, y, w: jaxce.softmax_cross_entropy_with_integer_labels(z, y, class_weights=w),
        "z-loss": lambda z, y, c: jaxce.softmax_cross_entropy_with_integer_labels(z, y, z_loss=c),
        "sigmoid": jaxce.sigmoid_binary_cross_entropy,
        "pos_weight": lambda z, y, w: jaxce.sigmoid_binary_cross_entropy(z, y, pos_weight=w),
    }
    add = lambda state, total, weight: state + jaxce.LossSum(total, weight)  # noqa: E731
    long_mean = (add, jaxce.LossSum.zero(), jaxce.LossSum.mean)
    divergences = {"jaxce": lambda z, y: jaxce.softmax_kl_divergence(y, z)}
    return Library("jaxce", jaxce.__version__, losses, _with_gradient, _IN_JAX, long_mean, divergences)


def _optax():
    losses = {
        "integer": optax.softmax_cross_entropy_with_integer_labels,
        "soft": optax.softmax_cross_entropy,
        "smoothed": lambda z, y, s: optax.softmax_cross_entropy(
            z, optax.smooth_labels(jax.nn.one_hot(y, z.shape[-1], dtype=z.dtype), s)
        ),
        "sigmoid": optax.sigmoid_binary_cross_entropy,
    }
    # Newer versions of optax deprecate `convex_kl_divergence`, the former name.
    generalized = getattr(optax.losses, "generalized_kl_divergence", None) or optax.losses.convex_kl_divergence
    both = {"optax kl_divergence": optax.losses.kl_divergence, "optax convex_kl_divergence": generalized}
    divergences = {name: _of_logits(function) for name, function in both.items()}
    return Library("optax", _version("optax"), losses, _with_gradient, _IN_JAX, divergences=divergences)


def _of_logits(divergence):
    return lambda z, y: divergence(jax.nn.log_softmax(z), jax.nn.softmax(y))


def _keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = importlib.import_module("keras")
    if keras.config.backend() != "jax":
        raise ImportError("Keras runs on another backend")
    losses = {
        "integer": lambda z, y: keras.losses.sparse_categorical_crossentropy(y, z, from_logits=True),
        "soft": lambda z, q: keras.losses.categorical_crossentropy(q, z, from_logits=True),
        "smoothed": lambda z, y, s: keras.losses.categorical_crossentropy(
            jax.nn.one_hot(y, z.shape[-1], dtype=z.dtype), z, from_logits=True, label_smoothing=float(s)
        ),
        "sigmoid": lambda z, y: keras.ops.binary_crossentropy(y, z, from_logits=True),
    }
    metric = keras.metrics.Mean()
    add = lambda state, total, weight: metric.stateless_update_state(state, total / weight, weight)  # noqa: E731
    long_mean = (add, [v.value for v in metric.variables], metric.stateless_result)
    divergences = {"Keras kl_divergence": lambda z, y: keras.losses.kl_divergence(jax.nn.softmax(y), jax.nn.softmax(z))}
    return Library("Keras on JAX", _version("keras"), losses, _with_gradient, _IN_JAX, long_mean, divergences)


def _torch():
    torch = importlib.import_module("torch")
    functional = torch.nn.functional
    each = {"reduction": "none"}
    losses = {
        "integer": lambda z, y: functional.cross_entropy(z, y.long(), **each),
        "soft": lambda z, q: functional.cross_entropy(z, q, **each),
        "smoothed": lambda z, y, s: functional.cross_entropy(z, y.long(), label_smoothing=float(s), **each),
        "weighted": lambda z, y, w: functional.cross_entropy(z, y.long(), weight=w, **each),
        "sigmoid": lambda z, y: functional.binary_cross_entropy_with_logits(z, y, **each),
        "pos_weight": lambda z, y, w: functional.binary_cross_entropy_with_logits(z, y, pos_weight=w, **each),
    }

    def with_gradient(loss, logits, *rest):
        logits = torch.tensor(np.asarray(logits), requires_grad=True)
        values = loss(logits, *(torch.tensor(np.asarray(x)) for x in rest))
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        return values.detach().numpy(), gradient.numpy()

    def second(loss, logits, labels, direction):
        wide = [torch.tensor(np.asarray(x, np.float64)) for x in (logits, direction)]
        z, v = (x.to(getattr(torch, logits.dtype.name)) for x in wide)
        labels = torch.tensor(np.asarray(labels, np.int64 if labels.dtype.kind == "i" else np.float64))
        labels = labels if labels.dtype == torch.int64 else labels.to(z.dtype)
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(z, labels).sum(), z, create_graph=True)
        return torch.autograd.grad((gradient * v).sum(), z)[0].double().numpy()

    def divergence(z, y):
        return functional.kl_div(functional.log_softmax(z, -1), functional.softmax(y, -1), **each).sum(-1)

    divergences = {"PyTorch kl_div": divergence}
    return Library("PyTorch", torch.__version__, losses, with_gradient, (second,), divergences=divergences)


LIBRARIES: dict[str, Callable[[], Library]] = {
    "jaxce": _jaxce,
    "optax": _optax,
    "Keras on JAX": _keras,
    "PyTorch": _torch,
}


def installed() -> Iterator[Library]:
    """Yield jaxce and the other libraries that can be imported."""
    for make in LIBRARIES.values():
        try:
            yield make()
        except ImportError:
            continue
