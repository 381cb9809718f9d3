"""The focal losses of logits without clipping, and their gradients, in NumPy with extended precision. Each number comes with its scale.

With `n = -log p` for the probability `p` of an answer, the loss is `f(n) = (1 - exp(-n))^gamma n`. Its derivative is `f'(n) dn`.
"""

import numpy as np

from tests.support.golden.keras3_cases import BINARY, CATEGORICAL
from tests.support.oracle import Quantity


@np.errstate(all="ignore")
def binary(y, x, cotangent, *, axis, gamma, from_logits, label_smoothing, apply_class_balancing, alpha=0.25):
    """Return the mean focal loss of binary labels, and the gradient of its weighted sum."""
    assert from_logits
    y, x, s = np.asarray(y, np.longdouble), np.asarray(x, np.longdouble), np.longdouble(label_smoothing)
    yes, no = (1 - s) * y + s / 2, (1 - s) * (1 - y) + s / 2
    weight = alpha * yes + (1 - alpha) * no if apply_class_balancing else np.ones_like(yes)
    p, not_p = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
    small = np.log1p(np.exp(-np.abs(x)))
    nll, not_nll = small + np.maximum(-x, 0), small + np.maximum(x, 0)
    bce = _times(yes, nll) + _times(no, not_nll)
    miss = yes * not_p + no * p
    factor = miss**gamma
    first = factor * (np.abs(no * p) + np.abs(yes * not_p))
    slope = factor * (no * p - yes * not_p)
    if gamma:
        power = np.where(miss == 0, 0, miss ** np.longdouble(gamma - 1))
        second = gamma * power * p * not_p * np.where(p * not_p == 0, 0, bce)
        slope, first = slope + (no - yes) * second, first + np.abs(no - yes) * second
    size = x.shape[axis]
    cot = np.expand_dims(cotangent(np.delete(x.shape, axis)), axis) / size
    loss = np.sum(_times(weight * factor, bce), axis) / size
    return Quantity(loss, np.abs(loss)), Quantity(cot * weight * slope, cot * weight * first)


@np.errstate(all="ignore")
def categorical(y, z, cotangent, *, axis, gamma, from_logits, label_smoothing, alpha):
    """Return the focal loss against class probabilities, and the gradient of its weighted sum. The class axis is the last."""
    assert from_logits and axis == -1
    y, z, s = np.asarray(y, np.longdouble), np.asarray(z, np.longdouble), np.longdouble(label_smoothing)
    weight = np.asarray(alpha, np.longdouble) * ((1 - s) * y + s / z.shape[-1])
    top = z.max(-1, keepdims=True)
    parts = np.exp(z - top)
    rest = np.where(np.arange(z.shape[-1]) == z.argmax(-1)[..., None], z - top, parts).sum(-1, keepdims=True)
    nll = top - z + np.log1p(rest)
    p, miss = np.exp(-nll), -np.expm1(-nll)
    slope = miss ** np.longdouble(gamma)
    if gamma:
        power = np.where(miss == 0, 0, miss ** np.longdouble(gamma - 1))
        slope = slope + gamma * power * p * np.where(p == 0, 0, nll)
    slope = np.where(miss == 0, gamma == 0, slope) * weight
    loss = _times(weight, np.where(nll == 0, 0, miss**gamma * nll)).sum(-1)
    cot = cotangent(loss.shape)[..., None]
    others = p * (slope.sum(-1, keepdims=True) - slope)
    value, size = others - slope * miss, p * np.abs(slope).sum(-1, keepdims=True) + np.abs(slope) * miss
    undefined = np.where(np.isfinite(top), 1, np.nan)
    return Quantity(loss * undefined[..., 0], np.abs(loss)), Quantity(cot * value * undefined, cot * size)


def _times(weight, loss):
    return np.where((weight == 0) & np.isinf(loss), 0, weight * loss)


ORACLES = {BINARY: binary, CATEGORICAL: categorical}
