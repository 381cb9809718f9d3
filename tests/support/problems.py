"""Random problems for the losses, with many hard values. Problems of one shape are stacked, so that one call computes all of them.

A problem has logits of a small shape, labels, options and a cotangent.
"""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tests.support import cases, covering
from tests.support.cases import INTEGER, SIGMOID, SOFT

LAYOUTS = [((3, 5), -1), ((4, 3), 0), ((2, 3, 2), 1), ((7,), 0), ((3, 1), -1), ((2, 8), 1)]
SIGMOID_LAYOUTS = [((2, 3), ()), ((2, 3), (3,)), ((2, 3), (2, 1)), ((5,), (1,))]
DTYPES = [np.float32, jnp.bfloat16, np.float64, np.float16, jnp.float8_e4m3fn]
# With larger logits, a loss or its square overflows float32, but not the oracle.
LARGEST = 1e15
OPTIONAL_WEIGHTS = ("weights", "mask")
STATISTICS_OPTIONS = ("where", "class_weights")


class Configuration(NamedTuple):
    """The static part of a problem: problems of one configuration share one compiled program."""

    kind: str  # integer, soft, sigmoid, loss_sum, merge of integer or merge of soft
    options: tuple[str, ...]
    dtype: Any
    shape: tuple[int, ...]
    axis: int
    detail: tuple[int, ...] = ()  # the shape of pos_weight, or the bounds of the blocks that are merged

    @property
    def name(self):
        detail = f", {self.detail}" if self.detail else ""
        options = cases.name_of(self.options)
        return f"{self.kind}, {options}, {np.dtype(self.dtype)}, {self.shape} axis {self.axis}{detail}"

    @property
    def loss(self):
        return {"integer": INTEGER, "soft": SOFT, "sigmoid": SIGMOID}[
            self.kind.split()[-1].replace("loss_sum", "integer")
        ]

    @property
    def working(self):
        return np.float64 if self.dtype == np.float64 else np.float32


def subsets(names, all_of_them):
    return covering.subsets(names, len(names) if all_of_them else 2)


def configurations(*, all_of_them):
    """Return configurations: every kind with every set of options, dtype and layout; or a part of them.

    The part has a covering selection of the sets of options, with every pair of options. Each set has one kind, dtype and layout, taken in turn.
    """
    softmax = _kinds("{}", cases.SOFTMAX_OPTIONS, all_of_them)
    found = _combine(softmax, [(shape, axis, ()) for shape, axis in LAYOUTS], all_of_them)
    sigmoid = [("sigmoid", options) for options in subsets(cases.SIGMOID_OPTIONS, all_of_them)]
    found += _combine(sigmoid, [(shape, 0, weight) for shape, weight in SIGMOID_LAYOUTS], all_of_them)
    sums = [("loss_sum", options) for options in subsets(OPTIONAL_WEIGHTS, all_of_them)]
    found += _combine(sums, [(shape, axis, ()) for shape, axis in LAYOUTS[:2]], all_of_them)
    merges = _kinds("merge of {}", STATISTICS_OPTIONS, all_of_them)
    # Blocks that no size divides, blocks of one class, and block < size < 2 * block.
    layouts = [((3, 7), 1, bounds) for bounds in [(0, 4, 7), (0, 1, 7), (0, 3, 6, 7), (0, 2, 4, 7)]]
    return found + _combine(merges, layouts, all_of_them)


def _kinds(name, options, all_of_them):
    of = ("integer", "soft")
    turns = ((o, of if all_of_them else (of[i % 2],)) for i, o in enumerate(subsets(options, all_of_them)))
    return [(name.format(kind), o) for o, kinds in turns for kind in kinds]


