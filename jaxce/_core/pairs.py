"""Divergences of dense logits, with their derivative rules: `divergence` says what is computed.

XLA for CPU writes arrays as large as the logits between its loops. So its form computes some rows at a time, whose arrays stay in the cache: at
(8192, 1000) and (256, 50257) the value and the gradient take 0.6 times as long on one core, and the memory of a part.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._core import divergence as definition
from jaxce._core.divergence import Rows
from jaxce._core.shaping import counted_temperature, nan_unless_positive, shaped
from jaxce._jax.axes import is_known, per_row
from jaxce._jax.mesh import AxisName, is_explicit, is_on_auto_mesh, psum_over, varying_like
from jaxce._jax.programs import partial_jvp
from jaxce._jax.rules import choose, linear, with_rule

# The number of logits in a part of the form for CPU: large enough for several threads, and small enough for the cache.
_PART = 2**19


def divergences(
    target, logits, temperature, where, mask, weight, *, axis: int, axis_name: AxisName = None, is_kept: bool = True
):
    """Return the divergence of each row: that of Kullback and Leibler without a `weight`, that of Jensen and Shannon with one.

    The logits are in the same dtype. They may be those of some of the classes: with an `axis_name`, the divergences are those of the classes of all
    devices. A masked row has divergence 0, whatever it holds. `is_kept` says whether reverse mode saves the statistics of the rows.
    """
    if mask is not None:
        target, logits = (jnp.where(per_row(mask, axis), z, 0) for z in (target, logits))
        temperature = counted_temperature(temperature, mask)
    target, logits = (shaped(z, None, None, where, axis=axis) for z in (target, logits))
    target, logits = varying_like((target, logits), (target, logits))
    if temperature is not None:
        temperature = nan_unless_positive(temperature.astype(logits.dtype))
    rows = Rows(target, logits, temperature, None)
    target_max, max_, target_sum, sum_, excess = _sums_with_rule(axis, axis_name, is_kept)(rows)
    # If one of the softmaxes has no class, the gradients with respect to both are NaN.
    has_classes = (target_sum > 0) & (sum_ > 0)
    target_sum, sum_ = (jnp.where(has_classes, x, jnp.nan) for x in (target_sum, sum_))
    if weight is not None:
        weight = jnp.broadcast_to(weight.astype(logits.dtype), target_sum.shape)
    sums = {"target_sum": target_sum, "sum": sum_, "excess": excess}
    rows = rows._replace(weight=weight, target_max=target_max, max=max_, **sums)
    losses = psum_over(axis_name, _with_rule(axis, is_kept)(rows))
    return losses if mask is None else jnp.where(mask, losses, 0)


@functools.cache
def _sums_with_rule(axis, axis_name, is_kept):
    def value(rows: Rows):
        largest = [jnp.max(z, axis) for z in (rows.target, rows.logits)]
        if axis_name is not None:
            largest = lax.pmax(largest, axis_name)
        rows = rows._replace(target_max=largest[0], max=largest[1])
        sums = _by_platform(functools.partial(definition.sums, axis=axis), axis, rows)
        return *largest, *psum_over(axis_name, sums)

    def tangent(args, outs, tangents):
        (rows,), (target_max, max_, *_), (dots,) = args, outs, tangents
        rows = rows._replace(target_max=target_max, max=max_)
        return None, None, *psum_over(axis_name, definition.sums_jvp(rows, dots, axis=axis)), None

    return with_rule(value, tangent, is_kept=is_kept)


@functools.cache
def _with_rule(axis, is_kept):
    function = functools.partial(definition.divergence, axis=axis)

    def value(rows: Rows):
        return _by_platform(function, axis, rows)

    def tangent(args, _, tangents):
        (rows,), (dots,) = args, tangents
        transpose = functools.partial(_transpose, function, axis, jax.tree.map(lambda _: True, dots))
        return linear(functools.partial(_jvp, function), transpose, dots, rows)

    return with_rule(value, tangent, is_kept=is_kept)


def _jvp(function, dots: Rows, rows: Rows):
    return partial_jvp(function, (rows,), (dots,))[1]


def _transpose(function, axis, moving: Rows, cotangent, rows: Rows) -> Rows:
    """Return the cotangents of the arrays that are `moving`: the transpose of `_jvp`."""

    def of_rows(args):
        cotangent, rows = args
        some = jax.tree.map(lambda x, is_moving: x if is_moving else None, rows, moving)
        _, pull = jax.vjp(functools.partial(_of_some, function, rows), some)
        return pull(cotangent)[0]

    return _by_platform(of_rows, axis, (cotangent, rows))


def _of_some(function, rows: Rows, some: Rows):
    return function(jax.tree.map(lambda x, y: x if y is None else y, rows, some))


def _by_platform(function, axis, rows):
    """Return `function(rows)`, computed in parts of the rows on a CPU. `rows` is a pytree of arrays with one row, or one number, per row."""
    logits = max(jax.tree.leaves(rows), key=lambda x: x.ndim)
    in_parts = functools.partial(_in_parts, function, logits.shape) if _suits(logits, axis) else None
    return choose(function, rows, cpu=in_parts)


def _suits(logits, axis) -> bool:
    """Whether the form in parts of rows is faster or smaller than the definition."""
    if axis != logits.ndim - 1 or not is_known(*logits.shape):
        return False
    return logits.size > _PART and not (is_explicit(logits) or is_on_auto_mesh(logits))


def _in_parts(function, shape, rows):
    """Compute some rows at a time. The last part may repeat rows of the one before it."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(shape) - 1 :]), rows)
    number = math.prod(shape[:-1])
    size = max(1, min(_PART // shape[-1], number))

    def of_part(i):
        start = jnp.minimum(i * size, number - size)
        return start, function(jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), flat))

    def step(i, outs):
        start, parts = of_part(i)
        return jax.tree.map(lambda x, part: lax.dynamic_update_slice_in_dim(x, part, start, 0), outs, parts)

    shapes = jax.eval_shape(of_part, 0)[1]
    zeros = jax.tree.map(lambda x: varying_like(jnp.zeros((number, *x.shape[1:]), x.dtype), x), shapes)
    outs = lax.fori_loop(0, -(-number // size), step, zeros)
    return jax.tree.map(lambda x: x.reshape(*shape[:-1], *x.shape[1:]), outs)
