"""The oracle: the losses and their gradients in extended-precision NumPy, row by row, directly from the formulas.

The oracle imports nothing from the package and uses other algorithms. It subtracts no row maximum; it computes the loss of a class from the
pairwise differences between its logit and the other logits. Every quantity has a scale: the sum of the magnitudes of its terms, including the
rounding of `z_k - max z` to the working precision. Errors are measured in ulps of the scale.
"""

from typing import NamedTuple

import numpy as np

EXTENDED = np.longdouble


class Quantity(NamedTuple):
    value: np.ndarray
    scale: np.ndarray


class Answer(NamedTuple):
    """The losses, and the gradients of `sum(cotangent * losses)`."""

    loss: Quantity
    logits: Quantity
    labels: Quantity
    label_smoothing: Quantity
    class_weights: Quantity | None = None
    z_loss: Quantity | None = None
    soft_cap: Quantity | None = None
    temperature: Quantity | None = None
    pos_weight: Quantity | None = None


def one_hot(labels, num_classes, axis):
    """Return 1 at the label and 0 elsewhere; NaN everywhere if the label is not a class."""
    labels = np.expand_dims(np.asarray(labels).astype(object), axis)
    shape = [1] * labels.ndim
    shape[axis] = num_classes
    classes = np.arange(num_classes).astype(object).reshape(shape)
    inside = (labels >= 0) & (labels < num_classes)
    return np.where(inside.astype(bool), (labels == classes).astype(EXTENDED), np.nan)


def integer_softmax(logits, labels, *, axis=-1, **options):
    return softmax(logits, one_hot(labels, np.shape(logits)[axis], axis), axis=axis, **options)


def softmax(
    logits,
    labels,
    *,
    axis=-1,
    where=None,
    mask=None,
    label_smoothing=0.0,
    class_weights=None,
    z_loss=0.0,
    soft_cap=None,
    temperature=None,
    cotangent=None,
):
    """sum_k w_k ((1 - s) q_k + s / K) nll_k + zeta log_z^2 of c tanh(z / c) / t, where K is the number of classes that take part."""
    raw = np.moveaxis(np.asarray(logits).astype(EXTENDED), axis, -1)
    q = np.moveaxis(np.asarray(labels).astype(EXTENDED), axis, -1)
    if where is not None:
        raw = np.where(np.moveaxis(np.broadcast_to(where, np.shape(logits)), axis, -1), raw, -np.inf)
    rows, num_classes = raw.shape[:-1], raw.shape[-1]
    mask = np.ones(rows, bool) if mask is None else np.asarray(mask)
    cotangent = np.ones(rows) if cotangent is None else np.asarray(cotangent)
    w = np.ones(num_classes, EXTENDED) if class_weights is None else np.asarray(class_weights).astype(EXTENDED)
    s, zeta = EXTENDED(label_smoothing), EXTENDED(z_loss)
    t = np.broadcast_to(np.asarray(1 if temperature is None else temperature).astype(EXTENDED), rows)
    z, by_raw, by_cap, by_t = _shaped(raw, soft_cap, t)

    # Cap and temperature round each logit. A few ulps of the largest logit of a row are an error of each of its differences.
    rounding = np.zeros(rows, EXTENDED)
    if soft_cap is not None or temperature is not None:
        rounding = 4 * np.where(np.isfinite(z), abs(z), 0).max(-1, initial=0)

    loss, d_z, d_q = ([np.zeros(shape, EXTENDED) for _ in range(2)] for shape in (rows, z.shape, z.shape))
    d_w, d_s, d_zeta = ([np.zeros(shape, EXTENDED) for _ in range(2)] for shape in ((num_classes,), (), ()))
    for i in np.ndindex(rows):
        if not mask[i]:
            continue
        row = _softmax_row(z[i], q[i], w, s, zeta, rounding[i])
        c = cotangent[i]
        for j in range(2):  # the value, then its scale
            c = c if j == 0 else abs(c)
            loss[j][i] = row[0][j]
            d_z[j][i], d_q[j][i] = c * row[1][j], c * row[2][j]
            d_w[j], d_s[j], d_zeta[j] = d_w[j] + c * row[3][j], d_s[j] + c * row[4][j], d_zeta[j] + c * row[5][j]
    d_raw, d_cap, d_t = [], [], []
    for d, sign in zip(d_z, (1, 0), strict=True):
        by = [x if sign else abs(x) for x in (by_raw, by_cap, by_t)]
        d_raw.append(_product(d, by[0]))
        d_cap.append(np.sum(_product(d, by[1])))
        d_t.append(np.sum(_product(d, by[2]), -1))
    d_t = d_t if np.ndim(temperature) else [x.sum() for x in d_t]
    back = [[np.moveaxis(x, -1, axis) for x in pair] for pair in (d_raw, d_q)]
    loss, d_raw, d_q, d_w, d_s, d_zeta, d_cap, d_t = (Quantity(*x) for x in (loss, *back, d_w, d_s, d_zeta, d_cap, d_t))
    return Answer(loss, d_raw, d_q, d_s, class_weights=d_w, z_loss=d_zeta, soft_cap=d_cap, temperature=d_t)


