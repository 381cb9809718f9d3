"""`LogitStats`: the few numbers per row from which every softmax cross-entropy is computed.

With logits `z` over the classes `k` of a row, `q` the label distribution (one-hot for an integer label) and `u` the class weights (or ones):

    max_logit       max_k z_k                               treated as a constant by differentiation
    sum_exp_rest    sum_k exp(z_k - max_logit) - 1  >= 0    the sum skips one maximal class, so a tiny sum keeps its relative precision
    label_nll       sum_k q_k (log_z - z_k)         >= 0    where log_z = log sum_k exp(z_k) = max_logit + log1p(sum_exp_rest)
    label_mass      sum_k q_k                               for an integer label: 1 if the label is one of these classes, else 0
    uniform_nll     sum_k u_k (log_z - z_k)         >= 0
    weight_sum      sum_k u_k
    num_classes     sum_k 1                                 sums without q_k skip the classes that `where` excludes or whose logit is -inf
    top_label_mass  sum of q_k over the maximal classes     found by comparing logits, so rounding cannot change it; 1 if an integer label is correct

Statistics of disjoint sets of classes merge into the statistics of all the classes. The merge is associative. A negative log-likelihood is
stored whole, not as terms to be added later. So it has its own cotangent, and `p - q` at the true class is not rounded away in a larger term.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxce import _checks as checks
from jaxce._checks import results as result_checks
from jaxce._checks import scalars
from jaxce._checks import shards as sharded_checks
from jaxce._core import Statistics, statistics
from jaxce._core.labels import local_indices
from jaxce._core.merge import merge
from jaxce._jax.axes import ClassAxis, joined_axes
from jaxce._jax.mesh import AxisName, varying_like
from jaxce._jax.rules import keep_statistics
from jaxce._types import Array, ArrayLike, exportable


@exportable
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogitStats:
    r"""The statistics of each row of logits that a softmax cross-entropy needs; `logit_stats` returns them.

    Every field but `integer_labels` is an array with one number per row. The logits are :math:`z`, the label distribution is :math:`q` (one-hot
    for an integer label), and the class weights are :math:`u` (ones by default).

    Attributes:
      max_logit: :math:`\max_k z_k`; differentiation treats it as a constant.
      sum_exp_rest: :math:`\sum_k e^{z_k - \max_j z_j} - 1`, not negative. A tiny sum keeps its relative precision.
      label_nll: :math:`\sum_k q_k (\log Z - z_k)`; 0 for an integer label that is not one of these classes. Use `nll`, which is NaN for such a
        label, unless more classes are still to be merged.
      label_mass: :math:`\sum_k q_k`; for an integer label, 1 if the label is one of these classes, else 0.
      uniform_nll: :math:`\sum_k u_k (\log Z - z_k)`.
      weight_sum: :math:`\sum_k u_k`.
      num_classes: The number of classes that take part: `where` allows them and their logit is not -inf. An integer; 0 for a row with a NaN.
      top_label_mass: :math:`\sum_k q_k` over the maximal classes, those with :math:`z_k = \max_j z_j`. Use `correct`.
      integer_labels: Whether the labels were class indices.

    If a function returns a LogitStats, `jax.jvp` returns its tangents as a LogitStats too. The fields of the tangents are the tangents of the
    fields. The properties of the tangents raise an error.

    Example:
      >>> left = jax.numpy.array([[1.0, 2.0]])
      >>> right = jax.numpy.array([[3.0, -1.0]])
      >>> label = jax.numpy.array([2])
      >>> whole = LogitStats.merge(logit_stats(left, label), logit_stats(right, label - 2))
      >>> print(whole.nll.round(4), whole.log_z.round(4))
      [0.4197] [3.4197]
    """

    max_logit: Array
    sum_exp_rest: Array
    label_nll: Array
    label_mass: Array
    uniform_nll: Array
    weight_sum: Array
    num_classes: Array
    top_label_mass: Array
    integer_labels: bool = dataclasses.field(metadata={"static": True})

    @property
    def log_norm(self) -> Array:
        """`log sum_k exp(z_k - max_logit)`, not negative."""
        result_checks.not_tangents(self, "log_norm")
        return jnp.log1p(self.sum_exp_rest)

    @property
    def log_z(self) -> Array:
        """`log sum_k exp(z_k)`, the logarithm of the partition function."""
        result_checks.not_tangents(self, "log_z")
        return self.max_logit + self.log_norm

    @property
    def nll(self) -> Array:
        """`sum_k q_k (log_z - z_k)`: the cross-entropy of each row against its label; NaN where the label is not a class."""
        result_checks.not_tangents(self, "nll")
        defined = _is_defined(self.max_logit, self.label_nll)
        if self.integer_labels:
            defined &= self.label_mass != 0
        return _nan_unless(defined, self.label_nll)

    @property
    def smooth_nll(self) -> Array:
        """`sum_k u_k (log_z - z_k) / num_classes`: the (weighted) cross-entropy against the uniform distribution."""
        result_checks.not_tangents(self, "smooth_nll")
        num_classes = self.num_classes.astype(self.uniform_nll.dtype)
        return _nan_unless(_is_defined(self.max_logit, self.uniform_nll), self.uniform_nll) / num_classes

    @property
    def correct(self) -> Array:
        """Whether the integer label is a class with the largest logit. False for a label that is not a class and for a row with a NaN."""
        result_checks.not_tangents(self, "correct")
        result_checks.of_integer_labels(self)
        return self.top_label_mass > 0

    @staticmethod
    def merge(a: LogitStats, b: LogitStats) -> LogitStats:
        """Return the statistics over the classes of `a` and `b`, which must be disjoint."""
        result_checks.mergeable(a, b)
        merged = merge(_floating(a), _floating(b))
        return of_statistics(merged, integer_labels=a.integer_labels)


def logit_stats(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> LogitStats:
    r"""The statistics of each row of logits, from which every softmax cross-entropy is one line of code.

    .. math:: \mathrm{nll} = \sum_k q_k (\log \textstyle\sum_j e^{z_j} - z_k), \qquad \log Z = \log \textstyle\sum_j e^{z_j}

    Args:
      logits: `[..., num_classes]`, floating. Unnormalised log-probabilities.
      labels: `[...]`, integer: the index of the true class. Or `[..., num_classes]`, real: the probability of each class.
      axis: The class axis of `logits`, or a tuple of class axes: `(-2, -1)` for a softmax over an image. With a tuple, an integer label is the
        row-major index into these axes, and `class_weights` has the shape of these axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part.
      class_weights: `[num_classes]`, real. The weight of each class in `smooth_nll`; `nll` is not weighted.
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
    """
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return _logit_stats(logits, labels, where, class_weights, **static)


@functools.partial(jax.jit, static_argnames=("axis", "axis_name"))
def _logit_stats(logits, labels, where, class_weights, *, axis, axis_name):
    logits = checks.logits(logits)
    axis = checks.class_axis(axis, logits)
    labels = checks.labels(labels, logits, axis)
    where = checks.where(where, logits, axis)
    class_weights = checks.class_weights(class_weights, logits, axis)
    if axis_name is not None:
        sharded_checks.split_classes("logits", logits, axis_name, axis)
    logits, labels, where, class_weights, axis = with_one_class_axis(logits, labels, where, class_weights, axis)
    if labels.ndim < logits.ndim:
        labels = local_indices(labels, logits.shape[axis], axis_name)
        logits = varying_like(logits, labels)
    stats = functools.partial(dense_stats, axis=axis, axis_name=axis_name)
    return keep_statistics(stats)(logits, labels, where, None, class_weights)


def with_one_class_axis(logits, labels, where, class_weights, axis: ClassAxis):
    """Return the checked arguments with several class axes merged into one, the last."""
    if not isinstance(axis, tuple):
        return logits, labels, where, class_weights, axis
    if labels.ndim == logits.ndim:
        labels = joined_axes(labels, axis)
    if where is not None:
        full = [size if i in axis else where.shape[i] for i, size in enumerate(logits.shape)]
        where = joined_axes(jnp.broadcast_to(where, full), axis)
    if class_weights is not None:
        class_weights = class_weights.reshape(-1)
    logits = joined_axes(logits, axis)
    return logits, labels, where, class_weights, logits.ndim - 1


def dense_stats(logits, labels, where, mask, class_weights, *, axis: int, axis_name: AxisName = None) -> LogitStats:
    """Return `logit_stats` of checked arguments with local labels. A row whose `mask` is false has finite statistics."""
    integer_labels = labels.ndim < logits.ndim
    stats = statistics(logits, labels, where, mask, class_weights, axis=axis, axis_name=axis_name)
    return of_statistics(stats, integer_labels=integer_labels)


def of_statistics(stats: Statistics, *, integer_labels: bool) -> LogitStats:
    """Return the `LogitStats` of `Statistics`, whose fields are all floating."""
    is_counted = jnp.isfinite(stats.num_classes)  # NaN for a row with a NaN
    num_classes = jnp.where(is_counted, lax.stop_gradient(stats.num_classes), 0).astype(jnp.int32)
    return LogitStats(*stats._replace(num_classes=num_classes), integer_labels=integer_labels)


def _floating(stats: LogitStats) -> Statistics:
    fields = {name: getattr(stats, name) for name in Statistics._fields}
    return Statistics(**fields | {"num_classes": stats.num_classes.astype(stats.sum_exp_rest.dtype)})


def _is_defined(max_logit, nll):
    """Return False for a row with a NaN, a row without classes, and a row with a +inf logit unless all of the label is on that class."""
    return (max_logit > -jnp.inf) & ((max_logit < jnp.inf) | (nll == 0))


def _nan_unless(defined, values):
    """Multiply undefined values by NaN. The gradient is then NaN too, because a row without a defined loss must not train a model."""
    return values * jnp.where(defined, 1.0, jnp.nan)
