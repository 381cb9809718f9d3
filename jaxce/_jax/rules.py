"""How a derivative rule is put together: one rule serves every mode, order and nesting; a form only computes.

A loss reads a large array and gives a few numbers per row. Reverse mode should keep that large array in its own dtype and those few numbers,
nothing else; forward mode and Hessians should work too. Two pieces give both:

- `with_rule` makes a function whose derivative is computed from its arguments and results, and names those results;
- `keep_statistics` is a `jax.checkpoint` that saves what bears that name and recomputes the rest from the arguments.

`choose` and `linear` are for functions that JAX differentiates as they are defined, while a platform may compute them by other code.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from jaxce._jax.primitives import call
from jaxce._jax.programs import partial_jvp, trace

Function = Callable[..., Any]

_NAME = "jaxce_statistics"


def with_rule(value: Function, tangent: Function, higher: Function | None = None, *, is_kept: bool = True) -> Function:
    """Return the function `value`, whose derivative is `tangent`.

    Args:
      value: `value(*args)` returns a pytree of arrays; an argument is a pytree. It is never differentiated.
      tangent: `tangent(args, outs, tangents)` returns the tangent of each result, linear in `tangents`; None stands for a tangent that is 0.
      higher: The same, for derivatives of the second order and above; `tangent` by default.
      is_kept: Whether `keep_statistics` around the function saves the results for the reverse pass. Otherwise it recomputes them.
    """

    def function(*args):
        program = trace(value, args)
        return call(program, args, jvp=functools.partial(_jvp_by_rule, program, tangent, higher or tangent, is_kept))

    return function


def _jvp_by_rule(program, tangent, higher, is_kept, args, tangents):
    outs = call(program, args, jvp=functools.partial(_jvp_by_rule, program, higher, higher, is_kept))
    if is_kept:
        outs = jax.tree.map(lambda out: checkpoint_name(out, _NAME), outs)
    return outs, tangent(args, outs, tangents)


def with_jvp(function: Function, jvp: Function) -> Function:
    """Return `function`, whose derivative is given by `jvp(args, tangents)`: the results and their tangents."""
    return lambda *args: call(trace(function, args), args, jvp=jvp)


def with_definition(function: Function, definition: Function) -> Function:
    """Return `function`, which is differentiated as `definition`, another spelling of the same function."""
    return with_jvp(function, functools.partial(partial_jvp, definition))


def choose(default: Function, *args, cpu: Function | None = None, gpu: Function | None = None):
    """Return `default(*args)`, computed by the form of the platform if there is one, and differentiated as `default`."""
    if cpu is None and gpu is None:
        return default(*args)
    return call(trace(default, args), args, jvp=functools.partial(partial_jvp, default), cpu=cpu, gpu=gpu)


def choose_on_auto_mesh(default: Function, *args, partitioned: Function):
    """Return `default(*args)`, computed by `partitioned` where XLA can ask how to partition it, and differentiated as `default`."""
    jvp = functools.partial(partial_jvp, default)
    return call(trace(default, args), args, jvp=jvp, on_auto_mesh=trace(partitioned, args))


def linear(function: Function, transpose: Function, x, *others):
    """Return `function(x, *others)`, which is linear in the pytree `x`. `transpose(cotangents, *others)` is its transpose."""
    args = (x, *others)
    return call(trace(function, args), args, jvp=functools.partial(partial_jvp, function), transpose=transpose)


def inlined(function: Function) -> Function:
    """Return `function`, which has no loops, traced as one program.

    JAX otherwise traces and lowers each call of a function of `jnp` as a program of its own, which takes half as long again.
    """

    @functools.wraps(function)
    def traced(*args, **options):
        with jax.disable_jit():
            return function(*args, **options)

    return traced


def keep_statistics(function: Function) -> Function:
    """Return `function`. Its reverse pass keeps its arguments and the results of rules inside it, and recomputes everything else.

    It stands once, around a whole loss. So whatever an option does to a large array before the rule is recomputed too.
    """
    # Barriers against common subexpressions (`prevent_cse`) would save no memory here, and would keep XLA from fusing the recomputation.
    return jax.checkpoint(function, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(_NAME))
