"""`label_probabilities` give the same loss and gradients on every mesh, in every mode, whatever splits tokens, classes and features."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import LinearLogits, Split
from tests.support import covering, sharded
from tests.support.row_losses import assert_near

pytestmark = pytest.mark.usefixtures("fast_compilation")

TOKENS, CLASSES, FEATURES, LABELS = 16, 40, 8, 5
MOVING = ("hidden", "classifier")
LAYOUTS = {
    "tokens": (P("data"), P()),
    "classes": (P(), P(None, "model")),
    "tokens and classes": (P("data"), P(None, "model")),
    "tokens, features and classes": (P("data"), P("data", "model")),
}


def problem():
    rng = np.random.default_rng(0)
    of_tokens = {
        "hidden": rng.normal(size=(TOKENS, FEATURES)).astype(np.float32),
        "labels": rng.integers(CLASSES, size=(TOKENS, LABELS)),
        "probabilities": 0.2 * rng.random((TOKENS, LABELS)).astype(np.float32),
        "mask": np.arange(TOKENS) % 3 > 0,
    }
    classifier = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    return of_tokens | {"classifier": classifier, "class_weights": rng.random(CLASSES).astype(np.float32) + 0.1}


def per_token(logits, labels, mask, **options):
    losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, mask=mask, **options)
    return jaxce.LossSum.of(losses, mask=mask)


FUNCTIONS = {"per token": per_token, "sum": jaxce.softmax_cross_entropy_sum}


def total_of(name, arrays, *, split=None, axis_name=None, is_dense=False):
    hidden, classifier = arrays["hidden"], arrays["classifier"]
    logits = hidden @ classifier if is_dense else LinearLogits(hidden, classifier, split=split)
    options = {"label_probabilities": arrays["probabilities"], "class_weights": arrays["class_weights"]}
    options |= {"label_smoothing": 0.1, "mask": arrays["mask"], "axis_name": axis_name}
    result = FUNCTIONS[name](logits, arrays["labels"], **options)
    return (result.psum("data") if axis_name else result).total


def wanted():
    """Return the loss of the same probabilities, spread over all classes in float64, and its gradients."""
    with jax.enable_x64(True):
        given = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in problem().items()}
        labels = np.zeros((TOKENS, CLASSES))
        np.add.at(labels, (np.arange(TOKENS)[:, None], given["labels"]), given["probabilities"])

        def loss(moving):
            log_p = jax.nn.log_softmax(moving["hidden"] @ moving["classifier"])
            q = (0.9 * labels + 0.1 / CLASSES) * given["class_weights"][None]
            return -jnp.sum(jnp.where(given["mask"][:, None], q * log_p, 0))

        return jax.value_and_grad(loss)({name: given[name] for name in MOVING})


def check(run, arrays):
    fixed = {name: x for name, x in arrays.items() if name not in MOVING}
    got = jax.jit(jax.value_and_grad(lambda x: run(fixed | x)))({name: arrays[name] for name in MOVING})
    assert_near(got, wanted(), 1e-5)


def specs_of(tokens, classifier):
    specs = dict.fromkeys(("hidden", "labels", "probabilities", "mask"), tokens)
    return specs | {"classifier": classifier, "class_weights": P(*tuple(classifier)[1:])}


def put(mesh, layout):
    specs = specs_of(*LAYOUTS[layout])
    return {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in problem().items()}


CASES = itertools.product(("auto", "explicit", "split"), FUNCTIONS, LAYOUTS)
QUICK = [
    ("auto", "sum", "tokens and classes"),
    ("explicit", "per token", "tokens, features and classes"),
    ("split", "sum", "classes"),
]


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize(("mode", "name", "layout"), covering.quick(CASES, QUICK), ids=str)
def test_lazy_logits_with_nothing_said_and_with_split(mode, name, layout):
    mesh = sharded.mesh_of((2, 4), "explicit" if mode == "explicit" else "auto")
    tokens, classifier = LAYOUTS[layout]
    features, classes = (*classifier, None, None)[:2]
    split = Split(tokens=tokens, features=features, classes=classes) if mode == "split" else None
    with jax.set_mesh(mesh):
        check(lambda arrays: total_of(name, arrays, split=split), put(mesh, layout))


@pytest.mark.parametrize("check_vma", [True, pytest.param(False, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("is_dense", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_inside_shard_map(is_dense, check_vma):
    mesh = sharded.mesh_of((2, 4), "auto")
    specs = specs_of(*LAYOUTS["tokens and classes"])

    def run(arrays):
        of_device = lambda x: total_of("per token" if is_dense else "sum", x, axis_name="model", is_dense=is_dense)  # noqa: E731
        return jax.shard_map(of_device, mesh=mesh, in_specs=(specs,), out_specs=P(), check_vma=check_vma)(arrays)

    check(run, problem())


@pytest.mark.parametrize("mode", ["auto", pytest.param("explicit", marks=pytest.mark.nightly)])
def test_dense_logits_of_split_classes(mode):
    mesh = sharded.mesh_of((2, 4), mode)
    with jax.set_mesh(mesh):
        check(lambda arrays: total_of("per token", arrays, is_dense=True), put(mesh, "tokens and classes"))
