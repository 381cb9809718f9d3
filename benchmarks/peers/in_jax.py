"""The programs in JAX: the floors, jaxce, and other libraries."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxce
from benchmarks.measure import Program, compiled
from benchmarks.peers import fused, libraries
from benchmarks.problems import F32, GRADIENT, LAYER, LINEAR, SIGMOID, SMOOTHED, SMOOTHING, SOFT, Z_LOSS, Problem

OURS, OPTAX, OPTAX_WIDE, KERAS = "jaxce", "optax", "optax in float32", "Keras on JAX"
SUM, SUM_2048, LOSSES, NAIVE = "jaxce sum", "jaxce sum, 2,048 tokens", "jaxce losses", "matmul, then optax"
ENTROPY, TOP_LABELS, KL_SUM = (
    "jaxce loss_sum with an entropy",
    "jaxce sum, 64 labels per row",
    "jaxce KL sum, same size",
)
AUTO = "jaxce sum, Auto mesh of one device"
COPY, MATMULS = "a copy", "bare matmuls"  # the floors

Loss = Callable[..., jax.Array]


def names(problem: Problem, what: str) -> list[str]:
    """Return the names of the programs that offer the loss, the floor first."""
    if problem.kind == LINEAR:
        # Only gradients depend on the blocks.
        more = [SUM_2048, ENTROPY, TOP_LABELS, KL_SUM, AUTO] if what == GRADIENT else []
        return [MATMULS, SUM, *more, LOSSES, NAIVE, *fused.FUSED]
    wide = [OPTAX_WIDE] if problem.dtype != F32 else []
    keras = [KERAS] if problem.kind != SMOOTHED else []
    return [MATMULS if problem.kind == LAYER else COPY, OURS, OPTAX, *wide, *keras]


def program(name: str, problem: Problem, what: str, arrays: tuple[jax.Array, ...]) -> Program:
    """Compile the mean loss, with its gradients if `what` says so, or the floor."""
    if name in _FLOORS:
        return compiled(_FLOORS[name][what == GRADIENT], arrays)
    transposed = name in fused.FUSED and fused.FUSED[name]().transposed
    if transposed:
        hidden, classifier, labels = arrays
        arrays = hidden, jax.block_until_ready(classifier.T), labels
    if name == AUTO:
        mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=[jax.devices()[0]])
        arrays = jax.block_until_ready(jax.device_put(arrays, NamedSharding(mesh, PartitionSpec())))
    function = with_gradient(problem, what, loss(name, problem))

    def answer(found):
        value, gradients = found if what == GRADIENT else (found, ())
        factors = ("hidden", "classifier") if problem.features else ("logits",)
        turned = [g.T if transposed and f == "classifier" else g for f, g in zip(factors, gradients, strict=False)]
        return float(value), {f: np.asarray(some_rows(g), np.float32) for f, g in zip(factors, turned, strict=False)}

    return compiled(function, arrays, answer)


def with_gradient(problem: Problem, what: str, mean: Loss) -> Callable:
    """Return the function that is timed."""
    return jax.value_and_grad(mean, (0, 1) if problem.features else (0,)) if what == GRADIENT else mean


def some_rows(gradient):
    """Return at most 127 rows of a gradient, spread over all its rows."""
    return gradient[:: max(1, gradient.shape[0] // 64)]


def loss(name: str, problem: Problem) -> Loss:
    """Return the mean loss as a function of the problem's arrays."""
    if name in (ours := own(problem)):
        return ours[name]
    if name in fused.FUSED:
        return fused.FUSED[name]().loss
    kind = {SOFT: "soft", SIGMOID: "sigmoid"}.get(problem.kind, "integer")
    if problem.kind == SMOOTHED:
        each = _optax_smoothed
    else:
        each = libraries.LIBRARIES[KERAS if name == KERAS else OPTAX]().losses[kind]
    if name not in (OPTAX_WIDE, NAIVE):
        return _mean(problem, each)
    return _mean(problem, lambda logits, labels: each(logits.astype(F32), _wide(labels)))


def own(problem: Problem, package=jaxce) -> dict[str, Loss]:
    """Return the losses of jaxce, or of another copy of jaxce."""
    if problem.kind == LINEAR:
        total, each = package.linear_softmax_cross_entropy_sum, package.linear_softmax_cross_entropy
        blocks = package.Chunked(block_tokens=2048)  # faster than jaxce's own choice, but needs more memory
        return {
            SUM: lambda *args: total(*args).mean(),
            SUM_2048: lambda *args: total(*args, implementation=blocks).mean(),
            AUTO: lambda *args: total(*args).mean(),
            LOSSES: lambda *args: each(*args).mean(),
        } | _further_losses(package)
    functions = {SOFT: package.softmax_cross_entropy, SIGMOID: package.sigmoid_binary_cross_entropy}
    function = functions.get(problem.kind, package.softmax_cross_entropy_with_integer_labels)
    options = {"label_smoothing": SMOOTHING, "z_loss": Z_LOSS} if problem.kind == SMOOTHED else {}
    return {OURS: _mean(problem, lambda logits, labels: function(logits, labels, **options))}


def _further_losses(package) -> dict[str, Loss]:
    """Return other losses of a linear layer in the same pass. The layer of the teacher has the same size, and no gradients."""

    def with_entropy(hidden, classifier, labels):
        logits = package.LinearLogits(hidden, classifier)
        return package.loss_sum(logits, labels, lambda stats: stats.nll - 0.01 * stats.entropy).mean()

    def of_top_labels(hidden, classifier, labels):
        logits, top = package.LinearLogits(hidden, classifier), 64
        some = (labels[:, None] + 997 * jnp.arange(top)) % classifier.shape[1]
        probabilities = jnp.full(some.shape, 1 / top)
        return package.softmax_cross_entropy_sum(logits, some, label_probabilities=probabilities).mean()

    def divergence(hidden, classifier, _):
        teacher = jax.lax.stop_gradient(package.LinearLogits(jnp.roll(hidden, 1, 0), classifier))
        return package.softmax_kl_divergence_sum(teacher, package.LinearLogits(hidden, classifier)).mean()

    return {ENTROPY: with_entropy, TOP_LABELS: of_top_labels, KL_SUM: divergence}


def _mean(problem, each):
    def mean(*args):
        *factors, labels = args
        return each(factors[0] @ factors[1] if problem.features else factors[0], labels).mean()

    return mean


def _wide(labels):
    return labels.astype(F32) if jnp.issubdtype(labels.dtype, jnp.floating) else labels


def _optax_smoothed(logits, labels):
    labels = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), SMOOTHING)
    return optax.softmax_cross_entropy(logits, labels) + Z_LOSS * jnp.square(jax.nn.logsumexp(logits, axis=-1))


def _copy(logits, _):
    """Read and write the logits once, with or without the gradient."""
    # XLA for CPU multiplies faster than it copies.
    return logits * 2 if jax.default_backend() == "cpu" else jnp.array(logits, copy=True)


def _matmuls(hidden, classifier, _):
    """Compute the matmuls of the logits and of the gradients with respect to hidden and classifier. The logits serve as the cotangent."""
    logits = hidden @ classifier
    return logits, logits @ classifier.T, hidden.T @ logits


_FLOORS = {COPY: (_copy, _copy), MATMULS: (lambda hidden, classifier, _: hidden @ classifier, _matmuls)}
