"""Functions of pytrees: traced as programs, and differentiated with respect to some of their arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Program(NamedTuple):
    """A function of pytrees, traced for arguments of some types."""

    code: Any
    out_tree: Any


def trace(function: Callable[..., Any], args) -> Program:
    """Trace a function. What depends on an option belongs in a closure: an argument is traced."""
    leaves, tree = jax.tree.flatten(tuple(args))
    code, outs = jax.make_jaxpr(lambda *leaves: function(*tree.unflatten(leaves)), return_shape=True)(*leaves)
    return Program(code, jax.tree.structure(outs))


def partial_jvp(function: Callable[..., Any], args, tangents):
    """Return `jax.jvp` with respect to those arrays in `args` whose tangent is not None."""
    leaves, tree = jax.tree.flatten(tuple(args))
    dots = tree.flatten_up_to(tuple(tangents))
    moving = [i for i, dot in enumerate(dots) if dot is not None]

    def of_moving(*some):
        at = dict(zip(moving, some, strict=True))
        return function(*tree.unflatten([at.get(i, leaf) for i, leaf in enumerate(leaves)]))

    return jax.jvp(of_moving, [leaves[i] for i in moving], [dots[i] for i in moving])
