"""The expected results for rows with non-finite or extreme entries, in extended precision: limits, except where the rule table says NaN.

This module implements the rule table and imports nothing from the package.
"""

from typing import NamedTuple

import numpy as np

NAN, INF = np.nan, np.inf
QUANTITIES = ("value", "gradient", "jvp", "hessian")
# The two other examples of a `LossSum`. They have the same label as the example of the cell.
OTHER_EXAMPLES = np.float32([[1, 0, -2, 0.5, 3], [-1, 2, 0.75, 0, -3]])
TANGENT = np.float32([0.75, -1.25, 0.5, 2, -0.25])
C = 5


class Expected(NamedTuple):
    """The expected value, the scale of its rounding errors, and the entries where 0 and NaN are both correct (`free`)."""

    value: np.ndarray
    scale: np.ndarray
    free: np.ndarray | bool = False


def softmax_rule(z, q, where, mask, infinity_is_nan):
    """Return value, gradient and Hessian of one row: the limits, except where the table says NaN."""
    z, q = z.astype(np.longdouble), q.astype(np.longdouble)
    zero, square = np.zeros(C), np.zeros((C, C))
    nothing = Expected(np.zeros(()), np.zeros(())), Expected(zero, zero), Expected(square, square)
    if not mask:
        return nothing
    part = where & ~(z == -INF)
    infinite = where & (z == INF)
    if np.isnan(z[where]).any() or not part.any() or infinite.any():
        alone = infinite.sum() == 1 and not q[~infinite].any() and not np.isnan(z[where]).any()
        if alone and not infinity_is_nan:
            return nothing
        # The derivatives of such a row may be NaN with respect to every logit, even one that `where` leaves out.
        return (
            Expected(np.array(NAN), np.zeros(())),
            Expected(np.where(where, NAN, 0), zero, where & ~part),
            Expected(np.full((C, C), NAN), square, True),
        )
    below = np.where(part, z - z[part].max(), -INF)
    p = np.exp(below) / np.exp(below).sum()
    nll = np.log(np.exp(below).sum()) - below
    value = np.sum(np.where(q == 0, 0, q * np.where(q == 0, 0, nll)))
    mass = q.sum()
    return (
        Expected(value, value),
        Expected(np.where(where, mass * p - q, 0), mass * p + q),
        Expected(mass * (np.diag(p) - np.outer(p, p)), mass * (np.diag(p) + np.outer(p, p))),
    )


def sigmoid_rule(x, y, mask, agreement_is_nan):
    """Return value, gradient and Hessian of independent entries."""
    x, y = np.where(mask, x, 0).astype(np.longdouble), y.astype(np.longdouble)
    minus_log_yes, minus_log_no = np.logaddexp(0, -x), np.logaddexp(0, x)
    value = np.where(y == 0, 0, y * np.where(y == 0, 0, minus_log_yes))
    value = mask * (value + np.where(y == 1, 0, (1 - y) * np.where(y == 1, 0, minus_log_no)))
    p, not_p = np.exp(-minus_log_yes), np.exp(-minus_log_no)
    gradient, scale = mask * ((1 - y) * p - y * not_p), (1 - y) * p + y * not_p
    undefined = np.isnan(x)
    free = np.zeros(C, bool)
    if agreement_is_nan:
        free = np.isinf(x) & (value == 0)
        value = np.where(free, NAN, value)
    curvature = mask * p * not_p
    # A NaN entry may make every derivative of its own gradient NaN.
    hessian = np.where(np.eye(C, dtype=bool), curvature[:, None], 0)
    undefined_pairs = (undefined | free)[:, None] | (undefined | free)[None]
    return (
        Expected(value, value),
        Expected(gradient, scale, free),
        Expected(np.where(undefined_pairs, NAN, hessian), abs(np.where(undefined_pairs, 0, hessian)), undefined_pairs),
    )


def mean_rule(z, q, where, mask):
    """Return value, gradient and Hessian of the mean over the unmasked examples. `z` is between two ordinary examples."""
    rows = [OTHER_EXAMPLES[0], z, OTHER_EXAMPLES[1]]
    wheres, masks = (np.ones(C, bool), where, np.ones(C, bool)), (True, mask, True)
    answers = [softmax_rule(row, q, *rest, False) for row, *rest in zip(rows, wheres, masks, strict=True)]
    n = sum(masks)
    value, gradient = ([np.stack(x) / n for x in zip(*(a[i][:2] for a in answers), strict=True)] for i in (0, 1))
    hessian, scale, free = np.zeros((3, 3, C, C)), np.zeros((3, 3, C, C)), np.zeros((3, 3, C, C), bool)
    for i in range(3):
        hessian[i, i], scale[i, i], free[i, i] = answers[i][2]
    if np.isnan(value[0][1]):
        free[1, :] = True
    turned = [np.moveaxis(x, 1, 2) for x in (hessian / n, scale / n, free)]
    return (
        Expected(value[0].sum(), abs(value[1]).sum()),
        Expected(*gradient, np.stack([np.broadcast_to(a[1].free, C) for a in answers])),
        Expected(*turned),
    )


def with_jvp(value, gradient, hessian, elementwise):
    """Return the quantities by name. The expected jvp is the product of the gradient and `TANGENT`."""
    tangent = np.broadcast_to(TANGENT, np.shape(gradient.value))
    tangents = [gradient.value * tangent, gradient.scale * abs(tangent), np.broadcast_to(gradient.free, tangent.shape)]
    if not elementwise:
        tangents = [tangents[0].sum(), tangents[1].sum(), np.isnan(value.value)]
    return dict(zip(QUANTITIES, (value, gradient, Expected(*tangents), hessian), strict=True))
