"""The sum of the divergences of two softmaxes and its gradients, computed in one pass over blocks of tokens. `pairs` defines a block."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxce._blocks import loops
from jaxce._blocks.pairs import Block, Side, Sides, block_of, of_block, rows_of, with_rows, without_masked
from jaxce._blocks.reference import dot, operand_dtype
from jaxce._blocks.sizes import Blocks
from jaxce._core.weighting import times_loss
from jaxce._jax.mesh import AxisName, cotangent_share, varying_like


class _Sums(NamedTuple):
    """The sum of the divergences, and its gradients with respect to arrays without a token axis. None is not wanted."""

    total: Any
    target: Side
    student: Side
    weight: Any


def total_and_gradients(axis_name: AxisName, wanted: Sides, blocks: Blocks, sides: Sides, weights):
    """Return `(total, (of_sides, of_weights))`: the weighted sum of the divergences, and its gradients.

    Args:
      axis_name: The mesh axes that split the classes. The gradients with respect to the sides are then the contributions of this device.
      wanted: Booleans: which gradients are wanted; the others are None. The gradient with respect to the weights is the divergences.
      blocks: The blocks of tokens. Blocks with only masked tokens are skipped.
      sides: The tokens have one axis.
      weights: One number per token.
    """
    dtype = weights.dtype
    zeros = functools.partial(_zeros, dtype, (sides, weights))

    sums = _Sums(
        total=varying_like(jnp.zeros((), dtype), (sides, weights), but=axis_name or ()),
        target=_zeros_of_side(zeros, sides.target, wanted.target),
        student=_zeros_of_side(zeros, sides.student, wanted.student),
        weight=zeros(sides.weight) if wanted.weight else None,
    )
    of_rows = functools.partial(_of_rows, axis_name, wanted, blocks, sides)
    rows = rows_of(sides) | {"weights": weights}
    if loops.has_all(blocks.tokens, weights.shape[0]):
        sums, results = of_rows(sums, rows)
    else:
        # If devices communicate, each must visit all blocks.
        skips = axis_name is None and sides.mask is not None
        sums, results = loops.over_valid_tokens(
            of_rows, lambda *state: (state[0], state[2]), sums, rows, blocks, skips=skips
        )
    gradients = Sides(
        sums.target._replace(hidden=results["target"]),
        sums.student._replace(hidden=results["student"]),
        temperature=results["temperature"],
        weight=sums.weight,
    )
    return sums.total, (gradients, results["weights"])


def _of_rows(axis_name: AxisName, wanted: Sides, blocks: Blocks, sides: Sides, sums: _Sums, rows):
    """Add the divergences and gradients of a block of tokens. The results are those of these tokens."""
    part = without_masked(with_rows(sides, rows))
    # The sums of the gradients are in the dtype of the weights; a soft cap, a temperature or a weight may be narrower.
    block = jax.tree.map(lambda x: x.astype(rows["weights"].dtype), block_of(part))
    block = varying_like(block, (sides, rows["weights"]))
    moving = Block(*(x if is_moving else None for x, is_moving in zip(block, _moving(wanted), strict=True)))

    def total(moving: Block):
        whole = Block(*(x if y is None else y for x, y in zip(block, moving, strict=True)))
        losses = of_block(axis_name, part.where, part.mask, whole)
        return jnp.sum(times_loss(rows["weights"], losses)), losses

    value, pull, losses = jax.vjp(total, moving, has_aux=True)
    share, _ = cotangent_share(axis_name)
    (cts,) = pull(jnp.ones_like(value) * share)
    target, of_target = _add_products(blocks, wanted.target, sums.target, part.target, cts.target, cts.target_cap)
    student, of_student = _add_products(
        blocks, wanted.student, sums.student, part.student, cts.student, cts.student_cap
    )
    sums = _Sums(sums.total + value, target, student, _plus(sums.weight, cts.weight))
    return sums, {"target": of_target, "student": of_student, "temperature": cts.temperature, "weights": losses}


def _add_products(blocks: Blocks, wanted: Side, sums: Side, side: Side, raw_ct, cap_ct):
    """Return the sums with the gradients of a block of tokens added, and the gradient with respect to `hidden`."""
    sums = sums._replace(soft_cap=_plus(sums.soft_cap, cap_ct))
    if raw_ct is None or side.classifier is None:
        return sums, raw_ct
    narrow_ct = raw_ct.astype(operand_dtype(side.hidden, side.classifier)) if blocks.narrow else raw_ct
    if wanted.bias:
        sums = sums._replace(bias=sums.bias + jnp.sum(raw_ct, 0))
    if wanted.classifier:
        sums = sums._replace(classifier=loops.add_matmul(sums.classifier, loops.transposed(side.hidden), narrow_ct, 0))
    return sums, dot(narrow_ct, side.classifier, 1, 1) if wanted.hidden else None


def _moving(wanted: Sides) -> Block:
    """Return which parts of a block are differentiated."""
    target, student = (
        (side.hidden or side.classifier or side.bias, side.soft_cap) for side in (wanted.target, wanted.student)
    )
    return Block(target[0], student[0], target[1], student[1], wanted.temperature, wanted.weight)


def _zeros_of_side(zeros, side: Side, wanted: Side) -> Side:
    whole = zip(side, wanted, strict=True)
    return Side(*(zeros(x) if is_wanted else None for x, is_wanted in whole))._replace(hidden=None)


def _zeros(dtype, vary_like, array):
    return varying_like(jnp.zeros(array.shape, dtype), vary_like)


def _plus(total, part):
    return None if total is None else total + part
