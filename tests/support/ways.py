"""A few rows of logits, and their losses and gradients computed eagerly, under jit and under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.cases import INTEGER

C = 5
LOGITS = np.float32([[0.5, -1, 2, 0, 1], [3, 1, -2, 0.25, 0], [-1, -1, 4, 2, 2]])
LABELS = np.int32([2, 0, 4])
NAN, INF = np.nan, np.inf


def eager(f):
    return f


WAYS = [pytest.param(eager, id="eager"), pytest.param(jax.jit, id="jit"), pytest.param(jax.vmap, id="vmap")]
EXTRAS = [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"class_weights": np.float32([1, 2, 3, 4, 5])}]
EXTRA_IDS = ["plain", "label_smoothing", "z_loss", "class_weights"]


def value_and_gradient(way, loss, *arrays, names=(), **options):
    """Return losses and their gradients with respect to the logits. `names` are the options of the arrays after logits and labels."""

    def run(logits, labels, *rest):
        values, vjp = jax.vjp(
            lambda z: loss.function(z, labels, **dict(zip(names, rest, strict=True)), **options), logits
        )
        return values, vjp(jnp.ones_like(values))[0]

    return way(run)(*(jnp.asarray(a) for a in arrays))


def targets(loss, labels, dtype=np.float32):
    return labels if loss is INTEGER else np.eye(C, dtype=dtype)[labels]
