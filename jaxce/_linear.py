"""Softmax cross-entropy of a linear layer, `hidden @ classifier + bias`, without storing all of its logits at once."""

from __future__ import annotations

from jaxce import _linear_losses as linear_losses
from jaxce._blocks import choice
from jaxce._blocks.choice import Implementation
from jaxce._blocks.reference import Layer
from jaxce._checks import scalars
from jaxce._checks import shards as sharded_checks
from jaxce._linear_losses import Options
from jaxce._loss_sum import LossSum
from jaxce._stats import LogitStats
from jaxce._types import Array, ArrayLike


def linear_logit_stats(
    hidden: ArrayLike,
    classifier: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    implementation: Implementation = None,
) -> LogitStats:
    r"""`logit_stats` of the logits of a linear layer.

    .. math:: z = \mathrm{cap}(h W + b), \qquad \mathrm{cap}(x) = c \tanh(x / c)

    Args:
      hidden: `[..., features]`, floating: :math:`h`.
      classifier: `[features, num_classes]`, floating: :math:`W`. For a tied embedding pass `embedding.T`; it costs one transposed copy.
      labels: `[...]`, integer: the index of the true class.
      bias: `[num_classes]`, floating: :math:`b`.
      class_weights: `[num_classes]`, real. The weight of each class in `smooth_nll`; `nll` is not weighted.
      soft_cap: Scalar, positive: :math:`c`; None for no cap.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. Each device passes its own classes of
        `classifier`, `bias` and `class_weights`, and the same `hidden` and `labels`. The labels count the classes of all devices.
      implementation: None lets jaxce choose. "chunked" or a `Chunked` computes the logits in blocks. "reference" stores all logits.

    Returns:
      `LogitStats` of arrays `[...]`, float32 unless `hidden` or `classifier` is float64.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape or value.

    Numerics:
      `hidden` and `classifier` are multiplied in their dtype if they share one, otherwise in float32 (float64 if either is float64). Products
      are summed and stored in float32. Reverse mode stores the arguments and a few numbers per token, and sums the gradient with respect to
      the classifier in float32. If both operands are bfloat16, a GPU multiplies the gradient with respect to the logits in bfloat16, as it
      does for the gradient of any bfloat16 matmul.

    Example:
      >>> hidden, classifier = jax.numpy.ones((2, 3)), jax.numpy.eye(3)
      >>> print(linear_logit_stats(hidden, classifier, jax.numpy.array([0, 2])).nll.round(4))
      [1.0986 1.0986]

    References:
      As for `logit_stats`. Soft caps: Gemma 2, 2024.
    """
    cap = scalars.soft_cap(soft_cap)
    static = {"axis_name": sharded_checks.axis_name(axis_name), "implementation": choice.checked(implementation)}
    return linear_losses.stats(
        Layer(hidden, classifier, labels, bias=bias, class_weights=class_weights, soft_cap=cap), **static
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
    axis_name: str | tuple[str, ...] | None = None,
    implementation: Implementation = None,
) -> Array:
    r"""Softmax cross-entropy of a linear layer against integer labels, one loss per token.

    .. math:: \ell = \mathrm{softmax\_cross\_entropy\_with\_integer\_labels}(\mathrm{cap}(h W + b), y), \qquad \mathrm{cap}(x) = c \tanh(x / c)

    Args:
      hidden: `[..., features]`, floating: :math:`h`.
      classifier: `[features, num_classes]`, floating: :math:`W`. For a tied embedding pass `embedding.T`. The compilers then store a transposed
        copy. For value and gradients of the sum over 8,192 tokens and a (128256, 2048) bfloat16 embedding, the temporaries grow from 1,066 to
        3,070 MiB on TPU v5e, and from 1,199 to 1,700 MiB on H100. `implementation=Chunked(block_classes=768)` costs a fourth matmul and reduces
        them to 1,067 and 1,105 MiB.
      labels: `[...]`, integer: :math:`y`. The index of the true class.
      bias: `[num_classes]`, floating: :math:`b`.
      mask: `[...]`, boolean. True for the tokens that count. A masked token has loss 0 and gradient 0, whatever its hidden and label hold.
      label_smoothing: Scalar in [0, 1]: the share of the label spread evenly over the classes.
      class_weights: `[num_classes]`, real: ones by default.
      z_loss: Scalar, not negative. Keeps :math:`\log \sum_k e^{z_k}` near 0.
      soft_cap: Scalar, positive: :math:`c`; None for no cap.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. Each device passes its own classes of
        `classifier`, `bias` and `class_weights`, and the same `hidden` and `labels`. The labels count the classes of all devices.
      implementation: None lets jaxce choose. "chunked" or a `Chunked` computes the logits in blocks. "reference" stores all logits.

    Returns:
      `[...]`: the loss of each token, float32 unless `hidden` or `classifier` is float64. Each gradient has the dtype of its argument.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape or value, or is out of range.

    Numerics:
      As for `softmax_cross_entropy_with_integer_labels` of these logits, and as for `linear_logit_stats`. Every mode of differentiation works,
      at any order. The gradient recomputes the logits, so value and gradients take four matmuls. If only the sum is needed,
      `linear_softmax_cross_entropy_sum` is cheaper.

      Under `jax.export` sizes may be symbolic. If the number of tokens is unknown and `implementation` is None, a block has all tokens and up to
      1,024 classes: `tokens * 1024` logits are stored at a time, and the gradients of a sum take a fourth matmul. If the number of classes is
      unknown, all logits are stored; `Chunked(block_tokens=...)` stores fewer.

    Example:
      >>> hidden, classifier = jax.numpy.ones((2, 3)), jax.numpy.eye(3)
      >>> print(linear_softmax_cross_entropy(hidden, classifier, jax.numpy.array([0, 2])).round(4))
      [1.0986 1.0986]

    References:
      Wijmans et al., Cut your losses in large-vocabulary language models, 2024. Soft caps: Gemma 2, 2024.
    """
    options = Options(scalars.label_smoothing(label_smoothing), scalars.z_loss(z_loss))
    layer = Layer(hidden, classifier, labels, bias, mask, class_weights, scalars.soft_cap(soft_cap))
    static = {"axis_name": sharded_checks.axis_name(axis_name), "implementation": choice.checked(implementation)}
    return linear_losses.losses(layer, options, **static)