def _product(a, b):
    """Compute a b. A factor of 0 removes even an infinite one."""
    return np.where((a == 0) | (b == 0), 0, a * b)


def _shaped(raw, soft_cap, t):
    """Return c tanh(raw / c) / t for each logit, and its derivatives with respect to raw, c and t. A logit of -inf stays."""
    out, far = raw == -np.inf, np.isinf(raw)
    x = np.where(far, 0, raw)
    z, by_raw, by_cap = raw, np.ones_like(raw), np.zeros_like(raw)
    if soft_cap is not None:
        c = EXTENDED(soft_cap)
        decay = np.exp(-abs(x / c))
        by_raw = np.where(far, 0, (2 * decay / (1 + decay**2)) ** 2)  # 1 / cosh(x / c)^2
        z = np.where(out, -np.inf, np.where(far, c, c * np.tanh(x / c)))
        by_cap = np.where(out, 0, np.where(far, 1, np.tanh(x / c) - x / c * by_raw))
    t = t[..., None]
    by_t = np.where(np.isinf(z), 0, -np.where(np.isinf(z), 0, z) / t**2)
    return np.where(np.isinf(z), z, np.where(np.isinf(z), 0, z) / t), by_raw / t, by_cap / t, by_t


def _softmax_row(z, q, w, s, zeta, rounding):
    """Return (value, scale) of the loss and of its derivatives with respect to z, q, w, s and zeta."""
    part, infinite = z > -np.inf, z == np.inf
    none = np.where(part, np.nan, 0)
    undefined = [(np.nan, np.nan)] + [(none, none)] * 3 + [(np.nan, np.nan)] * 2
    if np.isnan(z).any() or np.isnan(q).any() or not part.any():
        return undefined
    num_part = part.sum()
    share = (1 - s) * q + np.where(part, s / num_part, 0)
    t = w * share
    if infinite.any():
        # If all of the target is on this class, the loss has the limit 0.
        alone = infinite.sum() == 1 and not t[~infinite].any()
        zero = np.zeros_like(z)
        return [(0.0, 0.0)] + [(zero, zero)] * 3 + [(np.nan, np.nan)] * 2 if alone else undefined
    nll = _nll(z, part)
    p, not_p = np.exp(-nll), -np.expm1(-nll)
    most = z[part].max()
    log_norm = nll[z == most][0]
    log_z = most + log_norm
    # The effect of rounding `z_k - most` on the exponentials, and on their sum.
    below = np.where(part, most - np.where(part, z, 0), 0)
    spread = _dot(p, below) + rounding
    log_z_scale = abs(most) + log_norm + spread

    mass, size = t.sum(), abs(t).sum()
    loss = _dot(t, nll) + zeta * log_z**2
    loss_scale = _dot(abs(t), nll + spread) + abs(zeta) * (log_z**2 + 2 * abs(log_z) * log_z_scale)
    # mass * p - t, rewritten with `1 - p`: the targets of the other classes times p, minus the own target times 1 - p.
    d_z = (mass - t) * p - t * not_p + 2 * zeta * log_z * p
    wide = 1 + below + spread
    d_z_scale = size * p * wide + abs(t) + 2 * abs(zeta) * p * (abs(log_z) * wide + log_z_scale)
    seen = np.where(part, nll, 0)
    d_s_terms = w * (np.where(part, 1 / EXTENDED(num_part), 0) - q)
    return [
        (loss, loss_scale),
        (np.where(part, d_z, 0), np.where(part, d_z_scale, 0)),
        (w * (1 - s) * seen, abs(w) * (1 - s) * (seen + spread)),
        (share * seen, abs(share) * (seen + spread)),
        (_dot(d_s_terms, seen), _dot(abs(w) * (1 / EXTENDED(num_part) + abs(q)), seen + spread)),
        (log_z**2, log_z**2 + 2 * abs(log_z) * log_z_scale),
    ]


