"""A program that checks the losses of a linear layer in every layout on an explicit mesh of 2 x 4 devices.

It is a program of its own because a bug of the compiler may abort the process. It checks the values, the gradients and the sharding of the losses
in every layout and dtype, and then prints "done". It prints each layout before it checks the layout, so that the last line shows where it aborted.
"""

import itertools
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from tests.support import linear_cases, sharded
from tests.support.closeness import assert_within
from tests.support.oracle import Quantity

FEATURES, CLASSES = 4, 24
OPTIONS = {"label_smoothing": np.float32(0.1), "z_loss": np.float32(0.01)}
# XLA for CPU has a bug in bfloat16. float16 differs from float32 only in its rounding.
DTYPES = (jnp.float32, jnp.bfloat16)
TOKEN_SPLITS = (None, "data", "model", ("data", "model"))
CLASS_SPLITS = (None, "data", "model")
# (shape of the tokens, how they are split, how the classes are split)
LAYOUTS = [((16,), P(tokens), classes) for tokens, classes in itertools.product(TOKEN_SPLITS, CLASS_SPLITS)] + [
    ((4, 8), P("data", "model"), None),
    ((4, 8), P("data", "model"), "model"),
    ((4, 8), P(None, "data"), "model"),
    ((8, 2), P(("data", "model"), None), "data"),
]


def losses(hidden, classifier, labels):
    return jaxce.linear_softmax_cross_entropy(hidden, classifier, labels, **OPTIONS)


def losses_from_stats(hidden, classifier, labels):
    stats = jaxce.linear_logit_stats(hidden, classifier, labels)
    for field in (stats.sum_exp_rest, stats.nll, stats.num_classes):
        assert jax.typeof(field).sharding.spec == jax.typeof(labels).sharding.spec
    s = OPTIONS["label_smoothing"]
    return (1 - s) * stats.nll + s * stats.smooth_nll + OPTIONS["z_loss"] * stats.log_z**2


def answers(arguments, cotangent):
    """Compute the values and gradients of the three functions, by name."""
    hidden, classifier, labels = arguments
    found = {}
    for function in (losses, losses_from_stats):
        value, pull = jax.vjp(lambda h, w, f=function: f(h, w, labels), hidden, classifier)
        assert jax.typeof(value).sharding.spec == jax.typeof(labels).sharding.spec
        found[function.__name__] = value, pull(cotangent)

    def total(h, w):
        loss_sum = jaxce.linear_softmax_cross_entropy_sum(h, w, labels, **OPTIONS)
        return loss_sum.total, loss_sum.weight

    (value, weight), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, classifier)
    return {**found, "sum": (value, gradients), "weight": weight}


def check(mesh, shape, tokens, classes):
    """Check one layout in every dtype."""
    size = int(np.prod(shape))
    arrays = linear_cases.make(np.random.default_rng(0), size, FEATURES, CLASSES)
    cotangent = np.linspace(-1, 2, size, dtype=np.float32)

    def put(x, spec, dtype=None):
        return jax.device_put(jnp.asarray(x, dtype), NamedSharding(mesh, spec))

    inputs = {}
    for dtype in DTYPES:
        hidden, classifier, labels = arrays
        inputs[dtype.__name__] = (
            put(hidden.reshape(*shape, FEATURES), P(*tokens), dtype),
            put(classifier, P(None, classes), dtype),
            put(labels.reshape(shape), tokens),
        )
    cotangents = put(cotangent.reshape(shape), tokens)
    found = jax.jit(lambda inputs, cotangents: {d: answers(x, cotangents) for d, x in inputs.items()})(
        inputs, cotangents
    )
    for dtype in DTYPES:
        answer = found[dtype.__name__]
        assert float(answer.pop("weight")) == size
        for name, (value, gradients) in answer.items():
            ct = np.ones(size) if name == "sum" else cotangent
            loss, gradients_wanted = linear_cases.expected(*arrays, ct, **OPTIONS)
            if name == "sum":
                loss = Quantity(loss.value.sum(), loss.scale.sum())
            assert value.dtype == jnp.float32
            assert_within(np.asarray(value).reshape(loss.value.shape), loss, 8)
            for argument, gradient in zip(("hidden", "classifier"), gradients, strict=True):
                wanted = Quantity(*(x.reshape(gradient.shape) for x in gradients_wanted[argument]))
                assert gradient.dtype == dtype
                # Each device rounds its part of a gradient before the parts are summed.
                assert_within(gradient, wanted, 8 if dtype == jnp.float32 else 2)


def in_vmap(mesh):
    """Map the losses over the first axis of the mesh with `jax.vmap`. A `shard_map` inside is then manual over the other axis only."""
    return P("data", "model"), P(), jax.vmap(losses, (0, None, 0))


def in_part_of_the_mesh(mesh):
    """Compute the losses in a `jax.shard_map` of the caller that is manual only over the axis of the classes."""

    def local(hidden, classifier, labels):
        return jaxce.linear_softmax_cross_entropy(hidden, classifier, labels, axis_name="model", **OPTIONS)

    specs = P(), P(None, "model"), P()
    return P(), P(None, "model"), jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), axis_names={"model"})


def check_gradients(mesh, tokens, classifier_spec, function):
    """Check the gradients in bfloat16, for tokens of shape `[4, 8]`."""
    hidden, classifier, labels = linear_cases.make(np.random.default_rng(0), 32, FEATURES, CLASSES)
    specs = P(*tokens), classifier_spec, P(*tokens)
    arrays = (
        jnp.asarray(hidden.reshape(4, 8, FEATURES), jnp.bfloat16),
        jnp.asarray(classifier, jnp.bfloat16),
        labels.reshape(4, 8),
    )
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]
    gradients = jax.jit(jax.grad(lambda *x: function(*x).sum(), (0, 1)))(*placed)
    _, gradients_wanted = linear_cases.expected(hidden, classifier, labels, np.ones(32), **OPTIONS)
    for argument, gradient in zip(("hidden", "classifier"), gradients, strict=True):
        assert_within(gradient, Quantity(*(x.reshape(gradient.shape) for x in gradients_wanted[argument])), 2)


def main(*only):
    """Check the layouts with these numbers. Without numbers, check all layouts and the two transforms of the losses."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    mesh = sharded.mesh_of((2, 4), "explicit")
    for layout in [LAYOUTS[int(i)] for i in only] or LAYOUTS:
        print(*layout, flush=True)
        check(mesh, *layout)
    for kind, way in () if only else itertools.product(("explicit", "auto"), (in_vmap, in_part_of_the_mesh)):
        print(kind, way.__name__, flush=True)
        mesh = sharded.mesh_of((2, 4), kind)
        check_gradients(mesh, *way(mesh))
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
