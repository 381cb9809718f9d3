"""Compare `jaxce.keras` with one recorded case of Keras 3: the evaluation, the answer to meet, and the scale of its rounding errors.

A tolerance is a number of ulps of the working dtype, relative to a scale. The scale of a sum is the sum of its absolute terms. Each term is
multiplied by its condition: how much it changes, relative to its size, if a number that Keras rounds changes by one unit. Keras rounds `1 - p`,
and a power of this difference is ill-conditioned where `p` is near 1.
"""

import contextlib
import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxce.keras import losses
from tests.support.closeness import assert_within
from tests.support.golden import focal_oracle
from tests.support.golden.keras3_cases import BINARY, CATEGORICAL, DIVERGENCE, GENERALIZED, cotangent
from tests.support.oracle import Quantity

FOLDER = pathlib.Path(__file__).parent / "corpus"
INDEX = json.loads((FOLDER / "keras3.json").read_text())
CASES = INDEX["cases"]
OWN, WIDE, EXACT, RAISES, LABEL = "keras3-jax", "keras3-jax-wide", "exact", "raises", "NaN for the label"

# The intended differences from Keras: quirk -> the answer that jaxce meets instead. The reasons are in README.md.
INTENDED = {
    "clipped_logits": EXACT,
    "broadcast": RAISES,
    "label_out_of_range": LABEL,
    "zero_probability": "0 for other classes",
    "smoothing_axis": WIDE,
    "alpha_axis": WIDE,
    "column_labels": WIDE,
    "half": WIDE,
    "mean_in_float32": WIDE,
}
# The largest error, measured on a CPU, is 4.2.
ULPS = 8
EPSILON = 1e-7
NAMES = ("loss", "grad_true", "grad_pred")
MISTAKES = (TypeError, ValueError)


class Answer(NamedTuple):
    """A loss and its gradients, or the name of an exception. A gradient that is None was not computed."""

    loss: Any = None
    grad_true: Any = None
    grad_pred: Any = None
    exception: str | None = None


@functools.cache
def _numbers():
    return np.load(FOLDER / "keras3.npz")["numbers"]


def stored(place) -> np.ndarray:
    offset, shape, dtype = place
    return _numbers()[offset : offset + int(np.prod(shape, dtype=int))].reshape(shape).astype(jnp.dtype(dtype))


def inputs(name):
    """Return `y_true` and `y_pred`."""
    return stored(CASES[name]["y_true"]), stored(CASES[name]["y_pred"])


def recorded(name, reference) -> Answer:
    """Return the recorded answer, in the dtype and with the axes of the case."""
    case, result = CASES[name], CASES[name]["results"][reference]
    if "exception" in result:
        return Answer(exception=result["exception"])
    found = {part: stored(result[part]) for part in NAMES if part in result}
    for part in ("grad_true", "grad_pred"):
        if part in found:
            found[part] = np.moveaxis(found[part], -1, result.get("axis", -1))
            if case["parameters"]["kind"] == "column" and part == "grad_true":
                found[part] = found[part][:, None]
    return Answer(**found)


def is_float64(name):
    return CASES[name]["y_pred"][2] == "float64"


def evaluate(names, *, jit: bool) -> dict[str, Answer]:
    """Return the answers of jaxce, from one program if `jit`. All cases or none are float64."""
    exceptions = {}

    def answers(arrays):
        found = {}
        for name, (y_true, y_pred) in arrays.items():
            try:
                found[name] = _loss_and_gradients(CASES[name], y_true, y_pred)
            except MISTAKES as error:
                exceptions[name] = Answer(exception=type(error).__name__)
        return found

    with jax.enable_x64(True) if is_float64(names[0]) else contextlib.nullcontext():
        arrays = {name: tuple(map(jnp.asarray, inputs(name))) for name in names}
        found = (jax.jit(answers) if jit else answers)(arrays)
        return jax.tree.map(np.asarray, found) | exceptions


