"""The public divergences of two softmaxes. `_pairs` computes them."""

from __future__ import annotations

from jaxce import _pairs as pairs
from jaxce._checks import scalars
from jaxce._checks import shards as sharded_checks
from jaxce._checks.pairs import PairArguments
from jaxce._linear_logits import Logits
from jaxce._loss_sum import LossSum
from jaxce._types import Array, ArrayLike


def softmax_kl_divergence(
    target_logits: Logits,
    logits: Logits,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array:
    r"""Kullback-Leibler divergence of two softmaxes, one per example: that of the target from the softmax of `logits`.

    .. math::
      \mathrm{KL}(q \,\|\, p) = \sum_k q_k (\log q_k - \log p_k), \qquad q = \mathrm{softmax}(y / T), \quad p = \mathrm{softmax}(z / T)

    With the arguments swapped it is the reverse divergence, :math:`\mathrm{KL}(p \,\|\, q)`. Both arguments have gradients: put
    `jax.lax.stop_gradient` around the teacher's if they are not wanted.

    Args:
      target_logits: `[..., num_classes]`, floating: :math:`y`, the teacher's. Or a `LinearLogits`.
      logits: `[..., num_classes]`, floating: :math:`z`, the student's. Or a `LinearLogits`. Each may be either; two layers may have different
        numbers of features, soft caps and dtypes.
      axis: The class axis of both, or a tuple of class axes. For a `LinearLogits` it is the last axis.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. For a `LinearLogits` it has the shape
        `[1, ..., 1, num_classes]`, the same for all rows.
      mask: `[...]`, boolean. True for the examples that count. A masked example has divergence 0 and gradient 0, whatever its logits hold.
      temperature: Scalar or `[...]`, positive: :math:`T`, by which the logits of both are divided, after a cap. The divergence is not multiplied
        by :math:`T^2`; multiply it if its gradient should stay of the same size for every :math:`T`. An array that is not positive gives NaN.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. Each device passes its own classes of both
        and gets the divergence over all classes.

    Returns:
      `[...]`: the divergence of each example, not negative, float64 if either argument is float64, otherwise float32. Each gradient has the dtype
      of its argument.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: The arguments have different shapes, or an argument has the wrong shape or is out of range.

    Numerics:
      The divergence is the sum of :math:`q_k (e^x - 1 - x)` with :math:`x = \log p_k - \log q_k`, whose terms are not negative. So a tiny
      divergence keeps its digits, and that of equal arguments is exactly 0. The gradient :math:`p - q` is :math:`q_k (e^x - 1)`. A class with
      target probability 0 (logit -inf) contributes nothing, but still takes its part of :math:`p`. If a class has a positive target probability
      and the logit -inf, the divergence is +inf. A NaN or +inf logit gives NaN, and so does a row in which no class takes part.

      For a `LinearLogits` the logits are computed in blocks of rows, two or more times. If only the sum is needed,
      `softmax_kl_divergence_sum` is cheaper.

    Example:
      >>> teacher = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
      >>> student = jnp.array([[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]])
      >>> print(softmax_kl_divergence(teacher, student).round(4))
      [0.     0.1195]

    References:
      Kullback and Leibler, On information and sufficiency, 1951. Distillation: Hinton et al., Distilling the knowledge in a neural network, 2015.
      Guide: docs/pages/guides/distil.md
    """
    arguments = PairArguments(target_logits, logits, where, mask, scalars.temperature(temperature))
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return pairs.losses(arguments, **static)


def softmax_kl_divergence_sum(
    target_logits: Logits,
    logits: Logits,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> LossSum:
    r"""The weighted sum of `softmax_kl_divergence` over all examples that count, and the sum of the weights. The mask is given once.

    .. math:: \mathrm{total} = \sum_t w_t\, \mathrm{KL}(q_t \,\|\, p_t), \qquad \mathrm{weight} = \sum_t w_t \quad \text{over the examples that count}

    Args:
      target_logits: `[..., num_classes]`, floating; or a `LinearLogits`. This and all other arguments are as for `softmax_kl_divergence`.
      logits: `[..., num_classes]`, floating; or a `LinearLogits`.
      axis: The class axis of both, or a tuple of class axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. For a `LinearLogits` it has the shape
        `[1, ..., 1, num_classes]`, the same for all rows.
      mask: `[...]`, boolean. True for the examples that count.
      weights: `[...]`, real, of any sign: the weight of each example, by which its divergence is multiplied. Ones by default.
      temperature: Scalar or `[...]`, positive: the logits of both are divided by it. The divergence is not multiplied by its square.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. If examples are split, use `LossSum.psum`.

    Returns:
      A `LossSum` of two scalars. `.mean()` is the weighted mean over the examples that count.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: The arguments have different shapes, or an argument has the wrong shape or is out of range.

    Numerics:
      As for `softmax_kl_divergence`. With a `LinearLogits` the gradients are computed in the same pass as the value, in blocks of rows: one matmul
      for the logits of each layer, and two more for each layer that is differentiated. They are summed in float32.

    Example:
      >>> from jaxce import LinearLogits
      >>> teacher = LinearLogits(jnp.ones((2, 4)), jnp.eye(4, 3))
      >>> student = LinearLogits(jnp.ones((2, 3)), 2 * jnp.eye(3))
      >>> print(softmax_kl_divergence_sum(teacher, student).mean())
      0.0

    References:
      As for `softmax_kl_divergence`.
      Guide: docs/pages/guides/distil.md
    """
    arguments = PairArguments(target_logits, logits, where, mask, scalars.temperature(temperature))
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return pairs.loss_sum(arguments, weights, **static)


def softmax_js_divergence(
    target_logits: Logits,
    logits: Logits,
    *,
    weight: ArrayLike = 0.5,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array:
    r"""Jensen-Shannon divergence of two softmaxes, one per example.

    .. math::
      \mathrm{JS} = w\, \mathrm{KL}(q \,\|\, m) + (1 - w)\, \mathrm{KL}(p \,\|\, m), \qquad m = w\, q + (1 - w)\, p, \quad
      q = \mathrm{softmax}(y / T), \quad p = \mathrm{softmax}(z / T)

    It is at most :math:`-w \log w - (1 - w) \log (1 - w)`, which is :math:`\log 2` for :math:`w = 1/2`. For small :math:`w` it is about
    :math:`w\, \mathrm{KL}(q \,\|\, p)`, and for :math:`w` near 1 about :math:`(1 - w)\, \mathrm{KL}(p \,\|\, q)`.

    Args:
      target_logits: `[..., num_classes]`, floating: :math:`y`. Or a `LinearLogits`. This and all arguments but `weight` are as for
        `softmax_kl_divergence`.
      logits: `[..., num_classes]`, floating: :math:`z`. Or a `LinearLogits`.
      weight: Scalar between 0 and 1: :math:`w`, the weight of the target. It may be traced, and has a gradient.
      axis: The class axis of both, or a tuple of class axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. For a `LinearLogits` it has the shape
        `[1, ..., 1, num_classes]`, the same for all rows.
      mask: `[...]`, boolean. True for the examples that count. A masked example has divergence 0 and gradient 0, whatever its logits hold.
      temperature: Scalar or `[...]`, positive: :math:`T`. The divergence is not multiplied by :math:`T^2`.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split.

    Returns:
      `[...]`: the divergence of each example, not negative, float64 if either argument is float64, otherwise float32. Each gradient has the dtype
      of its argument.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: The arguments have different shapes, or an argument has the wrong shape or is out of range.

    Numerics:
      A sum of terms that are not negative, as `softmax_kl_divergence`. It is finite even where a class takes part in one softmax alone. An array
      `weight` outside its range gives wrong numbers or NaN.

    Example:
      >>> teacher, student = jnp.array([[0.0, 0.0], [9.0, -9.0]]), jnp.array([[0.0, 0.0], [-9.0, 9.0]])
      >>> print(softmax_js_divergence(teacher, student).round(4))
      [0.     0.6931]

    References:
      Lin, Divergence measures based on the Shannon entropy, 1991. Distillation: Agarwal et al., On-policy distillation of language models, 2024,
      whose beta is `weight`.
      Guide: docs/pages/guides/distil.md
    """
    arguments = PairArguments(
        target_logits, logits, where, mask, scalars.temperature(temperature), scalars.js_weight(weight)
    )
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return pairs.losses(arguments, **static)


def softmax_js_divergence_sum(
    target_logits: Logits,
    logits: Logits,
    *,
    weight: ArrayLike = 0.5,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> LossSum:
    r"""The weighted sum of `softmax_js_divergence` over all examples that count, and the sum of the weights. The mask is given once.

    .. math:: \mathrm{total} = \sum_t w_t\, \mathrm{JS}_t, \qquad \mathrm{weight} = \sum_t w_t \quad \text{over the examples that count}

    Args:
      target_logits: `[..., num_classes]`, floating; or a `LinearLogits`. This and all other arguments are as for `softmax_js_divergence`.
      logits: `[..., num_classes]`, floating; or a `LinearLogits`.
      weight: Scalar between 0 and 1: the weight of the target in the divergence.
      axis: The class axis of both, or a tuple of class axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. For a `LinearLogits` it has the shape
        `[1, ..., 1, num_classes]`, the same for all rows.
      mask: `[...]`, boolean. True for the examples that count.
      weights: `[...]`, real, of any sign: the weight of each example, by which its divergence is multiplied. Ones by default.
      temperature: Scalar or `[...]`, positive: the logits of both are divided by it. The divergence is not multiplied by its square.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. If examples are split, use `LossSum.psum`.

    Returns:
      A `LossSum` of two scalars. `.mean()` is the weighted mean over the examples that count.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: The arguments have different shapes, or an argument has the wrong shape or is out of range.

    Numerics:
      As for `softmax_js_divergence` and `softmax_kl_divergence_sum`.

    Example:
      >>> teacher, student = jnp.array([[0.0, 0.0], [9.0, -9.0]]), jnp.array([[0.0, 0.0], [-9.0, 9.0]])
      >>> print(softmax_js_divergence_sum(teacher, student, mask=jnp.array([False, True])).mean().round(4))
      0.6931

    References:
      As for `softmax_js_divergence`.
      Guide: docs/pages/guides/distil.md
    """
    arguments = PairArguments(
        target_logits, logits, where, mask, scalars.temperature(temperature), scalars.js_weight(weight)
    )
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return pairs.loss_sum(arguments, weights, **static)
