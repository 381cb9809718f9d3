"""`Split`: how the arrays of a `LinearLogits` are split, said by the caller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import Chunked, LinearLogits, Split
from tests.support import covering, linear_cases, sharded
from tests.support.closeness import assert_within
from tests.support.oracle import Quantity

TOKENS, FEATURES, CLASSES = (8, 4), 4, 24
SPLITS = {
    "tokens and classes": (Split("data", "model"), P("data"), P(None, "model")),
    "tokens over both axes": (Split(("data", "model")), P(("data", "model")), P()),
    "batch and sequence": (Split(P("data", "model")), P("data", "model"), P()),
    "sequence, features": (Split(P(None, "model"), features="model"), P(None, "model"), P("model")),
    "features over an axis without tokens": (Split("data", features="model"), P("data"), P("model")),
    "features and classes": (Split("data", "model", "data"), P("data"), P("data", "model")),
    "arrays that are split in another way": (Split("data", "model"), P("model"), P("data")),
    "nothing": (Split(), P(), P()),
}


def problem(dtype=np.float32):
    size = int(np.prod(TOKENS))
    hidden, classifier, labels = linear_cases.make(np.random.default_rng(0), size, FEATURES, CLASSES, dtype)
    mask = np.arange(size) % 3 != 1
    return hidden.reshape(*TOKENS, FEATURES), classifier, labels.reshape(TOKENS), mask.reshape(TOKENS)


def run(split, labels, mask, implementation=None):
    """Return the function of hidden and classifier that adds the losses per token and their sum."""

    def both(hidden, classifier):
        logits = LinearLogits(hidden, classifier, split=split, implementation=implementation)
        losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, mask=mask, label_smoothing=0.1)
        return losses.sum() + jaxce.softmax_cross_entropy_sum(logits, labels, mask=mask, label_smoothing=0.1).total

    return both


def put(mesh, arrays, *specs):
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("mode", ["auto", "explicit"])
@pytest.mark.parametrize("implementation", [None, Chunked(3, 2), "reference"], ids=str)
@pytest.mark.parametrize("case", SPLITS)
def test_values_and_gradients(case, implementation, mode):
    split, *specs = SPLITS[case]
    hidden, classifier, labels, mask = problem()
    mesh = sharded.mesh_of((2, 4), mode)
    placed = put(mesh, (hidden, classifier), *specs)
    with jax.set_mesh(mesh):
        value, gradients = jax.jit(jax.value_and_grad(run(split, labels, mask, implementation), (0, 1)))(*placed)
    flat = hidden.reshape(-1, FEATURES), classifier, labels.reshape(-1)
    options = {"mask": mask.reshape(-1), "label_smoothing": np.float32(0.1)}
    want, want_gradients = linear_cases.expected(*flat, np.full(mask.size, 2), **options)
    assert_within(value, Quantity(2 * want.value.sum(), 2 * want.scale.sum()), 8)
    for name, gradient in zip(("hidden", "classifier"), gradients, strict=True):
        assert_within(gradient, Quantity(*(x.reshape(gradient.shape) for x in want_gradients[name])), 8)


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("split", [Split("data", "model", "data"), None], ids=["split", "none"])
@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, *covering.nightly_values(jnp.float16, jnp.float32), jnp.float64], ids=lambda d: d.__name__
)
def test_second_derivatives_are_those_of_one_device(split, dtype, x64):
    """Products of the Hessian with a vector, forward over reverse and reverse over reverse."""
    hidden, classifier, labels, mask = problem(dtype)
    mesh = sharded.mesh_of((2, 4), "auto")

    def hessian_products(split):
        gradient = jax.grad(run(split, labels, mask), (0, 1))

        def products(*arrays):
            forward = jax.jvp(gradient, arrays, arrays)[1]
            reverse = jax.grad(
                lambda *x: sum(jnp.vdot(a, b) for a, b in zip(gradient(*x), arrays, strict=True)), (0, 1)
            )
            return forward, reverse(*arrays)

        return jax.jit(products)

    want = hessian_products(None)(hidden, classifier)
    with jax.set_mesh(mesh):
        found = hessian_products(split)(*put(mesh, (hidden, classifier), P("data"), P("data", "model")))
    # In narrow dtypes each device rounds its part.
    tolerance = {"bfloat16": 4e-2, "float16": 4e-3, "float32": 2e-6, "float64": 1e-14}[dtype.__name__]
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype == dtype
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.abs(x - y).max() <= tolerance * np.abs(y).max()


def test_statistics_and_class_probabilities():
    hidden, classifier, labels, _ = problem()
    mesh = sharded.mesh_of((2, 4), "auto")
    split = Split("data", "model", mesh=mesh)
    probabilities = np.eye(CLASSES, dtype=np.float32)[labels]

    def both(hidden, classifier):
        logits = LinearLogits(hidden, classifier, split=split)
        return jaxce.logit_stats(logits, labels).nll, jaxce.softmax_cross_entropy(logits, probabilities)

    found = jax.jit(both)(*put(mesh, (hidden, classifier), P("data"), P(None, "model")))
    want, _ = linear_cases.expected(hidden.reshape(-1, FEATURES), classifier, labels.reshape(-1), np.ones(labels.size))
    for losses in found:
        assert_within(np.asarray(losses).reshape(-1), want, 8)


def wrong(hidden, classifier, split, **options):
    return jaxce.softmax_cross_entropy_sum(
        LinearLogits(hidden, classifier, split=split), np.zeros(8, np.int32), **options
    )


BAD = {
    "a number": (lambda: Split(0), TypeError, r"`tokens` of `Split` must be a mesh axis, a tuple of mesh axes or None; got 0\."),
    "a list": (lambda: Split("data", ["model"]), TypeError, r"`classes` of `Split` must be .*; got \['model'\]\."),
    "tokens and classes": (lambda: Split("data", "data"), ValueError, r"cannot split tokens or features too; got 'data' twice"),
    "classes and features": (lambda: Split(None, "model", ("model",)), ValueError, r"got 'model' twice"),
    "tokens twice": (lambda: Split(P("data", "data")), ValueError, r"`tokens` of `Split` must name each mesh axis once; got 'data' twice"),
    "classes twice": (lambda: Split(None, ("model", "model")), ValueError, r"`classes` of `Split` must name each mesh axis once; got 'model'"),
    "no mesh": (lambda: wrong(np.zeros((8, 4)), np.zeros((4, 6)), Split("data")), ValueError, r"`split` needs a mesh\. Call this inside"),
    "a mesh of another type": (lambda: Split("data", mesh=(2, 4)), TypeError, r"`mesh` of `Split` must be a mesh or None; got tuple\."),
    "another type": (lambda: wrong(np.zeros((8, 4)), np.zeros((4, 6)), "data"), TypeError, r"`split` must be a jaxce\.Split or None; got str\."),
}  # fmt: skip
# These are about a mesh of 2 x 4.
BAD_ON_A_MESH = {
    "an axis of another mesh": (Split("batch"), ValueError, r"`tokens` of `Split` must name axes of the mesh, \('data', 'model'\); got 'batch'\."),
    "uneven classes": (Split("data", "model"), ValueError, r"`classes` of `Split` must cut 6 evenly; got \('model',\), .*4 devices\. Pad the arrays"),
    "too many entries": (Split(P("data", "model")), ValueError, r"`tokens` of `Split` must have at most one entry for each of the 1 axes .*; got 2:"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_split(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("case", BAD_ON_A_MESH)
def test_split_that_does_not_fit_the_mesh_or_the_arrays(case):
    split, error, message = BAD_ON_A_MESH[case]
    arrays = np.zeros((8, 4), np.float32), np.zeros((4, 6), np.float32)
    with jax.set_mesh(sharded.mesh_of((2, 4), "auto")), pytest.raises(error, match=message):
        jax.jit(lambda *x: wrong(*x, split).total)(*arrays)


def test_split_inside_of_shard_map_is_refused():
    mesh = sharded.mesh_of((2, 4), "auto")
    arrays = np.zeros((8, 4), np.float32), np.zeros((4, 8), np.float32)

    def refused(split, message, **options):
        local = jax.shard_map(
            lambda h, w: wrong(h, w, split, **options).total,
            mesh=mesh,
            in_specs=(P(), P(None, "model")),
            out_specs=P(),
            check_vma=False,
        )
        with pytest.raises(ValueError, match=message):
            jax.jit(local)(*arrays)

    refused(
        Split(classes="model"),
        "`split` names 'model', over which `jax.shard_map` around this call has split the arrays already",
    )
    refused(Split(classes="model"), "`axis_name` .* and `split` .*; give one of them", axis_name="model")
