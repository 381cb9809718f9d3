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

from jaxce._jax.auto_mesh import can_be_asked_for
from jaxce._jax.programs import Program, partial_jvp, trace

_call = Primitive("jaxce_call")
_call.multiple_results = True


class Transpose(NamedTuple):
    """`function(cotangents, others)` returns the cotangents of the first operands, of which there are `operands`."""

    function: Callable[..., Any]
    operands: int


def run(program: Program, *leaves):
    """Return the flat results of the program for flat arguments."""
    return jaxpr_as_fun(program.code)(*leaves)


def call(
    program: Program,
    args,
    *,
    jvp: Callable[..., Any],
    transpose: Callable[..., Any] | None = None,
    cpu: Callable[..., Any] | None = None,
    gpu: Callable[..., Any] | None = None,
    on_auto_mesh: Program | None = None,
):
    """Return what the program computes, by the form of the platform if there is one, and differentiated by `jvp` and `transpose`.

    Args:
      program: A function that `trace` has traced.
      args: Its arguments.
      jvp: `jvp(args, tangents)` returns the results and their tangents. A tangent is None where it is known to be 0.
      transpose: `transpose(cotangents, *args[1:])` returns the cotangents of `args[0]`, a pytree in which the function is linear. A cotangent
        is None where a result is not used.
      cpu: The same function in other code, for a CPU. It is traced when a program is lowered for one.
      gpu: The same for a GPU of NVIDIA.
      on_auto_mesh: The same function in code that `jaxce._jax.partitioning` has cut for the devices of a mesh with automatic axes.
    """
    (code, out_tree), (leaves, tree) = program, jax.tree.flatten(tuple(args))
    of_first = jax.tree.structure(args[0] if args else None)

    def flat_jvp(leaves, tangents):
        outs, dots = jvp(tree.unflatten(leaves), tree.unflatten(tangents))
        return out_tree.flatten_up_to(outs), out_tree.flatten_up_to(dots)

    def flat_transpose(transpose, cotangents, leaves):
        others = tree.unflatten([None] * of_first.num_leaves + list(leaves))[1:]
        return of_first.flatten_up_to(transpose(out_tree.unflatten(cotangents), *others))

    def flat(form):
        return lambda *leaves: out_tree.flatten_up_to(form(*tree.unflatten(leaves)))

    forms = tuple((platform, flat(form)) for platform, form in (("cpu", cpu), ("cuda", gpu)) if form is not None)
    outs = _call.bind(
        *leaves,
        code=code,
        jvp=flat_jvp,
        transpose=transpose and Transpose(functools.partial(flat_transpose, transpose), of_first.num_leaves),
        forms=forms,
        on_auto_mesh=on_auto_mesh and on_auto_mesh.code,
    )
    return out_tree.unflatten(outs)


def used_arguments(program: Program, *, result: int) -> list[bool]:
    """Return whether each flat argument of the program is used for one of its flat results."""
    wanted = [i == result for i in range(len(program.code.out_avals))]
    return pe.dce_jaxpr(program.code.jaxpr, wanted)[1]


@_call.def_impl
def _run(*leaves, code, **_):
    return jaxpr_as_fun(code)(*leaves)


@_call.def_abstract_eval
def _types(*_, code, **__):
    return code.out_avals


def platforms_of(ctx) -> tuple[str, ...]:
    """Return the platforms that a program is lowered for."""
    return tuple(ctx.platforms or ctx.module_context.platforms)


def _lower(ctx, *leaves, code, forms, on_auto_mesh, **_):
    platforms = platforms_of(ctx)
    of_platforms, default = {name: form for name, form in forms if name in platforms}, jaxpr_as_fun(code)
    if on_auto_mesh is not None and can_be_asked_for(ctx.module_context, platforms):
        run = jaxpr_as_fun(on_auto_mesh)
    elif len(platforms) == 1:
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
    if transpose is None or not all(map(ad.is_undefined_primal, leaves[: transpose.operands])):
        return _transpose_code(cotangents, leaves, code, forms)
    xs, others = leaves[: transpose.operands], leaves[transpose.operands :]
    cotangents = [None if type(ct) is ad.Zero else ct for ct in cotangents]
    if all(ct is None for ct in cotangents):
        return [*(ad.Zero(x.aval) for x in xs), *(None for _ in others)]
    return [*transpose.function(cotangents, others), *(None for _ in others)]


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


