"""The formulas of Keras's focal losses. Each cross-entropy is multiplied by `(1 - p)^gamma`, where `p` is the probability of the label.

From probabilities they follow Keras 3 on JAX: they clip to [1e-7, 1 - 1e-7] in the working dtype. The gradient of the clipping is 0 outside the
bounds and 1/2 on a bound, as that of `jnp.clip`.

From logits nothing is clipped. The loss is `n (1 - exp(-n))^gamma` for a negative log-likelihood `n` that keeps its relative precision, and
`1 - exp(-n)` is computed as `-expm1(-n)`.
"""

import functools

import jax
import jax.numpy as jnp

from jaxce._core.binary import sigmoid_losses
from jaxce._core.sigmoid import Arguments, logits_and_weights
from jaxce._jax.axes import class_numbers, per_row, row_shape
from jaxce._jax.rules import keep_statistics, with_jvp
from jaxce._types import Array, working_dtype
from jaxce.keras import _arguments as arguments

# At a larger loss, `1 - p` is 1 in float64 too, and its derivative is 0.
_CONSTANT_FACTOR = 1e4

_FOR_INDICES = "For class indices pass jax.nn.one_hot(y_true, num_classes)."


@functools.partial(jax.jit, static_argnames=("from_logits", "axis"))
def binary(target, output, alpha, gamma, label_smoothing, *, from_logits: bool, axis: int) -> Array:
    """Return the focal loss of binary labels, averaged over an axis. If `alpha` is None, the two labels have the same weight."""
    output, axis = arguments.predictions("y_pred", output, axis, may_be_empty=True)
    target = arguments.same_shape("y_true", target, output, "y_pred")

    def losses(target, output, alpha, gamma, label_smoothing):
        # Convert once. Otherwise a gradient would be a sum of two terms, each rounded to the dtype of its argument.
        dtype = working_dtype(output)
        given = Arguments(output.astype(dtype), target.astype(dtype), label_smoothing=label_smoothing)
        x, yes, no = logits_and_weights(given)
        gamma = gamma.astype(x.dtype)
        if from_logits:
            loss = _modulated(_miss(x, yes, no), gamma, sigmoid_losses(given))
        else:
            p = _clip(x)
            # Keras computes the factor from the probability before clipping.
            loss = jnp.power(yes * (1 - x) + no * x, gamma) * -(yes * jnp.log(p) + no * jnp.log(1 - p))
        if alpha is not None:
            a = alpha.astype(x.dtype)
            loss = _product(a * yes + (1 - a) * no, loss, jnp.finfo(dtype).max)
        return jnp.mean(loss, axis)

    return keep_statistics(losses)(target, output, alpha, gamma, label_smoothing).astype(output.dtype)


@functools.partial(jax.jit, static_argnames=("from_logits", "axis"))
def categorical(target, output, alpha, gamma, label_smoothing, *, from_logits: bool, axis: int) -> Array:
    """Return the focal loss against class probabilities. `alpha` is a scalar or has one weight per class."""
    output, axis = arguments.predictions("y_pred", output, axis, may_be_empty=True)
    target = arguments.same_shape("y_true", target, output, "y_pred", indices=_FOR_INDICES)
    alpha = arguments.along_classes("alpha", alpha, output, axis)
    if output.shape[axis] == 0:
        return jnp.zeros(row_shape(output.shape, axis), output.dtype)  # a sum over no classes

    def losses(target, output, alpha, gamma, label_smoothing):
        dtype = working_dtype(output)
        z, q, gamma = output.astype(dtype), target.astype(dtype), gamma.astype(dtype)
        if label_smoothing is not None:
            s = label_smoothing.astype(dtype)
            q = (1 - s) * q + s / output.shape[axis]
        if from_logits:
            nll = _class_nll(z, axis)
            each = _modulated(-jnp.expm1(-nll), gamma, nll)
        else:
            p = _clip(z / jnp.sum(z, axis, keepdims=True))
            each = jnp.power(1 - p, gamma) * -jnp.log(p)
        return jnp.sum(_product(alpha.astype(dtype) * q, each, jnp.finfo(dtype).max), axis)

    return keep_statistics(losses)(target, output, alpha, gamma, label_smoothing).astype(output.dtype)


def _clip(p):
    return jnp.clip(p, arguments.EPSILON, 1 - arguments.EPSILON)


def _miss(x, yes, no):
    """Return `yes * sigmoid(-x) + no * sigmoid(x)` for weights that sum to 1. Each sum has the smaller sigmoid, which loses no digits."""
    is_positive = x > 0
    small = jax.nn.sigmoid(jnp.where(is_positive, -x, x))
    against, along = jnp.where(is_positive, no, yes), jnp.where(is_positive, yes, no)
    return against + (along - against) * small


def _modulated(miss, gamma, loss):
    """Return `miss^gamma * loss`. Where `miss` is 0, the loss is 0 too, and so is the derivative of the power."""
    is_zero = miss == 0
    power = jnp.power(jnp.where(is_zero, 1, miss), gamma)
    factor = jnp.where(is_zero, jnp.where(gamma == 0, 1.0, 0.0).astype(miss.dtype), power)
    return _product(factor, loss, _CONSTANT_FACTOR)


def _product(weight, loss, limit):
    """Return the weighted loss. A weight of 0 makes an infinite loss 0. The derivative with respect to the weight is at most `limit`."""

    def value(weight, loss):
        return jnp.where((weight == 0) & jnp.isinf(loss), 0, weight * loss)

    def jvp(args, tangents):
        (weight, loss), (weight_dot, loss_dot) = args, tangents
        terms = []
        if weight_dot is not None:
            terms.append(weight_dot * jnp.minimum(loss, limit))  # not 0 * inf
        if loss_dot is not None:
            terms.append(weight * loss_dot)
        return _product(weight, loss, limit), sum(terms[1:], terms[0])

    return with_jvp(value, jvp)(weight, loss)


def _class_nll(z, axis):
    """Return the negative log-likelihood of each class. A row that has a NaN, a +inf logit or only -inf logits is NaN, as in Keras."""

    def value(z):
        top = jnp.max(z, axis, keepdims=True)
        is_top = class_numbers(z, axis, jnp.int32) == per_row(jnp.argmax(z, axis).astype(jnp.int32), axis)
        # The sum skips one largest class, so a tiny sum keeps its digits. `z - top` is 0 there, or NaN.
        rest = jnp.sum(jnp.where(is_top, z - top, jnp.exp(z - top)), axis, keepdims=True)
        return (top - z) + jnp.log1p(rest)

    def jvp(args, tangents):
        (z,), (z_dot,) = args, tangents
        nll = _class_nll(z, axis)
        # The derivative is p - onehot. `others` has no difference from 1, so the gradient of a one-hot label keeps its digits.
        parts = jnp.exp(-nll) * z_dot
        others = jnp.sum(parts, axis, keepdims=True) - parts
        return nll, others + jnp.expm1(-nll) * z_dot

    return with_jvp(value, jvp)(z)
