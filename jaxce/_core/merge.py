"""Statistics of disjoint sets of classes, merged into those of all the classes."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._core.definition import Statistics


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Return the statistics over the classes of both."""
    parts = jax.tree.map(lambda *x: jnp.stack(x), a, b)
    merged = _merge(parts, lambda x: jnp.max(x, 0, keepdims=True), lambda x: jnp.sum(x, 0, keepdims=True))
    return jax.tree.map(lambda x: x[0], merged)


def merge_devices(stats: Statistics, axis_name) -> Statistics:
    """Return the statistics over the classes of all devices along the mesh axes, the same on each; without `axis_name` the statistics."""
    if axis_name is None:
        return stats
    return _merge(
        stats, functools.partial(lax.pmax, axis_name=axis_name), functools.partial(lax.psum, axis_name=axis_name)
    )


def _merge(parts: Statistics, largest, total) -> Statistics:
    """Merge the statistics of parts of the classes; `largest` and `total` reduce over the parts.

    Merging adds the growth of `log_z` to the `nll` of each class. The rounding error of this sum is small relative to the `nll` of any class of
    the part.
    """
    part_max, part_rest = lax.stop_gradient(parts.max_logit), parts.sum_exp_rest
    m = largest(part_max)
    has_top = part_max == m
    below = jnp.where(has_top, 0.0, part_max - m)
    # Each part that has a maximal class leaves one out of its sum. Each contributes exactly 1, and all but one are added.
    rest = total(jnp.where(has_top, part_rest, (1 + part_rest) * jnp.exp(below)))
    rest = jnp.where(m == -jnp.inf, 0.0, rest + (total(has_top.astype(rest.dtype)) - 1))
    growth = (jnp.log1p(rest) - jnp.log1p(part_rest)) - below

    def grown(nll, mass):
        is_empty = (mass == 0) & (growth == jnp.inf)
        return total(nll + mass * jnp.where(is_empty, 0.0, growth))

    # The share of each part in the sum. A part that is infinitely far below the maximum has none, whatever its distance is multiplied by.
    share = jnp.where(below == -jnp.inf, 0.0, (1 + part_rest) * jnp.exp(below)) / (1 + rest)

    def expected(values, distance):
        return total(share * (values + jnp.where(share == 0, 0.0, distance)))

    none = jnp.iinfo(parts.prediction.dtype).max
    prediction = -largest(jnp.where(has_top, -parts.prediction, -none))
    has_prediction = has_top & (parts.prediction == prediction)
    return without_nan_rows(
        Statistics(
            max_logit=m,
            sum_exp_rest=rest,
            label_nll=grown(parts.label_nll, parts.label_mass),
            label_mass=total(parts.label_mass),
            uniform_nll=grown(parts.uniform_nll, parts.weight_sum),
            weight_sum=total(parts.weight_sum),
            num_classes=total(parts.num_classes),
            top_label_mass=total(jnp.where(has_top, parts.top_label_mass, 0.0)),
            spread=expected(parts.spread, -below),
            expected_nll=expected(parts.expected_nll, growth),
            top_nll=total(jnp.where(has_prediction, parts.top_nll + growth, 0.0)),
            prediction=prediction,
        )
    )


def without_nan_rows(stats: Statistics) -> Statistics:
    """Return statistics that are NaN in rows with a NaN, and predict -1. XLA for CPU may lose a NaN in a maximum, but not in the sum."""
    is_nan = jnp.isnan(stats.sum_exp_rest)
    return stats._replace(
        max_logit=jnp.where(is_nan, jnp.nan, stats.max_logit),
        weight_sum=jnp.where(is_nan, jnp.nan, stats.weight_sum),
        num_classes=jnp.where(is_nan, jnp.nan, stats.num_classes),
        top_label_mass=jnp.where(is_nan, 0.0, stats.top_label_mass),
        top_nll=jnp.where(is_nan, jnp.nan, stats.top_nll),
        prediction=jnp.where(is_nan, -1, stats.prediction),
    )
