"""Statistics and gradient for integer labels, from a few numbers per row: what the forms for CPU and GPU share.

With an integer label, `q` is 1 at one class and 0 elsewhere. So the gradient is one number per row at that class, and a multiple of
`exp(z_k - m)` at the others: `q` and `p` are never computed per class.
"""

import jax.numpy as jnp

from jaxce._core.definition import Derivatives, Statistics, below_maximum, is_class


def with_label_logit(stats: Statistics, label_logit, labels, num_classes) -> Statistics:
    """Return the statistics, completed with those of the label, whose logit has been looked up."""
    m, valid = stats.max_logit, is_class(labels, num_classes)
    nll = jnp.log1p(stats.sum_exp_rest) - below_maximum(label_logit, m, ())
    is_top = (label_logit == m) & (m > -jnp.inf)
    return stats._replace(
        label_nll=jnp.where(valid, nll, 0.0),
        label_mass=valid.astype(m.dtype),
        top_label_mass=(valid & is_top).astype(m.dtype),
    )


def row_coefficients(cotangents: Derivatives, stats: Statistics) -> dict:
    """Return the numbers per row that `gradient` needs, by name. A cotangent is None where a statistic is not used; that of `top_nll` is."""
    rest_ct, label_ct, uniform_ct = cotangents.sum_exp_rest, cotangents.label_nll, cotangents.uniform_nll
    spread_ct, expected_ct = cotangents.spread, cotangents.expected_nll
    inverse = 1 / (1 + stats.sum_exp_rest)
    rows = {"max_logit": jnp.maximum(stats.max_logit, jnp.finfo(stats.max_logit.dtype).min)}
    if label_ct is not None:
        rows["at_label"] = label_ct * jnp.expm1(-stats.label_nll)  # p - 1
        rows["label_scale"] = label_ct * stats.label_mass * inverse
    if rest_ct is not None:
        rows["rest_ct"] = rest_ct
    if uniform_ct is not None:
        rows |= {"uniform_ct": uniform_ct, "uniform_scale": uniform_ct * stats.weight_sum * inverse}
    if expected_ct is not None or spread_ct is not None:
        cts = [ct for ct in (expected_ct, spread_ct) if ct is not None]
        rows |= {"spread_scale": sum(cts[1:], cts[0]) * inverse, "spread": stats.spread}
    if spread_ct is not None:
        rows["spread_minus"] = spread_ct * inverse
    return rows


def gradient(z, is_label, rows: dict):
    """Return the cotangent of the logits `z`, from numbers per row that broadcast against them; every class has the weight 1."""
    with_others = not rows.keys() <= {"max_logit", "at_label", "label_scale"}
    # Without the other terms, a gap of +inf - inf = NaN is harmless: the logit is that of the label, or the cotangents of its row are NaN.
    gap = z - rows["max_logit"]
    e = jnp.exp(jnp.where(z == jnp.inf, 0.0, gap) if with_others else gap)
    terms = []
    if "at_label" in rows:
        terms.append(jnp.where(is_label, rows["at_label"], rows["label_scale"] * e))
    if "rest_ct" in rows:
        terms.append(rows["rest_ct"] * jnp.where(z == jnp.inf, 0.0, e))
    if "uniform_ct" in rows:
        terms.append(rows["uniform_scale"] * e - jnp.where(z > -jnp.inf, rows["uniform_ct"], 0.0))
    if "spread_scale" in rows:
        below = jnp.minimum(jnp.finfo(z.dtype).max, jnp.where(z == jnp.inf, 0.0, -gap))
        terms.append(rows["spread_scale"] * e * (below - rows["spread"]))
    if "spread_minus" in rows:
        terms.append(-rows["spread_minus"] * e)
    return sum(terms[1:], terms[0])
