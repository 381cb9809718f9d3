"""The short forms of the losses of a linear layer: `linear_f(hidden, classifier, ...)` is `f(LinearLogits(hidden, classifier), ...)`."""

from __future__ import annotations

from jaxce._blocks.choice import Implementation, Split
from jaxce._linear_logits import LinearLogits
from jaxce._loss_sum import LossSum
from jaxce._softmax import softmax_cross_entropy_sum, softmax_cross_entropy_with_integer_labels
from jaxce._stats import LogitStats, logit_stats
from jaxce._types import Array, ArrayLike


def linear_logit_stats(
    hidden: ArrayLike,
    classifier: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    split: Split | None = None,
    implementation: Implementation = None,
) -> LogitStats:
    r"""`logit_stats` of a `LinearLogits`: the statistics of the logits of a linear layer.

    .. math:: z = \mathrm{cap}(h W + b), \qquad \mathrm{cap}(x) = c \tanh(x / c)

    Args:
      hidden: `[..., features]`, floating: :math:`h`.
      classifier: `[features, num_classes]`, floating: :math:`W`. For a tied embedding pass `embedding.T`; it costs one transposed copy.
      labels: `[...]`, integer: the index of the true class. Or `[..., num_classes]`, real: the probability of each class. Or None.
      bias: `[num_classes]`, floating: :math:`b`.
      mask: `[...]`, boolean. True for the tokens that count.
      class_weights: `[num_classes]`, real. The weight of each class in `smooth_nll`; `nll` is not weighted.
      soft_cap: Scalar, positive: :math:`c`; None for no cap.
      temperature: Scalar or `[...]`, positive: the logits are divided by it, after the cap.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. Each device passes its own classes of
        `classifier`, `bias` and `class_weights`, and the same `hidden` and `labels`. The labels count the classes of all devices.
      split: How the arrays are split over a mesh of `AxisType.Auto`, a `Split`. See `LinearLogits`.
      implementation: None lets jaxce choose. "chunked" or a `Chunked` computes the logits in blocks. "reference" stores all logits.

    Returns:
      `LogitStats` of arrays `[...]`, float32 unless `hidden` or `classifier` is float64.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape or value.

    Numerics:
      As for `logit_stats` and `LinearLogits`.

    Example:
      >>> hidden, classifier = jax.numpy.ones((2, 3)), jax.numpy.eye(3)
      >>> print(linear_logit_stats(hidden, classifier, jax.numpy.array([0, 2])).nll.round(4))
      [1.0986 1.0986]

    References:
      As for `logit_stats`. Soft caps: Gemma 2, 2024.
      Guide: docs/pages/guides/large_vocabularies.md
    """
    layer = LinearLogits(hidden, classifier, bias=bias, soft_cap=soft_cap, split=split, implementation=implementation)
    return logit_stats(
        layer, labels, mask=mask, class_weights=class_weights, temperature=temperature, axis_name=axis_name
    )


