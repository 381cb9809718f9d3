"""The cross-entropies of `tf.keras.backend`: `target` first, no reduction, no label smoothing.

Guide: docs/pages/guides/from_keras.md
"""

from __future__ import annotations

from jaxce._checks import scalars
from jaxce._types import Array, NestedArrayLike
from jaxce.keras import _arguments as arguments
from jaxce.keras import _crossentropy as crossentropy
from jaxce.keras import _masks as masks

__all__ = ["binary_crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy"]

_NAMES = ("target", "output")


def categorical_crossentropy(
    target: NestedArrayLike, output: NestedArrayLike, from_logits: bool = False, axis: int = -1
) -> Array:
    r"""Categorical cross-entropy, as `tf.keras.backend.categorical_crossentropy`.

    .. math:: \ell = -\sum_k t_k \log p_k

    Args:
      target: `[..., num_classes]`, real: :math:`t`, the probability of each class.
      output: `[..., num_classes]`, floating: :math:`p`, divided by its sum and clipped to `[1e-7, 1 - 1e-7]`; or logits.
      from_logits: Whether `output` is logits.
      axis: The class axis of `target` and `output`.

    Returns:
      `[...]` in the dtype of `output`.

    Raises:
      TypeError: `output` is not floating.
      ValueError: `axis` is not an axis of `output`, or the shapes differ.

    Numerics:
      From logits, as for `jaxce.softmax_cross_entropy`. The gradient is correct even if labels do not sum to 1; TensorFlow's gradient is then
      wrong.

    Example:
      >>> target = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
      >>> output = jnp.array([[0.9, 0.05, 0.05], [0.05, 0.89, 0.06]])
      >>> print(categorical_crossentropy(target, output).round(4))
      [0.1054 0.1165]

    References:
      https://www.tensorflow.org/versions/r1.15/api_docs/python/tf/keras/backend/categorical_crossentropy
    """
    return crossentropy.categorical(
        arguments.array("target", target),
        arguments.array("output", output),
        None,
        from_logits=arguments.static_bool("from_logits", from_logits),
        axis=scalars.static_int("axis", axis),
        names=_NAMES,
    )


def sparse_categorical_crossentropy(
    target: NestedArrayLike,
    output: NestedArrayLike,
    from_logits: bool = False,
    axis: int = -1,
    ignore_class: int | None = None,
) -> Array:
    r"""Categorical cross-entropy against class indices, as `tf.keras.backend.sparse_categorical_crossentropy`.

    .. math:: \ell = \log \sum_k p_k - \log p_t

    Args:
      target: `[...]`, or with a class axis of size 1; any real dtype: :math:`t`, the index of the true class.
      output: `[..., num_classes]`, floating: :math:`p`, clipped to `[1e-7, 1 - 1e-7]`; or logits.
      from_logits: Whether `output` is logits.
      axis: The class axis of `output`.
      ignore_class: The label to ignore. Examples with this label have loss 0 and gradient 0. TensorFlow has this argument since 2.10.

    Returns:
      `[...]` in the dtype of `output`.

    Raises:
      TypeError: `output` is not floating.
      ValueError: `axis` is not an axis of `output`, or `target` does not have the shape of `output` without `axis`.

    Numerics:
      A label outside `[0, num_classes)` gives NaN in its loss and in its row of the gradient, as in XLA-compiled TensorFlow.

    Example:
      >>> output = jnp.array([[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]])
      >>> print(sparse_categorical_crossentropy(jnp.array([1, 2]), output).round(4))
      [0.0513 2.3026]

    References:
      https://www.tensorflow.org/versions/r2.2/api_docs/python/tf/keras/backend/sparse_categorical_crossentropy
    """
    losses, mask = crossentropy.sparse_categorical(
        arguments.array("target", target),
        arguments.array("output", output),
        from_logits=arguments.static_bool("from_logits", from_logits),
        axis=scalars.static_int("axis", axis),
        ignore_class=None if ignore_class is None else scalars.static_int("ignore_class", ignore_class),
        names=_NAMES,
    )
    return masks.attach_mask(losses, mask)


def binary_crossentropy(target: NestedArrayLike, output: NestedArrayLike, from_logits: bool = False) -> Array:
    r"""Binary cross-entropy, one loss per entry, as `tf.keras.backend.binary_crossentropy`.

    .. math:: \ell = -t \log (p + \epsilon) - (1 - t) \log (1 - p + \epsilon), \qquad \epsilon = 10^{-7}

    Args:
      target: `[...]`, real: :math:`t`, from 0 to 1.
      output: `[...]`, floating: :math:`p`, clipped to `[1e-7, 1 - 1e-7]`; or logits.
      from_logits: Whether `output` is logits.

    Returns:
      `[...]` in the dtype of `output`.

    Raises:
      TypeError: `output` is not floating.
      ValueError: The shapes differ.

    Example:
      >>> print(binary_crossentropy(jnp.array([0.0, 1.0]), jnp.array([0.6, 0.4])).round(4))
      [0.9163 0.9163]

    References:
      https://www.tensorflow.org/versions/r2.2/api_docs/python/tf/keras/backend/binary_crossentropy
    """
    output = arguments.array("output", output)
    from_logits = arguments.static_bool("from_logits", from_logits)
    losses = crossentropy.binary(arguments.array("target", target), output, None, from_logits=from_logits, names=_NAMES)
    return losses.astype(output.dtype)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
