"""The one primitive of the library, and the only module that imports `jax.extend` and `jax.interpreters`.

`jaxce_call` is a function that is differentiated by rules of ours, and that a platform may compute by other code: a form. JAX has no public
function for that:

- `jax.custom_jvp` has no transpose of its own. Up to jax 0.11.2 its rule is also lost: reverse mode through `lax.scan` or `lax.map`
  differentiates the code of a `custom_jvp` function that its own rule calls, as every rule for derivatives of any order does.
- `jax.custom_vjp` has no forward mode. `jax.custom_derivatives.linear_call` has a transpose, but no batching rule, and it cannot be
  differentiated with respect to what its linear function depends on. https://github.com/jax-ml/jax/issues/9129 follows custom transposes.
- `jax.lax.platform_dependent` traces the code of all platforms, and differentiates that of each.

The reproducers are in `tests/derivatives/test_primitives.py`. Each fails, or is skipped, once JAX has what it shows to be missing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

_call = Primitive("jaxce_call")
_call.multiple_results = True


class Program(NamedTuple):
    """A function of pytrees, traced for arguments of some types."""

    code: Any
    out_tree: Any


def trace(function: Callable[..., Any], args) -> Program:
    """Trace a function. What depends on an option belongs in a closure: an argument is traced."""
    leaves, tree = jax.tree.flatten(tuple(args))
    code, outs = jax.make_jaxpr(lambda *leaves: function(*tree.unflatten(leaves)), return_shape=True)(*leaves)
    return Program(code, jax.tree.structure(outs))


def call(
    program: Program,
    args,
    *,
    jvp: Callable[..., Any],
    transpose: Callable[..., Any] | None = None,
    cpu: Callable[..., Any] | None = None,
    gpu: Callable[..., Any] | None = None,
):
    """Return what the program computes, by the form of the platform if there is one, and differentiated by `jvp` and `transpose`.

    Args:
      program: A function that `trace` has traced.
      args: Its arguments.
      jvp: `jvp(args, tangents)` returns the results and their tangents. A tangent is None where it is known to be 0.
      transpose: `transpose(cotangents, *args[1:])` returns the cotangent of `args[0]`, an array in which the function is linear. A cotangent
        is None where a result is not used.
      cpu: The same function in other code, for a CPU. It is traced when a program is lowered for one.
      gpu: The same for a GPU of NVIDIA.
    """
    (code, out_tree), (leaves, tree) = program, jax.tree.flatten(tuple(args))

    def flat_jvp(leaves, tangents):
        outs, dots = jvp(tree.unflatten(leaves), tree.unflatten(tangents))
        return out_tree.flatten_up_to(outs), out_tree.flatten_up_to(dots)

    def flat_transpose(transpose, cotangents, leaves):
        return transpose(out_tree.unflatten(cotangents), *tree.unflatten([None, *leaves])[1:])

    def flat(form):
        return lambda *leaves: out_tree.flatten_up_to(form(*tree.unflatten(leaves)))

    forms = tuple((platform, flat(form)) for platform, form in (("cpu", cpu), ("cuda", gpu)) if form is not None)
    outs = _call.bind(
        *leaves,
        code=code,
        jvp=flat_jvp,
        transpose=transpose and functools.partial(flat_transpose, transpose),
        forms=forms,
    )
    return out_tree.unflatten(outs)


@_call.def_impl
def _run(*leaves, code, **_):
    return jaxpr_as_fun(code)(*leaves)


@_call.def_abstract_eval
def _types(*_, code, **__):
    return code.out_avals


def platforms_of(ctx) -> tuple[str, ...]:
    """Return the platforms that a program is lowered for."""
    return tuple(ctx.platforms or ctx.module_context.platforms)


def _lower(ctx, *leaves, code, forms, **_):
    platforms = platforms_of(ctx)
    of_platforms, default = {name: form for name, form in forms if name in platforms}, jaxpr_as_fun(code)
    if len(platforms) == 1:
        run = of_platforms.get(platforms[0], default)
    else:  # `jax.export` for several at once

        def run(*leaves):
            return lax.platform_dependent(*leaves, default=default, **of_platforms)

    return mlir.lower_fun(run, multiple_results=True)(ctx, *leaves)


def _jvp(primals, tangents, *, jvp, **_):
    outs, dots = jvp(list(primals), [None if type(t) is ad.Zero else t for t in tangents])
    zeros = [ad.Zero(jax.typeof(out).to_tangent_aval()) for out in outs]
    return outs, [zero if dot is None else dot for zero, dot in zip(zeros, dots, strict=True)]


def _transpose(cotangents, *leaves, code, transpose, forms, **_):
    if transpose is None:
        return _transpose_code(cotangents, leaves, code, forms)
    x, *others = leaves
    cotangents = [None if type(ct) is ad.Zero else ct for ct in cotangents]
    unused = all(ct is None for ct in cotangents)
    return [ad.Zero(x.aval) if unused else transpose(cotangents, others), *(None for _ in others)]


def _transpose_code(cotangents, leaves, code, forms):
    """Transpose the code and the forms, each by itself, with respect to the operands whose cotangents are asked for."""
    avals = [x.aval if ad.is_undefined_primal(x) else None for x in leaves]
    args = list(map(ad.instantiate_zeros, cotangents)), [x for x in leaves if not ad.is_undefined_primal(x)]
    function = functools.partial(_transposed, jaxpr_as_fun(code), avals)
    of_forms = {name: functools.partial(_transposed, form, avals) for name, form in forms}
    jvp = functools.partial(partial_jvp, function)
    found = iter(call(trace(function, args), args, jvp=jvp, cpu=of_forms.get("cpu"), gpu=of_forms.get("cuda")))
    return [None if aval is None else next(found) for aval in avals]


def _transposed(function, avals, cotangents, known):
    """Return the cotangents of the operands in which the function is linear. They have an aval; those that are `known` have None."""

    def of_linear(*xs):
        xs, others = iter(xs), iter(known)
        return list(function(*(next(others if aval is None else xs) for aval in avals)))

    return list(jax.linear_transpose(of_linear, *(aval for aval in avals if aval is not None))(cotangents))


def partial_jvp(function: Callable[..., Any], args, tangents):
    """Return `jax.jvp` with respect to those arrays in `args` whose tangent is not None."""
    leaves, tree = jax.tree.flatten(tuple(args))
    dots = tree.flatten_up_to(tuple(tangents))
    moving = [i for i, dot in enumerate(dots) if dot is not None]

    def of_moving(*some):
        at = dict(zip(moving, some, strict=True))
        return function(*tree.unflatten([at.get(i, leaf) for i, leaf in enumerate(leaves)]))

    return jax.jvp(of_moving, [leaves[i] for i in moving], [dots[i] for i in moving])


def _batch(axis, leaves, dims, *, code, jvp, transpose, forms):
    """Bind the primitive again, with its code and its rules under `vmap`. Without the primitive, JAX would differentiate the code."""
    if all(dim is None for dim in dims):  # JAX also calls this rule where nothing is batched
        outs = _call.bind(*leaves, code=code, jvp=jvp, transpose=transpose, forms=forms)
        return outs, [None] * len(outs)
    leaves = [x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(leaves, dims, strict=True)]
    of_leaves = [None if dim is None else 0 for dim in dims]
    named = {"axis_name": axis.name, "axis_size": axis.size, "spmd_axis_name": axis.spmd_name}

    def batched_jvp(leaves, tangents):
        of_tangents = [None if t is None else dim for t, dim in zip(tangents, of_leaves, strict=True)]
        return jax.vmap(jvp, (of_leaves, of_tangents), **named)(list(leaves), list(tangents))

    def batched_transpose(cotangents, leaves):
        of_cotangents = [None if ct is None else 0 for ct in cotangents]
        x_ct = jax.vmap(transpose, (of_cotangents, of_leaves[1:]), **named)(list(cotangents), list(leaves))
        return jnp.sum(x_ct, 0) if of_leaves[0] is None else x_ct

    def batched(form):
        return jax.vmap(form, of_leaves, **named)

    outs = _call.bind(
        *leaves,
        code=jax.make_jaxpr(batched(jaxpr_as_fun(code)))(*leaves),
        jvp=batched_jvp,
        transpose=transpose and batched_transpose,
        forms=tuple((platform, batched(form)) for platform, form in forms),
    )
    return outs, [0] * len(outs)


def _drop_unused(is_used, *others):
    """Drop the results that nobody reads, and what computes them. All operands stay: the rules need them."""
    eqn = others[-1]  # JAX after 0.10 also says which operands are live
    if not any(is_used):
        return [False] * len(eqn.invars), None
    code, jvp, transpose, forms = (eqn.params[name] for name in ("code", "jvp", "transpose", "forms"))

    def used(values):
        return [value for value, is_one in zip(values, is_used, strict=True) if is_one]

    def used_jvp(leaves, tangents):
        return tuple(map(used, jvp(leaves, tangents)))

    def used_transpose(cotangents, leaves):
        of_used = iter(cotangents)
        return transpose([next(of_used) if is_one else None for is_one in is_used], leaves)

    def used_of(form):
        return lambda *leaves: used(form(*leaves))

    smaller, _ = pe.dce_jaxpr(code.jaxpr, is_used, instantiate=True)
    params = {
        "code": code.replace(jaxpr=smaller),
        "jvp": used_jvp,
        "transpose": transpose and used_transpose,
        "forms": tuple((platform, used_of(form)) for platform, form in forms),
    }
    return [True] * len(eqn.invars), eqn.replace(outvars=used(eqn.outvars), params=params)


ad.primitive_jvps[_call] = _jvp
ad.primitive_transposes[_call] = _transpose
batching.fancy_primitive_batchers[_call] = _batch
pe.dce_rules[_call] = _drop_unused
mlir.register_lowering(_call, _lower)
