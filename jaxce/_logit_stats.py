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
    spread          sum_k p_k (max_logit - z_k)     >= 0    where p = softmax(z)
    expected_nll    sum_k p_k (log_z - z_k)         >= 0    the entropy, log1p(sum_exp_rest) + spread
    top_nll         log_z - max_logit               >= 0    log1p(sum_exp_rest), the negative log-likelihood of the prediction
    prediction      the first maximal class                 -1 in a row without one

Statistics of disjoint sets of classes merge into the statistics of all the classes. The merge is associative. A negative log-likelihood is
stored whole, not as terms to be added later. So it has its own cotangent, and `p - q` at the true class is not rounded away in a larger term.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._checks import results as result_checks
from jaxce._core.definition import Statistics
from jaxce._core.merge import merge
from jaxce._types import Array, exportable


@exportable
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogitStats:
    r"""The statistics of each row of logits that a softmax cross-entropy needs; `logit_stats` returns them.

    Every field but `integer_labels` is an array with one number per row. The logits are :math:`z`, the label distribution is :math:`q` (one-hot
    for an integer label), and the class weights are :math:`u` (ones by default).

    Attributes:
      max_logit: :math:`\max_k z_k`; differentiation treats it as a constant. `log_z - top_nll` is the same number with its derivative.
      sum_exp_rest: :math:`\sum_k e^{z_k - \max_j z_j} - 1`, not negative. A tiny sum keeps its relative precision.
      label_nll: :math:`\sum_k q_k (\log Z - z_k)`; 0 for an integer label that is not one of these classes. Use `nll`, which is NaN for such a
        label, unless more classes are still to be merged.
      label_mass: :math:`\sum_k q_k`; for an integer label, 1 if the label is one of these classes, else 0. Its derivative with respect to the
        probability of a class that takes no part is 0.
      uniform_nll: :math:`\sum_k u_k (\log Z - z_k)`.
      weight_sum: :math:`\sum_k u_k`.
      num_classes: The number of classes that take part: `where` allows them and their logit is not -inf. An integer; 0 for a row with a NaN.
      top_label_mass: :math:`\sum_k q_k` over the maximal classes, those with :math:`z_k = \max_j z_j`. Use `correct`.
      spread: :math:`\sum_k p_k (\max_j z_j - z_k)` where :math:`p` is the softmax; differentiation treats the maximum as a constant.
      expected_nll: :math:`\sum_k p_k (\log Z - z_k)`. Use `entropy`, which is NaN where it is not defined.
      top_nll: :math:`\log Z - \max_k z_k`, the negative log-likelihood of the prediction. Use `confidence`.
      prediction: The index of the first class with the largest logit, an integer; -1 for a row with a NaN and for one in which no class takes part.
      size: The number of all classes, those that take no part included; an integer.
      integer_labels: Whether the labels were class indices, not class probabilities; None without labels. The statistics of the labels
        (`label_nll`, `label_mass`, `top_label_mass`) are then None.

    If a function returns a LogitStats, `jax.jvp` returns its tangents as a LogitStats too. The fields of the tangents are the tangents of the
    fields. The properties of the tangents raise an error.

    Example:
      >>> from jaxce import logit_stats
      >>> left = jax.numpy.array([[1.0, 2.0]])
      >>> right = jax.numpy.array([[3.0, -1.0]])
      >>> label = jax.numpy.array([2])
      >>> whole = LogitStats.merge(logit_stats(left, label), logit_stats(right, label - 2))
      >>> print(whole.nll.round(4), whole.log_z.round(4))
      [0.4197] [3.4197]

    References:
      Guide: docs/pages/guides/your_own_loss.md
    """

    max_logit: Array
    sum_exp_rest: Array
    label_nll: Array
    label_mass: Array
    uniform_nll: Array
    weight_sum: Array
    num_classes: Array
    top_label_mass: Array
    spread: Array
    expected_nll: Array
    top_nll: Array
    prediction: Array
    size: Array
    integer_labels: bool | None = dataclasses.field(metadata={"static": True})

    @property
    def log_norm(self) -> Array:
        """`log sum_k exp(z_k - max_logit)`, not negative. Differentiation treats `max_logit` as a constant; `top_nll` has the whole derivative."""
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
        result_checks.with_labels(self, "nll")
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
    def entropy(self) -> Array:
        """`sum_k p_k (log_z - z_k)`, the entropy of the softmax `p`, not negative."""
        result_checks.not_tangents(self, "entropy")
        return _nan_unless(_is_defined(self.max_logit, self.expected_nll), self.expected_nll)

    @property
    def confidence(self) -> Array:
        """`max_k p_k`: the probability of the prediction."""
        result_checks.not_tangents(self, "confidence")
        nll = _nan_unless(_is_defined(self.max_logit, self.top_nll), self.top_nll)
        # The value is that of the quotient, which rounds less than an exponential; the exponential of 0 has the derivative.
        return lax.stop_gradient(1 / (1 + self.sum_exp_rest)) * jnp.exp(lax.stop_gradient(nll) - nll)

    @property
    def correct(self) -> Array:
        """Whether the integer label is a class with the largest logit. False for a label that is not a class and for a row with a NaN."""
        result_checks.not_tangents(self, "correct")
        result_checks.of_integer_labels(self)
        return self.top_label_mass > 0

    @staticmethod
    def merge(a: LogitStats, b: LogitStats) -> LogitStats:
        """Return the statistics over the classes of `a`, followed by those of `b`. The `prediction` counts the classes in this order."""
        result_checks.mergeable(a, b)
        merged = merge(_floating(a), _floating(b, first_class=a.size))
        return of_statistics(merged, a.size + b.size, integer_labels=a.integer_labels)


def of_statistics(stats: Statistics, size, *, integer_labels: bool | None) -> LogitStats:
    """Return the `LogitStats` of `Statistics`, whose numbers of classes are floating. `size` is the number of all classes.

    If `integer_labels` is None, the statistics of the labels are left out.
    """
    is_counted = jnp.isfinite(stats.num_classes)  # NaN for a row with a NaN
    num_classes = jnp.where(is_counted, lax.stop_gradient(stats.num_classes), 0).astype(jnp.int32)
    stats = stats._replace(num_classes=num_classes)
    size = 0 * stats.prediction + size  # split over devices like the others; jnp.full_like with jax 0.12 is not
    if integer_labels is None:
        stats = stats._replace(label_nll=None, label_mass=None, top_label_mass=None)
    return LogitStats(*stats, size, integer_labels=integer_labels)


def _floating(stats: LogitStats, first_class: Array | int = 0) -> Statistics:
    """Return the `Statistics` of a `LogitStats`, whose predictions then count from `first_class`."""
    zeros = jnp.zeros_like(stats.spread)
    fields = {name: zeros if (x := getattr(stats, name)) is None else x for name in Statistics._fields}
    num_classes = stats.num_classes.astype(stats.sum_exp_rest.dtype)
    prediction = jnp.where(stats.prediction < 0, -1, stats.prediction + first_class)
    return Statistics(**fields | {"num_classes": num_classes, "prediction": prediction})


def _is_defined(max_logit, nll):
    """Return False for a row with a NaN, a row without classes, and a row with a +inf logit unless all of the label is on that class."""
    return (max_logit > -jnp.inf) & ((max_logit < jnp.inf) | (nll == 0))


def _nan_unless(defined, values):
    """Multiply undefined values by NaN. The gradient is then NaN too, because a row without a defined loss must not train a model."""
    return values * jnp.where(defined, 1.0, jnp.nan)
