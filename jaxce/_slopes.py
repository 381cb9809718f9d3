"""The derivatives of the statistics by the logits.

With `e = exp(z - shift)`, `p` the softmax, `q` the label distribution and `u` the class weights:

    d rest        e
    d label_nll   label_mass * p - q
    d total_nll   total_mass * p - u

One elementwise pass over the logits makes any of them from the logits and the statistics.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._axes import per_row
from jaxce._infinities import finite
from jaxce._reading import (
    below,
    label_indices,
    label_probabilities,
    read,
    rounded,
    weights_of_classes,
    widened,
)
from jaxce._reductions import is_label, is_long
from jaxce._transpose import with_transpose


def by_logits(args, outs, logits_dot, *, axis):
    """What the tangents of the logits contribute to those of `rest`, `label_nll` and `total_nll`."""
    logits, labels, where, _, class_weights = args
    if class_weights is None and labels.ndim < logits.ndim and is_long(logits, where, axis):
        return with_transpose(_of_rows, _gradient, logits_dot, (args, outs))
    return _of_rows(logits_dot, (args, outs), axis)


def _of_rows(logits_dot, residuals, axis=-1):
    (logits, labels, where, mask, class_weights), outs = residuals
    shift, rest, _, label_mass, _, _, _ = outs
    axis = axis % logits.ndim
    z = read(logits, where, mask, axis)
    z_dot = widened(logits_dot, z.dtype)
    if where is not None:
        # The coefficients of a class left out are 0 already, but those of a row without a loss are NaN.
        z_dot = jnp.where(where, z_dot, 0)
    gap = below(z, shift, axis)
    e = jnp.exp(gap)
    if labels.ndim == z.ndim:
        # label_mass * p - q, where both are nearly label_mass (the class of a confident, right row), is worked out in terms that are small
        # themselves. Both forms have the derivatives of what they stand for.
        q, mass = label_probabilities(labels, mask, axis).astype(z.dtype), per_row(label_mass, axis)
        inverse = 1 / (1 + rest)
        near = mass * ((e - 1) - per_row(rest, axis)) * per_row(inverse, axis) + (mass - q)
        of_label = jnp.where((gap == 0) & (2 * q > mass), near, per_row(label_mass * inverse, axis) * e - q)
    else:
        is_own = is_label(z, label_indices(labels, mask), axis)
        of_label = _of_label(z, is_own, shift, *_rows_of_label(outs), axis)
    of_total = _of_total(z, e, class_weights, outs, axis)
    return [jnp.sum(of * z_dot, axis) for of in (_of_rest(z, e), of_label, of_total)]


def _of_rest(z, e):
    return jnp.where(z == jnp.inf, 0, e)  # capped, it does not move


def _rows_of_label(outs):
    """Of each row with an integer label: what its own class is given, `p - 1`, and what the exponentials of the others are multiplied by."""
    _, rest, label_nll, label_mass, _, _, _ = outs
    # The derivative of expm1 is worked out as 1 more than its value, which of a small p leaves nothing.
    p_gap = jnp.where(label_nll < 0.5, jnp.expm1(-label_nll), jnp.exp(-label_nll) - 1)
    return p_gap, label_mass * (1 / (1 + rest))


def _of_label(z, is_own, shift, of_own, share, axis):
    # A +inf is the label's own or in a row without a loss. It is not capped but cut down to what exp can bear: of a loop with one more
    # select XLA for CPU makes one half as fast.
    p = per_row(share, axis) * jnp.exp(jnp.minimum(1, z - per_row(finite(shift), axis)))
    return jnp.where(is_own, per_row(of_own, axis), p)


def _of_total(z, e, class_weights, outs, axis):
    _, rest, _, _, _, total_mass, _ = outs
    return per_row(total_mass * (1 / (1 + rest)), axis) * e - weights_of_classes(z, class_weights, axis)


@jax.custom_jvp
def _gradient(cts, residuals):
    """The transpose of `_of_rows` for long rows with integer labels; a cotangent that is None is of nothing."""
    return lax.platform_dependent(cts, residuals, cuda=_gradient_in_pairs, default=_gradient_by_hand)


@_gradient.defjvp
def _gradient_jvp(primals, tangents):
    # A bitcast, by which the other reads pairs, has no derivative.
    return jax.jvp(_derived_gradient, primals, tangents)


def _derived_gradient(cts, residuals):
    used = [i for i, ct in enumerate(cts) if ct is not None]

    def of_rows(logits_dot):
        dots = _of_rows(logits_dot, residuals)
        return [dots[i] for i in used]

    (logits, *_), _ = residuals
    (logits_ct,) = jax.linear_transpose(of_rows, logits)([cts[i] for i in used])
    return logits_ct


def _by_hand(cts, residuals):
    """The same in fewer steps: what is one number per row is made once. It has no derivatives of its own.

    It gives the labels, and a function of some of the logits and of which of them is the label's own.
    """
    (logits, labels, _, mask, _), outs = residuals
    rest_ct, label_ct, total_ct = cts
    shift, axis = outs[0], logits.ndim - 1
    labels = label_indices(labels, mask)
    rows = None if label_ct is None else [label_ct * row for row in _rows_of_label(outs)]
    labels, rows = lax.optimization_barrier((labels, rows))

    def of(z, is_own):
        z = read(z, None, mask, axis)
        is_of_label_alone = rest_ct is None and total_ct is None
        # Of the label's term a +inf is the label's own or in a row without a loss.
        e = jnp.exp(z - per_row(finite(shift), axis) if is_of_label_alone else below(z, shift, axis))
        terms = []
        if label_ct is not None:
            of_own, share = (per_row(row, axis) for row in rows)
            terms.append(jnp.where(is_own, of_own, share * e))
        terms += [] if rest_ct is None else [per_row(rest_ct, axis) * _of_rest(z, e)]
        terms += [] if total_ct is None else [per_row(total_ct, axis) * _of_total(z, e, None, outs, axis)]
        return rounded(sum(terms[1:], terms[0]), logits.dtype)

    return labels, of


def _gradient_by_hand(cts, residuals):
    logits, axis = residuals[0][0], residuals[0][0].ndim - 1
    labels, of = _by_hand(cts, residuals)
    return of(logits, is_label(logits, labels, axis))


def _gradient_in_pairs(cts, residuals):
    """Logits of 16 bits are read and written as numbers of 32: XLA for GPU makes code for four of what it reads, so that it is 16 bytes."""
    logits, axis = residuals[0][0], residuals[0][0].ndim - 1
    if logits.dtype.itemsize != 2 or logits.shape[axis] % 2:
        return _gradient_by_hand(cts, residuals)
    labels, of = _by_hand(cts, residuals)
    pairs = lax.bitcast_convert_type(logits.reshape(*logits.shape[:-1], logits.shape[-1] // 2, 2), jnp.uint32)
    halves = []
    for i in range(2):
        half = lax.bitcast_convert_type((pairs >> 16 * i).astype(jnp.uint16), logits.dtype)
        own = lax.optimization_barrier(jnp.where(labels % 2 == i, labels // 2, -1))
        half = of(half, is_label(half, own, axis))
        halves.append(lax.bitcast_convert_type(half, jnp.uint16).astype(jnp.uint32) << 16 * i)
    return lax.bitcast_convert_type(halves[0] | halves[1], logits.dtype).reshape(logits.shape)