def _loss_and_gradients(case, y_true, y_pred):
    moving = (0, 1) if any("grad_true" in result for result in case["results"].values()) else (1,)

    def total_and_loss(y_true, y_pred):
        loss = _call(case, y_true, y_pred)
        return jnp.sum(loss * jnp.asarray(cotangent(loss.shape), loss.dtype)), loss

    gradients, loss = jax.grad(total_and_loss, moving, has_aux=True)(y_true, y_pred)
    return Answer(loss, *((None,) if len(moving) == 1 else ()), *gradients)


def _call(case, y_true, y_pred):
    found = getattr(losses, case["function"])
    if not isinstance(found, type):
        return found(y_true, y_pred, **case["args"])
    loss, weight, mask = found(**case["args"]), case["sample_weight"], case["mask"]
    weight = None if weight is None else jnp.asarray(weight, y_pred.dtype)
    if mask is None:
        return loss(y_true, y_pred, weight)
    # A tracer carries no mask without Keras. So use the mask as `Loss.__call__` does.
    loss._mask = lambda y_true, y_pred: jnp.asarray(mask)
    return loss(y_true, y_pred, weight)


def to_meet(name) -> Answer:
    """Return the answer that jaxce must give: that of Keras, or that of an intended difference."""
    case = CASES[name]
    results = {INTENDED[quirk] for quirk in case["quirks"]}
    if RAISES in results:
        return Answer(exception="ValueError")
    if EXACT in results:
        return _exact(name)
    want = recorded(name, WIDE if WIDE in case["results"] else OWN)
    y_true, y_pred = inputs(name)
    if LABEL in results:
        bad = (y_true < 0) | (y_true >= y_pred.shape[-1])
        grad = np.where(bad[:, None], np.nan, want.grad_pred.astype(np.float64))
        want = Answer(np.where(bad, np.nan, want.loss.astype(np.float64)), None, grad)
    if INTENDED["zero_probability"] in results:
        others = y_true[:, None] != np.arange(3)
        want = want._replace(grad_pred=np.where(others, 0, want.grad_pred))
    return want


def _exact(name):
    """Return the focal loss of logits without clipping."""
    case, (y, z) = CASES[name], inputs(name)
    loss, grad = focal_oracle.ORACLES[case["function"]](y, z, cotangent, **case["args"])
    return Answer(loss, None, grad)


def assert_met(name, got: Answer, want: Answer, ulps=ULPS):
    """Assert that the answers agree in exceptions, shapes, dtypes and numbers."""
    if want.exception is not None or got.exception is not None:
        assert (got.exception is None) == (want.exception is None), (got.exception, want.exception)
        return
    y_true, y_pred = inputs(name)
    working = np.float64 if is_float64(name) else np.float32
    scales = _scales(name)
    for part, of in zip(NAMES, (y_pred, y_true, y_pred), strict=True):
        value, expected = getattr(got, part), getattr(want, part)
        if expected is None:
            continue
        assert value is not None and value.dtype == of.dtype, part
        if not isinstance(expected, Quantity):
            expected = np.asarray(expected).astype(np.longdouble)
            scale = scales[part] if part in scales else np.max(np.abs(expected), initial=0)
            scale = np.nan_to_num(np.broadcast_to(scale, expected.shape).astype(np.float64), posinf=0)
            expected = Quantity(expected, scale)
        assert_within(value, expected, ulps, working=working)


@np.errstate(all="ignore")
def _scales(name):
    """Return the scale of each number of the loss and of the gradients; nothing for an object, whose inputs are well-conditioned."""
    case = CASES[name]
    if case["function"] not in SCALES:
        return {}
    y, p = (x.astype(np.float64) for x in inputs(name))
    unit = float(jnp.finfo(np.float64 if is_float64(name) else np.float32).eps)
    return dict(zip(NAMES, SCALES[case["function"]](y, p, unit, **case["args"]), strict=True))