def _batch(axis, leaves, dims, *, code, jvp, transpose, forms, on_auto_mesh):
    """Bind the primitive again, with its code and its rules under `vmap`. Without the primitive, JAX would differentiate the code.

    JAX cannot batch what XLA asks how to partition, so XLA partitions the batched code by itself.
    """
    if all(dim is None for dim in dims):  # JAX also calls this rule where nothing is batched
        outs = _call.bind(*leaves, code=code, jvp=jvp, transpose=transpose, forms=forms, on_auto_mesh=on_auto_mesh)
        return outs, [None] * len(outs)
    leaves = [x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(leaves, dims, strict=True)]
    of_leaves = [None if dim is None else 0 for dim in dims]
    named = {"axis_name": axis.name, "axis_size": axis.size, "spmd_axis_name": axis.spmd_name}

    def batched_jvp(leaves, tangents):
        of_tangents = [None if t is None else dim for t, dim in zip(tangents, of_leaves, strict=True)]
        return jax.vmap(jvp, (of_leaves, of_tangents), **named)(list(leaves), list(tangents))

    def batched_transpose(cotangents, leaves):
        of_cotangents = [None if ct is None else 0 for ct in cotangents]
        of_others = of_leaves[transpose.operands :]
        cts = jax.vmap(transpose.function, (of_cotangents, of_others), **named)(list(cotangents), list(leaves))
        return [
            jnp.sum(ct, 0) if dim is None else ct for ct, dim in zip(cts, of_leaves[: transpose.operands], strict=True)
        ]

    def batched(form):
        return jax.vmap(form, of_leaves, **named)

    outs = _call.bind(
        *leaves,
        code=jax.make_jaxpr(batched(jaxpr_as_fun(code)))(*leaves),
        jvp=batched_jvp,
        transpose=transpose and Transpose(batched_transpose, transpose.operands),
        forms=tuple((platform, batched(form)) for platform, form in forms),
        on_auto_mesh=None,
    )
    return outs, [0] * len(outs)


def _drop_unused(is_used, *others):
    """Drop the results that nobody reads, and what computes them. All operands stay: the rules need them."""
    eqn = others[-1]  # JAX after 0.10 also says which operands are live
    if not any(is_used):
        return [False] * len(eqn.invars), None
    names = ("code", "jvp", "transpose", "forms", "on_auto_mesh")
    code, jvp, transpose, forms, on_auto_mesh = (eqn.params[name] for name in names)

    def used(values):
        return [value for value, is_one in zip(values, is_used, strict=True) if is_one]

    def used_jvp(leaves, tangents):
        return tuple(map(used, jvp(leaves, tangents)))

    def used_transpose(cotangents, leaves):
        of_used = iter(cotangents)
        return transpose.function([next(of_used) if is_one else None for is_one in is_used], leaves)

    def used_of(form):
        return lambda *leaves: used(form(*leaves))

    def smaller(code):
        return code.replace(jaxpr=pe.dce_jaxpr(code.jaxpr, is_used, instantiate=True)[0])

    params = {
        "code": smaller(code),
        "jvp": used_jvp,
        "transpose": transpose and Transpose(used_transpose, transpose.operands),
        "forms": tuple((platform, used_of(form)) for platform, form in forms),
        "on_auto_mesh": on_auto_mesh and smaller(on_auto_mesh),
    }
    return [True] * len(eqn.invars), eqn.replace(outvars=used(eqn.outvars), params=params)


ad.primitive_jvps[_call] = _jvp
ad.primitive_transposes[_call] = _transpose
batching.fancy_primitive_batchers[_call] = _batch
pe.dce_rules[_call] = _drop_unused
mlir.register_lowering(_call, _lower)
