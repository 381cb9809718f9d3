"""The losses of `jaxce.keras.losses` that take probabilities only: the Kullback-Leibler divergence and the generalized cross-entropy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxce._jax.axes import class_numbers, per_row, wide_indices
from jaxce._jax.rules import keep_statistics
from jaxce._types import Array, ArrayLike, NestedArrayLike, Reduction, working_dtype
from jaxce.keras import _arguments as arguments
from jaxce.keras._loss import Loss


def kl_divergence(y_true: NestedArrayLike, y_pred: NestedArrayLike) -> Array:
    r"""Kullback-Leibler divergence of clipped probabilities, as `keras.losses.kl_divergence`.

    .. math:: \ell = \sum_k y_k \log \frac{y_k}{p_k}

    Args:
      y_true: `[..., num_classes]`, real: :math:`y`, the probability of each class, clipped to `[1e-7, 1]`.
      y_pred: `[..., num_classes]`, floating: :math:`p`, clipped to `[1e-7, 1]`.

    Returns:
      `[...]` in the dtype of `y_pred`.

    Raises:
      TypeError: `y_pred` is not floating.
      ValueError: `y_pred` is a scalar, or the shapes differ.

    Numerics:
      Neither argument is divided by its sum. The gradient of the clipping is 0 outside the bounds and 1/2 on a bound, as in Keras on JAX.
      float16 and bfloat16 are computed in float32, and the result is rounded.

    Example:
      >>> print(kl_divergence([[0.0, 1.0], [0.75, 0.25]], [[0.5, 0.5], [0.5, 0.5]]).round(4))
      [0.6931 0.1308]

    References:
      https://keras.io/api/losses/probabilistic_losses/#kl_divergence-function
    """
    return _kl_divergence(arguments.array("y_true", y_true), arguments.array("y_pred", y_pred))


def categorical_generalized_cross_entropy(y_true: NestedArrayLike, y_pred: NestedArrayLike, q: ArrayLike) -> Array:
    r"""Generalized cross-entropy against class indices, for noisy labels, as `keras.losses.categorical_generalized_cross_entropy`.

    .. math:: \ell = \frac{1 - p_y^q}{q}

    Args:
      y_true: `[...]`, or with a class axis of size 1; any real dtype: :math:`y`, the index of the true class.
      y_pred: `[..., num_classes]`, floating: :math:`p`, the probability of each class. Neither clipped nor divided by its sum.
      q: Scalar in (0, 1]: near 0 the loss is the cross-entropy; at 1 it is the mean absolute error, which ignores outliers best.

    Returns:
      `[...]` in the dtype of `y_pred`.

    Raises:
      TypeError: `y_pred` is not floating.
      ValueError: `y_true` does not have the shape of `y_pred` without its last axis, or `q` is out of range.

    Numerics:
      A label outside `[0, num_classes)` gives NaN in its loss and in its row of the gradient. Keras gives `1 / q` and the gradient 0.
      So does a row with a NaN, an infinity, or a negative probability of its label.
      The gradient at :math:`p_y = 0` is `-inf` for the true class and 0 for the other classes. In Keras the other classes get NaN.

    Example:
      >>> print(categorical_generalized_cross_entropy([0, 1], [[0.8, 0.2], [0.4, 0.6]], 0.5).round(4))
      [0.2111 0.4508]

    References:
      Zhang and Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels, 2018.
    """
    return _generalized(
        arguments.array("y_true", y_true),
        arguments.array("y_pred", y_pred),
        arguments.number("q", q, lambda number: 0 < number <= 1, "above 0 and at most 1"),
    )


@jax.jit
def _kl_divergence(target, output):
    output, axis = arguments.predictions("y_pred", output, -1, may_be_empty=True)
    target = arguments.same_shape("y_true", target, output, "y_pred")

    def losses(target, output):
        dtype = working_dtype(output)
        y, p = (jnp.clip(x.astype(dtype), arguments.EPSILON, 1.0) for x in (target, output))
        return jnp.sum(y * jnp.log(y / p), axis)

    return keep_statistics(losses)(target, output).astype(output.dtype)


@jax.jit
def _generalized(target, output, q):
    output, axis = arguments.predictions("y_pred", output, -1)
    way = "For one-hot labels take their argmax over the last axis."
    target = wide_indices(arguments.class_indices("y_true", target, output, "y_pred", axis, one_hot=way))

    def losses(target, output, q):
        dtype = working_dtype(output)
        is_true = class_numbers(output, axis, target.dtype) == per_row(target, axis)
        p = output.astype(dtype)
        p_true = jnp.sum(jnp.where(is_true, p, 0), axis, keepdims=True)
        is_finite = jnp.all(jnp.isfinite(p), axis, keepdims=True)
        is_defined = jnp.any(is_true, axis, keepdims=True) & (p_true >= 0) & is_finite
        # The product makes the gradient of an undefined row NaN, the sum its loss.
        p = p * jnp.where(is_defined, 1, jnp.nan).astype(dtype)
        others = jnp.where(is_defined, 0, jnp.nan).astype(dtype)
        return _generalized_loss(jnp.sum(jnp.where(is_true, p, others), axis), q.astype(dtype))

    return keep_statistics(losses)(target, output, q).astype(output.dtype)


def _generalized_loss(p, q):
    """Return `(1 - p^q) / q`. For `p` near 1 the difference would lose digits, and at 0 the logarithm has no derivative."""
    is_zero = p == 0
    logarithm = jnp.log(jnp.where(is_zero, 1, p))
    return jnp.where(is_zero, 1 - jnp.power(p, q), -jnp.expm1(q * logarithm)) / q


class KLDivergence(Loss):
    """`kl_divergence`, reduced, as `keras.losses.KLDivergence`.

    Call the object with `(y_true, y_pred, sample_weight=None)`.

    Args:
      reduction: `"sum_over_batch_size"` or `"mean"`: the mean of the weighted losses. `"sum"`: their sum. `"mean_with_sample_weight"`: their sum
        divided by the sum of the weights. `"none"` or None: one loss per example.
      name: The name of the object, which Keras shows in its logs.
      dtype: The dtype to which predictions are converted: a dtype, its name or a `keras.DTypePolicy`. None for `keras.config.floatx()`, or for
        float32 without Keras.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: `reduction` is not one of these.

    Example:
      >>> loss = KLDivergence()
      >>> print(f"{loss([[0, 1], [0.5, 0.5]], [[0.6, 0.4], [0.25, 0.75]]):.3f}")
      0.530
    """

    def __init__(
        self,
        reduction: Reduction | None = "sum_over_batch_size",
        name: str = "kl_divergence",
        dtype: Any = None,
    ):
        super().__init__(kl_divergence, name, reduction, dtype)


class CategoricalGeneralizedCrossEntropy(Loss):
    """`categorical_generalized_cross_entropy`, reduced, as `keras.losses.CategoricalGeneralizedCrossEntropy`.

    Call the object with `(y_true, y_pred, sample_weight=None)`.

    Args:
      q: A number above 0 and below 1. Near 0 the loss is the cross-entropy, near 1 the mean absolute error, which ignores wrong labels best.
      reduction: `"sum_over_batch_size"` or `"mean"`: the mean of the weighted losses. `"sum"`: their sum. `"mean_with_sample_weight"`: their sum
        divided by the sum of the weights. `"none"` or None: one loss per example.
      name: The name of the object, which Keras shows in its logs.
      dtype: The dtype to which predictions are converted: a dtype, its name or a `keras.DTypePolicy`. None for `keras.config.floatx()`, or for
        float32 without Keras.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range, or `reduction` is not one of these.

    Example:
      >>> loss = CategoricalGeneralizedCrossEntropy(q=0.5)
      >>> print(f"{loss([0, 1], [[0.81, 0.19], [0.36, 0.64]]):.3f}")
      0.300
    """

    def __init__(
        self,
        q: float = 0.5,
        reduction: Reduction | None = "sum_over_batch_size",
        name: str = "categorical_generalized_cross_entropy",
        dtype: Any = None,
    ):
        super().__init__(categorical_generalized_cross_entropy, name, reduction, dtype, q=q)
