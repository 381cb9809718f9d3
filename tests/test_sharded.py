"""Three modes, one answer: examples and classes split over meshes, under jit in Auto and Explicit mode and inside shard_map with `axis_name`."""

import functools

import cases
import jax
import linear_cases
import numpy as np
import oracle
import pytest
import sharded
from cases import INTEGER, SOFT
from closeness import assert_within
from jax.sharding import NamedSharding
from oracle import Quantity

from jaxce import Chunked

ROWS, CLASSES, FEATURES, ULPS = 16, 24, 4, 8
DIFFERENTIABLE = {
    "logits", "probabilities", "hidden", "classifier", "bias", "class_weights", "label_smoothing", "z_loss", "soft_cap"
}  # fmt: skip
OF_DENSE = ("where", "mask", "label_smoothing", "class_weights", "z_loss")
OF_LINEAR = ("bias", "mask", "label_smoothing", "class_weights", "z_loss", "soft_cap")
OPTIONS = tuple(dict.fromkeys((*OF_DENSE, *OF_LINEAR)))
PAIRS = [(shape, mode) for shape in sharded.SHAPES for mode in sharded.MODES]
# All options, none and each alone in every mode; every mesh in every mode; with other blocks from one to the next.
BLOCKS = [None, Chunked(2, 2), Chunked(2), Chunked(None, 2), "reference"]
SETS = [OPTIONS, (), *((name,) for name in OPTIONS)]
COVER = [(pair, SETS[(i + i // 4) % 2], BLOCKS[i % 5]) for i, pair in enumerate(PAIRS)]
COVER += [
    ((sharded.SHAPES[(i + j) % 4], mode), options, BLOCKS[(i + 2 * j) % 5])
    for i, options in enumerate(SETS[2:])
    for j, mode in enumerate(sharded.MODES)
]


def named(row):
    (shape, mode), options, blocks = row
    names = "all" if options == OPTIONS else cases.name_of(options)
    return f"{mode} {shape[0]}x{shape[1]} {names} {blocks}"


def dense_problem(loss):
    """Ordinary rows and hard ones: ties within and across devices, tiny losses on either side of a border, a class left out."""
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
    return logits, labels, cases.make_options(rng, OF_DENSE, loss, (ROWS, CLASSES), labels)


@functools.cache
def problem(name):
    """Arguments and options by name."""
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
    }
    return {"hidden": hidden, "classifier": classifier, "labels": labels}, options


def truth(name, arguments, options, cotangent):
    """The losses and the gradients by name."""
    if name.startswith("linear"):
        loss, gradients = linear_cases.expected(*arguments.values(), cotangent, **options)
    else:
        of = oracle.integer_softmax if name == "integer" else oracle.softmax
        answer = of(*arguments.values(), cotangent=cotangent, **options)
        loss, gradients = answer.loss, {**answer._asdict(), "probabilities": answer.labels}
    if name == "linear sum":
        loss = Quantity(loss.value.sum(), loss.scale.sum())
    return loss, gradients


COTANGENT = np.linspace(-1, 2, ROWS, dtype=np.float32)


@pytest.mark.parametrize("row", COVER, ids=named)
def test_every_mode_gives_the_oracles_values_and_gradients(row):
    (shape, mode), options, blocks = row
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
        of_what = np.ones(ROWS) if name == "linear sum" else COTANGENT
        wanted[name] = truth(name, arguments, chosen, of_what)
    answers = jax.jit(lambda inputs: {name: run(*inputs[name]) for name, run in runs.items()})(inputs)
    for name, (value, gradients) in answers.items():
        loss, of_loss = wanted[name]
        if name == "linear sum":
            assert float(value.weight) == (problem(name)[1]["mask"].sum() if "mask" in options else ROWS)
            value = value.total
        assert_within(value, loss, ULPS)
        for argument, gradient in gradients.items():
            assert_within(gradient, of_loss[argument], ULPS)
            if blocks in (None, "reference") and gradient.ndim == 2:
                assert gradient.sharding.is_equivalent_to(NamedSharding(mesh, sharded.spec(argument)), 2)
