"""The softmax cross-entropies as formulas over `LogitStats`. Dense logits and linear layers share one implementation of each option."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxce import _checks as checks
from jaxce._checks import scalars
from jaxce._checks import shards as sharded_checks
from jaxce._core.labels import local_indices, weight_of_label
from jaxce._jax.axes import per_class, per_row, row_shape
from jaxce._jax.mesh import psum_over, varying_like
from jaxce._jax.rules import keep_statistics
from jaxce._stats import LogitStats, dense_stats, with_one_class_axis
from jaxce._types import Array, ArrayLike, working_dtype


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array:
    r"""Softmax cross-entropy against class probabilities, one loss per example.

    .. math::
      \ell = \sum_k w_k \left((1 - s)\, q_k + \frac{s}{K}\right) (\log Z - z_k) + \zeta\, (\log Z)^2, \qquad
      \log Z = \log \sum_k e^{z_k}

    Args:
      logits: `[..., num_classes]`, floating: :math:`z`. Unnormalised log-probabilities.
      labels: `[..., num_classes]`, real: :math:`q`. The probability of each class; they need not sum to 1.
      axis: The class axis of `logits` and `labels`, or a tuple of class axes: `(-2, -1)` for a softmax over an image. With a tuple,
        `class_weights` has the shape of these axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. An excluded class is treated as if its logit were -inf.
      mask: `[...]`, boolean. True for the examples that count. A masked example has loss 0 and gradient 0, whatever its logits and labels hold.
      label_smoothing: Scalar in [0, 1]: :math:`s`, the share of the label spread evenly over the :math:`K` classes that take part.
      class_weights: `[num_classes]`, real: :math:`w`, ones by default.
      z_loss: Scalar, not negative: :math:`\zeta`. Keeps :math:`\log Z` near 0.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. Each device passes its own classes of
        `logits`, `labels`, `where` and `class_weights`, and gets the loss over all classes.

    Returns:
      `[...]`: the loss of each example, float32 for logits of 32 bits or fewer. Each gradient has the dtype of its argument.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape, is out of range, or `axis` is not a class axis.

    Numerics:
      The loss is a sum of non-negative terms, so a tiny loss keeps its relative precision. The gradient :math:`p - q` keeps its relative
      precision where a class is nearly certain. A label probability of 0 contributes nothing, even where the logit is -inf. A positive label
      probability at a logit of -inf makes the loss +inf. A NaN logit makes the loss NaN, and so does a row in which no class takes part.

    Example:
      >>> logits = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
      >>> labels = jnp.array([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
      >>> print(softmax_cross_entropy(logits, labels).round(4))
      [0.6576 1.0986]

    References:
      Label smoothing: Szegedy et al., Rethinking the Inception architecture, 2016. z-loss: Chowdhery et al., PaLM, 2022. Class weights combine
      with label smoothing as in `torch.nn.functional.cross_entropy`.
    """
    smoothing, z_weight = scalars.label_smoothing(label_smoothing), scalars.z_loss(z_loss)
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return _dense_loss(logits, labels, where, mask, smoothing, class_weights, z_weight, integer_labels=False, **static)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array:
    r"""Softmax cross-entropy against integer class labels, one loss per example.

    .. math::
      \ell = (1 - s)\, w_y (\log Z - z_y) + \frac{s}{K} \sum_k w_k (\log Z - z_k) + \zeta\, (\log Z)^2, \qquad
      \log Z = \log \sum_k e^{z_k}

    Args:
      logits: `[..., num_classes]`, floating: :math:`z`. Unnormalised log-probabilities.
      labels: `[...]`, integer: :math:`y`. The index of the true class.
      axis: The class axis of `logits`, or a tuple of class axes: `(-2, -1)` for a softmax over an image. With a tuple, a label is the row-major
        index into these axes, and `class_weights` has the shape of these axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. An excluded class is treated as if its logit were -inf.
      mask: `[...]`, boolean. True for the examples that count. A masked example has loss 0 and gradient 0, whatever its logits and label hold.
        The `ignore_index` of other libraries is `mask=labels != ignore_index`.
      label_smoothing: Scalar in [0, 1]: :math:`s`, the share of the label spread evenly over the :math:`K` classes that take part.
      class_weights: `[num_classes]`, real: :math:`w`, ones by default.
      z_loss: Scalar, not negative: :math:`\zeta`. Keeps :math:`\log Z` near 0.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. Each device passes its own classes of
        `logits`, `where` and `class_weights`, and the same `labels`, which count the classes of all devices. Each device gets the loss over
        all classes.

    Returns:
      `[...]`: the loss of each example, float32 for logits of 32 bits or fewer. Each gradient has the dtype of its argument.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape, is out of range, or `axis` is not a class axis.

    Numerics:
      The loss is a sum of non-negative terms, so a tiny loss keeps its relative precision. The gradient at the true class keeps its relative
      precision too. A label outside `[0, num_classes)` gives NaN in its loss and in its row of the gradient; mask it to leave it out. A NaN
      logit gives NaN, and so does a row in which no class takes part. If the true class takes no part, the loss is +inf.

    Example:
      >>> logits = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
      >>> print(softmax_cross_entropy_with_integer_labels(logits, jnp.array([2, 0])).round(4))
      [0.4076 1.0986]

    References:
      As for `softmax_cross_entropy`.
    """
    smoothing, z_weight = scalars.label_smoothing(label_smoothing), scalars.z_loss(z_loss)
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return _dense_loss(logits, labels, where, mask, smoothing, class_weights, z_weight, integer_labels=True, **static)


@functools.partial(jax.jit, static_argnames=("axis", "integer_labels", "axis_name"))
def _dense_loss(
    logits, labels, where, mask, label_smoothing, class_weights, z_loss, *, axis, integer_labels, axis_name
):
    logits = checks.logits(logits)
    axis = checks.class_axis(axis, logits)
    if integer_labels:
        labels = checks.class_indices(labels, logits, axis)
    else:
        labels = checks.class_probabilities(labels, logits)
    where = checks.where(where, logits, axis)
    mask = checks.mask(mask, row_shape(logits.shape, axis), logits)
    class_weights = checks.class_weights(class_weights, logits, axis)
    if axis_name is not None:
        sharded_checks.split_classes("logits", logits, axis_name, axis)
    logits, labels, where, class_weights, axis = with_one_class_axis(logits, labels, where, class_weights, axis)
    if integer_labels:
        labels = local_indices(labels, logits.shape[axis], axis_name)
        logits = varying_like(logits, labels)

    def losses(logits, labels, where, mask, label_smoothing, class_weights, z_loss):
        label_weight = None
        if class_weights is not None and integer_labels:
            label_weight = psum_over(axis_name, weight_of_label(class_weights, labels, mask))
        elif class_weights is not None:
            dtype = working_dtype(logits)
            # A NaN label of a masked example must not reach the gradient with respect to the class weights.
            if mask is not None:
                labels = jnp.where(per_row(mask, axis), labels, 0)
            labels = labels.astype(dtype) * per_class(class_weights.astype(dtype), axis, logits.ndim)
        stats = dense_stats(logits, labels, where, mask, class_weights, axis=axis, axis_name=axis_name)
        return cross_entropy(stats, mask, label_smoothing, label_weight, z_loss)

    return keep_statistics(losses)(logits, labels, where, mask, label_smoothing, class_weights, z_loss)


def cross_entropy(
    stats: LogitStats,
    mask: Array | None,
    label_smoothing: Array | None,
    label_weight: Array | None,
    z_loss: Array | None,
) -> Array:
    """Return the loss of each row from its statistics. An option that is None is not used.

    `label_weight` is the class weight of each integer label. Class probabilities are already multiplied by their class weights.
    """
    dtype = stats.sum_exp_rest.dtype
    loss = stats.nll
    if label_weight is not None:
        loss = _weighted(label_weight.astype(dtype), loss)
    if label_smoothing is not None:
        s = label_smoothing.astype(dtype)
        loss = _weighted(1 - s, loss) + s * stats.smooth_nll
    if z_loss is not None:
        loss = loss + z_loss.astype(dtype) * jnp.square(stats.log_z)
    return loss if mask is None else jnp.where(mask, loss, 0)


def _weighted(weight, loss):
    """Return the product, which is 0 for a weight of 0 even if the loss is infinite."""
    return weight * jnp.where((weight == 0) & (loss == jnp.inf), 0, loss)
