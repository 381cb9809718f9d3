"""The sum of any formula over the statistics of a row, for dense logits and for linear layers. `_row_loss` has the public function."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxce import _dense as dense
from jaxce import _lazy as lazy
from jaxce._blocks.inputs import Inputs, with_row, without_masked
from jaxce._checks import formulas as formula_checks
from jaxce._checks import results as result_checks
from jaxce._checks.formulas import RowFunction
from jaxce._checks.rows import Arguments, Labels
from jaxce._core import of_counted_rows, statistics
from jaxce._core.definition import Statistics
from jaxce._jax.axes import row_shape
from jaxce._jax.mesh import axis_size
from jaxce._jax.primitives import used_arguments
from jaxce._jax.programs import trace
from jaxce._jax.rules import keep_statistics
from jaxce._lazy import Formula
from jaxce._linear_logits import LinearLogits
from jaxce._logit_stats import of_statistics
from jaxce._loss_sum import LossSum
from jaxce._types import working_dtype


class _RowFormula(NamedTuple):
    """A formula over the statistics of one row, with all that its trace depends on besides numbers. It holds no arrays: JAX's caches keep it."""

    function: RowFunction
    has_aux: bool
    has_weights: bool  # whether the first of the inputs per row is the weight of the row
    tree: Any  # of the other inputs per row
    num_classes: Any
    integer_labels: bool | None  # None without labels
    dtype: Any  # of the statistics

    def of_row(self, stats: Statistics, inputs: Inputs):
        """Return the weighted loss and the metrics of a row."""
        if not self.has_weights:
            return self._unweighted(stats, inputs)
        weight, inputs = inputs.per_row[0], inputs._replace(per_row=inputs.per_row[1:])
        loss, metrics = self._unweighted(stats, inputs)
        # An infinite loss of weight 0 counts as 0. Its derivatives may be NaN, so the loss is computed again for a row without it.
        is_finite = (weight != 0) | ~jnp.isinf(loss)
        loss, _ = self._unweighted(of_counted_rows(stats, is_finite), without_masked(inputs, is_finite))
        return weight * jnp.where(is_finite, loss, 0), metrics

    def _unweighted(self, stats: Statistics, inputs: Inputs):
        """Call the function. Inputs per row that are not in the tree become its last arguments."""
        number = self.tree.num_leaves
        args = self.tree.unflatten(inputs.per_row[:number]) + tuple(inputs.per_row[number:])
        logit_stats = of_statistics(stats, self.num_classes, integer_labels=self.integer_labels)
        value = self.function.call(inputs.bound, logit_stats, *args)
        loss, metrics = formula_checks.result(value, has_aux=self.has_aux)
        metrics = {name: lax.stop_gradient(x).astype(self.dtype) for name, x in metrics.items()}
        return loss.astype(self.dtype), metrics

    def of_counted_row(self, stats: Statistics, is_counted, inputs: Inputs):
        """Return the loss and the metrics of a row, 0 for a masked one. What such a row holds reaches no gradient."""
        stats, inputs = of_counted_rows(stats, is_counted), without_masked(inputs, is_counted)
        return jax.tree.map(lambda x: jnp.where(is_counted, x, 0), self.of_row(stats, inputs))

    def of_rows(self, stats: Statistics, mask, inputs: Inputs):
        """Return the losses and the metrics of some rows."""

        def of_row(stats, is_counted, per_row):
            row = inputs._replace(per_row=per_row)
            return self.of_row(stats, row) if is_counted is None else self.of_counted_row(stats, is_counted, row)

        for _ in range(stats.max_logit.ndim):
            of_row = jax.vmap(of_row)
        return of_row(stats, mask, inputs.per_row)


class _Rows(NamedTuple):
    """Properties of the rows that dense logits and linear layers share."""

    shape: tuple[int, ...]
    num_classes: Any
    dtype: Any
    has_integer_labels: bool
    mask: Any
    class_weights: Any


def sum_of_rows(
    loss, arguments: Arguments, per_row, weights, labels: Labels, axis, axis_name, *, has_aux=False, weighs_labels=False
) -> tuple[LossSum, dict[str, LossSum]]:
    """Return the sum of `loss(stats, *per_row)` over the rows that count, and the sums of its metrics.

    With `weighs_labels`, the labels are weighted by the class weights, and `loss` takes the weight of an integer label as its last argument.
    """
    function, bound = formula_checks.row_function(loss)
    options = {"labels": labels, "axis": axis, "axis_name": axis_name}
    options |= {"function": function, "has_aux": has_aux, "weighs_labels": weighs_labels}
    return _sum(arguments, formula_checks.per_row(per_row), weights, bound, **options)


