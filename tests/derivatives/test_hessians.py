"""Hessians and third derivatives of the losses against closed forms: in every nesting of modes, and through loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import cases, platform
from tests.support.cases import INTEGER, SIGMOID
from tests.support.closeness import assert_within
from tests.support.hessians import (
    HESSIAN_LOGITS,
    SHAPE,
    hessian_case,
    sigmoid_hessian,
    softmax_hessian,
    through_map,
    through_scan,
    under_checkpoint,
    weighted,
)

pytestmark = pytest.mark.usefixtures("fast_compilation")
on_a_cpu = platform.on_a_cpu

ORDERS = [
    pytest.param(a, b, id=f"{b.__name__} of {a.__name__}")
    for a, b in itertools.product((jax.jacfwd, jax.jacrev), (jax.jacfwd, jax.jacrev))
]


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", [weighted, through_scan, through_map], ids=lambda f: f.__name__)
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_third_derivatives(way, loss, rng, x64):
    """Compare with finite differences of the closed form of the Hessian."""
    logits, v = rng.standard_normal(SHAPE), rng.standard_normal(SHAPE)
    labels, w, _ = hessian_case(loss, logits, rng)
    step = 1e-5
    closed = sigmoid_hessian if loss is SIGMOID else softmax_hessian
    ahead, behind = (closed(logits + sign * step * v, np.asarray(w, np.float64))[0] for sign in (1, -1))
    total = way(loss, labels, w.astype(np.float64))
    for hessian in (jax.jacfwd(jax.jacrev(total)), jax.jacrev(jax.jacrev(total)), jax.jacfwd(jax.jacfwd(total))):
        actual = jax.jit(lambda z, hessian=hessian: jax.jvp(hessian, (z,), (v,))[1])(logits)
        np.testing.assert_allclose(actual, (ahead - behind) / (2 * step), rtol=1e-8, atol=1e-8)


@pytest.mark.covering(2, at_most=7)
@pytest.mark.parametrize(("inner", "outer"), ORDERS)
@pytest.mark.parametrize("hard", HESSIAN_LOGITS)
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_hessian_in_four_orders(inner, outer, hard, loss, rng):
    logits = HESSIAN_LOGITS[hard](rng)
    labels, w, expected = hessian_case(loss, logits, rng)
    assert_within(jax.jit(outer(inner(weighted(loss, labels, w))))(logits), expected, 16)


@pytest.mark.covering(2, at_most=3)
@pytest.mark.parametrize("way", [through_scan, through_map, under_checkpoint], ids=lambda f: f.__name__)
@pytest.mark.parametrize("hard", HESSIAN_LOGITS)
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_hessian_through_loops_and_checkpoint(way, hard, loss, rng):
    """In jax <= 0.11.2, reverse mode through a loop ignores the rules of `jax.custom_jvp`."""
    logits = HESSIAN_LOGITS[hard](rng)
    labels, w, expected = hessian_case(loss, logits, rng)
    for outer in (jax.jacfwd, jax.jacrev):
        assert_within(jax.jit(outer(jax.jacrev(way(loss, labels, w))))(logits), expected, 16)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("vmapped", [False, True], ids=["plain", "vmapped"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_second_derivatives_of_long_rows_through_a_loop(loss, dtype, vmapped, rng, on_a_cpu):
    """Differentiate twice with respect to the logits, and once each with respect to logits and labels.

    The rows are long enough for the form of a CPU to cut them into parts, and some logits are equal.
    """
    z = np.asarray(np.round(2 * rng.standard_normal((3, 1000))) / 2, jnp.dtype(dtype))
    labels = np.asarray(loss.make_labels(rng, z.shape, -1))
    labels = labels if loss is INTEGER else np.asarray(labels, z.dtype)
    v = rng.standard_normal(z.shape).astype(np.float32)
    wide = z.astype(np.float64)
    p = np.exp(wide - wide.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mass = 1 if loss is INTEGER else labels.astype(np.float64).sum(1, keepdims=True)

    def total(z, labels):
        row_loss = loss.function
        if vmapped:
            row_loss = lambda z, labels: jax.vmap(loss.function)(z[None], labels[None])[0]  # noqa: E731
        return jax.lax.scan(lambda t, row: (t + row_loss(*row), None), jnp.float32(0), (z, labels))[0]

    def directional(z, labels, argnum):
        return jnp.vdot(jax.grad(total, argnum)(z, labels).astype(jnp.float32), v)

    def close(found, want):
        tolerance = 2e-5 if dtype == "float32" else 2**-7
        np.testing.assert_allclose(
            np.asarray(found, np.float64), want, rtol=tolerance, atol=tolerance * abs(want).max()
        )

    hessian_v = mass * p * (v - (p * v).sum(1, keepdims=True))
    close(jax.jit(jax.grad(functools.partial(directional, argnum=0)))(z, labels), hessian_v)
    close(jax.jit(lambda z: jax.jvp(jax.grad(lambda z: total(z, labels)), (z,), (v.astype(z.dtype),))[1])(z), hessian_v)
    if loss is not INTEGER:
        close(jax.jit(jax.grad(functools.partial(directional, argnum=1)))(z, labels), v.sum(1, keepdims=True) * p - v)
        close(
            jax.jit(jax.grad(functools.partial(directional, argnum=0), 1))(z, labels), (p * v).sum(1, keepdims=True) - v
        )


@pytest.mark.covering(1)
@pytest.mark.parametrize(("inner", "outer"), ORDERS)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_hessian_where_the_maximum_is_the_largest_number(inner, outer, loss, rng):
    """The largest finite logit is an ordinary number with ordinary derivatives, in contrast to an infinite logit."""
    logits = np.zeros(SHAPE, np.float32)
    logits[0, :2] = logits[1, 3] = logits[2] = np.finfo(np.float32).max
    # Shifting all logits of a row does not change the closed form, and keeps its digits.
    labels, w, expected = hessian_case(loss, logits - logits.max(1, keepdims=True), rng)
    assert_within(jax.jit(outer(inner(weighted(loss, labels, w))))(logits), expected, 16)


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", [weighted, through_scan, through_map], ids=lambda f: f.__name__)
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_hessian_vector_product(way, loss, rng):
    logits = cases.make_logits(rng, SHAPE)
    labels, w, (hessian, scale) = hessian_case(loss, logits, rng)
    v = np.float32(rng.standard_normal(SHAPE))
    expected = (np.tensordot(hessian, v, 2), np.tensordot(scale, abs(v), 2))
    gradient = jax.grad(way(loss, labels, w))
    assert_within(jax.jit(lambda z: jax.jvp(gradient, (z,), (v,))[1])(logits), expected, 16)
    assert_within(jax.jit(jax.grad(lambda z: jnp.vdot(gradient(z), v)))(logits), expected, 16)