def linear_softmax_cross_entropy_sum(
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
    axis_name: str | tuple[str, ...] | None = None,
    implementation: Implementation = None,
) -> LossSum:
    r"""The sum of `linear_softmax_cross_entropy` over all tokens. Its gradients are computed in the same pass as the loss.

    .. math:: \mathrm{total} = \sum_t \ell_t, \qquad \mathrm{weight} = \sum_t 1 \quad \text{over the tokens that count}

    Args:
      hidden: `[..., features]`, floating. This and all other arguments are as for `linear_softmax_cross_entropy`.
      classifier: `[features, num_classes]`, floating.
      labels: `[...]`, integer.
      bias: `[num_classes]`, floating.
      mask: `[...]`, boolean. True for the tokens that count.
      label_smoothing: Scalar in [0, 1].
      class_weights: `[num_classes]`, real.
      z_loss: Scalar, not negative.
      soft_cap: Scalar, positive; None for no cap.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. If tokens are split, use `LossSum.psum`.
      implementation: None, "chunked", "reference" or a `Chunked`.

    Returns:
      A `LossSum` of two scalars. `.mean()` is the mean over the tokens that count. Adding several gives the sum over all their tokens.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape or value, or is out of range.

    Numerics:
      The value alone costs one matmul. Under differentiation the gradients are computed in the same pass: three matmuls in total if a block
      has whole rows of logits, otherwise four. The gradients are summed in float32 and stored until they are multiplied by the cotangent of
      `total`. Every mode of differentiation works, at any order. If the classes are split, this pass sends a few numbers per token and no
      gradient between devices; the gradient with respect to `hidden` is summed over the devices once.
      The gradients are as exact as those of `linear_softmax_cross_entropy`, in every dtype. In bfloat16 a GPU or TPU multiplies the gradients
      with respect to the logits in bfloat16, as in any matmul of the layer. A CPU keeps them in float32, and so does every platform in float16
      and float8; the logits are then computed twice, which is a fourth matmul. In `python -m benchmarks.linear` two CPU cores take 0.76 times
      as long as three bare matmuls at (4096, 768, 50257) in bfloat16 (0.88 with jax 0.12). Gradients rounded to bfloat16 would take 0.45 (0.48).

    Example:
      >>> hidden, classifier, labels = jax.numpy.ones((2, 3)), jax.numpy.eye(3), jax.numpy.array([0, 2])
      >>> print(linear_softmax_cross_entropy_sum(hidden, classifier, labels).mean().round(4))
      1.0986

    References:
      As for `linear_softmax_cross_entropy`. Gradients in the forward pass: Hsu et al., Liger kernel, 2024.
    """
    options = Options(scalars.label_smoothing(label_smoothing), scalars.z_loss(z_loss))
    layer = Layer(hidden, classifier, labels, bias, mask, class_weights, scalars.soft_cap(soft_cap))
    static = {"axis_name": sharded_checks.axis_name(axis_name), "implementation": choice.checked(implementation)}
    return linear_losses.loss_sum(layer, options, **static)
