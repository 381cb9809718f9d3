"""`sigmoid_binary_cross_entropy`: the loss of independent yes-or-no labels, and its rule."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxce import _checks as checks
from jaxce._axes import varying_like
from jaxce._infinities import times_excess
from jaxce._reading import widened
from jaxce._rule import jvp_by_some, keep_statistics, read_anew, with_rule
from jaxce._types import Array, ArrayLike, working_dtype


def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    pos_weight: ArrayLike | None = None,
) -> Array:
    r"""Sigmoid cross-entropy of binary labels, one loss per logit.

    .. math::
      \ell = -w\, y' \log \sigma(x) - (1 - y') \log \sigma(-x), \qquad y' = (1 - s)\, y + s / 2

    Args:
      logits: `[...]`, floating: :math:`x`. The log-odds of the label being 1.
      labels: `[...]`, real: :math:`y`, from 0 to 1.
      mask: `[...]`, boolean: the entries that count. One left out has loss 0 and gradient 0, whatever its logit and label hold.
      label_smoothing: Scalar in [0, 1]: :math:`s`, how far labels move towards 1/2.
      pos_weight: :math:`w`, a scalar or an array that fits the last axes of `logits`, 1 by default. Above 1 it favours recall.

    Returns:
      `[...]`: the loss of each logit, float32 for logits of 32 bits or fewer. Its gradient has the dtype of what it is taken of.

    Raises:
      TypeError: a dtype or type that does not fit.
      ValueError: a shape or range that does not fit.

    Numerics:
      A sum of terms that are not negative, so a tiny loss keeps its digits; the gradient of a hard label is one sigmoid, never a difference.
      At infinite logits the limits: 0 where the label agrees, +inf where it does not.

    Example:
      >>> print(sigmoid_binary_cross_entropy(jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0])).round(4))
      [0.1269 0.6931]

    References:
      `tf.nn.sigmoid_cross_entropy_with_logits`; `pos_weight` as in `torch.nn.BCEWithLogitsLoss`.
    """
    return _sigmoid_loss(logits, labels, mask, checks.label_smoothing(label_smoothing), pos_weight)


@jax.jit
def _sigmoid_loss(logits, labels, mask, label_smoothing, pos_weight):
    logits = checks.floating("logits", logits)
    labels = checks.binary_labels(labels, logits)
    mask = checks.mask(mask, logits.shape, logits)
    pos_weight = checks.pos_weight(pos_weight, logits)

    def losses(*args):
        (loss,) = _two_sided(*args)
        return loss if mask is None else jnp.where(mask, loss, 0)

    return keep_statistics(losses)(logits, labels, mask, label_smoothing, pos_weight)


def _read(one, logits, labels, mask, label_smoothing, pos_weight):
    """The logits, and the weights of both sides: of `-log sigmoid(x)` and `-log sigmoid(-x)`."""
    dtype = working_dtype(logits)
    x, yes = widened(logits, dtype), labels.astype(dtype)
    if mask is not None:
        x, yes = jnp.where(mask, x, 0), jnp.where(mask, yes, 0)
    no = one - yes
    if label_smoothing is not None:
        s = label_smoothing.astype(dtype)
        yes, no = (1 - s) * yes + s / 2, (1 - s) * no + s / 2  # not 1 - yes, which would round a small s away
    if pos_weight is not None:
        yes = yes * pos_weight.astype(dtype)
    return x, yes, no


def _primal(*args):
    (one,) = _numbers(working_dtype(args[0]), 1)
    logits, labels, *others = args
    (labels,) = _on_cpu(lax.optimization_barrier, labels)  # made once, if they are made on the way
    x, yes, no = _read(one, logits, labels, *others)
    # Without a weight the two sides are 1 together.
    mass = None if others[-1] is None else yes + no
    return (lax.platform_dependent(x, yes, no, mass, cpu=_in_arithmetic, default=_by_selecting),)


def _by_selecting(x, yes, no, mass):
    size, log_norm = _size_and_log_norm(x)
    against = jnp.where(x > 0, no, yes)
    return (log_norm if mass is None else mass * log_norm) + jnp.where(against == 0, 0, against * size)


def _in_arithmetic(x, yes, no, mass):
    """`_by_selecting` for XLA for CPU, see `_numbers`; the bounds come first, see `_infinities`."""
    zero, one, largest, least = _numbers(x.dtype, 0, 1, jnp.finfo(x.dtype).max, jnp.finfo(x.dtype).min)
    size = jnp.abs(x)
    log_norm = jnp.log1p(jnp.exp(-size))
    bounded = jnp.minimum(largest, jnp.maximum(least, x))
    up = jnp.maximum(zero, bounded)
    part = no * up + yes * (up - bounded)
    return (log_norm if mass is None else mass * log_norm) + times_excess(part, size, one, largest)


def _numbers(dtype, *numbers):
    """Numbers that on a CPU are no constants to the compiler.

    XLA for CPU makes one loop of losses and of a sum of them, without writing them out, if they are arithmetic without a select and share
    nothing with other loops: of the maximum and minimum with constants it would make a selection, a clamp, and share constants and what is
    made of them.
    """
    return _on_cpu(lax.optimization_barrier, *(jnp.asarray(n, dtype) for n in numbers))


def _on_cpu(barrier, *args):
    return lax.platform_dependent(args, cpu=barrier, default=lambda args: args)


def _tangent(args, _, tangents):
    # Read anew on a CPU, the number 1 too, or XLA writes out what the loss and its derivatives have in common.
    # (In jax 0.10 what comes out of a barrier varies over all axes of `jax.shard_map` over which one of its operands does.)
    anew, tangents = varying_like(((jnp.ones((), working_dtype(args[0])), *args), tangents), args)
    one, *args = _on_cpu(lambda anew: read_anew(anew, ()), *anew)
    (x, yes, no), (x_dot, yes_dot, no_dot) = jvp_by_some(functools.partial(_read, one), args, tangents)
    size, log_norm = _size_and_log_norm(x)
    loss_dot = jnp.zeros_like(x)
    if tangents[0] is not None:
        # `no * sigmoid(x) - yes * sigmoid(-x)`, the smaller sigmoid being `small / (1 + small)`, which no derivative makes a difference from 1.
        small = jnp.exp(-size)
        against, along = jnp.where(x > 0, no, yes), jnp.where(x > 0, yes, no)
        slope = against - along * small
        loss_dot = jnp.where(x > 0, slope, -slope) * (1 / (1 + small)) * x_dot
    if any(t is not None for t in tangents[1:]):
        loss_dot = loss_dot + yes_dot * (log_norm + jnp.where(x > 0, 0, size))
        loss_dot = loss_dot + no_dot * (log_norm + jnp.where(x > 0, size, 0))
    return (loss_dot,)


def _size_and_log_norm(x):
    size = _size(x)
    return size, jnp.log1p(jnp.exp(-size))


@jax.custom_jvp
def _size(x):
    return jnp.abs(x)


@_size.defjvp
def _size_jvp(primals, tangents):
    # At 0 a derivative that goes with `x <= 0`.
    (x,), (x_dot,) = primals, tangents
    return _size(x), jnp.where(x > 0, x_dot, -x_dot)


_two_sided = with_rule(_primal, _tangent)
