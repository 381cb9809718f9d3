"""The public softmax cross-entropies. `_cross_entropy` computes them."""

from __future__ import annotations

from jaxce import _cross_entropy as cross_entropy
from jaxce._checks import scalars
from jaxce._checks import shards as sharded_checks
from jaxce._checks.rows import Arguments
from jaxce._cross_entropy import Options
from jaxce._linear_logits import Logits
from jaxce._loss_sum import LossSum
from jaxce._types import Array, ArrayLike


def softmax_cross_entropy(
    logits: Logits,
    labels: ArrayLike,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array:
    r"""Softmax cross-entropy against class probabilities, one loss per example.

    .. math::
      \ell = \sum_k w_k \left((1 - s)\, q_k + \frac{s}{K}\right) (\log Z - z_k) + \zeta\, (\log Z)^2, \qquad
      \log Z = \log \sum_k e^{z_k}

    Args:
      logits: `[..., num_classes]`, floating: :math:`z`. Unnormalised log-probabilities. Or a `LinearLogits`, which stands for such an array.
      labels: `[..., num_classes]`, real: :math:`q`. The probability of each class; they need not sum to 1.
      axis: The class axis of `logits` and `labels`, or a tuple of class axes: `(-2, -1)` for a softmax over an image. With a tuple,
        `class_weights` has the shape of these axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. An excluded class is treated as if its logit were -inf.
        For a `LinearLogits` it has the shape `[1, ..., 1, num_classes]`, the same for all rows.
      mask: `[...]`, boolean. True for the examples that count. A masked example has loss 0 and gradient 0, whatever its logits and labels hold.
      label_smoothing: Scalar in [0, 1]: :math:`s`, the share of the label spread evenly over the :math:`K` classes that take part.
      class_weights: `[num_classes]`, real: :math:`w`, ones by default.
      z_loss: Scalar, not negative: :math:`\zeta`. Keeps :math:`\log Z` near 0.
      soft_cap: Scalar, positive: a logit :math:`x` becomes :math:`z = c \tanh(x / c)`. None for no cap.
      temperature: Scalar or `[...]`, positive: the logits are divided by it, after the cap. An array that is not
        positive gives NaN.
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
      Guide: docs/pages/guides/from_optax.md
    """
    cap, divisor = scalars.soft_cap(soft_cap), scalars.temperature(temperature)
    arguments = Arguments(logits, labels, where, mask, class_weights, cap, divisor)
    options = Options(scalars.label_smoothing(label_smoothing), scalars.z_loss(z_loss))
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return cross_entropy.losses(arguments, options, labels="probabilities", **static)


def softmax_cross_entropy_with_integer_labels(
    logits: Logits,
    labels: ArrayLike,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    label_probabilities: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array:
    r"""Softmax cross-entropy against integer class labels, one loss per example.

    .. math::
      \ell = (1 - s)\, w_y (\log Z - z_y) + \frac{s}{K} \sum_k w_k (\log Z - z_k) + \zeta\, (\log Z)^2, \qquad
      \log Z = \log \sum_k e^{z_k}

    Args:
      logits: `[..., num_classes]`, floating: :math:`z`. Unnormalised log-probabilities. Or a `LinearLogits`, which stands for such an array.
      labels: `[...]`, integer: :math:`y`. The index of the true class.
      axis: The class axis of `logits`, or a tuple of class axes: `(-2, -1)` for a softmax over an image. With a tuple, a label is the row-major
        index into these axes, and `class_weights` has the shape of these axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. An excluded class is treated as if its logit were -inf.
        For a `LinearLogits` it has the shape `[1, ..., 1, num_classes]`, the same for all rows.
      mask: `[...]`, boolean. True for the examples that count. A masked example has loss 0 and gradient 0, whatever its logits and label hold.
        The `ignore_index` of other libraries is `mask=labels != ignore_index`.
      label_smoothing: Scalar in [0, 1]: :math:`s`, the share of the label spread evenly over the :math:`K` classes that take part.
      class_weights: `[num_classes]`, real: :math:`w`, ones by default.
      z_loss: Scalar, not negative: :math:`\zeta`. Keeps :math:`\log Z` near 0.
      label_probabilities: `[..., k]`, real, with integer labels `[..., k]`: the probabilities of these classes, as those of the likeliest classes of
        a teacher. The same class may come twice: its probabilities add up. Mass that is left out of 1 takes no part. A label that is no class
        gives NaN, unless its probability is 0. No array of all classes is made.
      soft_cap: Scalar, positive: a logit :math:`x` becomes :math:`z = c \tanh(x / c)`. None for no cap.
      temperature: Scalar or `[...]`, positive: the logits are divided by it, after the cap. An array that is not
        positive gives NaN.
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
      Guide: docs/pages/guides/from_optax.md, docs/pages/guides/accuracy.md
    """
    cap, divisor = scalars.soft_cap(soft_cap), scalars.temperature(temperature)
    arguments = Arguments(logits, labels, where, mask, class_weights, cap, divisor, top_labels=label_probabilities)
    options = Options(scalars.label_smoothing(label_smoothing), scalars.z_loss(z_loss))
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return cross_entropy.losses(arguments, options, labels="integer", **static)


def softmax_cross_entropy_sum(
    logits: Logits,
    labels: ArrayLike,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    label_probabilities: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> LossSum:
    r"""The weighted sum of the softmax cross-entropy over all examples that count, and the sum of the weights. The mask is given once.

    .. math:: \mathrm{total} = \sum_t w_t \ell_t, \qquad \mathrm{weight} = \sum_t w_t \quad \text{over the examples that count}

    Args:
      logits: `[..., num_classes]`, floating; or a `LinearLogits`. This and all other arguments are as for `softmax_cross_entropy`.
      labels: `[...]`, integer: the index of the true class. Or `[..., num_classes]`, real: the probability of each class.
      axis: The class axis of `logits`, or a tuple of class axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. For a `LinearLogits` it has the shape
        `[1, ..., 1, num_classes]`, the same for all rows.
      mask: `[...]`, boolean. True for the examples that count.
      weights: `[...]`, real, of any sign: the weight of each example, by which its loss is multiplied. Ones by default.
      label_smoothing: Scalar in [0, 1].
      class_weights: `[num_classes]`, real. They multiply the losses; `.mean()` still divides by the number of examples. For PyTorch's mean pass
        `weights=w[labels]` instead.
      z_loss: Scalar, not negative.
      label_probabilities: `[..., k]`, real, with integer labels `[..., k]`: the probabilities of these classes, as those of the likeliest classes of
        a teacher. The same class may come twice: its probabilities add up. Mass that is left out of 1 takes no part. A label that is no class
        gives NaN, unless its probability is 0. No array of all classes is made.
      soft_cap: Scalar, positive; None for no cap.
      temperature: Scalar or `[...]`, positive; None for 1.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. If examples are split, use `LossSum.psum`.

    Returns:
      A `LossSum` of two scalars. `.mean()` is the weighted mean over the examples that count. Adding several gives the sum over all their examples.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape, is out of range, or `axis` is not a class axis.

    Numerics:
      Each loss is that of `softmax_cross_entropy` or `softmax_cross_entropy_with_integer_labels`. For a `LinearLogits` the value alone costs one
      matmul. Under differentiation the gradients are computed in the same pass: three matmuls in total if a block has whole rows of logits,
      otherwise four. The gradients are summed in float32 and stored until they are multiplied by the cotangent of `total`. If the classes are
      split, this pass sends a few numbers per token and no gradient between devices; the gradient with respect to `hidden` is summed over the
      devices once. Only a gradient with respect to class probabilities costs another pass.

    Example:
      >>> logits, labels = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), jnp.array([2, -1])
      >>> print(softmax_cross_entropy_sum(logits, labels, mask=labels >= 0).mean().round(4))
      0.4076

    References:
      As for `softmax_cross_entropy`. Gradients in the forward pass: Hsu et al., Liger kernel, 2024.
      Guide: docs/pages/guides/accumulation.md
    """
    cap, divisor = scalars.soft_cap(soft_cap), scalars.temperature(temperature)
    arguments = Arguments(logits, labels, where, mask, class_weights, cap, divisor, top_labels=label_probabilities)
    options = Options(scalars.label_smoothing(label_smoothing), scalars.z_loss(z_loss))
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return cross_entropy.loss_sum(arguments, options, weights, **static)
