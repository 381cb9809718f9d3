"""How a derivative rule is put together: one definition for every mode, order and nesting.

A loss reads a large array and gives a few numbers per row. Reverse mode should keep that large array in its own dtype and those few
numbers, nothing else; forward mode and Hessians should work too. Two pieces give both:

- `with_rule` makes a `jax.custom_jvp` whose rule takes the values it needs from the function itself, so that a derivative of any order
  meets the rule again, and gives them a name;
- `keep_statistics` is a `jax.checkpoint` that saves what bears that name and recomputes the rest from the arguments.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

_NAME = "jaxce_statistics"


def with_rule(primal: Callable[..., Any], tangent: Callable[..., Any]) -> Callable[..., Any]:
    """`primal` with its derivative given by `tangent`.

    Args:
      primal: `primal(*args)` gives a tuple of arrays; an argument is an array or None. Its code must differentiate correctly by itself:
        up to jax 0.11.2, reverse mode through a loop takes second derivatives from this code instead of the rule.
      tangent: `tangent(args, outs, tangents)` gives the tangent of each output, linear in `tangents`, in which None stands for an argument
        that is not differentiated.

    Returns:
      A function of the same arguments. Static choices belong in a closure: as an argument they would be traced.
    """
    primal = jax.jit(primal, inline=True)  # traced once for all of its uses of the same types

    @jax.custom_jvp
    def function(*args):
        return primal(*args)

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
