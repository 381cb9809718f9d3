"""A linear function whose transpose is written by hand, where XLA makes better code of that than of the one JAX derives."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jaxce._rule import jvp_by_some

_linear = Primitive("jaxce_linear")
_linear.multiple_results = True


def with_transpose(linear: Callable[..., Any], transpose: Callable[..., Any], x, residuals):
    """`linear(x, residuals)`, whose transpose is `transpose`; whatever else is asked of it, its own code answers.

    Args:
      linear: Linear in `x`; it gives a list of arrays.
      transpose: `transpose(cotangents, residuals)` gives the cotangent of `x`; a cotangent is None where an output is not used. Its code must
        differentiate correctly by itself.
      x: An array.
      residuals: A pytree of arrays.
    """
    leaves, tree = jax.tree.flatten(residuals)
    code = jax.make_jaxpr(lambda x, *leaves: linear(x, tree.unflatten(leaves)))(x, *leaves)
    return _linear.bind(x, *leaves, code=code, transpose=lambda cts, leaves: transpose(cts, tree.unflatten(leaves)))


@_linear.def_impl
def _evaluate(*args, code, **_):
    return jaxpr_as_fun(code)(*args)


@_linear.def_abstract_eval
def _types(*_, code, transpose):
    return code.out_avals


def _transpose(cts, x, *leaves, code, transpose):
    cts = [None if type(ct) is ad.Zero else ct for ct in cts]
    return [ad.Zero(x.aval) if all(ct is None for ct in cts) else transpose(cts, leaves), *(None for _ in leaves)]


def _jvp(primals, tangents, **params):
    (x, *leaves), (x_dot, *leaves_dot) = primals, tangents
    outs = _linear.bind(*primals, **params)
    if type(x_dot) is ad.Zero:
        dots = [ad.Zero(aval) for aval in params["code"].out_avals]
    else:
        dots = _linear.bind(x_dot, *leaves, **params)
    leaves_dot = [None if type(t) is ad.Zero else t for t in leaves_dot]
    if any(t is not None for t in leaves_dot):
        _, by_leaves = jvp_by_some(functools.partial(_evaluate, x, **params), leaves, leaves_dot)
        dots = list(map(ad.add_tangents, dots, by_leaves))
    return outs, dots


def _batch(axis, args, dims, *, code, transpose):
    """Bind the primitive again, with its code and its transpose under `vmap`. Without the primitive, JAX would differentiate the code."""
    if all(dim is None for dim in dims):  # JAX calls this rule inside of `vmap` where nothing is batched, too
        outs = _linear.bind(*args, code=code, transpose=transpose)
        return outs, [None] * len(outs)
    x, *leaves = (arg if dim is None else jnp.moveaxis(arg, dim, 0) for arg, dim in zip(args, dims, strict=True))
    of_x, *of_leaves = (None if dim is None else 0 for dim in dims)
    named = {"axis_name": axis.name, "axis_size": axis.size, "spmd_axis_name": axis.spmd_name}

    def transpose_of_batch(cts, leaves):
        of_cts = [None if ct is None else 0 for ct in cts]
        x_ct = jax.vmap(transpose, (of_cts, of_leaves), **named)(list(cts), list(leaves))
        return jnp.sum(x_ct, 0) if of_x is None else x_ct

    code_of_batch = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(code), (of_x, *of_leaves), **named))(x, *leaves)
    outs = _linear.bind(x, *leaves, code=code_of_batch, transpose=transpose_of_batch)
    return outs, [0] * len(outs)


ad.primitive_transposes[_linear] = _transpose
ad.primitive_jvps[_linear] = _jvp
batching.fancy_primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_evaluate, multiple_results=True))
