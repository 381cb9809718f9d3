"""The loss of a yes-or-no label and its derivatives, as a mathematician writes them.

With the logit `x`, and weights `yes` and `no` of both answers (`y` and `1 - y`, say):

    loss           yes * -log sigmoid(x) + no * -log sigmoid(-x)  =  (yes + no) * log1p(exp(-|x|)) + against * |x|
    d loss / dx    no * sigmoid(x) - yes * sigmoid(-x)

`against` is the weight of the answer that `x` speaks against: `no` for a positive `x`, `yes` for a negative one. Both are sums of terms of one
sign where one of the weights is 0.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxce._types import working_dtype


class Arguments(NamedTuple):
    """The user's arrays. An option that is None is not used."""

    logits: Any
    labels: Any
    mask: Any = None
    label_smoothing: Any = None
    pos_weight: Any = None


def logits_and_weights(arguments: Arguments, *, one=1.0):
    """Return the logits and the weights of both answers. `one` is 1; a form may hide from its compiler that this is a constant."""
    logits, labels, mask, label_smoothing, pos_weight = arguments
    if mask is not None:
        logits, labels = jnp.where(mask, logits, 0), jnp.where(mask, labels, 0)
    dtype = working_dtype(logits)
    x, yes = logits.astype(dtype), labels.astype(dtype)
    no = one - yes
    if label_smoothing is not None:
        s = label_smoothing.astype(dtype)
        yes, no = (1 - s) * yes + s / 2, (1 - s) * no + s / 2  # not 1 - yes, which would round a small s away
    if pos_weight is not None:
        yes = yes * pos_weight.astype(dtype)
    return x, yes, no


def losses(x, yes, no):
    """Return the loss of each logit."""
    size, against = _size(x), jnp.where(x > 0, no, yes)
    return (yes + no) * jnp.log1p(jnp.exp(-size)) + jnp.where(against == 0, 0, against * size)


def derivative(x, yes, no):
    """Return the derivative of the loss with respect to the logit."""
    # The smaller sigmoid is `small / (1 + small)`. Its derivatives of all orders are free of differences from 1.
    small = jnp.exp(-_size(x))
    against, along = jnp.where(x > 0, no, yes), jnp.where(x > 0, yes, no)
    slope = against - along * small
    return jnp.where(x > 0, slope, -slope) / (1 + small)


def weights_jvp(yes_dot, no_dot, x):
    """Return the tangent of the loss, which is linear in both weights."""
    size = jnp.minimum(jnp.finfo(x.dtype).max, _size(x))  # so that 0 times an infinite loss is 0
    log_norm = jnp.log1p(jnp.exp(-size))
    terms = []
    if yes_dot is not None:
        terms.append(yes_dot * (log_norm + jnp.where(x > 0, 0, size)))
    if no_dot is not None:
        terms.append(no_dot * (log_norm + jnp.where(x > 0, size, 0)))
    return sum(terms[1:], terms[0])


def _size(x):
    """Return `|x|`. Its derivative at 0 is that of `-x`, in agreement with `against`."""
    return jnp.where(x > 0, x, -x)
