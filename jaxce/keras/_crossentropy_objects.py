"""The cross-entropies of `jaxce.keras.losses` as objects with Keras 3's constructors. `_crossentropy_losses` has the functions that they call."""

from __future__ import annotations

from typing import Any

from jaxce._types import Array, Reduction
from jaxce.keras import _arguments as arguments
from jaxce.keras import _crossentropy as crossentropy
from jaxce.keras import _reduction as reductions
from jaxce.keras._crossentropy_losses import (
    binary_crossentropy,
    categorical_crossentropy,
    sparse_categorical_crossentropy,
)
from jaxce.keras._loss import Loss


class CategoricalCrossentropy(Loss):
    """`categorical_crossentropy`, reduced, as `keras.losses.CategoricalCrossentropy`.

    Call the object with `(y_true, y_pred, sample_weight=None)`.

    Args:
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
      >>> loss = CategoricalCrossentropy()
      >>> print(loss([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]]).round(3))
      1.177
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction | None = "sum_over_batch_size",
        name: str = "categorical_crossentropy",
        dtype: Any = None,
    ):
        options = {"from_logits": from_logits, "label_smoothing": label_smoothing, "axis": axis}
        super().__init__(categorical_crossentropy, name, reduction, dtype, **options)


class SparseCategoricalCrossentropy(Loss):
    """`sparse_categorical_crossentropy`, reduced, as `keras.losses.SparseCategoricalCrossentropy`.

    Call the object with `(y_true, y_pred, sample_weight=None)`.

    Args:
      from_logits: Whether predictions are logits, not probabilities.
      ignore_class: The label to ignore, an integer. Examples with this label have loss 0 and gradient 0, and a mean is over the other examples.
      reduction: `"sum_over_batch_size"` or `"mean"`: the mean of the weighted losses. `"sum"`: their sum. `"mean_with_sample_weight"`: their sum
        divided by the sum of the weights. `"none"` or None: one loss per example.
      axis: The class axis of predictions.
      name: The name of the object, which Keras shows in its logs.
      dtype: The dtype to which predictions are converted: a dtype, its name or a `keras.DTypePolicy`. None for `keras.config.floatx()`, or for
        float32 without Keras.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range, or `reduction` is not one of these.

    Example:
      >>> loss = SparseCategoricalCrossentropy(ignore_class=-1)
      >>> print(loss([1, -1, 2], [[0.05, 0.95, 0.0], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1]]).round(3))
      1.177
    """

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: Reduction | None = "sum_over_batch_size",
        axis: int = -1,
        name: str = "sparse_categorical_crossentropy",
        dtype: Any = None,
    ):
        options = {"from_logits": from_logits, "ignore_class": ignore_class, "axis": axis}
        super().__init__(sparse_categorical_crossentropy, name, reduction, dtype, **options)

    def _mask(self, y_true: Array, y_pred: Array) -> Array | None:
        ignore_class = self._options["ignore_class"]
        if ignore_class is None:
            return None
        y_true, y_pred = reductions.same_rank(y_true, y_pred)
        y_pred, axis = arguments.predictions("y_pred", y_pred, self._options["axis"])
        return crossentropy.is_counted(arguments.class_indices("y_true", y_true, y_pred, "y_pred", axis), ignore_class)


class BinaryCrossentropy(Loss):
    """`binary_crossentropy`, reduced, as `keras.losses.BinaryCrossentropy`.

    Call the object with `(y_true, y_pred, sample_weight=None)`.

    Args:
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
      >>> loss = BinaryCrossentropy()
      >>> print(f"{loss([[0, 1], [0, 0]], [[0.6, 0.4], [0.4, 0.6]]):.3f}")
      0.815
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction | None = "sum_over_batch_size",
        name: str = "binary_crossentropy",
        dtype: Any = None,
    ):
        options = {"from_logits": from_logits, "label_smoothing": label_smoothing, "axis": axis}
        super().__init__(binary_crossentropy, name, reduction, dtype, **options)
