"""How a derivative rule is put together: one definition for every mode, order and nesting.

A loss reads a large array and gives a few numbers per row. Reverse mode should keep that large array in its own dtype and those few
numbers, nothing else; forward mode and Hessians should work too. Two pieces give both:

- `with_rule` makes a function whose derivative is worked out from its arguments and results, so that a derivative of any order meets the
  rule again, and gives those results a name;
- `keep_statistics` is a `jax.checkpoint` that saves what bears that name and recomputes the rest from the arguments.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_NAME = "jaxce_statistics"


def with_rule(primal: Callable[..., Any], tangent: Callable[..., Any]) -> Callable[..., Any]:
    """`primal` with its derivative given by `tangent`.

    Args:
      primal: `primal(*args)` gives a tuple of arrays; an argument is an array or None. It is never differentiated.
      tangent: `tangent(args, outs, tangents)` gives the tangent of each output, linear in `tangents`, in which None stands for an argument
        that is not differentiated.

    Returns:
      A function of the same arguments. Static choices belong in a closure: as an argument they would be traced.
    """
    primal = jax.jit(primal, inline=True)  # traced once for all of its uses of the same types

    @jax.custom_jvp
    def function(*args):
        return made_of(primal(*jax.tree.map(lax.stop_gradient, args)), args, tangent)

    def rule(args, tangents):
        outs = tuple(checkpoint_name(out, _NAME) for out in function(*args))
        return outs, tangent(args, outs, tuple(map(none_if_absent, tangents)))

    function.defjvp(rule, symbolic_zeros=True)
    return function


def keep_statistics(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, for whose reverse pass only its arguments and the outputs of rules inside it are kept.

    It stands once, around a whole loss, so that whatever an option does to a large array on its way to the rule is recomputed too.
    """
    policy = jax.checkpoint_policies.save_only_these_names(_NAME)
    # The recomputation reads what the forward pass reads; barriers against common subexpressions would only keep XLA from fusing it.
    return jax.checkpoint(function, prevent_cse=False, policy=policy)


def made_of(outs: Sequence[Any], args: Sequence[Any], tangent: Callable[..., Any]) -> tuple[Any, ...]:
    """`outs`, whatever made them, as a function of `args` with the derivative `tangent`.

    It stands inside of a `jax.custom_jvp`: up to jax 0.11.2 reverse mode through a loop puts the code of that in its place, and forgets its rule.

    Args:
      outs: Arrays, made of `args` by code whose derivatives do not count: they stop there.
      args: Arrays or None.
      tangent: As for `with_rule`.
    """
    leaves, tree = jax.tree.flatten(tuple(args))

    def of_leaves(leaves, outs, tangents):
        return tangent(tree.unflatten(leaves), tuple(outs), tree.unflatten(tangents))

    return tuple(_made_of.bind(*outs, *leaves, number=len(outs), tangent=of_leaves))


def derived(function: Callable[..., Any]) -> Callable[..., Any]:
    """The tangent of the arrays that `function(*args)` gives, as JAX derives it: for `made_of`, where other code makes the same arrays."""
    return lambda args, _, tangents: jax.tree.leaves(jvp_by_some(function, args, tangents)[1])


def jvp_by_some(function: Callable[..., Any], args: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """`jax.jvp` by those of the arrays in `args` whose tangent is not None."""
    leaves, tree = jax.tree.flatten(tuple(args))
    dots = tree.flatten_up_to(tuple(tangents))
    moving = [i for i, dot in enumerate(dots) if dot is not None]

    def of_moving(*some):
        at = dict(zip(moving, some, strict=True))
        return function(*tree.unflatten([at.get(i, leaf) for i, leaf in enumerate(leaves)]))

    return jax.jvp(of_moving, [leaves[i] for i in moving], [dots[i] for i in moving])


_made_of = Primitive("jaxce_made_of")
_made_of.multiple_results = True


@_made_of.def_impl
def _outs(*operands, number, **_):
    return list(operands[:number])


_made_of.def_abstract_eval(_outs)


def _jvp(primals, tangents, *, number, tangent):
    outs = _made_of.bind(*primals, number=number, tangent=tangent)
    moves = [None if type(t) is ad.Zero else t for t in tangents[number:]]
    return outs, list(tangent(primals[number:], outs, moves))


def _batch(axis, operands, dims, *, number, tangent):
    if all(dim is None for dim in dims):
        return _made_of.bind(*operands, number=number, tangent=tangent), [None] * number
    operands = [x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(operands, dims, strict=True)]
    outs, leaves = operands[:number], operands[number:]
    # All of them, as tangents of any may depend on what is batched.
    outs = [
        jnp.broadcast_to(out, (axis.size, *out.shape)) if dim is None else out
        for out, dim in zip(outs, dims, strict=False)
    ]
    of_leaves = [None if dim is None else 0 for dim in dims[number:]]

    def of_batch(leaves, outs, tangents):
        of_tangents = [None if t is None else dim for t, dim in zip(tangents, of_leaves, strict=True)]
        axes = (of_leaves, 0, of_tangents)
        named = {"axis_name": axis.name, "axis_size": axis.size, "spmd_axis_name": axis.spmd_name}
        return jax.vmap(tangent, axes, **named)(list(leaves), list(outs), list(tangents))

    return _made_of.bind(*outs, *leaves, number=number, tangent=of_batch), [0] * number


ad.primitive_jvps[_made_of] = _jvp
batching.fancy_primitive_batchers[_made_of] = _batch
mlir.register_lowering(_made_of, mlir.lower_fun(_outs, multiple_results=True))


@jax.custom_jvp
def read_anew(large: Any, small: Any) -> Any:
    """`large`, of which XLA is to make nothing before `small` is known, nor share with others what it makes of it."""
    return lax.optimization_barrier((large, small))[0]


@read_anew.defjvp
def _read_anew_jvp(primals, tangents):
    # Not the barrier's own rule: in jax 0.12 its transpose fails inside of another derivative.
    return read_anew(*primals), tangents[0]


def none_if_absent(tangent):
    """A tangent as a rule gets it, but None for one that is known to be 0."""
    absent = tangent is None or isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0
    return None if absent else tangent
