"""The divergences give the same on every mesh, in every mode, with every gradient, and send nothing of the size of the logits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import Chunked, LinearLogits, Split
from tests.support import covering, device_work, divergences, sharded
from tests.support.divergences import FUNCTIONS
from tests.support.row_losses import assert_near

pytestmark = pytest.mark.usefixtures("fast_compilation")

ROWS, CLASSES = (4, 6), 40
MOVING = ("target_hidden", "target_classifier", "hidden", "classifier", "bias", "temperature")
# How the tokens are split, and the classifiers (features, classes).
LAYOUTS = {
    "tokens": (P("data", None), P()),
    "batch and sequence": (P("data", "model"), P()),
    "tokens and classes": (P("data", None), P(None, "model")),
    "classes": (P(), P(None, ("data", "model"))),
    "tokens, features and classes": (P("data", None), P("data", "model")),
}


def problem(rows=ROWS, classes=CLASSES):
    given = divergences.make(np.random.default_rng(0), rows, classes=classes)
    # The features can be split over two devices.
    wide = np.concatenate([given.target_hidden] * 2, -1), np.concatenate([given.target_classifier / 2] * 2)
    return given._replace(target_hidden=wide[0], target_classifier=wide[1])


def specs_of(tokens, classifier):
    of_classes = P(*tuple(classifier)[1:])
    specs = dict.fromkeys(("temperature", "weights", "mask"), P(*tokens))
    specs |= dict.fromkeys(("target_hidden", "hidden"), P(*tokens, None) if tokens else P())
    specs |= dict.fromkeys(("target_classifier", "classifier"), classifier)
    specs |= dict.fromkeys(("target_bias", "bias", "where"), of_classes)
    return {name: specs.get(name, P()) for name in divergences.Problem._fields}


def total_of(name, arrays, *, ways=(None, None), split=None, axis_name=None):
    """Return the weighted sum of the divergences of two layers, of which a way "dense" makes whole logits."""
    given = divergences.Problem(**arrays)
    logits, options = divergences.arguments_of(name, given, ways)
    if split is not None:
        logits = [
            LinearLogits(x.hidden, x.classifier, bias=x.bias, soft_cap=x.soft_cap, split=split, implementation=way)
            for x, way in zip(logits, ways, strict=True)
        ]
    result = FUNCTIONS[name](*logits, **options, axis_name=axis_name)
    if isinstance(result, jaxce.LossSum):
        return result.psum("data").total if axis_name else result.total
    total = jnp.sum(jnp.where(given.mask, given.weights, 0) * result)
    return jax.lax.psum(total, "data") if axis_name else total


def check(run, arrays, name, given):
    """Compare the value and the gradients with the textbook formulas in float64."""
    fixed = {field: x for field, x in arrays.items() if field not in MOVING}
    moving = {field: arrays[field] for field in MOVING}
    value, found = jax.jit(jax.value_and_grad(lambda x: run(fixed | x)))(moving)
    with jax.enable_x64(True):
        exact = divergences.as_float64(given)
        want_value, wanted = divergences.gradients(lambda x: divergences.plain_total(name, x), exact)
    assert_near(value, want_value, 8e-6)
    assert_near(found, {field: wanted[field] for field in found}, 8e-6)


WAYS = (None, None), (Chunked(3), Chunked(3)), ("dense", "dense"), ("dense", Chunked(3))
CASES = itertools.product(("auto", "explicit", "split"), FUNCTIONS, WAYS, LAYOUTS)
QUICK = [
    ("auto", "js", WAYS[2], "tokens and classes"),
    ("explicit", "kl", WAYS[0], "tokens and classes"),
    ("split", "kl sum", WAYS[1], "tokens, features and classes"),
]


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize(("mode", "name", "ways", "layout"), covering.quick(CASES, QUICK), ids=str)
def test_divergences_with_nothing_said_and_with_split(mode, name, ways, layout):
    if "dense" in ways and (mode == "split" or (mode == "explicit" and "features" in layout)):
        pytest.skip("`split` is about LinearLogits, and JAX refuses this product in explicit mode")
    if "dense" in ways and mode == "explicit":
        pytest.skip("JAX wants the sharding of the bias of a dense layer in explicit mode")
    tokens, classifier = LAYOUTS[layout]
    mesh, specs, given = sharded.mesh_of((2, 2), mode, jax.devices()[:4]), specs_of(tokens, classifier), problem()
    split = Split(tokens, *reversed(tuple(classifier) or (None, None))) if mode == "split" else None
    placed = {field: jax.device_put(x, NamedSharding(mesh, specs[field])) for field, x in given._asdict().items()}
    with jax.set_mesh(mesh):
        check(lambda arrays: total_of(name, arrays, ways=ways, split=split), placed, name, given)


@pytest.mark.parametrize(
    ("check_vma", "ways", "name"),
    covering.quick(
        [
            (vma, ways, name)
            for vma in (True, False)
            for ways in ((Chunked(3), Chunked(3)), ("dense", "dense"), ("reference", "dense"))
            for name in FUNCTIONS
        ],
        [
            (True, (Chunked(3), Chunked(3)), "kl sum"),
        ],
    ),
    ids=str,
)
def test_divergences_inside_shard_map(check_vma, ways, name):
    mesh, given = sharded.mesh_of((2, 2), "auto", jax.devices()[:4]), problem()
    specs = specs_of(*LAYOUTS["tokens and classes"])

    def local(arrays):
        return total_of(name, arrays, ways=ways, axis_name="model")

    def run(arrays):
        in_specs = ({field: specs[field] for field in arrays},)
        return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=P(), check_vma=check_vma)(arrays)

    check(run, jax.tree.map(jnp.asarray, given._asdict()), name, given)


@pytest.mark.parametrize(
    ("mode", "name"),
    covering.quick(
        [(mode, name) for mode in ("explicit", "split", "shard_map") for name in FUNCTIONS],
        [("split", "kl sum")],
    ),
)
def test_devices_send_rows_and_the_gradients_of_the_layers(mode, name):
    """Of the size of the classes, the gradients of the classifiers and of the bias travel over the tokens' axis, once. No logits travel."""
    rows, classes = (8, 32), 512
    given, specs = problem(rows, classes), specs_of(*LAYOUTS["tokens and classes"])
    mesh = sharded.mesh_of((2, 2), mode, jax.devices()[:4])
    split = Split("data", "model") if mode == "split" else None

    def local(arrays, axis_name=None):
        return total_of(name, arrays, ways=(Chunked(16), Chunked(16)), split=split, axis_name=axis_name)

    def run(moving, fixed):
        if mode != "shard_map":
            return local(moving | fixed)
        of = ({field: specs[field] for field in moving | fixed},)
        inside = jax.shard_map(lambda x: local(x, "model"), mesh=mesh, in_specs=of, out_specs=P())
        return inside(moving | fixed)

    structs = {
        field: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, specs[field]))
        for field, x in given._asdict().items()
    }
    moving = {field: structs.pop(field) for field in MOVING}
    with jax.set_mesh(mesh):
        figures = device_work.figures(jax.jit(jax.value_and_grad(run)).lower(moving, structs).compile())
    features, tokens = 6 + 4, rows[0] * rows[1] // 2  # on a device
    of_classifiers = 4 * (features + 1) * classes // 2
    # Per token: gradients of both `hidden`, and per block the maxima, the sums and the terms, for the value and for its derivative.
    per_token = 4 * tokens * (features + 24)
    assert of_classifiers <= figures.sent + figures.sent_in_loops <= of_classifiers + per_token + 512
    assert per_token + 512 < 4 * tokens * classes // 2 / 4
