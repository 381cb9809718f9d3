"""`loss_sum`: any formula over the statistics of a row, summed, and differentiated in the pass that makes its value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxce import _formula as formula
from jaxce._checks import formulas as formula_checks
from jaxce._checks import scalars
from jaxce._checks import shards as sharded_checks
from jaxce._checks.rows import Arguments
from jaxce._linear_logits import Logits
from jaxce._types import ArrayLike


def loss_sum(
    logits: Logits,
    labels: ArrayLike | None,
    loss: Callable[..., Any],
    per_row: tuple[Any, ...] = (),
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    has_aux: bool = False,
    class_weights: ArrayLike | None = None,
    label_probabilities: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Any:
    r"""The weighted sum of a loss of your own, a formula over the `LogitStats` of a row. Its gradients are computed in the same pass.

    .. math::
      \mathrm{total} = \sum_t w_t\, f(s_t, x_t), \qquad \mathrm{weight} = \sum_t w_t \quad \text{over the rows that count}

    Args:
      logits: `[..., num_classes]`, floating; or a `LinearLogits`, whose logits are never stored whole.
      labels: `[...]`, integer: the index of the true class, or of the sampled token. Or `[..., num_classes]`, real: the probability of each class.
        Or None for a loss without labels.
      loss: :math:`f`. `loss(stats, *per_row)` returns the loss of one row, a scalar: `stats` is a `LogitStats` of scalars, for example `stats.nll`,
        `stats.entropy`, `stats.log_z`. jaxce calls it under `jax.vmap` while it traces, as `jax.jit` does: it may use any function of JAX
        (`jnp.where` for `if`), it sees one row at a time, and what it reads from outside, as attributes of an object, is read only then. It must be
        hashable: pass a function of a module, because JAX traces and compiles again for each new function. Bind options by
        `functools.partial(loss, clip=0.2)`. Arrays are traced and have gradients. Everything else is a constant: a number that changes in each
        step would compile again in each step, so bind it as an array.
      per_row: A tuple of arrays `[...]`, or of pytrees of them: :math:`x`, the further arguments of `loss`. An array may have more axes than the
        rows; `loss` then gets an array. Floating arrays, here and bound, get the dtype of the statistics.
      axis: The class axis of `logits`, or a tuple of class axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. For a `LinearLogits` it has the shape
        `[1, ..., 1, num_classes]`, the same for all rows.
      mask: `[...]`, boolean. True for the rows that count. A masked row has loss 0 and gradient 0, whatever its arrays hold; `loss` sees a row of
        one certain class there, and ones from `per_row`.
      weights: `[...]`, real, of any sign: :math:`w`, ones by default. An infinite loss of weight 0 counts as 0, a NaN does not.
      has_aux: Whether `loss` returns `(loss, metrics)`, where `metrics` is a dict of scalars.
      class_weights: `[num_classes]`, real. The weight of each class in `stats.smooth_nll`; `stats.nll` is not weighted. To weight it, pass
        `class_weights[labels]` in `per_row`.
      label_probabilities: `[..., k]`, real, with integer labels `[..., k]`: the probabilities of these classes, as those of the likeliest classes of
        a teacher. The same class may come twice: its probabilities add up. Mass that is left out of 1 takes no part. A label that is no class
        gives NaN, unless its probability is 0. No array of all classes is made.
      soft_cap: Scalar, positive: a logit :math:`z` becomes :math:`c \tanh(z / c)`. None for no cap.
      temperature: Scalar or `[...]`, positive: the logits are divided by it, after the cap.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. If rows are split, use `LossSum.psum`.

    Returns:
      A `LossSum` of two scalars. With `has_aux`, `(LossSum, {name: LossSum})`: the sum of each metric over the rows that count, as a float, without
      `weights` and without gradient.

    Raises:
      TypeError: An argument has the wrong type or dtype, `loss` closes over a traced value, or it does not return a number.
      ValueError: An argument has the wrong shape, or `loss` does not return a scalar.

    Numerics:
      For a `LinearLogits` the value alone costs one matmul, and value and gradients three if a block has whole rows of logits, otherwise four: as for
      `softmax_cross_entropy_sum`, which is this function with the formula of the cross-entropy. A statistic that `loss` does not read costs nothing.
      Gradients exist with respect to the logits, to `per_row`, to `weights` and to the arrays that are bound to `loss`, in every mode of
      differentiation and of any order. `loss` may not close over traced values: bind them.

    Example:
      >>> def bounded(stats, advantage):
      ...     return -advantage * jax.numpy.exp(-stats.nll)
      >>> logits, labels = jax.numpy.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), jax.numpy.array([2, 0])
      >>> print(loss_sum(logits, labels, bounded, (jax.numpy.array([1.0, -1.0]),)).total.round(4))
      -0.3319

    References:
      Gradients in the forward pass: Hsu et al., Liger kernel, 2024.
      Guide: docs/pages/guides/your_own_loss.md, docs/pages/guides/policies_and_preferences.md
    """
    options = scalars.soft_cap(soft_cap), scalars.temperature(temperature)
    arguments = Arguments(logits, labels, where, mask, class_weights, *options, top_labels=label_probabilities)
    has_aux = formula_checks.has_aux(has_aux)
    static = scalars.static_axis(axis), sharded_checks.axis_name(axis_name)
    total, metrics = formula.sum_of_rows(loss, arguments, per_row, weights, "optional", *static, has_aux=has_aux)
    return (total, metrics) if has_aux else total
