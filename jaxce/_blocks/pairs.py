"""Divergences of two softmaxes of which at least one is that of a linear layer, in blocks of tokens with all their classes.

A divergence takes three passes over the classes (`jaxce._core.divergence`), and only the first two could be merged over blocks of classes. So a
block has whole rows: the logits of both softmaxes for some tokens, of the classes of this device. A divergence per token computes them once for
its value and once for its derivative. The sum of the divergences makes its gradients while the logits of a block are stored: two matmuls for the
logits, and two for each layer that is differentiated.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxce._blocks import loops
from jaxce._blocks.chunked import raw_logits_dot
from jaxce._blocks.reference import raw_logits
from jaxce._blocks.sizes import Blocks, Plans
from jaxce._core import pairs as dense
from jaxce._core.shaping import shaped
from jaxce._jax.axes import joined_first_axes, per_class
from jaxce._jax.mesh import AxisName
from jaxce._jax.programs import partial_jvp
from jaxce._jax.rules import with_rule


class Side(NamedTuple):
    """The logits of one softmax: those of a linear layer, or an array."""

    hidden: Any  # [tokens, features]; without a classifier these are the logits themselves
    classifier: Any = None  # [features, num_classes]
    bias: Any = None  # [num_classes]
    soft_cap: Any = None  # a scalar


class Sides(NamedTuple):
    """Two softmaxes and what they share. The shapes are for tokens with one axis; they may have any number."""

    target: Side
    student: Side
    where: Any = None  # [num_classes], boolean: the classes that take part
    mask: Any = None  # [tokens], boolean: the tokens that count
    temperature: Any = None  # [tokens]
    weight: Any = None  # a scalar: the weight of the target in the Jensen-Shannon divergence; None for that of Kullback and Leibler


class Block(NamedTuple):
    """The logits of both softmaxes for some tokens, and the arrays that change them: all that a divergence is computed from."""

    target: Any  # raw logits
    student: Any
    target_cap: Any
    student_cap: Any
    temperature: Any
    weight: Any


def divergences(sides: Sides, axis_name: AxisName):
    """Return the divergence of each token, with all logits stored."""
    sides = without_masked(sides)
    return of_block(axis_name, sides.where, sides.mask, block_of(sides))


@functools.cache
def divergences_in_blocks(plans: Plans, axis_name: AxisName):
    """Return the function of `Sides` that computes the divergence of each token, with its derivative rule. The tokens have one axis."""

    def value(sides):
        return plans.choose(functools.partial(_value_in_blocks, axis_name), sides)

    def tangent(args, _, tangents):
        return plans.choose(functools.partial(_tangent_in_blocks, axis_name), *args, *tangents)

    return with_rule(value, tangent)


def _value_in_blocks(axis_name, blocks: Blocks, sides: Sides):
    def of_rows(rows):
        return divergences(with_rows(sides, rows), axis_name)

    return loops.map_tokens(of_rows, rows_of(sides), blocks.tokens)


def _tangent_in_blocks(axis_name, blocks: Blocks, sides: Sides, dots: Sides):
    """Return the tangents of the divergences, linear in `dots`."""
    dtype = _dtype(sides)
    # Reverse mode sums the cotangents over blocks in the dtype of the tangents.
    dots = jax.tree.map(lambda dot: dot.astype(dtype), dots)

    # The checkpoint makes reverse mode recompute each block instead of storing residuals of every block.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def of_rows(rows):
        of_sides, of_dots = rows
        part, part_dots = without_masked(with_rows(sides, of_sides)), with_rows(dots, of_dots)
        block, block_dots = block_of(part), _block_dots(part, part_dots)
        arrays = (x if dot is None else x.astype(dtype) for x, dot in zip(block, block_dots, strict=True))
        # If the statistics of a block were kept, the pass that computes the value would compute all logits once more for them.
        function = functools.partial(of_block, axis_name, part.where, part.mask, is_kept=False)
        return partial_jvp(function, (Block(*arrays),), (block_dots,))[1]

    return loops.map_tokens(of_rows, (rows_of(sides), rows_of(dots)), blocks.tokens)


def of_block(axis_name, where, mask, block: Block, *, is_kept: bool = True):
    """Return the divergence of each token of a block."""
    axis = block.target.ndim - 1
    target = shaped(block.target, block.target_cap, None, None, axis=axis)
    student = shaped(block.student, block.student_cap, None, None, axis=axis)
    where = None if where is None else per_class(where, axis, target.ndim)
    arguments = target, student, block.temperature, where, mask, block.weight
    return dense.divergences(*arguments, axis=axis, axis_name=axis_name, is_kept=is_kept)


def block_of(sides: Sides) -> Block:
    """Return the raw logits of some tokens, and what changes them."""
    target, student = (_raw_logits(side, _dtype(sides)) for side in (sides.target, sides.student))
    return Block(target, student, sides.target.soft_cap, sides.student.soft_cap, sides.temperature, sides.weight)


def _raw_logits(side: Side, dtype):
    raw = side.hidden if side.classifier is None else raw_logits(side.hidden, side.classifier, side.bias)
    return raw.astype(dtype)


def _block_dots(sides: Sides, dots: Sides) -> Block:
    """Return the tangents of `block_of`; None for one that is 0."""
    pairs = (sides.target, dots.target), (sides.student, dots.student)
    target, student = (dot.hidden if side.classifier is None else raw_logits_dot(side, dot) for side, dot in pairs)
    return Block(target, student, dots.target.soft_cap, dots.student.soft_cap, dots.temperature, dots.weight)


def _dtype(sides: Sides):
    """Return the dtype of the divergences: float64 if any logits are."""
    arrays = (x for side in (sides.target, sides.student) for x in (side.hidden, side.classifier) if x is not None)
    return jnp.dtype(jnp.float64 if any(x.dtype == jnp.float64 for x in arrays) else jnp.float32)


def without_masked(sides: Sides) -> Sides:
    """Return the sides with zeros for masked tokens, so that their values cannot reach a gradient."""
    if sides.mask is None:
        return sides
    target, student = (
        side._replace(hidden=jnp.where(sides.mask[..., None], side.hidden, 0)) for side in (sides.target, sides.student)
    )
    return sides._replace(target=target, student=student)


def rows_of(sides: Sides) -> dict:
    """Return the arrays with one row per token."""
    target, student = sides.target.hidden, sides.student.hidden
    return {"target": target, "student": student, "mask": sides.mask, "temperature": sides.temperature}


def with_rows(sides: Sides, rows: dict) -> Sides:
    """Return the sides of some tokens."""
    return sides._replace(
        target=sides.target._replace(hidden=rows["target"]),
        student=sides.student._replace(hidden=rows["student"]),
        mask=rows["mask"],
        temperature=rows["temperature"],
    )


def flat_sides(sides: Sides) -> Sides:
    """Return the sides with their tokens on one axis."""
    ndim = sides.student.hidden.ndim - 1
    rows = jax.tree.map(lambda x: joined_first_axes(x, ndim), rows_of(sides))
    return with_rows(sides, rows)


def sides_like(gradients: Sides, sides: Sides) -> Sides:
    """Return the gradients with respect to `flat_sides` in the shapes of the sides."""
    pairs = zip(rows_of(gradients).values(), rows_of(sides).items(), strict=True)
    return with_rows(gradients, {name: None if g is None else g.reshape(x.shape) for g, (name, x) in pairs})
