"""`tf.keras.losses`: `y_true` first, one loss per example; and the loss objects, with Keras 3's constructors and reductions."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxce import _checks as checks
from jaxce._types import Array, ArrayLike, NestedArrayLike, Reduction
from jaxce.keras import _arguments as arguments
from jaxce.keras import _crossentropy as crossentropy
from jaxce.keras import _reduction as reductions

_NAMES = ("y_true", "y_pred")


def categorical_crossentropy(
    y_true: NestedArrayLike,
    y_pred: NestedArrayLike,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
) -> Array:
    r"""Categorical cross-entropy, as `tf.keras.losses.categorical_crossentropy`.

    .. math:: \ell = -\sum_k y'_k \log p_k, \qquad y' = (1 - s)\, y + s / K

    Args:
      y_true: `[..., num_classes]`, real: :math:`y`, the probability of each class.
      y_pred: `[..., num_classes]`, floating: :math:`p`, divided by its sum and clipped to `[1e-7, 1 - 1e-7]`; or logits.
      from_logits: Whether `y_pred` is logits.
      label_smoothing: Scalar in [0, 1]: :math:`s`, the share of the label spread evenly over the :math:`K` classes.
      axis: The class axis of both.

    Returns:
      `[...]` in the dtype of `y_pred`.

    Raises:
      TypeError: `y_pred` is not floating.
      ValueError: `axis` is not an axis of `y_pred`, the shapes differ, or `label_smoothing` is out of range.

    Example:
      >>> print(categorical_crossentropy([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]]).round(4))
      [0.0513 2.3026]

    References:
      https://www.tensorflow.org/versions/r1.15/api_docs/python/tf/keras/losses/categorical_crossentropy
    """
    return crossentropy.categorical(
        arguments.array("y_true", y_true),
        arguments.array("y_pred", y_pred),
        checks.label_smoothing(label_smoothing),
        from_logits=arguments.static_bool("from_logits", from_logits),
        axis=checks.static_int("axis", axis),
        names=_NAMES,
    )


def sparse_categorical_crossentropy(
    y_true: NestedArrayLike,
    y_pred: NestedArrayLike,
    from_logits: bool = False,
    axis: int = -1,
    ignore_class: int | None = None,
) -> Array:
    r"""Categorical cross-entropy against class indices, as `tf.keras.losses.sparse_categorical_crossentropy`.

    .. math:: \ell = \log \sum_k p_k - \log p_y

    Args:
      y_true: `[...]`, or with a class axis of size 1; any real dtype: :math:`y`, the index of the true class.
      y_pred: `[..., num_classes]`, floating: :math:`p`, clipped to `[1e-7, 1 - 1e-7]`; or logits.
      from_logits: Whether `y_pred` is logits.
      axis: The class axis of `y_pred`.
      ignore_class: A label whose examples have loss 0 and gradient 0.

    Returns:
      `[...]` in the dtype of `y_pred`.

    Raises:
      TypeError: `y_pred` is not floating.
      ValueError: `axis` is not an axis of `y_pred`, or the shape of `y_true` is not that of `y_pred` without it.

    Numerics:
      A label outside `[0, num_classes)` gives NaN in its loss and its row of the gradient, as XLA-compiled TensorFlow does.

    Example:
      >>> print(sparse_categorical_crossentropy([1, 2], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]]).round(4))
      [0.0513 2.3026]

    References:
      https://www.tensorflow.org/versions/r2.2/api_docs/python/tf/keras/losses/sparse_categorical_crossentropy
    """
    return crossentropy.sparse_categorical(
        arguments.array("y_true", y_true),
        arguments.array("y_pred", y_pred),
        from_logits=arguments.static_bool("from_logits", from_logits),
        axis=checks.static_int("axis", axis),
        ignore_class=None if ignore_class is None else checks.static_int("ignore_class", ignore_class),
        names=_NAMES,
    )


def binary_crossentropy(
    y_true: NestedArrayLike,
    y_pred: NestedArrayLike,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
) -> Array:
    r"""Binary cross-entropy, averaged over an axis, as `tf.keras.losses.binary_crossentropy`.

    .. math::
      \ell = -\operatorname{mean}\left(y' \log (p + \epsilon) + (1 - y') \log (1 - p + \epsilon)\right), \qquad
      y' = (1 - s)\, y + s / 2, \quad \epsilon = 10^{-7}

    Args:
      y_true: `[...]`, real: :math:`y`, from 0 to 1.
      y_pred: `[...]`, floating: :math:`p`, clipped to `[1e-7, 1 - 1e-7]`; or logits.
      from_logits: Whether `y_pred` is logits.
      label_smoothing: Scalar in [0, 1]: :math:`s`, how far labels move towards 1/2.
      axis: The axis to average over.

    Returns:
      The shape of `y_pred` without `axis`, in its dtype.

    Raises:
      TypeError: `y_pred` is not floating.
      ValueError: `axis` is not an axis of `y_pred`, the shapes differ, or `label_smoothing` is out of range.

    Example:
      >>> print(binary_crossentropy([[0, 1], [0, 0]], [[0.6, 0.4], [0.4, 0.6]]).round(4))
      [0.9163 0.7136]

    References:
      https://www.tensorflow.org/versions/r2.2/api_docs/python/tf/keras/losses/binary_crossentropy
    """
    y_pred, axis = arguments.predictions(
        "y_pred", arguments.array("y_pred", y_pred), checks.static_int("axis", axis), may_be_empty=True
    )
    losses = crossentropy.binary(
        arguments.array("y_true", y_true),
        y_pred,
        checks.label_smoothing(label_smoothing),
        from_logits=arguments.static_bool("from_logits", from_logits),
        names=_NAMES,
    )
    return jnp.mean(losses, axis).astype(y_pred.dtype)


class _Loss:
    """What the loss objects share: they call their function, weigh, and reduce.

    Where Keras is in use, an object is a `keras.losses.Loss` as well: otherwise `model.compile` would take it for a plain function of two
    arguments, and weigh its mean instead of its losses. Nothing imports Keras for that.
    """

    def __new__(cls, *_args: Any, **_kwargs: Any):
        keras_losses = getattr(sys.modules.get("keras"), "losses", None)
        keras_loss = getattr(keras_losses, "Loss", None)
        return object.__new__(cls if keras_loss is None or issubclass(cls, keras_loss) else _joined(cls, keras_loss))

    def __init__(
        self, function: Callable[..., Array], name: str, reduction: Reduction | None, dtype: Any, **options: Any
    ):
        self.name = name
        self.reduction = reductions.checked(reduction)
        self._dtype = "float32" if dtype is None else jnp.dtype(getattr(dtype, "compute_dtype", dtype)).name
        self._function = function
        self._options = options

    @property
    def dtype(self) -> str:
        """What predictions are converted to."""
        return self._dtype

    def __call__(
        self, y_true: NestedArrayLike, y_pred: NestedArrayLike, sample_weight: NestedArrayLike | None = None
    ) -> Array:
        """The losses, weighted and reduced.

        Args:
          y_true: As the function of the same name takes it; or with a last axis of size 1 more or less than `y_pred` calls for.
          y_pred: As the function takes it; converted to `dtype`.
          sample_weight: A scalar, or the shape of the losses, or of their first axes: each weighs all losses that share its indices.

        Returns:
          A scalar, or the losses if `reduction` is `none` or None.
        """
        y_true = arguments.array("y_true", y_true)
        y_pred = arguments.array("y_pred", y_pred).astype(self.dtype)
        if sample_weight is not None:
            sample_weight = arguments.array("sample_weight", sample_weight)
        losses, mask = self.call(y_true, y_pred), self._mask(y_true, y_pred)
        return reductions.reduce(losses, sample_weight, mask, reduction=self.reduction)

    def call(self, y_true: Array, y_pred: Array) -> Array:
        """One loss per example."""
        return self._function(*reductions.same_rank(y_true, y_pred), **self._options)

    def _mask(self, y_true: Array, y_pred: Array) -> Array | None:
        """The examples that count, where not all do."""
        del y_true, y_pred
        return None

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as Keras stores them."""
        return {"name": self.name, "reduction": self.reduction, **self._options}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "_Loss":
        """The loss that `get_config` describes."""
        return cls(**config)


@functools.cache
def _joined(loss: type, keras_loss: type) -> type:
    """`loss` as a `keras.losses.Loss`, which then weighs and reduces itself, with the masks that Keras hands from layer to layer."""

    def call(self, y_true, y_pred):
        losses, mask = loss.call(self, y_true, y_pred), self._mask(y_true, y_pred)
        if mask is not None:
            sys.modules["keras"].src.backend.set_keras_mask(losses, mask)
        return losses

    names = {"__call__": keras_loss.__call__, "call": call, "__module__": loss.__module__, "__doc__": loss.__doc__}
    return type(loss.__name__, (loss, keras_loss), names)


class CategoricalCrossentropy(_Loss):
    """`categorical_crossentropy`, reduced; as `keras.losses.CategoricalCrossentropy`.

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


class SparseCategoricalCrossentropy(_Loss):
    """`sparse_categorical_crossentropy`, reduced; as `keras.losses.SparseCategoricalCrossentropy`.

    With `ignore_class`, a mean is over the examples that are not ignored.

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


class BinaryCrossentropy(_Loss):
    """`binary_crossentropy`, reduced; as `keras.losses.BinaryCrossentropy`.

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
