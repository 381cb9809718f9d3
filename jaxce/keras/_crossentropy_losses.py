"""The cross-entropies of `jaxce.keras.losses`: functions, `y_true` first, one loss per example. `_crossentropy` has their formulas."""

from __future__ import annotations

import jax.numpy as jnp

from jaxce._checks import scalars
from jaxce._types import Array, ArrayLike, NestedArrayLike
from jaxce.keras import _arguments as arguments
from jaxce.keras import _crossentropy as crossentropy
from jaxce.keras import _masks as masks

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
      axis: The class axis of `y_true` and `y_pred`.

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
        scalars.label_smoothing(label_smoothing),
        from_logits=arguments.static_bool("from_logits", from_logits),
        axis=scalars.static_int("axis", axis),
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
      ignore_class: The label to ignore. Examples with this label have loss 0 and gradient 0.

    Returns:
      `[...]` in the dtype of `y_pred`.

    Raises:
      TypeError: `y_pred` is not floating.
      ValueError: `axis` is not an axis of `y_pred`, or `y_true` does not have the shape of `y_pred` without `axis`.

    Numerics:
      A label outside `[0, num_classes)` gives NaN in its loss and in its row of the gradient, as in XLA-compiled TensorFlow.

    Example:
      >>> print(sparse_categorical_crossentropy([1, 2], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]]).round(4))
      [0.0513 2.3026]

    References:
      https://www.tensorflow.org/versions/r2.2/api_docs/python/tf/keras/losses/sparse_categorical_crossentropy
    """
    losses, mask = crossentropy.sparse_categorical(
        arguments.array("y_true", y_true),
        arguments.array("y_pred", y_pred),
        from_logits=arguments.static_bool("from_logits", from_logits),
        axis=scalars.static_int("axis", axis),
        ignore_class=None if ignore_class is None else scalars.static_int("ignore_class", ignore_class),
        names=_NAMES,
    )
    return masks.attach_mask(losses, mask)


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
      An array with the shape of `y_pred` without `axis`, in the dtype of `y_pred`.

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
        "y_pred", arguments.array("y_pred", y_pred), scalars.static_int("axis", axis), may_be_empty=True
    )
    losses = crossentropy.binary(
        arguments.array("y_true", y_true),
        y_pred,
        scalars.label_smoothing(label_smoothing),
        from_logits=arguments.static_bool("from_logits", from_logits),
        names=_NAMES,
    )
    return jnp.mean(losses, axis).astype(y_pred.dtype)