def _nll(z, part):
    """Compute log sum_j exp(z_j - z_k) for each class k, as log(1 + sum over the other classes)."""
    nll, z = np.full(z.shape, np.inf, EXTENDED), z[part]
    gaps = z[None, :] - z[:, None]
    np.fill_diagonal(gaps, -np.inf)
    nll[part] = np.logaddexp(EXTENDED(0), np.logaddexp.reduce(gaps, axis=1))
    return nll


def _dot(weights, values):
    """Compute sum_k w_k v_k. A weight of 0 removes even an infinite value."""
    return np.sum(weights * np.where(weights == 0, 0, values))


def sigmoid(logits, labels, *, mask=None, label_smoothing=0.0, pos_weight=None, cotangent=None):
    """-w y' log sigmoid(x) - (1 - y') log sigmoid(-x), y' = (1 - s) y + s / 2."""
    x, y = (np.asarray(a).astype(EXTENDED) for a in (logits, labels))
    s = EXTENDED(label_smoothing)
    weight = np.ones((), EXTENDED) if pos_weight is None else np.asarray(pos_weight).astype(EXTENDED)
    w = np.broadcast_to(weight, x.shape)
    counts = np.ones(x.shape, bool) if mask is None else np.asarray(mask)
    c = np.ones(x.shape) if cotangent is None else np.asarray(cotangent)
    x, y = np.where(counts, x, 0), np.where(counts, y, 0)
    yes, no = (1 - s) * y + s / 2, (1 - s) * (1 - y) + s / 2
    minus_log_yes, minus_log_no = np.logaddexp(EXTENDED(0), -x), np.logaddexp(EXTENDED(0), x)

    def both(a, b):
        def terms(a, b):
            with np.errstate(invalid="ignore"):
                kept_a, kept_b = np.where(a == 0, 0, a * minus_log_yes), np.where(b == 0, 0, b * minus_log_no)
            return np.where(counts, kept_a + kept_b, 0)

        return Quantity(terms(a, b), terms(abs(a), abs(b)))

    def summed_to(shape, values):
        values = values.reshape((1,) * (x.ndim - values.ndim) + values.shape)
        lead = tuple(range(x.ndim - len(shape)))
        kept = tuple(i for i, n in enumerate(shape) if n == 1)
        return values.sum(axis=lead).sum(axis=kept, keepdims=True) if shape else values.sum()

    def under(quantity, reduce=lambda v: v):
        return Quantity(reduce(c * quantity.value), reduce(abs(c) * quantity.scale))

    p, not_p = np.exp(-minus_log_yes), np.exp(-minus_log_no)
    d_x = Quantity(
        *(np.where(counts, v, 0) for v in (no * p - w * yes * not_p, abs(no) * p + abs(w * yes) * not_p)),
    )
    half = EXTENDED(0.5)
    return Answer(
        loss=both(w * yes, no),
        logits=under(d_x),
        labels=under(both(w * (1 - s), -(1 - s) * np.ones_like(x))),
        # The derivative of a smoothed label is a difference of two terms; the scale adds their magnitudes, as for the softmax.
        label_smoothing=under(
            Quantity(both(w * (half - y), y - half).value, both(w * (half + y), half + 1 - y).scale), np.sum
        ),
        pos_weight=under(both(yes, np.zeros_like(x)), lambda v: summed_to(weight.shape, v)),
    )
