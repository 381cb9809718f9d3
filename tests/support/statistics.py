"""The statistics of rows of logits and their derivatives in extended precision, and a check of a form and of the definition against them.

A form is called directly, on logits of any dtype. In this module the classes are the last axis; `assert_statistics` moves them there.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxce._core import definition
from jaxce._core.definition import Derivatives, Statistics
from jaxce._core.merge import without_nan_rows
from tests.support.closeness import assert_within
from tests.support.oracle import EXTENDED, Quantity

INF, NAN = np.inf, np.nan
# Values that compiled loops may handle wrongly: name -> {class: value}. The other classes of the row are random.
SPECIAL_ROWS = {
    "one infinity": {0: INF},
    "an infinity at the end": {-1: INF},
    "two infinities": {0: INF, 9: INF},
    "a NaN": {5: NAN},
    "a NaN and an infinity": {5: NAN, 6: INF},
    "a NaN at the end": {-1: NAN},
    "NaN alone": dict.fromkeys(range(4096), NAN),
    "-inf but for one": dict.fromkeys(range(1, 4096), -INF),
    "-inf alone": dict.fromkeys(range(4096), -INF),
    "half of them -inf": dict.fromkeys(range(0, 4096, 2), -INF),
    "infinity and -inf": {0: INF, 1: -INF},
    "an infinity, otherwise -inf": dict.fromkeys(range(1, 4096), -INF) | {0: INF},
    "the largest number": {0: "max", 8: "max"},
    "the largest number and an infinity": {0: "max", 8: INF},
    "the least number": dict.fromkeys(range(4096), "min"),
    "the largest and the least number": {0: "max", 1: "min"},
    "ties": {1: 90, 2: 90, 11: 90},
    "all equal": dict.fromkeys(range(4096), 1),
    "a tiny rest": {3: 60},
}


# The statistics that a loss uses; the forms have no gradient of `top_nll`.
USED = {
    "label": ("label_nll",),
    "rest": ("sum_exp_rest",),
    "uniform": ("uniform_nll",),
    "label and uniform": ("label_nll", "uniform_nll"),
    "entropy": ("expected_nll",),
    "label and entropy": ("label_nll", "expected_nll"),
    "all": ("sum_exp_rest", "label_nll", "uniform_nll", "spread", "expected_nll"),
}


def make_cotangents(rng, used, rows, num_classes, dtype, mask=True) -> Derivatives:
    """Return random cotangents of some statistics, 0 in masked rows."""
    # The gradient of `uniform_nll` grows with the number of classes, beyond what float8 can represent.
    sizes = {"uniform_nll": 2 / max(1, num_classes)}
    make = {name: rng.uniform(-sizes.get(name, 2), sizes.get(name, 2), rows) * mask for name in USED["all"]}
    return Derivatives(**{name: make[name].astype(dtype) for name in used})


def working_dtype(dtype):
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def special_rows(rng, num_classes, dtype):
    """Return one row for each of `SPECIAL_ROWS`. In a dtype without infinities, an infinity becomes NaN or the largest number."""
    rows = np.asarray(rng.standard_normal((len(SPECIAL_ROWS), num_classes)), dtype)
    info = jnp.finfo(dtype)
    for row, places in zip(rows, SPECIAL_ROWS.values(), strict=True):
        for k, value in places.items():
            if k < num_classes and -k <= num_classes:
                row[k] = getattr(info, value) if isinstance(value, str) else value
    return rows


@np.errstate(invalid="ignore", over="ignore", under="ignore")
def exact(logits, labels, *, where=None, class_weights=None):
    """Return the statistics by name, each as a `Quantity`. Labels are integers `[...]`, or probabilities `[..., num_classes]`."""
    z = np.asarray(logits).astype(EXTENDED)
    z = z if where is None else np.where(where, z, -INF)
    is_integer = np.ndim(labels) < z.ndim
    q = np.asarray(labels)
    q = (np.arange(z.shape[-1]) == q[..., None]) if is_integer else q
    q, part = q.astype(EXTENDED), z > -INF
    u = part * (np.ones(z.shape[-1]) if class_weights is None else np.asarray(class_weights)).astype(EXTENDED)
    m, gap, rest, rest_scale, spread = _row_sums(z)
    size = abs(np.where(np.isfinite(gap), gap, 0))
    # A gap is rounded by its size, and so is a term of the spread; the sum by which it is divided moves by the spread.
    spread_scale = (np.exp(gap) * size * (1 + size)).sum(-1) / (1 + rest) + spread * (1 + spread)
    # An exponential below the least normal number may become 0, and takes its product with the size of the gap with it.
    info = np.finfo(working_dtype(np.asarray(logits).dtype))
    lost = np.where(np.exp(gap) < 1.01 * EXTENDED(info.tiny), np.exp(gap) * size, 0).sum(-1)
    spread_scale += lost / EXTENDED(info.eps)
    top_nll = np.log1p(rest)
    nll = np.log1p(rest)[..., None] - gap
    nll_scale = nll + spread[..., None] + size
    is_nan = np.isnan(z).any(-1)

    def weighted(weights):
        value, scale = ((weights * np.where(weights == 0, 0, x)).sum(-1) for x in (nll, nll_scale))
        return Quantity(*(np.where(is_nan, NAN, x) for x in (value, scale)))

    def count(values):
        return Quantity(np.where(is_nan, NAN, values), abs(values))

    mass, top = q.sum(-1), np.where((z == m[..., None]) & part, q, 0).sum(-1)
    return {
        "max_logit": Quantity(m, abs(m)),
        "sum_exp_rest": Quantity(rest, rest_scale),
        "label_nll": weighted(q),
        "label_mass": Quantity(mass, mass),
        "uniform_nll": weighted(u),
        "weight_sum": count(u.sum(-1)),
        "num_classes": count(part.sum(-1).astype(EXTENDED)),
        "top_label_mass": Quantity(np.where(is_nan, 0, top), mass),
        "spread": Quantity(spread, spread_scale),
        "expected_nll": Quantity(top_nll + spread, top_nll + spread + spread_scale),
        "top_nll": Quantity(top_nll, top_nll + spread),
        "prediction": Quantity(np.where(is_nan, -1, z.argmax(-1)), np.zeros(m.shape)),
    }


def _row_sums(z):
    """Return the maximum, `z - max`, `sum_exp_rest` with its scale, and how much the rounding of the logits moves `log_z`."""
    m = z.max(-1)
    gap = np.where(z == INF, 0, np.where(z == -INF, -INF, z - m[..., None]))
    gap = np.where((m == INF)[..., None] & (z < INF), -INF, gap)
    others = np.exp(gap)
    np.put_along_axis(others, z.argmax(-1)[..., None], 0, -1)
    size = abs(np.where(np.isfinite(gap), gap, 0))
    order = np.sort(others, -1)
    rest = order.sum(-1)
    scale = (np.sort(others * (1 + size), -1)).sum(-1)
    is_nan = np.isnan(z).any(-1)
    rest, scale = (np.where(is_nan, NAN, np.where(m == -INF, 0, x)) for x in (rest, scale))
    return m, gap, rest, scale, (others * size).sum(-1) / (1 + rest)


@np.errstate(invalid="ignore", over="ignore", under="ignore")
def exact_gradient(cotangents, logits, labels, *, where=None, class_weights=None):
    """Return the gradient of `sum(cotangent * statistic)` with respect to the logits. The cotangents are a `definition.Derivatives`."""
    z = np.asarray(logits).astype(EXTENDED)
    z = z if where is None else np.where(where, z, -INF)
    is_integer, (rest_ct, label_ct, uniform_ct, spread_ct, expected_ct, top_ct) = np.ndim(labels) < z.ndim, cotangents
    q = (np.arange(z.shape[-1]) == np.asarray(labels)[..., None]) if is_integer else np.asarray(labels)
    q = q.astype(EXTENDED)
    u = (z > -INF) * (np.ones(z.shape[-1]) if class_weights is None else np.asarray(class_weights)).astype(EXTENDED)
    _, gap, rest, rest_scale, spread = _row_sums(z)
    size = abs(np.where(np.isfinite(gap), gap, 0))
    e, norm = np.exp(gap), 1 + rest[..., None]
    p, wide = e / norm, 1 + size + spread[..., None]
    value, scale = np.zeros_like(z), np.zeros_like(z)
    if rest_ct is not None:
        value += rest_ct[..., None] * np.where(z == INF, 0, e)
        scale += abs(rest_ct[..., None]) * e * (1 + size)
    if label_ct is not None and is_integer:
        not_p = -np.expm1(-(np.log1p(rest)[..., None] - gap))
        value += label_ct[..., None] * np.where(q == 1, -not_p, q.sum(-1, keepdims=True) * p)
        # At the label, `1 - p` has a small relative error even where it is tiny.
        of_label = not_p + p * (rest_scale + spread)[..., None] + np.where(gap == 0, 0, p * size)
        scale += abs(label_ct[..., None]) * np.where(q == 1, of_label, p * wide)
    elif label_ct is not None:
        mass = q.sum(-1, keepdims=True)
        value += label_ct[..., None] * (mass * p - q)
        scale += abs(label_ct[..., None]) * (mass * p * wide + q)
    if uniform_ct is not None:
        mass = u.sum(-1, keepdims=True)
        value += uniform_ct[..., None] * (mass * p - u)
        scale += abs(uniform_ct[..., None]) * (mass * p * wide + u)
    for ct, less in ((spread_ct, 1), (expected_ct, 0)):
        if ct is not None:
            value += ct[..., None] * p * (size - spread[..., None] - less)
            scale += abs(ct[..., None]) * p * (size + spread[..., None] + less) * wide
    if top_ct is not None:
        is_top = np.arange(z.shape[-1]) == z.argmax(-1)[..., None]
        not_p = (rest / (1 + rest))[..., None]
        value += top_ct[..., None] * np.where(is_top, -not_p, p)
        scale += abs(top_ct[..., None]) * np.where(is_top, not_p + p * (rest_scale + spread)[..., None], p * wide)
    is_nan = np.isnan(z).any(-1, keepdims=True)
    return Quantity(np.where(is_nan, NAN, value), scale)


def by_definition(logits, labels, *, where=None, class_weights=None, axis=-1):
    """Compute the statistics by the definition, in the working dtype of the logits."""
    z = jnp.asarray(logits).astype(working_dtype(logits.dtype))
    z = z if where is None else jnp.where(where, z, -INF)
    labels = jnp.asarray(labels)
    return jax.jit(
        lambda z, y, w: without_nan_rows(definition.statistics(z, y, w, axis=axis % z.ndim)),
    )(z, labels, class_weights)


def assert_statistics(found: Statistics, logits, labels, *, ulps, axis=-1, where=None, class_weights=None):
    """Assert that the statistics of a form and of the definition agree with the oracle.

    In a row with a logit of +inf, `sum_exp_rest` and each nll are only compared with 0: the loss of the row is NaN unless its nll is 0.
    """
    found, working = without_nan_rows(found), working_dtype(logits.dtype)
    labels = np.asarray(labels)
    defined = by_definition(logits, labels, where=where, class_weights=class_weights, axis=axis)
    z, *others = (np.moveaxis(x, axis, -1) if np.ndim(x) == np.ndim(logits) else x for x in (logits, labels, where))
    want = exact(z, others[0], where=others[1], class_weights=class_weights)
    is_infinite = want["max_logit"].value == INF
    for name, quantity in want.items():
        value, defined_value = (np.asarray(getattr(stats, name)) for stats in (found, defined))
        assert value.dtype == (np.int32 if name == "prediction" else working), name
        if name == "prediction":  # a row without classes has none
            value, defined_value = (np.where(want["max_logit"].value == -INF, 0, x) for x in (value, defined_value))
        if name in ("sum_exp_rest", "label_nll", "uniform_nll", "spread", "expected_nll", "top_nll"):
            for x in (value, defined_value):
                np.testing.assert_array_equal(x[is_infinite] > 0, quantity.value[is_infinite] > 0, err_msg=name)
            value, defined_value = (np.where(is_infinite, 0, x) for x in (value, defined_value))
            quantity = Quantity(*(np.where(is_infinite, 0, x) for x in quantity))
        if name == "prediction":
            np.testing.assert_array_equal(value, quantity.value)
            np.testing.assert_array_equal(defined_value, quantity.value)
            continue
        try:
            assert_within(value, quantity, ulps)
            assert_within(defined_value, quantity, ulps)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
