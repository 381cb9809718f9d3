"""Layouts of a linear layer on a mesh of eight devices, and what a device stores, multiplies and sends for its loss in each mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import LinearLogits, Split
from tests.support.device_work import figures

# The shape of the mesh, the names of its axes, the spec of the tokens, and those of the classifier's features and classes.
LAYOUTS = {
    "tokens": ((8,), ("data",), P("data"), None, None),
    "tokens, features of the classifier": ((8,), ("data",), P("data"), "data", None),
    "tokens, classes": ((2, 4), ("data", "model"), P("data"), None, "model"),
    "batch, sequence, classes": ((2, 2, 2), ("data", "sequence", "model"), P("data", "sequence"), None, "model"),
    "nothing": ((8,), ("data",), P(), None, None),
    "tokens, features, classes": ((2, 4), ("data", "model"), P("data"), "data", "model"),
}
SIZES = 8, 512, 64, 16384  # batch, sequence, features, classes


def total(logits, labels):
    return jaxce.softmax_cross_entropy_sum(logits, labels).total


def per_token(logits, labels):
    return jaxce.softmax_cross_entropy_with_integer_labels(logits, labels).sum()


def mesh_of(layout, kind):
    shape, names, *_ = LAYOUTS[layout]
    return Mesh(np.array(jax.devices()).reshape(shape), names, axis_types=(kind,) * len(names))


@functools.cache
def figures_of(layout, loss, mode, sizes=SIZES):
    """Return the figures of value and gradients on one device, in one of these modes: naive, explicit, auto, "auto, out_shardings", split."""
    batch, length, num_features, num_classes = sizes
    _, _, tokens, features, classes = LAYOUTS[layout]
    mesh = mesh_of(layout, AxisType.Explicit if mode == "explicit" else AxisType.Auto)
    of_hidden, of_classifier = NamedSharding(mesh, tokens), NamedSharding(mesh, P(features, classes))
    arguments = (
        jax.ShapeDtypeStruct((batch, length, num_features), jnp.float32, sharding=of_hidden),
        jax.ShapeDtypeStruct((num_features, num_classes), jnp.float32, sharding=of_classifier),
        jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=of_hidden),
    )
    split = Split(tokens, classes, features, mesh=mesh) if mode == "split" else None
    out = (NamedSharding(mesh, P()), (of_hidden, of_classifier)) if mode == "auto, out_shardings" else None

    def run(hidden, classifier, labels):
        if mode == "naive":
            return per_token(hidden @ classifier, labels)
        return loss(LinearLogits(hidden, classifier, split=split), labels)

    return figures(jax.jit(jax.value_and_grad(run, (0, 1)), out_shardings=out).lower(*arguments).compile())
