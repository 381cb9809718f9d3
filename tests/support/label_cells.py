"""The label rule as a table: labels outside the classes, and small dtypes that cannot represent all classes, in every way to call a loss.

A cell is `(label, dtype, number of classes, way, quantity)`. A valid label gives its own loss and gradient. An invalid label gives NaN in both. The
neighbouring rows have their own losses and gradients in both cases.
"""

import jax
import jax.numpy as jnp
import numpy as np

INT_MIN, INT_MAX = np.iinfo(np.int32).min, np.iinfo(np.int32).max
C, MANY = 5, 300
# (dtype, number of classes) -> labels.
LABELS = {
    ("int32", C): (-1, -2, -100, -C, C, C + 1, 2 * C, INT_MIN, INT_MAX, C - 1),
    ("uint8", MANY): (0, 1, 44, 127, 128, 254, 255),
    ("uint8", 255): (0, 254, 255),
    ("int8", MANY): (-1, -100, -128, 44, 127),
    ("int16", MANY): (-1, -100, 299, 300, 2**15 - 1, -(2**15)),
    ("uint32", C): (4, C, C + 1, INT_MAX, 2**32 - 1, 2**32 - C),
}
QUANTITIES = ("value", "gradient")


def values_and_gradient(function, logits, labels):
    losses, vjp = jax.vjp(lambda z: function(z, labels), logits)
    return losses, vjp(jnp.ones_like(losses))[0]


def _eager(f, logits, labels):
    return f(logits, labels)


def _jit(f, logits, labels):
    return jax.jit(f)(logits, labels)


def _vmap_both(f, logits, labels):
    return jax.jit(jax.vmap(f))(logits, labels)


def _vmap_labels(f, logits, labels):
    """Map over the labels: combine every label with every row of logits. The result of a label with its own row is on the diagonal."""
    losses, gradient = jax.jit(jax.vmap(f, (None, 0)))(logits, jnp.broadcast_to(labels[:, None], (len(labels),) * 2))
    own = np.arange(len(labels))
    return losses[own, own], gradient[own, own]


def _vmap_logits(f, logits, labels):
    """Map over the logits: combine every label with every row of logits."""
    many = jnp.broadcast_to(logits[:, None], (len(logits), *logits.shape))
    losses, gradient = jax.jit(jax.vmap(f, (0, None)))(many, labels)
    own = np.arange(len(labels))
    return losses[own, own], gradient[own, own]


WAYS = {
    "eager": _eager,
    "jit": _jit,
    "vmap, both": _vmap_both,
    "vmap, labels": _vmap_labels,
    "vmap, logits": _vmap_logits,
}


def rows(labels, dtype, num_classes):
    """Return one row per label, each followed by a row with the label 2. The logits are random, so a wrapped or clamped label has a finite loss."""
    labels = np.array([x for label in labels for x in (label, 2)]).astype(dtype)
    return np.random.default_rng(0).standard_normal((len(labels), num_classes)).astype(np.float32), labels


def rule(logits, labels):
    """Compute the losses and the gradient by the formula, in float64."""
    z = logits.astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    losses, gradient = np.full(len(z), np.nan), np.full(z.shape, np.nan)
    for i, label in enumerate(labels.tolist()):
        if 0 <= label < z.shape[1]:
            losses[i] = -np.log(p[i, label])
            gradient[i] = p[i] - (np.arange(z.shape[1]) == label)
    return {"value": losses, "gradient": gradient}


def failures(function, *, labels=LABELS, ways=WAYS, answers=values_and_gradient):
    """Return the number of cells of `function(logits, labels)`, and the list of the wrong ones.

    `labels` and `ways` are the tables above, or the part of them that the library supports. `answers` computes the losses and the gradient; replace
    it if JAX cannot differentiate the function. If a call raises, all of its cells are wrong.
    """
    total, failed = 0, []
    for ((dtype, num_classes), values), way in ((x, w) for x in labels.items() for w in ways):
        logits, row_labels = rows(values, dtype, num_classes)
        expected = rule(logits, row_labels)
        try:
            got = ways[way](lambda z, y: answers(function, z, y), logits, row_labels)
        except Exception:  # any exception makes all cells of this call wrong
            got = (np.zeros_like(logits[:, 0]), np.zeros_like(logits))
        for quantity, actual in zip(QUANTITIES, got, strict=True):
            near = np.isclose(actual, expected[quantity], rtol=1e-4, atol=1e-6, equal_nan=True)
            holds = near.reshape(len(values), -1).all(1)  # the row of the label, and the next row
            total += len(values)
            failed += [(label, dtype, num_classes, way, quantity) for label in np.array(values)[~holds].tolist()]
    return total, failed


def evaluate(function, **settings):
    """Return the number of cells, and the number of correct ones."""
    cells, failed = failures(function, **settings)
    return cells, cells - len(failed)
