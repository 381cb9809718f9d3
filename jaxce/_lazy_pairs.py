"""The divergences of two softmaxes of which at least one is lazy, from checked arguments to blocks. `_divergence` has the public functions."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxce._blocks.choice import Chunked, Implementation, Split
from jaxce._blocks.mesh import CLASSES, FEATURES, Layout, mesh_and_layout, over_mesh, token_letters
from jaxce._blocks.pair_sums import total_and_gradients
from jaxce._blocks.pairs import Side, Sides, divergences, divergences_in_blocks, flat_sides, sides_like
from jaxce._blocks.plans import plans_of_divergences
from jaxce._blocks.reference import narrows_gradients
from jaxce._blocks.sizes import Plans
from jaxce._core.weighting import times_loss
from jaxce._jax.mesh import AxisName, cotangent_share, is_inside_shard_map, is_on_auto_mesh, psum_over, varying_like
from jaxce._jax.rules import keep_statistics, with_definition, with_jvp


class How(NamedTuple):
    """How the divergences are computed."""

    axis_name: AxisName
    split: Split | None
    implementations: tuple[Implementation, ...]  # of the layers


def losses(sides: Sides, how: How):
    """Return the divergence of each token."""

    def on_device(sides, axis_name):
        return _losses(sides, axis_name, how.implementations)

    return _on_devices(on_device, (sides,), how, is_sum=False)


def total(sides: Sides, weights, how: How):
    """Return the sum of the divergences of all tokens that count, each times its weight."""

    def on_device(sides, weights, axis_name):
        return _total(axis_name, how.implementations, sides, weights)

    return _on_devices(on_device, (sides, weights), how, is_sum=True)


def _on_devices(function, arrays, how: How, *, is_sum: bool):
    """Return `function(*arrays, axis_name)`. If it is known how the arrays are split, each device computes its own tokens and classes."""
    sides, *_ = arrays
    layers = [side for side in (sides.student, sides.target) if side.classifier is not None]
    leaves = jax.tree.leaves(arrays)
    mesh, layout = None, Layout((), how.axis_name or (), ())
    if how.axis_name is None:
        mesh, layout = mesh_and_layout(layers[0].hidden, layers[0].classifier, leaves, how.split)
    layout = layout._replace(
        features=()
    )  # the features of each classifier are gathered where the arrays are put on their devices

    def on_device(*arrays):
        # The gradient with respect to a replicated array is summed over the devices once, not in every block.
        sides, *others = arrays
        floating = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, sides)
        varying = varying_like(floating, arrays)
        sides = jax.tree.map(lambda x, y: x if y is None else y, sides, varying)
        others = varying_like(others, arrays, but=layout.classes)
        result = function(sides, *others, layout.classes or None)
        return psum_over(layout.over_tokens or None, result) if is_sum else result

    on_device = on_device if is_sum else keep_statistics(on_device)
    if mesh is None:
        return on_device(*arrays)
    of_rows = None if is_sum else jax.typeof(sides.student.hidden).sharding.spec[:-1]
    letters = (_letters(sides), *[token_letters(x.ndim) for x in arrays[1:]])
    return over_mesh(on_device, mesh, layout, tuple(arrays), letters, of_rows=of_rows)


def _letters(sides: Sides) -> Sides:
    """Return the letters of the axes of each array."""
    tokens = token_letters(sides.student.hidden.ndim - 1)

    def of_side(side: Side):
        if side.classifier is None:
            return Side((*tokens, CLASSES), soft_cap=side.soft_cap)
        return Side(
            (*tokens, FEATURES),
            ("w", CLASSES),
            side.bias if side.bias is None else (CLASSES,),
            None if side.soft_cap is None else (),
        )

    shared = {"where": (CLASSES,), "mask": tokens, "temperature": tokens, "weight": ()}
    shared = {name: None if getattr(sides, name) is None else axes for name, axes in shared.items()}
    return Sides(of_side(sides.target), of_side(sides.student), **shared)


def _plans(sides: Sides, implementations):
    layers = [side for side in (sides.target, sides.student) if side.classifier is not None]
    if None in implementations or "chunked" in implementations:
        on_auto = [
            is_on_auto_mesh(x) and not is_inside_shard_map(x) for x in jax.tree.leaves((sides.target, sides.student))
        ]
        if any(on_auto) and not any(isinstance(each, Chunked) for each in implementations):
            return None  # XLA decides later which device has which tokens
    tokens = sides.student.hidden.size // sides.student.hidden.shape[-1]
    narrow = any(narrows_gradients(side.hidden, side.classifier, on_cpu=False) for side in layers)
    return plans_of_divergences(implementations, tokens, layers[0].classifier.shape[1], narrow=narrow)


def _losses(sides: Sides, axis_name, implementations):
    plans = _plans(sides, implementations)
    if plans is None:
        return divergences(sides, axis_name)
    return divergences_in_blocks(plans, axis_name)(flat_sides(sides)).reshape(sides.student.hidden.shape[:-1])


def _total(axis_name, implementations, sides: Sides, weights):
    """Return the sum. The rule computes the gradients together with the value."""
    of_tokens = functools.partial(_losses, axis_name=axis_name, implementations=implementations)

    def plain(sides, weights):
        return jnp.sum(times_loss(weights, keep_statistics(of_tokens)(sides)))

    plans = _plans(sides, implementations)
    if plans is None:
        return plain(sides, weights)

    def jvp(args, dots):
        value, (of_sides, of_weights) = _with_gradients(plain, plans, axis_name, args, dots)
        return value, psum_over(axis_name, _inner(of_sides, dots[0], value)) + _inner(of_weights, dots[1], value)

    return with_jvp(plain, jvp)(sides, weights)


def _inner(gradients, dots, like):
    """Return the sum of the products of the gradients and the tangents of those arrays whose tangent is not a symbolic zero."""
    gradients, dots = (jax.tree.leaves(tree, is_leaf=lambda x: x is None) for tree in (gradients, dots))
    pairs = [(g, t) for g, t in zip(gradients, dots, strict=True) if g is not None and t is not None]
    return sum((jnp.sum(g * t.astype(g.dtype)) for g, t in pairs), jnp.zeros_like(like))


def _with_gradients(plain, plans: Plans, axis_name, args, dots):
    """Return the sum and its gradients; None for one that is not wanted. Their derivatives are those of `plain`.

    The gradients with respect to the sides are the contributions of this device's classes.
    """
    wanted = jax.tree.map(lambda _, dot: dot is not None, args, dots)

    def by_definition(*args):
        moving = jax.tree.map(lambda x, is_wanted: x if is_wanted else None, args, wanted)
        value, pull = jax.vjp(functools.partial(_of_moving, plain, args), moving)
        share, whole = cotangent_share(axis_name)
        of_sides, of_weights = jax.tree.map(lambda g: g.astype(value.dtype), pull(jnp.ones_like(value) * share)[0])
        return value, (of_sides, jax.tree.map(whole, of_weights))

    return with_definition(functools.partial(_in_one_pass, plans, axis_name, wanted), by_definition)(*args)


def _of_moving(plain, args, moving):
    return plain(*jax.tree.map(lambda x, y: x if y is None else y, args, moving))


def _in_one_pass(plans: Plans, axis_name, wanted, sides: Sides, weights):
    of_sides, of_weights = wanted
    function = functools.partial(total_and_gradients, axis_name, of_sides)
    value, (gradients, losses) = plans.choose(function, flat_sides(sides), weights.reshape(-1))
    return value, (sides_like(gradients, sides), losses.reshape(weights.shape) if of_weights else None)
