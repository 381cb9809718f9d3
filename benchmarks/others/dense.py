"""The cases for the losses of dense logits, and the code that asks each library. `libraries` has the calls of each loss."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxce
from benchmarks.others.answers import RTOL, Answer, Case, close, log_sum_exp, row, shown

OURS = "jaxce"


def bad_label(label: int, library) -> Answer:
    try:
        values, gradient = library.with_gradient(
            library.losses["integer"], np.float32([[1, 2, 3]]), np.array([label], np.int32)
        )
    except (IndexError, ValueError) as error:
        return f"raises {type(error).__name__}", True
    loud = bool(np.isnan(values).all() and np.isnan(gradient).all())
    return f"loss {shown(values[0])}, gradient {row(gradient[0])}", loud


CONFIDENT = math.log1p(math.exp(-20.0))


def confident(library) -> Answer:
    values, gradient = library.with_gradient(library.losses["integer"], np.float32([[20, 0]]), np.int32([0]))
    right = close(values[0], CONFIDENT) and close(gradient[0, 0], math.expm1(-CONFIDENT))
    return f"loss {shown(values[0])}, gradient {shown(gradient[0, 0])}", right


OFFSET = float(log_sum_exp([1, 2, 3]) - 3)


def offset(library) -> Answer:
    values, _ = library.with_gradient(library.losses["integer"], np.float32([[10001, 10002, 10003]]), np.int32([2]))
    return f"{values[0]:.6f}", close(values[0], OFFSET)


IMPOSSIBLE = float(log_sum_exp([0, 1]) - 0.75)
IMPOSSIBLE_SLOPE = 1 / (1 + math.e) - 0.25  # with respect to the first logit
IMPOSSIBLE_ROW = np.float32([[0, 1, -np.inf]]), np.float32([[0.25, 0.75, 0]])


def soft_loss(library):
    """Return the library's loss against class probabilities for rows with impossible classes, if it has a special one."""
    return {"optax": optax.safe_softmax_cross_entropy}.get(library.name, library.losses["soft"])


def impossible_class(library) -> Answer:
    values, gradient = library.with_gradient(soft_loss(library), *IMPOSSIBLE_ROW)
    right = close(values[0], IMPOSSIBLE) and bool(np.isfinite(gradient).all())
    return f"loss {shown(values[0])}, gradient {row(gradient[0])}", right


def impossible_class_forward(library) -> Answer:
    if library.name == "PyTorch":
        return None
    logits, labels = IMPOSSIBLE_ROW
    _, slope = jax.jvp(lambda z: soft_loss(library)(z, labels), (logits,), (np.float32([[1, 0, 0]]),))
    return shown(slope[0]), close(slope[0], IMPOSSIBLE_SLOPE)


def infinite_logit(library) -> Answer:
    values, _ = library.with_gradient(library.losses["sigmoid"], np.float32([np.inf]), np.float32([1]))
    return shown(values[0]), bool(values[0] == 0)


def column_of_labels(library) -> Answer:
    try:
        values, _ = library.with_gradient(
            library.losses["sigmoid"], np.zeros(4, np.float32), np.ones((4, 1), np.float32)
        )
    except Exception as error:  # whatever a library raises is a refusal
        return f"raises {type(error).__name__}", True
    return f"losses of shape {values.shape}", False


def bfloat16(library) -> Answer:
    rng = np.random.default_rng(0)
    logits = np.asarray(jnp.asarray(3 * rng.normal(size=(1024, 512)), jnp.bfloat16), np.float32)
    labels = rng.integers(512, size=1024).astype(np.int32)
    dtypes = []

    def loss(z, y):
        # The dtype of the logits is float32, but every value is a bfloat16 value.
        values = library.losses["integer"](z.bfloat16() if library.name == "PyTorch" else z.astype(jnp.bfloat16), y)
        dtypes.append(str(values.dtype).removeprefix("torch."))
        return values.float() if library.name == "PyTorch" else values.astype(jnp.float32)

    values, _ = library.with_gradient(loss, logits, labels)
    right = log_sum_exp(logits) - logits[np.arange(1024), labels]
    error = np.abs(values - right).max()
    return f"{error:.1g}, in {dtypes[0]}", bool(error < RTOL * right.max())


def mean_loss(library):
    """Return the library's built-in mean over the labels that are not -1, as its documentation writes it, or None."""
    if library.name == "Keras on JAX":
        return importlib.import_module("keras").losses.SparseCategoricalCrossentropy(True, ignore_class=-1)
    if library.name == "PyTorch":
        return importlib.import_module("torch").nn.CrossEntropyLoss(ignore_index=-1)
    return None