_STATIC = ("function", "has_aux", "weighs_labels", "labels", "axis", "axis_name")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _sum(arguments, per_row, weights, bound, *, function, has_aux, weighs_labels, labels, axis, axis_name):
    has_labels = arguments.labels is not None
    if isinstance(arguments.logits, LinearLogits):
        layer, how = lazy.layer_of(arguments, axis, axis_name, labels)
        rows = _rows_of_layer(layer, arguments.logits.dtype)
        total = functools.partial(lazy.total, layer=layer, how=how)
    else:
        arguments, axis = dense.arguments_of(arguments, axis, axis_name, labels)
        rows = _rows_of_dense(arguments, axis)
        total = functools.partial(_dense_total, arguments=arguments, axis=axis, axis_name=axis_name)
    weights = result_checks.loss_weights(weights, rows.shape)
    leaves, tree = jax.tree.flatten(per_row)
    leaves = [formula_checks.array_per_row(x, rows.shape) for x in leaves]
    inputs = Inputs(leaves if weights is None else [weights.astype(rows.dtype), *leaves], bound)
    inputs = jax.tree.map(lambda x: x.astype(rows.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, inputs)
    has_integers, size = rows.has_integer_labels if has_labels else None, rows.num_classes * axis_size(axis_name)
    formula = _RowFormula(function, has_aux, weights is not None, tree, size, has_integers, rows.dtype)
    has_label_weight = weighs_labels and bool(has_integers) and rows.class_weights is not None
    used, metrics = _checked_formula(formula, inputs, len(rows.shape), has_label_weight)
    value, sums = total(Formula(formula.of_rows, used, metrics, weighs_labels), inputs=inputs)
    count = (
        jnp.asarray(math.prod(rows.shape), rows.dtype) if rows.mask is None else jnp.sum(rows.mask, dtype=rows.dtype)
    )
    weight = count if weights is None else LossSum.of(jnp.ones(rows.shape, rows.dtype), weights, rows.mask).weight
    return _of_sums(value, weight), {name: _of_sums(x, count) for name, x in sums.items()}


def _rows_of_layer(layer, dtype):
    shape, num_classes = layer.hidden.shape[:-1], layer.classifier.shape[1]
    return _Rows(shape, num_classes, dtype, lazy.has_integer_labels(layer), layer.mask, layer.class_weights)


def _rows_of_dense(arguments: Arguments, axis):
    logits = arguments.logits
    shape, num_classes = row_shape(logits.shape, axis), logits.shape[axis]
    has_integers, dtype = dense.has_integer_labels(arguments), working_dtype(logits)
    return _Rows(shape, num_classes, dtype, has_integers, arguments.mask, arguments.class_weights)


def _dense_total(formula: Formula, *, arguments: Arguments, inputs: Inputs, axis, axis_name):
    def of_rows(arguments, inputs):
        label_weight = None
        if formula.weighs_labels:
            arguments, label_weight = dense.weigh_labels(arguments, axis, axis_name)
        stats = statistics(*arguments, axis=axis, axis_name=axis_name)
        return formula.function(stats, arguments.mask, with_row(inputs, label_weight))

    return jax.tree.map(jnp.sum, keep_statistics(of_rows)(arguments, inputs))


def _checked_formula(formula: _RowFormula, inputs: Inputs, ndim: int, has_label_weight: bool):
    """Trace and check the formula. Return the names of the statistics that the derivative of the loss depends on, and those of the metrics."""
    scalar = jax.ShapeDtypeStruct((), formula.dtype)
    stats = Statistics(*[scalar] * len(Statistics._fields))._replace(prediction=jax.ShapeDtypeStruct((), jnp.int32))
    names = tuple(name for name in Statistics._fields if name not in ("max_logit", "num_classes", "prediction"))
    of_row = [jax.ShapeDtypeStruct(x.shape[ndim:], x.dtype) for x in inputs.per_row] + [scalar] * has_label_weight
    bound = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs.bound]

    def tangent(dots, stats, inputs):
        moving = {name: getattr(stats, name) for name in names}
        of_row = functools.partial(_of_some, formula, stats, inputs)
        _, dot, metrics = jax.jvp(of_row, (moving,), (dict(zip(names, dots, strict=True)),), has_aux=True)
        return dot, metrics

    program = trace(tangent, ((scalar,) * len(names), stats, Inputs(of_row, bound)))
    formula_checks.has_no_traced_closure(program.code.consts)
    _, metrics = program.out_tree.unflatten(program.code.out_avals)
    is_used = used_arguments(program, result=0)[: len(names)]  # the tangents are the first arguments
    return tuple(name for name, is_one in zip(names, is_used, strict=True) if is_one), tuple(metrics)


def _of_some(formula: _RowFormula, stats: Statistics, inputs: Inputs, some: dict):
    return formula.of_row(stats._replace(**some), inputs)


def _of_sums(total, weight):
    zero = jnp.zeros((), total.dtype)
    return LossSum(total, weight, zero, zero)