def _binary_scales(y, p, unit, *, axis, gamma, from_logits, label_smoothing, apply_class_balancing, alpha=0.25):
    s, slope = label_smoothing, 1.0
    yes, no = (1 - s) * np.abs(y) + s / 2, (1 - s) * np.abs(1 - y) + s / 2
    if from_logits:
        p = 1 / (1 + np.exp(-p))
        slope = p * (1 - p)
    q = np.clip(p, EPSILON, 1 - unit)
    miss = np.abs(yes * (1 - p) + no * p)
    near = miss + unit
    weight = alpha * yes + (1 - alpha) * no if apply_class_balancing else 1.0
    bce, dbce = yes * -np.log(q) + no * -np.log1p(-q), (yes / q + no / (1 - q)) * ((p >= EPSILON) & (p <= 1))
    condition = 1 / np.minimum(q, 1 - q) if from_logits and unit < 1e-10 else 1.0  # Keras in float64 rounds 1 - p
    factor = miss**gamma + gamma * near ** (gamma - 1)
    loss = weight * bce * factor * condition
    by_p = dbce * factor + bce * (gamma * near ** (gamma - 1) + gamma * abs(gamma - 1) * near ** (gamma - 2))
    by_y = weight * (factor * (-np.log(q) - np.log1p(-q)) + gamma * near ** (gamma - 1) * bce) + bce * factor
    size = p.shape[axis] if p.ndim else 1
    cot = np.expand_dims(cotangent(np.delete(p.shape, axis)), axis) / max(size, 1)
    return loss.sum(axis) / max(size, 1), cot * by_y * condition, cot * weight * by_p * slope * condition


def _categorical_scales(y, p, unit, *, axis, gamma, from_logits, label_smoothing, alpha):
    y, p = np.moveaxis(y, axis, -1), np.moveaxis(p, axis, -1)
    q = (1 - label_smoothing) * np.abs(y) + label_smoothing / p.shape[-1]
    total = 1.0
    if from_logits:
        p = np.exp(p - p.max(-1, keepdims=True, initial=-np.inf))
        p = p / p.sum(-1, keepdims=True)
    else:
        total = np.abs(p.sum(-1, keepdims=True))
        p = p / total
    inside = (p >= EPSILON) & (p <= 1 - EPSILON)
    c = np.clip(p, EPSILON, 1 - EPSILON)
    miss, log = 1 - c, -np.log(c)
    condition = 1 / np.minimum(c, miss) if from_logits and unit < 1e-10 else 1.0
    each = miss**gamma * (log + 1) + gamma * miss ** (gamma - 1) * log
    slope = miss**gamma / c * (1 + gamma / miss) + gamma * miss ** (gamma - 1) * (1 + log * (1 + abs(gamma - 1) / miss))
    slope = np.asarray(alpha) * q * slope * condition * inside
    cot = cotangent(p.shape[:-1])[..., None]
    by_p = (slope + (slope * p).sum(-1, keepdims=True)) / total
    by_p = by_p * p if from_logits else by_p
    loss = (np.asarray(alpha) * q * each * condition).sum(-1)
    by_y = np.asarray(alpha) * each * condition
    return loss, *(np.moveaxis(cot * x, -1, axis) for x in (by_y, by_p))


def _divergence_scales(y, p, unit):
    a, b = np.clip(y, EPSILON, 1), np.clip(p, EPSILON, 1)
    size, cot = np.abs(np.log(a / b)) + 1, cotangent(p.shape[:-1])[..., None]
    return (a * size).sum(-1), cot * size, cot * a / b


def _generalized_scales(y, p, unit, *, q):
    p = np.abs(p)
    size = np.broadcast_to((1 + np.max(p, -1, initial=0) ** q) / q, p.shape[:-1])
    return size, 0.0, cotangent(p.shape[:-1])[..., None] * p ** (q - 1) * (1 + np.abs(q * np.log(p)))


SCALES = {
    BINARY: _binary_scales,
    CATEGORICAL: _categorical_scales,
    DIVERGENCE: _divergence_scales,
    GENERALIZED: _generalized_scales,
}
