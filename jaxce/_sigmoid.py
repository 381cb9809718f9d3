"""`sigmoid_binary_cross_entropy`: the loss of independent binary labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxce import _checks as checks
from jaxce._checks import scalars
from jaxce._core.binary import sigmoid_losses
from jaxce._core.sigmoid import Arguments
from jaxce._jax.rules import keep_statistics
from jaxce._loss_sum import LossSum
from jaxce._types import Array, ArrayLike


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
      mask: `[...]`, boolean. True for the entries that count. A masked entry has loss 0 and gradient 0, whatever its logit and label hold.
      label_smoothing: Scalar in [0, 1]: :math:`s`, how far labels move towards 1/2.
      pos_weight: :math:`w`, a scalar, or an array that broadcasts to the last axes of `logits`; 1 by default. A value above 1 favours recall.

    Returns:
      `[...]`: the loss of each logit, float32 for logits of 32 bits or fewer. Each gradient has the dtype of its argument.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape or is out of range.

    Numerics:
      The loss is a sum of non-negative terms, so a tiny loss keeps its relative precision. The gradient for a label of 0 or 1 is one sigmoid,
      never a difference. At an infinite logit the loss is its limit: 0 where the logit agrees with the label, +inf where it does not.

    Example:
      >>> print(sigmoid_binary_cross_entropy(jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0])).round(4))
      [0.1269 0.6931]

    References:
      `tf.nn.sigmoid_cross_entropy_with_logits`; `pos_weight` as in `torch.nn.BCEWithLogitsLoss`.
      Guide: docs/pages/guides/from_pytorch.md
    """
    return _sigmoid_loss(logits, labels, mask, scalars.label_smoothing(label_smoothing), pos_weight)


def sigmoid_binary_cross_entropy_sum(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    pos_weight: ArrayLike | None = None,
) -> LossSum:
    r"""The weighted sum of the sigmoid cross-entropy over all entries that count, and the sum of the weights. The mask is given once.

    .. math:: \mathrm{total} = \sum_i w_i \ell_i, \qquad \mathrm{weight} = \sum_i w_i \quad \text{over the entries that count}

    Args:
      logits: `[...]`, floating. This and all other arguments are as for `sigmoid_binary_cross_entropy`.
      labels: `[...]`, real, from 0 to 1.
      mask: `[...]`, boolean. True for the entries that count.
      weights: `[...]`, real, of any sign: the weight of each entry, by which its loss is multiplied. Ones by default.
      label_smoothing: Scalar in [0, 1].
      pos_weight: A scalar, or an array that broadcasts to the last axes of `logits`; 1 by default.

    Returns:
      A `LossSum` of two scalars. `.mean()` is the weighted mean over the entries that count. Adding several gives the sum over all their entries.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape or is out of range.

    Numerics:
      As for `sigmoid_binary_cross_entropy`.

    Example:
      >>> logits, labels = jnp.array([2.0, 0.0, 9.0]), jnp.array([1.0, 0.0, 0.0])
      >>> print(sigmoid_binary_cross_entropy_sum(logits, labels, mask=jnp.array([True, True, False])).mean().round(4))
      0.41

    References:
      As for `sigmoid_binary_cross_entropy`.
      Guide: docs/pages/guides/accumulation.md
    """
    options = {"label_smoothing": label_smoothing, "pos_weight": pos_weight}
    losses = sigmoid_binary_cross_entropy(logits, labels, mask=mask, **options)
    return LossSum.of(losses, weights, mask)


@jax.jit
def _sigmoid_loss(logits, labels, mask, label_smoothing, pos_weight):
    logits = checks.floating("logits", logits)
    labels = checks.binary_labels(labels, logits)
    mask = checks.mask(mask, logits.shape, logits)
    pos_weight = checks.pos_weight(pos_weight, logits)

    def losses(arguments):
        loss = sigmoid_losses(arguments)
        return loss if mask is None else jnp.where(mask, loss, 0)

    return keep_statistics(losses)(Arguments(logits, labels, mask, label_smoothing, pos_weight))
