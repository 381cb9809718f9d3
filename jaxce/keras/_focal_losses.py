"""The focal losses of `jaxce.keras.losses`: functions and objects. `_focal` has their formulas."""

from __future__ import annotations

from typing import Any

from jaxce._checks import scalars
from jaxce._types import Array, ArrayLike, NestedArrayLike, Reduction
from jaxce.keras import _arguments as arguments
from jaxce.keras import _focal as focal
from jaxce.keras import _options as options_
from jaxce.keras._loss import Loss


def binary_focal_crossentropy(
    y_true: NestedArrayLike,
    y_pred: NestedArrayLike,
    apply_class_balancing: bool = False,
    alpha: ArrayLike = 0.25,
    gamma: ArrayLike = 2.0,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
) -> Array:
    r"""Binary focal cross-entropy, averaged over an axis, as `keras.losses.binary_focal_crossentropy`.

    .. math::
      \ell = -\operatorname{mean}\left(w\, (1 - p_t)^\gamma \left(y' \log p + (1 - y') \log (1 - p)\right)\right), \qquad
      p_t = y' p + (1 - y') (1 - p), \quad y' = (1 - s)\, y + s / 2

    Args:
      y_true: `[...]`, real: :math:`y`, from 0 to 1.
      y_pred: `[...]`, floating: :math:`p`, clipped to `[1e-7, 1 - 1e-7]` in the logarithms; or logits.
      apply_class_balancing: Whether :math:`w = \alpha y' + (1 - \alpha) (1 - y')`. Otherwise :math:`w = 1`, and `alpha` has no effect.
      alpha: Scalar in [0, 1]: :math:`\alpha`, the weight of label 1.
      gamma: Scalar, not negative: :math:`\gamma`. A larger value gives less weight to entries that are predicted well; 0 is the cross-entropy.
      from_logits: Whether `y_pred` is logits.
      label_smoothing: Scalar in [0, 1]: :math:`s`, how far labels move towards 1/2.
      axis: The axis to average over.

    Returns:
      An array with the shape of `y_pred` without `axis`, in the dtype of `y_pred`.

    Raises:
      TypeError: `y_pred` is not floating, or an option has the wrong type.
      ValueError: `axis` is not an axis of `y_pred`, the shapes differ, or an option is out of range.

    Numerics:
      From logits nothing is clipped: a large wrong logit has a large loss and a gradient. Keras clips the probability of a logit at 1e-7.
      From probabilities, a `gamma` between 0 and 1 gives an infinite gradient where :math:`p_t = 1`, as in Keras.
      float16 and bfloat16 are computed in float32, and the result is rounded.

    Example:
      >>> print(binary_focal_crossentropy([[0, 1], [0, 0]], [[0.6, 0.4], [0.4, 0.6]]).round(4))
      [0.3299 0.2058]

    References:
      Lin et al., Focal Loss for Dense Object Detection, 2017. https://keras.io/api/losses/probabilistic_losses/
    """
    is_balanced = arguments.static_bool("apply_class_balancing", apply_class_balancing)
    alpha = arguments.number("alpha", alpha, lambda number: 0 <= number <= 1, "from 0 to 1")
    return focal.binary(
        arguments.array("y_true", y_true),
        arguments.array("y_pred", y_pred),
        alpha if is_balanced else None,
        arguments.number("gamma", gamma, lambda number: number >= 0, "finite and not negative"),
        scalars.label_smoothing(label_smoothing),
        from_logits=arguments.static_bool("from_logits", from_logits),
        axis=scalars.static_int("axis", axis),
    )


def categorical_focal_crossentropy(
    y_true: NestedArrayLike,
    y_pred: NestedArrayLike,
    alpha: NestedArrayLike = 0.25,
    gamma: ArrayLike = 2.0,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
) -> Array:
    r"""Categorical focal cross-entropy, as `keras.losses.categorical_focal_crossentropy`.

    .. math:: \ell = -\sum_k \alpha_k\, (1 - p_k)^\gamma\, y'_k \log p_k, \qquad y' = (1 - s)\, y + s / K

    Args:
      y_true: `[..., num_classes]`, real: :math:`y`, the probability of each class.
      y_pred: `[..., num_classes]`, floating: :math:`p`, divided by its sum and clipped to `[1e-7, 1 - 1e-7]`; or logits.
      alpha: A scalar, or one number per class, not negative: :math:`\alpha`, the weight of each class.
      gamma: Scalar, not negative: :math:`\gamma`. A larger value gives less weight to examples that are predicted well; 0 is the cross-entropy.
      from_logits: Whether `y_pred` is logits.
      label_smoothing: Scalar in [0, 1]: :math:`s`, the share of the label spread evenly over the :math:`K` classes.
      axis: The class axis of `y_true` and `y_pred`.

    Returns:
      `[...]` in the dtype of `y_pred`.

    Raises:
      TypeError: `y_pred` is not floating, or an option has the wrong type.
      ValueError: `axis` is not an axis of `y_pred`, the shapes differ, `alpha` has another number of classes, or an option is out of range.

    Numerics:
      From logits nothing is clipped, and the loss and its gradient keep their relative precision near 0. Keras clips the softmax at 1e-7.
      A class with label 0 takes no part in the sum, also at a logit of `-inf`.
      From probabilities, the gradient of the clipping is 0 outside the bounds and 1/2 on a bound, as in Keras on JAX.
      float16 and bfloat16 are computed in float32, and the result is rounded.

    Example:
      >>> y_true, y_pred = [[0, 1, 0], [0, 0, 1]], [[0.05, 0.9, 0.05], [0.1, 0.8, 0.1]]
      >>> print(categorical_focal_crossentropy(y_true, y_pred).round(5))
      [2.6000e-04 4.6627e-01]
      >>> print(categorical_focal_crossentropy(y_true, y_pred, alpha=[0.2, 0.3, 0.5], gamma=0.0).round(4))
      [0.0316 1.1513]

    References:
      Lin et al., Focal Loss for Dense Object Detection, 2017. https://keras.io/api/losses/probabilistic_losses/
    """
    return focal.categorical(
        arguments.array("y_true", y_true),
        arguments.array("y_pred", y_pred),
        arguments.number_per_class("alpha", alpha),
        arguments.number("gamma", gamma, lambda number: number >= 0, "finite and not negative"),
        scalars.label_smoothing(label_smoothing),
        from_logits=arguments.static_bool("from_logits", from_logits),
        axis=scalars.static_int("axis", axis),
    )


