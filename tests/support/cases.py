"""The tables for parametrised tests: losses, dtypes, shapes, options and hard inputs. To add a case, add a row here."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from tests.support import covering, oracle


class Loss(NamedTuple):
    name: str
    function: Callable
    oracle: Callable
    has_class_axis: bool
    make_labels: Callable  # (rng, shape of the logits, class axis)
    options: tuple[str, ...]
    label_argnums: tuple[int, ...]

    def shape(self, logits_shape, axis=-1):
        """The shape of the losses."""
        if not self.has_class_axis:
            return tuple(logits_shape)
        axis %= len(logits_shape)
        return tuple(logits_shape[:axis] + logits_shape[axis + 1 :])


def _integers(rng, shape, axis):
    axis %= len(shape)
    return rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :]).astype(np.int32)


def _probabilities(rng, shape, axis):
    q = rng.random(shape)
    return (q / q.sum(axis, keepdims=True)).astype(np.float32)


def _binary(rng, shape, axis):
    return np.where(rng.random(shape) < 0.5, rng.integers(0, 2, shape), rng.random(shape)).astype(np.float32)


SOFTMAX_OPTIONS = ("where", "mask", "label_smoothing", "class_weights", "z_loss", "soft_cap", "temperature")
SIGMOID_OPTIONS = ("mask", "label_smoothing", "pos_weight")
INTEGER = Loss(
    "integer",
    jaxce.softmax_cross_entropy_with_integer_labels,
    oracle.integer_softmax,
    True,
    _integers,
    SOFTMAX_OPTIONS,
    (),
)
SOFT = Loss("soft", jaxce.softmax_cross_entropy, oracle.softmax, True, _probabilities, SOFTMAX_OPTIONS, (1,))
SIGMOID = Loss("sigmoid", jaxce.sigmoid_binary_cross_entropy, oracle.sigmoid, False, _binary, SIGMOID_OPTIONS, (1,))

SOFTMAX_LOSSES = [pytest.param(loss, id=loss.name) for loss in (INTEGER, SOFT)]
LOSSES = [*SOFTMAX_LOSSES, pytest.param(SIGMOID, id="sigmoid")]

DTYPES = [
    pytest.param(d, id=d.__name__) for d in (jnp.float8_e4m3fn, jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
]
INTEGER_DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")

# Every rank to 4, every place of the class axis, one class, no rows, odd sizes.
SHAPES_AND_AXES = [
    ((7,), 0),
    ((1,), -1),
    ((5, 3), -1),
    ((5, 3), 0),
    ((3, 1), 1),
    ((1, 1), -2),
    ((0, 4), -1),
    ((4, 0), 0),
    ((3, 257), -1),
    ((2, 3, 4), 0),
    ((2, 3, 4), 1),
    ((2, 3, 4), -1),
    ((2, 0, 3), -1),
    ((2, 3, 5, 4), -3),
    ((2, 3, 5, 4), 2),
]

SOFTMAX_OPTION_SETS = covering.subsets(SOFTMAX_OPTIONS)
SIGMOID_OPTION_SETS = covering.subsets(SIGMOID_OPTIONS)


def name_of(options):
    return "+".join(options) or "plain"


def make_logits(rng, shape, dtype=np.float32, size=3.0):
    return (size * rng.standard_normal(shape)).astype(dtype)


def make_options(rng, names, loss, logits_shape, labels, axis=-1):
    """Return random values for the options in `names`. The true class of integer labels always takes part."""
    options = {}
    if "where" in names:
        where = rng.random(logits_shape) < 0.7
        if loss is INTEGER:
            np.put_along_axis(where, np.expand_dims(labels, axis), True, axis)
        else:
            where |= labels > 0.1
            labels *= where
        options["where"] = where
    if "mask" in names:
        options["mask"] = rng.random(loss.shape(logits_shape, axis)) < 0.6
    if "label_smoothing" in names:
        options["label_smoothing"] = np.float32(0.1)
    if "class_weights" in names:
        options["class_weights"] = rng.uniform(0.25, 2, logits_shape[axis]).astype(np.float32)
    if "z_loss" in names:
        options["z_loss"] = np.float32(0.03)
    if "soft_cap" in names:
        options["soft_cap"] = np.float32(4)
    if "temperature" in names:
        options["temperature"] = rng.uniform(0.5, 2, loss.shape(logits_shape, axis)).astype(np.float32)
    if "pos_weight" in names:
        options["pos_weight"] = rng.uniform(0.25, 3, logits_shape[-1:]).astype(np.float32)
    return options


def _margins(rng):
    """Return rows in which the margin separates one class from the others."""
    margins = np.float32(10.0) ** np.linspace(-8, 2, 11, dtype=np.float32)
    z = np.zeros((22, 5), np.float32)
    z[:11, 2], z[11:, 3] = margins, margins
    return z


# Rows of logits whose losses or gradients are easy to get wrong.
HARD_LOGITS = {
    "zeros": lambda rng: np.zeros((4, 6), np.float32),
    "near zero": lambda rng: make_logits(rng, (6, 5), size=1e-8),
    "subnormal": lambda rng: make_logits(rng, (4, 5), size=1e-40),
    "large": lambda rng: make_logits(rng, (8, 7), size=1e4),
    "offset by 1e4": lambda rng: make_logits(rng, (8, 7)) + np.float32(1e4),
    "offset by -1e4": lambda rng: make_logits(rng, (8, 7)) - np.float32(1e4),
    "margins": _margins,
    "ties at the top": lambda rng: np.float32([[1, 5, 5, 5, 2], [5, 5, 5, 5, 5], [0, 1e-7, 0, 1e-7, 0]]),
    "confident": lambda rng: make_logits(rng, (6, 8)) + 40 * np.eye(6, 8, 2, dtype=np.float32),
    "extreme": lambda rng: np.float32(
        [[3e38, -3e38, 0, 1], [3e38, 3e38, 0, 1], [-3e38, -3e38, -3e38, -3e38], [3e38, 0, 0, 0]]
    ),
    "spread": lambda rng: np.linspace(-200, 200, 40, dtype=np.float32).reshape(4, 10),
}
