"""A linear function whose transpose is written by hand, where XLA makes better code of that than of the one JAX derives."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

_linear = Primitive("jaxce_linear")


def with_transpose(linear: Callable[..., Any], transpose: Callable[..., Any], x, residuals):
    """`linear(x, residuals)`, whose transpose is `transpose`; whatever else is asked of it, its own code answers.

    Args:
      linear: Linear in `x`; it gives one array.
      transpose: `transpose(cotangent, residuals)` gives the cotangent of `x`. Its code must differentiate correctly by itself.
      x: An array.
      residuals: A pytree of arrays.
    """
    leaves, tree = jax.tree.flatten(residuals)
    code = jax.make_jaxpr(lambda x, *leaves: linear(x, jax.tree.unflatten(tree, leaves)))(x, *leaves)
    return _linear.bind(x, *leaves, code=code, transpose=lambda ct, leaves: transpose(ct, tree.unflatten(leaves)))


@_linear.def_impl
def _evaluate(*args, code, **_):
    return jaxpr_as_fun(code)(*args)[0]


@_linear.def_abstract_eval
def _type(*_, code, transpose):
    return code.out_avals[0]


def _transpose(ct, x, *leaves, code, transpose):
    return [ad.Zero(x.aval) if type(ct) is ad.Zero else transpose(ct, leaves), *(None for _ in leaves)]


def _jvp(primals, tangents, **params):
    (x, *leaves), (x_dot, *leaves_dot) = primals, tangents
    dot = ad.Zero(params["code"].out_avals[0]) if type(x_dot) is ad.Zero else _linear.bind(x_dot, *leaves, **params)
    moving = [i for i, t in enumerate(leaves_dot) if type(t) is not ad.Zero]
    if moving:

        def of_moving(*some):
            at = dict(zip(moving, some, strict=True))
            return _evaluate(x, *(at.get(i, leaf) for i, leaf in enumerate(leaves)), **params)

        _, by_leaves = jax.jvp(of_moving, [leaves[i] for i in moving], [leaves_dot[i] for i in moving])
        dot = ad.add_tangents(dot, by_leaves)
    return _linear.bind(*primals, **params), dot


def _batch(args, dims, **params):
    return jax.vmap(lambda *args: _evaluate(*args, **params), in_axes=tuple(dims))(*args), 0


ad.primitive_transposes[_linear] = _transpose
ad.primitive_jvps[_linear] = _jvp
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_evaluate, multiple_results=False))