class BinaryFocalCrossentropy(Loss):
    """`binary_focal_crossentropy`, reduced, as `keras.losses.BinaryFocalCrossentropy`.

    Call the object with `(y_true, y_pred, sample_weight=None)`.

    Args:
      apply_class_balancing: Whether label 1 has the weight `alpha` and label 0 the weight `1 - alpha`. Otherwise `alpha` has no effect.
      alpha: A number from 0 to 1, the weight of label 1.
      gamma: A number, not negative. A larger value gives less weight to entries that are predicted well; 0 is the cross-entropy.
      from_logits: Whether predictions are logits, not probabilities.
      label_smoothing: A number from 0 to 1: how far labels move towards 1/2.
      axis: The axis over which the losses of entries are averaged.
      reduction: `"sum_over_batch_size"` or `"mean"`: the mean of the weighted losses. `"sum"`: their sum. `"mean_with_sample_weight"`: their sum
        divided by the sum of the weights. `"none"` or None: one loss per example.
      name: The name of the object, which Keras shows in its logs.
      dtype: The dtype to which predictions are converted: a dtype, its name or a `keras.DTypePolicy`. None for `keras.config.floatx()`, or for
        float32 without Keras.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range, or `reduction` is not one of these.

    Example:
      >>> loss = BinaryFocalCrossentropy(apply_class_balancing=True)
      >>> print(f"{loss([[0, 1], [0, 0]], [[0.6, 0.4], [0.4, 0.6]]):.3f}")
      0.160
    """

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction | None = "sum_over_batch_size",
        name: str = "binary_focal_crossentropy",
        dtype: Any = None,
    ):
        options = {
            "apply_class_balancing": apply_class_balancing,
            "alpha": options_.share("alpha", alpha),
            "gamma": gamma,
            "from_logits": from_logits,
            "label_smoothing": label_smoothing,
            "axis": axis,
        }
        super().__init__(binary_focal_crossentropy, name, reduction, dtype, **options)


class CategoricalFocalCrossentropy(Loss):
    """`categorical_focal_crossentropy`, reduced, as `keras.losses.CategoricalFocalCrossentropy`.

    Call the object with `(y_true, y_pred, sample_weight=None)`.

    Args:
      alpha: A number, or a list of one number per class, not negative: the weight of each class.
      gamma: A number, not negative. A larger value gives less weight to examples that are predicted well; 0 is the cross-entropy.
      from_logits: Whether predictions are logits, not probabilities.
      label_smoothing: A number from 0 to 1, the share of the label spread evenly over the classes.
      axis: The class axis of labels and predictions.
      reduction: `"sum_over_batch_size"` or `"mean"`: the mean of the weighted losses. `"sum"`: their sum. `"mean_with_sample_weight"`: their sum
        divided by the sum of the weights. `"none"` or None: one loss per example.
      name: The name of the object, which Keras shows in its logs.
      dtype: The dtype to which predictions are converted: a dtype, its name or a `keras.DTypePolicy`. None for `keras.config.floatx()`, or for
        float32 without Keras.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range, or `reduction` is not one of these.

    Example:
      >>> loss = CategoricalFocalCrossentropy()
      >>> print(f"{loss([[0, 1, 0], [0, 0, 1]], [[0.05, 0.9, 0.05], [0.1, 0.8, 0.1]]):.4f}")
      0.2333
    """

    def __init__(
        self,
        alpha: NestedArrayLike = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction | None = "sum_over_batch_size",
        name: str = "categorical_focal_crossentropy",
        dtype: Any = None,
    ):
        options = {
            "alpha": alpha,
            "gamma": gamma,
            "from_logits": from_logits,
            "label_smoothing": label_smoothing,
            "axis": axis,
        }
        super().__init__(categorical_focal_crossentropy, name, reduction, dtype, **options)