def _combine(kinds, layouts, all_of_them):
    if all_of_them:
        triples = itertools.product(kinds, DTYPES, layouts)
    else:
        triples = (
            (kind, DTYPES[i % len(DTYPES)], layouts[(i + i // len(layouts)) % len(layouts)])
            for i, kind in enumerate(kinds)
        )
    return [Configuration(kind, options, dtype, *layout) for (kind, options), dtype, layout in triples]


def largest(dtype):
    return min(LARGEST, float(jnp.finfo(dtype).max))


def has_infinity(dtype):
    return dtype != jnp.float8_e4m3fn


# Each function returns float64 logits with the classes last.
REGIMES = {
    "ordinary": lambda rng, shape, _: 3 * rng.standard_normal(shape),
    "near zero": lambda rng, shape, _: rng.standard_normal(shape) * 10 ** rng.uniform(-9, -1),
    "large": lambda rng, shape, _: rng.standard_normal(shape) * 10 ** rng.uniform(1, 4),
    "offset": lambda rng, shape, _: 3 * rng.standard_normal(shape) + rng.choice([-1, 1]) * 10 ** rng.uniform(1, 5),
    "ties": lambda rng, shape, _: rng.integers(0, 2, shape) * 10 ** rng.uniform(-7, 1) + rng.choice([0, 5, -300]),
    "margin": lambda rng, shape, _: _lead(rng, shape, rng.choice([-1, 1]) * 10 ** rng.uniform(-8, 2)),
    "confident": lambda rng, shape, _: 3 * rng.standard_normal(shape) + _lead(rng, shape, rng.uniform(10, 95)),
    "any": lambda rng, shape, numbers: rng.choice(numbers, shape),
}


def _lead(rng, shape, by):
    leaders = rng.integers(0, shape[-1], shape[:-1])
    return by * (np.arange(shape[-1]) == leaders[..., None])


class Stack(NamedTuple):
    """Stacked problems: arrays by name. The first axis of each array counts the problems."""

    differentiable: dict[str, np.ndarray]
    fixed: dict[str, np.ndarray]
    cotangent: np.ndarray

    def problem(self, i):
        return {name: array[i] for name, array in {**self.differentiable, **self.fixed}.items()}


def stack_of(configuration, regimes, numbers, rng):
    """Return one problem for each regime. The regime "any" draws its logits from `numbers`."""
    problems = [_problem(configuration, regime, numbers, rng) for regime in regimes]
    stacked = {name: np.stack([p[name] for p in problems]) for name in problems[0]}
    cotangent = stacked.pop("cotangent")
    fixed_names = ["where", "mask"] + (["labels"] if configuration.loss is INTEGER else [])
    fixed = {name: stacked.pop(name) for name in fixed_names if name in stacked}
    return Stack(stacked, fixed, cotangent)


def _problem(configuration, regime, numbers, rng):
    """Return the arrays of one problem. They are created with the classes last, and the classes are then moved to their axis."""
    kind, options, dtype, shape, axis, _ = configuration
    by_row = configuration.loss.has_class_axis
    shape = np.moveaxis(np.empty(shape), axis, -1).shape if by_row else shape
    rows = shape[:-1] if by_row else shape
    z = np.clip(REGIMES[regime](rng, shape, numbers), -largest(dtype), largest(dtype))
    if has_infinity(dtype) and kind != "loss_sum" and rng.random() < 0.2:
        z = np.where(rng.random(shape) < 0.3, -np.inf if by_row else rng.choice([-np.inf, np.inf], shape), z)
    arrays = {"logits": z, "labels": _labels(configuration, z, rng)}
    if "where" in options:
        arrays["where"] = rng.random(shape) < rng.choice([0.5, 0.8, 1])
    if "mask" in options:
        arrays["mask"] = rng.random(rows) < rng.choice([0, 0.6, 0.9, 1])
        if rng.random() < 0.5:
            _fill_masked_rows_with_junk(arrays, dtype, rng)
    arrays["logits"] = arrays["logits"].astype(dtype)
    arrays["labels"] = arrays["labels"].astype(np.int32 if configuration.loss is INTEGER else configuration.working)
    if by_row:
        arrays = {name: np.moveaxis(x, -1, axis) if x.shape == shape else x for name, x in arrays.items()}
    cotangent_shape = {"merge": (3, *rows), "loss_sum": ()}.get(kind.split()[0], rows)
    numbers = {"cotangent": rng.uniform(-2, 2, cotangent_shape), **_weights_and_scalars(configuration, rows, rng)}
    return arrays | {name: np.asarray(x, configuration.working) for name, x in numbers.items()}


def _fill_masked_rows_with_junk(arrays, dtype, rng):
    kinds = [np.nan, largest(dtype), 0.5] + ([np.inf, -np.inf] if has_infinity(dtype) else [])
    for name in ("logits", "labels"):
        array = arrays[name]
        if array.dtype.kind == "i":
            arrays[name] = np.where(arrays["mask"], array, -100)
        else:
            counts = np.expand_dims(arrays["mask"], tuple(range(arrays["mask"].ndim, array.ndim)))
            arrays[name] = np.where(counts, array, rng.choice(kinds, array.shape))


def _weights_and_scalars(configuration, rows, rng):
    """Return random weights and scalars. Each option sometimes has its default value, and each weight may be 0."""
    options, found = configuration.options, {}
    if "label_smoothing" in options:
        found["label_smoothing"] = rng.choice([0, 1e-6, 0.1, 0.5, 1, rng.random()])
    if "class_weights" in options:
        num_classes = configuration.shape[configuration.axis]
        some = rng.uniform(0.25, 2, num_classes) * (rng.random(num_classes) < rng.choice([0.7, 1, 1]))
        found["class_weights"] = np.ones(num_classes) if rng.random() < 0.3 else some
    if "z_loss" in options:
        found["z_loss"] = rng.choice([0, 1e-4, 0.1, 2])
    if "pos_weight" in options:
        found["pos_weight"] = rng.uniform(0, 3, configuration.detail) * (rng.random() < 0.8)
    if "weights" in options:
        found["weights"] = rng.uniform(0.25, 2, rows) * (rng.random(rows) < rng.choice([0, 0.7, 1]))
    return found


def _labels(configuration, z, rng):
    """Return labels for logits with the classes last: correct, wrong, uncertain, and sometimes outside the classes."""
    kind = configuration.kind
    if kind == "sigmoid":
        return np.where(rng.random(z.shape) < 0.5, rng.integers(0, 2, z.shape), rng.random(z.shape))
    num_classes, rows = z.shape[-1], z.shape[:-1]
    classes = np.where(rng.random(rows) < 0.5, z.argmax(-1), rng.integers(0, num_classes, rows))
    if configuration.loss is INTEGER:
        no_class = rng.random(rows) < (0.3 if kind == "integer" and rng.random() < 0.1 else 0)
        return np.where(no_class, rng.choice([-1, -100, num_classes, num_classes + 1, 2**31 - 1], rows), classes)
    one_hot = (np.arange(num_classes) == classes[..., None]).astype(float)
    some = rng.random(z.shape) * (rng.random(z.shape) < rng.choice([0.5, 1]))
    share = some / np.maximum(some.sum(-1, keepdims=True), 1e-3)
    # Certain, uncertain, nearly certain, and not normalised.
    return [one_hot, share, 0.999 * one_hot + 0.001 * share, 3 * some][rng.integers(0, 4)]