def with_mask(library, logits, labels):
    """Return the mean loss and its gradient."""
    built_in = mean_loss(library)

    def loss(z, y):
        if library.name == "PyTorch":
            return built_in(z, y.long())
        if built_in is not None:
            return built_in(y, z)
        mask = y != -1
        if library.name == OURS:
            return jaxce.LossSum.of(library.losses["integer"](z, y, mask=mask), mask=mask).mean()
        return jnp.mean(library.losses["integer"](z, y), where=mask)

    return library.with_gradient(loss, logits, labels)


def ignored_row(library) -> Answer:
    logits = np.float32([[1, 2, 3], [np.nan, 0, 0]])
    value, gradient = with_mask(library, logits, np.int32([2, -1]))
    p = np.exp(logits[0] - log_sum_exp(logits[0]))
    right = close(value, OFFSET) and close(gradient[0], p - [0, 0, 1]) and bool((gradient[1] == 0).all())
    return f"loss {shown(value)}, gradient of the row {row(gradient[1])}", right


def nothing_counts(library) -> Answer:
    value, gradient = with_mask(library, np.float32([[1, 2, 3]]), np.int32([-1]))
    zero = bool(value == 0 and (gradient == 0).all())
    # Some libraries return NaN for 0 / 0, some return 0. In both cases a gradient that is not finite is wrong.
    return f"loss {shown(value)}, gradient {row(gradient[0])}", zero or (None if np.isfinite(gradient).all() else False)


def accumulation(library) -> Answer:
    """Return the error of the gradient over micro-batches with 1 and 9 labels that count, relative to the gradient of all ten in one batch."""
    rng = np.random.default_rng(0)
    hidden, classifier = rng.normal(size=(2, 9, 16)).astype(np.float32), rng.normal(size=(16, 8)).astype(np.float32)
    labels = rng.integers(8, size=(2, 9)).astype(np.int32)
    labels[0, 1:] = -1
    counts = labels.ravel() != -1
    x, y = hidden.reshape(18, 16)[counts].astype(np.float64), labels.ravel()[counts]
    p = np.exp(x @ classifier - log_sum_exp(x @ classifier)[:, None])
    right = x.T @ (p - np.eye(8)[y]) / len(y)

    def mean(w, h, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(h @ w, y), where=y != -1)

    def total(w):
        sums = (
            jaxce.LossSum.of(library.losses["integer"](h @ w, y, mask=y != -1), mask=y != -1)
            for h, y in zip(hidden, labels, strict=True)
        )
        return sum(sums).mean()

    if library.name == "optax":
        steps = optax.MultiSteps(optax.identity(), 2)
        state = steps.init(classifier)
        for h, y in zip(hidden, labels, strict=True):
            found, state = steps.update(jax.grad(mean)(classifier, h, y), state, classifier)
    elif library.name == OURS:
        found = jax.grad(total)(classifier)
    else:
        return None
    error = np.linalg.norm(np.asarray(found, np.float64) - right) / np.linalg.norm(right)
    return f"{error:.0%} off" if error > 0.01 else f"{error:.0e} off", bool(error < RTOL)


CASES = [
    Case("label -1 of three classes, logits 1 2 3", "NaN, or raises", lambda x: bad_label(-1, x)),
    Case("label 3 of three classes", "NaN, or raises", lambda x: bad_label(3, x)),
    Case("logits 20 0, label 0", f"loss {shown(CONFIDENT)}, gradient {shown(-CONFIDENT)}", confident),
    Case("logits 10001 10002 10003, label 2", f"{OFFSET:.6f}", offset),
    Case("a class with logit -inf and probability 0", f"loss {shown(IMPOSSIBLE)}, a finite gradient", impossible_class),
    Case("the same row, forward-mode derivative", shown(IMPOSSIBLE_SLOPE), impossible_class_forward),
    Case("sigmoid loss of logit +inf, label 1", "0", infinite_logit),
    Case("sigmoid losses of logits (4,), labels (4, 1)", "raises", column_of_labels),
    Case("bfloat16 logits: largest error of 1,024 losses", "below 1e-4", bfloat16),
    Case("an ignored row with a NaN logit", f"loss {shown(OFFSET)}, gradient of the row 0 0 0", ignored_row),
    Case("the mean where every label is ignored", "loss 0 or NaN, gradient 0 0 0", nothing_counts),
    Case("gradient of micro-batches with 1 and 9 labels", "that of all ten", accumulation),
]
