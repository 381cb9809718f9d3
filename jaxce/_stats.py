"""`logit_stats`: the statistics of each row of logits, from which every softmax cross-entropy is computed."""

from __future__ import annotations

import functools

import jax

from jaxce import _dense as dense
from jaxce import _lazy as lazy
from jaxce._checks import scalars
from jaxce._checks import shards as sharded_checks
from jaxce._checks.rows import Arguments
from jaxce._core import statistics
from jaxce._jax.mesh import AxisName, axis_size
from jaxce._jax.rules import keep_statistics
from jaxce._linear_logits import LinearLogits, Logits
from jaxce._logit_stats import LogitStats, of_statistics
from jaxce._types import ArrayLike


def logit_stats(
    logits: Logits,
    labels: ArrayLike | None = None,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_probabilities: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> LogitStats:
    r"""The statistics of each row of logits, from which every softmax cross-entropy is one line of code.

    .. math:: \mathrm{nll} = \sum_k q_k (\log \textstyle\sum_j e^{z_j} - z_k), \qquad \log Z = \log \textstyle\sum_j e^{z_j}

    Args:
      logits: `[..., num_classes]`, floating. Unnormalised log-probabilities. Or a `LinearLogits`, which stands for such an array.
      labels: `[...]`, integer: the index of the true class. Or `[..., num_classes]`, real: the probability of each class. Or None, if the `nll`
        is not wanted.
      axis: The class axis of `logits`, or a tuple of class axes: `(-2, -1)` for a softmax over an image. With a tuple, an integer label is the
        row-major index into these axes, and `class_weights` has the shape of these axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. For a `LinearLogits` it has the shape
        `[1, ..., 1, num_classes]`, the same for all rows.
      mask: `[...]`, boolean. True for the rows that count. A masked row has the statistics of a row of one certain class, and gradient 0, whatever
        its logits and label hold: its `nll`, `entropy` and `log_z` are 0, and it is `correct` with a `confidence` of 1.
      class_weights: `[num_classes]`, real. The weight of each class in `smooth_nll`; `nll` is not weighted.
      label_probabilities: `[..., k]`, real, with integer labels `[..., k]`: the probabilities of these classes, as those of the likeliest classes of
        a teacher. The same class may come twice: its probabilities add up. Mass that is left out of 1 takes no part. A label that is no class
        gives NaN, unless its probability is 0. So to merge statistics of parts of the classes, give 0 to the labels of other parts.
      soft_cap: Scalar, positive: a logit :math:`z` becomes :math:`c \tanh(z / c)`. None for no cap.
      temperature: Scalar or `[...]`, positive: the logits are divided by it, after the cap. An array that is not
        positive gives NaN.
      axis_name: Inside `jax.shard_map`: the mesh axis (or axes) over which the classes are split. Each device passes its own classes of
        `logits`, `where` and `class_weights`, and labels that count the classes of all devices. Each device gets the statistics over all classes.

    Returns:
      `LogitStats` of arrays `[...]`, float32 for logits of 32 bits or fewer.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape, or `axis` is not a class axis.

    Numerics:
      `nll` is a sum of non-negative terms, so a tiny loss keeps its relative precision. A label outside `[0, num_classes)` gives a NaN `nll`.

    Example:
      >>> stats = logit_stats(jax.numpy.array([[1.0, 2.0, 3.0]]), jax.numpy.array([2]))
      >>> print(stats.nll.round(4), stats.log_z.round(4))
      [0.4076] [3.4076]

    References:
      Blanchard, Higham and Higham, Accurately computing the log-sum-exp and softmax functions, IMA J. Numer. Anal. 41 (2021).
      Guide: docs/pages/guides/your_own_loss.md, docs/pages/guides/evaluate.md
    """
    options = scalars.soft_cap(soft_cap), scalars.temperature(temperature)
    arguments = Arguments(logits, labels, where, mask, class_weights, *options, top_labels=label_probabilities)
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return _logit_stats(arguments, **static)


@functools.partial(jax.jit, static_argnames=("axis", "axis_name"))
def _logit_stats(arguments: Arguments, *, axis, axis_name):
    has_labels = arguments.labels is not None
    if isinstance(arguments.logits, LinearLogits):
        layer, how = lazy.layer_of(arguments, axis, axis_name, "optional")
        size = layer.classifier.shape[1] * axis_size(axis_name)
        integer_labels = lazy.has_integer_labels(layer) if has_labels else None
        return of_statistics(lazy.statistics(layer, how), size, integer_labels=integer_labels)
    arguments, axis = dense.arguments_of(arguments, axis, axis_name, "optional")
    return keep_statistics(functools.partial(dense_stats, axis=axis, axis_name=axis_name, has_labels=has_labels))(
        arguments
    )


def dense_stats(arguments: Arguments, *, axis: int, axis_name: AxisName = None, has_labels: bool = True) -> LogitStats:
    """Return `logit_stats` of checked arguments with local labels. A row whose `mask` is false has finite statistics."""
    logits, stats = arguments.logits, statistics(*arguments, axis=axis, axis_name=axis_name)
    integer_labels = dense.has_integer_labels(arguments) if has_labels else None
    return of_statistics(stats, logits.shape[axis] * axis_size(axis_name), integer_labels=integer_labels)