def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    classifier: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    split: Split | None = None,
    implementation: Implementation = None,
) -> Array:
    r"""Softmax cross-entropy of a linear layer against integer labels, one loss per token.

    .. math:: \ell = \mathrm{softmax\_cross\_entropy\_with\_integer\_labels}(\mathrm{cap}(h W + b), y), \qquad \mathrm{cap}(x) = c \tanh(x / c)

    For class probabilities, `label_probabilities`, `where` and every other option call the loss with a `LinearLogits`.

    Args:
      hidden: `[..., features]`, floating: :math:`h`.
      classifier: `[features, num_classes]`, floating: :math:`W`. For a tied embedding pass `embedding.T`; see `LinearLogits`.
      labels: `[...]`, integer: :math:`y`. The index of the true class.
      bias: `[num_classes]`, floating: :math:`b`.
      mask: `[...]`, boolean. True for the tokens that count. A masked token has loss 0 and gradient 0, whatever its hidden and label hold.
      label_smoothing: Scalar in [0, 1]: the share of the label spread evenly over the classes.
      class_weights: `[num_classes]`, real: ones by default.
      z_loss: Scalar, not negative. Keeps :math:`\log \sum_k e^{z_k}` near 0.
      soft_cap: Scalar, positive: :math:`c`; None for no cap.
      temperature: Scalar or `[...]`, positive: the logits are divided by it, after the cap.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. Each device passes its own classes of
        `classifier`, `bias` and `class_weights`, and the same `hidden` and `labels`. The labels count the classes of all devices.
      split: How the arrays are split over a mesh of `AxisType.Auto`, a `Split`. See `LinearLogits`.
      implementation: None lets jaxce choose. "chunked" or a `Chunked` computes the logits in blocks. "reference" stores all logits.

    Returns:
      `[...]`: the loss of each token, float32 unless `hidden` or `classifier` is float64. Each gradient has the dtype of its argument.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape or value, or is out of range.

    Numerics:
      As for `softmax_cross_entropy_with_integer_labels` and `LinearLogits`. The gradient recomputes the logits, so value and gradients take four
      matmuls. If only the sum is needed, `linear_softmax_cross_entropy_sum` is cheaper.

    Example:
      >>> hidden, classifier = jax.numpy.ones((2, 3)), jax.numpy.eye(3)
      >>> print(linear_softmax_cross_entropy(hidden, classifier, jax.numpy.array([0, 2])).round(4))
      [1.0986 1.0986]

    References:
      As for `LinearLogits`.
      Guide: docs/pages/guides/large_vocabularies.md
    """
    layer = LinearLogits(hidden, classifier, bias=bias, soft_cap=soft_cap, split=split, implementation=implementation)
    options = {"mask": mask, "label_smoothing": label_smoothing, "class_weights": class_weights, "z_loss": z_loss}
    return softmax_cross_entropy_with_integer_labels(
        layer, labels, **options, temperature=temperature, axis_name=axis_name
    )


def linear_softmax_cross_entropy_sum(
    hidden: ArrayLike,
    classifier: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    split: Split | None = None,
    implementation: Implementation = None,
) -> LossSum:
    r"""`softmax_cross_entropy_sum` of a `LinearLogits`. Its gradients are computed in the same pass as the loss.

    .. math:: \mathrm{total} = \sum_t w_t \ell_t, \qquad \mathrm{weight} = \sum_t w_t \quad \text{over the tokens that count}

    Args:
      hidden: `[..., features]`, floating. This and all other arguments are as for `linear_softmax_cross_entropy`.
      classifier: `[features, num_classes]`, floating.
      labels: `[...]`, integer. Or `[..., num_classes]`, real: the probability of each class.
      bias: `[num_classes]`, floating.
      mask: `[...]`, boolean. True for the tokens that count.
      weights: `[...]`, real, of any sign: the weight of each token, by which its loss is multiplied. Ones by default.
      label_smoothing: Scalar in [0, 1].
      class_weights: `[num_classes]`, real.
      z_loss: Scalar, not negative.
      soft_cap: Scalar, positive; None for no cap.
      temperature: Scalar or `[...]`, positive; None for 1.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. If tokens are split, use `LossSum.psum`.
      split: A `Split` or None.
      implementation: None, "chunked", "reference" or a `Chunked`.

    Returns:
      A `LossSum` of two scalars. `.mean()` is the weighted mean over the tokens that count. Adding several gives the sum over all their tokens.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape or value, or is out of range.

    Numerics:
      As for `softmax_cross_entropy_sum` and `LinearLogits`.

    Example:
      >>> hidden, classifier, labels = jax.numpy.ones((2, 3)), jax.numpy.eye(3), jax.numpy.array([0, 2])
      >>> print(linear_softmax_cross_entropy_sum(hidden, classifier, labels).mean().round(4))
      1.0986

    References:
      As for `LinearLogits`. Gradients in the forward pass: Hsu et al., Liger kernel, 2024.
      Guide: docs/pages/guides/large_vocabularies.md
    """
    layer = LinearLogits(hidden, classifier, bias=bias, soft_cap=soft_cap, split=split, implementation=implementation)
    options = {
        "mask": mask,
        "weights": weights,
        "label_smoothing": label_smoothing,
        "class_weights": class_weights,
        "z_loss": z_loss,
    }
    return softmax_cross_entropy_sum(layer, labels, **options, temperature=temperature, axis_name=axis_name)
