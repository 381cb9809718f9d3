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
from jaxce import _lazy as lazy
from jaxce._checks import results as result_checks
from jaxce._checks import rows as row_checks
from jaxce._checks import scalars
from jaxce._checks import shards as sharded_checks
from jaxce._checks.rows import Arguments
from jaxce._core import Statistics, statistics
from jaxce._core.labels import local_indices
from jaxce._core.merge import merge
from jaxce._jax.axes import joined_axes
from jaxce._jax.mesh import AxisName, varying_like
from jaxce._jax.rules import keep_statistics
from jaxce._linear_logits import LinearLogits, Logits
from jaxce._types import Array, ArrayLike, exportable, working_dtype


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
      label_mass: :math:`\sum_k q_k`; for an integer label, 1 if the label is one of these classes, else 0. Its derivative with respect to the
        probability of a class that takes no part is 0.
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
    logits: Logits,
    labels: ArrayLike,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> LogitStats:
    r"""The statistics of each row of logits, from which every softmax cross-entropy is one line of code.

    .. math:: \mathrm{nll} = \sum_k q_k (\log \textstyle\sum_j e^{z_j} - z_k), \qquad \log Z = \log \textstyle\sum_j e^{z_j}

    Args:
      logits: `[..., num_classes]`, floating. Unnormalised log-probabilities. Or a `LinearLogits`, which stands for such an array.
      labels: `[...]`, integer: the index of the true class. Or `[..., num_classes]`, real: the probability of each class.
      axis: The class axis of `logits`, or a tuple of class axes: `(-2, -1)` for a softmax over an image. With a tuple, an integer label is the
        row-major index into these axes, and `class_weights` has the shape of these axes.
      where: Boolean, broadcasts to `logits`. True for the classes that take part. For a `LinearLogits` it has the shape
        `[1, ..., 1, num_classes]`, the same for all rows.
      class_weights: `[num_classes]`, real. The weight of each class in `smooth_nll`; `nll` is not weighted.
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
    """
    options = scalars.soft_cap(soft_cap), scalars.temperature(temperature)
    static = {"axis": scalars.static_axis(axis), "axis_name": sharded_checks.axis_name(axis_name)}
    return _logit_stats(Arguments(logits, labels, where, None, class_weights, *options), **static)


@functools.partial(jax.jit, static_argnames=("axis", "axis_name"))
def _logit_stats(arguments: Arguments, *, axis, axis_name):
    if isinstance(arguments.logits, LinearLogits):
        layer, how = lazy.layer_of(arguments, axis, axis_name, integer_labels=None)
        return of_statistics(lazy.statistics(layer, how), integer_labels=lazy.has_integer_labels(layer))
    arguments, axis = dense_arguments(arguments, axis, axis_name, integer_labels=None)
    return keep_statistics(functools.partial(dense_stats, axis=axis, axis_name=axis_name))(arguments)


def dense_arguments(arguments: Arguments, axis, axis_name, *, integer_labels) -> tuple[Arguments, int]:
    """Check the arguments of dense logits. Return them with one class axis, integer labels counted from the first local class, and this axis."""
    arguments = arguments._replace(logits=checks.logits(arguments.logits))
    arguments, axis = row_checks.checked(arguments, axis, integer_labels=integer_labels)
    if axis_name is not None:
        sharded_checks.split_classes("logits", arguments.logits, axis_name, axis)
    if isinstance(axis, tuple):
        arguments, axis = _with_one_class_axis(arguments, axis)
    logits, labels, class_weights = arguments.logits, arguments.labels, arguments.class_weights
    if class_weights is not None:  # used twice; the sum of its two cotangents is rounded once
        arguments = arguments._replace(class_weights=class_weights.astype(working_dtype(logits)))
    if labels.ndim < logits.ndim:
        labels = local_indices(labels, logits.shape[axis], axis_name)
        arguments = arguments._replace(logits=varying_like(logits, labels), labels=labels)
    return arguments, axis


def _with_one_class_axis(arguments: Arguments, axis: tuple[int, ...]) -> tuple[Arguments, int]:
    """Return the arguments with several class axes merged into one, the last."""
    logits, labels, where, weights = arguments.logits, arguments.labels, arguments.where, arguments.class_weights
    if labels.ndim == logits.ndim:
        labels = joined_axes(labels, axis)
    if where is not None:
        full = [size if i in axis else where.shape[i] for i, size in enumerate(logits.shape)]
        where = joined_axes(jnp.broadcast_to(where, full), axis)
    weights = None if weights is None else weights.reshape(-1)
    logits = joined_axes(logits, axis)
    return arguments._replace(logits=logits, labels=labels, where=where, class_weights=weights), logits.ndim - 1


def dense_stats(arguments: Arguments, *, axis: int, axis_name: AxisName = None) -> LogitStats:
    """Return `logit_stats` of checked arguments with local labels. A row whose `mask` is false has finite statistics."""
    stats = statistics(*arguments, axis=axis, axis_name=axis_name)
    return of_statistics(stats, integer_labels=arguments.labels.ndim < arguments.logits.ndim)


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
