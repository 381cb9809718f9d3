"""The table of compositions of JAX transforms around the losses. The results must not depend on the implementation of the losses.

`TABLE` maps a name to a function of a `Problem`; `plain` computes the losses in plain jax.numpy. This module has the modes of differentiation and
vmap. `compositions_around` adds loops, branches, checkpoint, shard_map, export and checks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ROWS, C = 4, 3


class Problem(NamedTuple):
    """`f(logits [..., C], labels)` returns losses `[...]`; `labels` holds integers `[...]`, and probabilities and binary labels `[..., C]`."""

    f: Callable[..., jax.Array]
    z: jax.Array
    y: dict[str, jax.Array]
    v: jax.Array  # a direction for the logits
    w: jax.Array  # a cotangent for the losses

    def losses(self, z):
        return self.f(z, self.y)

    def total(self, z):
        return jnp.sum(self.w * self.losses(z))


def problem(f, dtype="float64"):
    """Return a problem with arrays in this dtype, and with the cotangent in the dtype of the losses.

    The logits have no ties, because the derivative of a maximum is not unique at a tie.
    """
    rng = np.random.default_rng(0)
    q = rng.random((ROWS, C))
    index = jnp.asarray(rng.integers(0, C, ROWS))
    y = {"probability": q / q.sum(1, keepdims=True), "binary": rng.random((ROWS, C))}
    z, v = 2 * rng.standard_normal((2, ROWS, C))
    z, y, v = jax.tree.map(lambda x: jnp.asarray(x, dtype), (z, y, v))
    w = jnp.asarray(rng.uniform(-1, 2, ROWS), "float64" if dtype == "float64" else "float32")
    return Problem(f, z, {"index": index, **y}, v, w)


def widened(p):
    """Return the problem with its arrays converted to float64, the input of the plain formulas."""
    wide = {n: jax.tree.map(_in_float64, getattr(p, n)) for n in "zyvw"}
    return p._replace(**wide)


def _in_float64(x):
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def plain(z, y):
    """Return a weighted sum of the three losses, in plain jax.numpy. The weights differ, so that errors of two losses do not cancel."""
    log_p = jax.nn.log_softmax(z)
    integer = -jnp.sum(
        jnp.where(jnp.arange(C).reshape((1,) * y["index"].ndim + (C,)) == y["index"][..., None], log_p, 0), -1
    )
    soft = -jnp.sum(y["probability"] * log_p, -1)
    yes, no = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    return integer + 2 * soft - 3 * jnp.sum(y["binary"] * yes + (1 - y["binary"]) * no, -1)


TABLE: dict[str, Callable[[Problem], Any]] = {}


def rows(**functions):
    TABLE.update(functions)


def jvp_along(p, g):
    """Return the directional derivative of `g` as a function, in forward mode."""
    return lambda z: jax.jvp(g, (z,), (p.v,))[1]


def grad_along(p, g):
    """Return the directional derivative of a gradient `g` as a function, in reverse mode: the gradient of `vdot(g(z), direction)`."""
    return jax.grad(lambda z: jnp.vdot(g(z), p.v))


def stacked(x, n=2):
    return jax.tree.map(lambda x: jnp.stack([x + i * jnp.issubdtype(x.dtype, jnp.floating) for i in range(n)]), x)


# jit and ahead-of-time compilation.
rows(
    eager=lambda p: p.losses(p.z),
    jit=lambda p: jax.jit(p.f)(p.z, p.y),
    jit_of_jit=lambda p: jax.jit(jax.jit(p.f))(p.z, p.y),
    jit_of_grad=lambda p: jax.jit(jax.grad(p.total))(p.z),
    grad_of_jit=lambda p: jax.grad(jax.jit(p.total))(p.z),
    compiled_ahead_of_time=lambda p: jax.jit(p.f).lower(p.z, p.y).compile()(p.z, p.y),
    gradient_compiled_ahead_of_time=lambda p: jax.jit(jax.grad(p.total)).lower(p.z).compile()(p.z),
    jit_with_donated_logits=lambda p: jax.jit(jax.grad(p.total), donate_argnums=0)(p.z + 0),
)

# vmap over any subset and axis.
rows(
    vmap_both=lambda p: jax.vmap(p.f)(p.z, p.y),
    vmap_logits=lambda p: jax.vmap(p.f, (0, None))(stacked(p.z), p.y),
    vmap_labels=lambda p: jax.vmap(p.f, (None, 0))(p.z, stacked(p.y)),
    vmap_one_label_array=lambda p: jax.vmap(lambda q: p.f(p.z, {**p.y, "probability": q}))(stacked(p.y["probability"])),
    vmap_second_axis=lambda p: jax.vmap(p.f, (1, None))(jnp.moveaxis(stacked(p.z), 0, 1), p.y),
    vmap_last_axis=lambda p: jax.vmap(p.f, (-1, None), -1)(jnp.moveaxis(stacked(p.z), 0, -1), p.y),
    vmap_of_vmap=lambda p: jax.vmap(jax.vmap(p.f), (0, None))(stacked(p.z), p.y),
    vmap_with_psum=lambda p: jax.vmap(lambda z, y: lax.psum(p.f(z, y), "rows"), axis_name="rows")(p.z, p.y),
    vmap_of_grad=lambda p: jax.vmap(jax.grad(p.f))(p.z, p.y),
    grad_of_vmap=lambda p: jax.grad(lambda z: jnp.vdot(jax.vmap(p.f)(z, p.y), p.w))(p.z),
    vmap_of_jit_of_grad=lambda p: jax.vmap(jax.jit(jax.grad(p.total)))(stacked(p.z)),
    vmap_of_hessian=lambda p: jax.vmap(jax.hessian(p.f))(p.z, p.y),
    vmap_of_jvp_over_directions=lambda p: jax.vmap(lambda v: jax.jvp(p.losses, (p.z,), (v,))[1])(stacked(p.v)),
    vmap_of_vjp_over_cotangents=lambda p: jax.vmap(jax.vjp(p.losses, p.z)[1])(stacked(p.w)),
    grad_of_vmap_of_grad=lambda p: jax.grad(lambda z: jnp.vdot(jax.vmap(jax.grad(p.f))(z, p.y), p.v))(p.z),
)

# Reverse and forward mode.
rows(
    grad=lambda p: jax.grad(p.total)(p.z),
    value_and_grad=lambda p: jax.value_and_grad(p.total)(p.z),
    grad_with_auxiliary=lambda p: jax.grad(lambda z: (p.total(z), p.losses(z)), has_aux=True)(p.z),
    grad_by_soft_labels=lambda p: jax.grad(lambda q: p.f(p.z, {**p.y, "probability": q}).sum())(p.y["probability"]),
    grad_by_binary_labels=lambda p: jax.grad(lambda q: p.f(p.z, {**p.y, "binary": q}).sum())(p.y["binary"]),
    vjp=lambda p: jax.vjp(p.losses, p.z)[1](p.w),
    jit_of_vjp=lambda p: jax.jit(lambda w: jax.vjp(p.losses, p.z)[1](w))(p.w),
    jvp=lambda p: jax.jvp(p.losses, (p.z,), (p.v,)),
    jvp_of_jit=lambda p: jax.jvp(jax.jit(p.losses), (p.z,), (p.v,)),
    jit_of_jvp=lambda p: jax.jit(jvp_along(p, p.losses))(p.z),
    linearize=lambda p: jax.linearize(p.losses, p.z)[1](p.v),
    jit_of_linearize=lambda p: jax.jit(lambda v: jax.linearize(p.losses, p.z)[1](v))(p.v),
    linear_transpose=lambda p: jax.linear_transpose(jax.linearize(p.losses, p.z)[1], p.z)(p.w),
    jacfwd=lambda p: jax.jacfwd(p.losses)(p.z),
    jacrev=lambda p: jax.jacrev(p.losses)(p.z),
)

# Second and third order.
rows(
    hessian=lambda p: jax.hessian(p.total)(p.z),
    jacfwd_of_jacfwd=lambda p: jax.jacfwd(jax.jacfwd(p.total))(p.z),
    jacrev_of_jacfwd=lambda p: jax.jacrev(jax.jacfwd(p.total))(p.z),
    jacrev_of_jacrev=lambda p: jax.jacrev(jax.jacrev(p.total))(p.z),
    hvp_forward_over_reverse=lambda p: jvp_along(p, jax.grad(p.total))(p.z),
    hvp_reverse_over_forward=lambda p: jax.grad(jvp_along(p, p.total))(p.z),
    hvp_reverse_over_reverse=lambda p: grad_along(p, jax.grad(p.total))(p.z),
    hvp_linearized=lambda p: jax.linearize(jax.grad(p.total), p.z)[1](p.v),
    third_forward_forward_reverse=lambda p: jax.jit(jvp_along(p, jvp_along(p, jax.grad(p.total))))(p.z),
    third_forward_thrice=lambda p: jax.jit(jvp_along(p, jvp_along(p, jvp_along(p, p.total))))(p.z),
    third_reverse_thrice=lambda p: jax.jit(grad_along(p, grad_along(p, jax.grad(p.total))))(p.z),
    third_reverse_forward_reverse=lambda p: jax.jit(grad_along(p, jvp_along(p, jax.grad(p.total))))(p.z),
)
