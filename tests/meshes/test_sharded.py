"""Examples and classes split over meshes give the same result in each mode: jit with Auto or Explicit axes, and shard_map with `axis_name`."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import Chunked
from tests.support import cases, communication, covering, linear_cases, oracle, sharded
from tests.support.cases import INTEGER, SOFT
from tests.support.closeness import assert_within
from tests.support.oracle import Quantity

pytestmark = pytest.mark.usefixtures("fast_compilation")

ROWS, CLASSES, FEATURES, ULPS = 16, 24, 4, 8
DIFFERENTIABLE = {
    "logits", "probabilities", "hidden", "classifier", "bias", "class_weights", "label_smoothing", "z_loss", "soft_cap", "temperature"
}  # fmt: skip
DENSE_OPTIONS = ("where", "mask", "label_smoothing", "class_weights", "z_loss", "soft_cap", "temperature")
LINEAR_OPTIONS = ("bias", "mask", "label_smoothing", "class_weights", "z_loss", "soft_cap", "temperature")
OPTIONS = tuple(dict.fromkeys((*DENSE_OPTIONS, *LINEAR_OPTIONS)))
BLOCKS = [None, Chunked(2, 2), Chunked(2), Chunked(None, 2), "reference"]


def dense_problem(loss):
    """Return ordinary and hard rows: ties within and across devices, tiny losses on both sides of a device boundary, and excluded classes."""
    rng = np.random.default_rng(1)
    logits, labels = cases.make_logits(rng, (ROWS, CLASSES)), loss.make_labels(rng, (ROWS, CLASSES), -1)
    logits[0] = 0
    logits[1, [0, 1, 12, 23]] = 9
    logits[2, 5] += 40
    logits[3, 23] += 60
    logits[4, [2, 21]] = 30
    logits[5] = 1e-8 * logits[5]
    logits[6] += np.float32(1e4)
    logits[7, :3] = -np.inf
    confident = {0: 7, 1: 12, 2: 5, 3: 23, 4: 21, 7: 9}
    for row, label in confident.items():
        labels[row] = label if loss is INTEGER else np.eye(CLASSES)[label]
    return logits, labels, cases.make_options(rng, DENSE_OPTIONS, loss, (ROWS, CLASSES), labels)


@functools.cache
def problem(name):
    """Return the arguments and the options by name."""
    if name in ("integer", "soft"):
        logits, labels, options = dense_problem(INTEGER if name == "integer" else SOFT)
        return {"logits": logits, "labels" if name == "integer" else "probabilities": labels}, options
    rng = np.random.default_rng(2)
    hidden, classifier, labels = linear_cases.make(rng, ROWS, FEATURES, CLASSES)
    options = {
        **linear_cases.OPTIONS,
        "bias": (np.arange(CLASSES, dtype=np.float32) % 7) / 8,
        "mask": np.arange(ROWS) % 5 != 1,
        "class_weights": np.linspace(0.5, 2, CLASSES, dtype=np.float32),
        "temperature": np.linspace(0.5, 2, ROWS, dtype=np.float32),
    }
    return {"hidden": hidden, "classifier": classifier, "labels": labels}, options


def truth(name, arguments, options, cotangent):
    """Return the losses of the oracle, and the gradients by name."""
    if name.startswith("linear"):
        loss, gradients = linear_cases.expected(*arguments.values(), cotangent, **options)
    else:
        function = oracle.integer_softmax if name == "integer" else oracle.softmax
        answer = function(*arguments.values(), cotangent=cotangent, **options)
        loss, gradients = answer.loss, {**answer._asdict(), "probabilities": answer.labels}
    if name == "linear sum":
        loss = Quantity(loss.value.sum(), loss.scale.sum())
    return loss, gradients


COTANGENT = np.linspace(-1, 2, ROWS, dtype=np.float32)


# Every shape of the mesh and every mode.
QUICK = [
    ((2, 4), "auto"),
    ((8, 1), "explicit"),
    ((1, 8), "explicit"),
    ((4, 2), "shard_map"),
    ((2, 4), "shard_map unchecked"),
    ((2, 4), "split"),
]


@pytest.mark.covering(1, at_most=3)
@pytest.mark.parametrize(
    "shape_and_mode",
    [
        pytest.param(row, marks=() if row in QUICK else pytest.mark.nightly)
        for row in itertools.product(sharded.SHAPES, sharded.MODES)
    ],
    ids=str,
)
@pytest.mark.parametrize("options", covering.subsets(OPTIONS), ids=cases.name_of)
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_every_mode_gives_the_oracles_values_and_gradients(shape_and_mode, options, blocks):
    """Every mesh in every mode. The quick tier takes a covering selection of the options and blocks."""
    shape, mode = shape_and_mode
    mesh = sharded.mesh_of(shape, mode)
    runs, inputs, wanted = {}, {}, {}
    for name in sharded.LOSSES:
        arguments, all_options = problem(name)
        chosen = {n: all_options[n] for n in options if n in all_options}
        if options and not chosen:
            continue
        static = {"implementation": blocks} if name.startswith("linear") else {}
        runs[name] = sharded.value_and_gradients(name, mesh, mode, **static)
        everything = sharded.put({**arguments, **chosen, "cotangent": COTANGENT}, mesh)
        cotangent = everything.pop("cotangent")
        split = {n: x for n, x in everything.items() if n in DIFFERENTIABLE}
        inputs[name] = split, {n: x for n, x in everything.items() if n not in split}, cotangent
        weights = np.ones(ROWS) if name == "linear sum" else COTANGENT
        wanted[name] = truth(name, arguments, chosen, weights)
    answers = jax.jit(lambda inputs: {name: run(*inputs[name]) for name, run in runs.items()})(inputs)
    for name, (value, gradients) in answers.items():
        loss, want_gradients = wanted[name]
        if name == "linear sum":
            assert float(value.weight) == (problem(name)[1]["mask"].sum() if "mask" in options else ROWS)
            value = value.total
        assert_within(value, loss, ULPS)
        for argument, gradient in gradients.items():
            assert_within(gradient, want_gradients[argument], ULPS)
            if blocks in (None, "reference") and gradient.ndim == 2:
                assert gradient.sharding.is_equivalent_to(NamedSharding(mesh, sharded.spec(argument)), 2)


# How many float32 numbers a device sends for one row: the maximum, sum_exp_rest, the number of devices with a maximal class, label_nll and
# label_mass. Smoothing adds two numbers, class weights add one. Class probabilities need as many numbers as integer labels.
NUMBERS = {"plain": 5, "label_smoothing": 7, "z_loss": 5, "class_weights": 6}
SENT_ROWS, SENT_FEATURES, SENT_CLASSES = 64, 12, 208  # the sizes on a device all differ


def sent(mesh, mode, name, option, gradients):
    """Return the arrays in the collective operations of a compiled program."""
    shapes = {
        "logits": (SENT_ROWS, SENT_CLASSES),
        "hidden": (SENT_ROWS, SENT_FEATURES),
        "classifier": (SENT_FEATURES, SENT_CLASSES),
    }
    shapes |= {"labels": (SENT_ROWS,), "probabilities": shapes["logits"], "class_weights": (SENT_CLASSES,)}
    dense_names = {"integer": ("logits", "labels"), "soft": ("logits", "probabilities")}
    names = dense_names.get(name, ("hidden", "classifier", "labels"))
    names += (option,) if option == "class_weights" else ()
    chosen = {
        n: jax.ShapeDtypeStruct(
            shapes[n], np.int32 if n == "labels" else np.float32, sharding=NamedSharding(mesh, sharded.spec(n))
        )
        for n in names
    }
    static = {option: 0.1} if option in ("label_smoothing", "z_loss") else {}
    loss = sharded.loss_on_mesh(name, mesh, mode, **static)
    total = lambda x, y: jax.tree.leaves(loss({**x, **y}))[0].sum()  # noqa: E731
    x = {n: chosen.pop(n) for n in names if n in ("logits", "hidden", "classifier")}
    run = jax.value_and_grad(total) if gradients else total
    return communication.sent(jax.jit(run).lower(x, chosen).compile().as_text())


@pytest.mark.covering(1)
@pytest.mark.parametrize("mode", sharded.MODES)
@pytest.mark.parametrize("name", sharded.LOSSES)
@pytest.mark.parametrize("option", NUMBERS)
def test_only_a_few_numbers_per_row_are_sent_between_devices(mode, name, option):
    """No array with a class axis is sent, except the gradients of a linear layer, which any linear layer must sum."""
    data, model = 2, 4
    rows, classes = SENT_ROWS // data, SENT_CLASSES // model
    mesh = sharded.mesh_of((data, model), mode)
    for gradients in (False, True) if option == "plain" else (True,):
        operations = sent(mesh, mode, name, option, gradients)
        assert {s.operation for s in operations} == {"all-reduce"}
        sizes = collections.Counter(s.size for s in operations)
        per_row = sizes.pop(rows)
        if name.startswith("linear") and gradients:
            assert sizes.pop(rows * SENT_FEATURES) == sizes.pop(SENT_FEATURES * classes) == 1, operations
        assert all(s <= 2 for s in sizes), operations  # the other arrays are sums over the rows
        backward = 0
        if mode == "shard_map unchecked" and gradients and name != "linear sum":
            backward = 3  # without check_vma, JAX also sums the cotangents of the statistics
        assert per_row <= NUMBERS[option] + backward, operations


LAYOUTS = {
    "tokens over both axes, classes over one of them": (P(("data", "model")), P(None, "model")),
    "sequences over the axis of the classes": (P("data", "model"), P(None, "model")),
    "sequences alone": (P(None, "data"), P(None, "model")),
    "features of the classifier too": (P("data"), P("data", "model")),
    "features of both": (P("data", None, "model"), P("model", None)),
    "classes over both axes": (P(), P(None, ("data", "model"))),
    "tokens alone": (P("data"), P()),
    "classes alone": (P(), P(None, "model")),
}


LAYOUTS_AND_MODES = [
    *((layout, "explicit") for layout in LAYOUTS),
    ("features of both", "auto"),
    ("classes alone", "auto"),
]
QUICK_LAYOUTS = ["tokens over both axes, classes over one of them", "sequences alone", "features of the classifier too"]


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize(
    ("layout", "mode"),
    covering.quick(
        LAYOUTS_AND_MODES, [*((layout, "explicit") for layout in QUICK_LAYOUTS), ("features of both", "auto")]
    ),
)
def test_linear_losses_in_every_layout(layout, mode):
    """The tokens are sequences. The labels, the mask and the bias are not split."""
    mesh = sharded.mesh_of((2, 4), mode)
    arguments, options = problem("linear")
    hidden, classifier, labels = arguments.values()
    hidden_sharding, classifier_sharding = (NamedSharding(mesh, spec) for spec in LAYOUTS[layout])
    placed = (
        jax.device_put(np.tile(hidden.reshape(2, 8, FEATURES), (4, 1, 1)), hidden_sharding),
        jax.device_put(classifier, classifier_sharding),
    )
    y, mask = (np.tile(x.reshape(2, 8), (4, 1)) for x in (labels, options["mask"]))
    chosen = {"mask": mask, **{n: options[n] for n in ("bias", "class_weights", "label_smoothing")}}
    cotangent = np.linspace(-1, 2, y.size, dtype=np.float32).reshape(y.shape)

    def run(hidden, classifier):
        losses = jaxce.linear_softmax_cross_entropy(hidden, classifier, y, **chosen)
        total = jaxce.linear_softmax_cross_entropy_sum(hidden, classifier, y, implementation=Chunked(2, 3), **chosen)
        return jnp.sum(losses * cotangent) + total.total, (losses, total.weight)

    (_, (losses, weight)), gradients = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(*placed)
    flat = {**chosen, "mask": mask.reshape(-1)}
    want, want_gradients = linear_cases.expected(
        np.tile(hidden, (4, 1)), classifier, y.reshape(-1), cotangent.reshape(-1) + 1, **flat
    )
    _, scale = linear_cases.expected(
        np.tile(hidden, (4, 1)), classifier, y.reshape(-1), abs(cotangent.reshape(-1)) + 1, **flat
    )
    assert losses.shape == y.shape and float(weight) == mask.sum()
    assert_within(np.asarray(losses).reshape(-1), want, ULPS)
    for name, gradient in zip(("hidden", "classifier"), gradients, strict=True):
        wanted = Quantity(*(x.reshape(gradient.shape) for x in (want_gradients[name].value, scale[name].scale)))
        assert_within(gradient, wanted, ULPS)


def test_explicit_mode_allows_split_classes_that_optax_refuses():
    mesh = sharded.mesh_of((2, 4), "explicit")
    arguments, _ = problem("integer")
    placed = sharded.put(arguments, mesh)
    with pytest.raises(Exception, match=r"sharding") as raised:
        optax.softmax_cross_entropy_with_integer_labels(*placed.values())
    assert type(raised.value).__name__ == "ShardingTypeError"
    losses = jaxce.softmax_cross_entropy_with_integer_labels(*placed.values())
    assert_within(losses, oracle.integer_softmax(*arguments.values()).loss, ULPS)


def over_part_of_the_mesh(mesh):
    """Use a `shard_map` that is manual only over the axis of the classes. The axis of the examples keeps its type."""

    def total(hidden, classifier, labels):
        def local(hidden, classifier, labels):
            losses = jaxce.linear_softmax_cross_entropy(hidden, classifier, labels, axis_name="model")
            logits = jnp.dot(hidden, classifier)
            return losses + jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, axis_name="model")

        specs = P(), P(None, "model"), P()
        losses = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), axis_names={"model"})
        return losses(hidden, classifier, labels).sum()

    return total


def linear_sum(hidden, classifier, labels):
    return 2 * jaxce.linear_softmax_cross_entropy_sum(hidden, classifier, labels, implementation=Chunked(2)).total


def in_vmap(_):
    return lambda hidden, classifier, labels: jax.vmap(linear_sum, (0, None, 0))(hidden, classifier, labels).sum()


def in_scan(_):
    def total(hidden, classifier, labels):
        return jax.lax.scan(lambda s, x: (s + linear_sum(x[0], classifier, x[1]), None), 0.0, (hidden, labels))[0]

    return total


PARTS = over_part_of_the_mesh, P("data"), (ROWS,)
VMAP, SCAN = (in_vmap, P("data"), (4, 4)), (in_scan, P(None, "data"), (4, 4))


@pytest.mark.covering(1, at_most=3)
# VMAP is not tested in explicit mode: JAX refuses `shard_map` in the gradient of a vmap over an axis that is split on an explicit mesh.
@pytest.mark.parametrize(
    ("way", "spec", "shape", "mode"),
    [(*PARTS, "auto"), (*PARTS, "explicit"), (*VMAP, "auto"), (*SCAN, "auto"), (*SCAN, "explicit")],
)
def test_compositions(way, spec, shape, mode):
    mesh = sharded.mesh_of((2, 4), mode)
    arguments, _ = problem("linear")
    arrays = arguments["hidden"].reshape(*shape, FEATURES), arguments["classifier"], arguments["labels"].reshape(shape)
    placed = [
        jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, (spec, P(None, "model"), spec), strict=True)
    ]
    value, gradients = jax.jit(jax.value_and_grad(way(mesh), (0, 1)))(*placed)
    want, want_gradients = linear_cases.expected(*arguments.values(), np.full(ROWS, 2))
    assert_within(value, Quantity(2 * want.value.sum(), 2 * want.scale.sum()), ULPS)
    for name, gradient in zip(("hidden", "classifier"), gradients, strict=True):
        assert_within(gradient, Quantity(*(x.reshape(gradient.shape) for x in want_gradients[name])), ULPS)
