"""A class that takes no part and has the probability 0 contributes 0 to every derivative: second derivatives by logits and labels, in any order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from jaxce import Chunked, LinearLogits

DTYPES = [pytest.param(d, id=d.__name__) for d in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64)]
Z, Q, OUT = np.array([1.0, 2.0, 0.5]), np.array([0.4, 0.6, 0.0]), 2


def dense(num_classes, by_where):
    """Return a loss of the first three classes. The others take no part either: many classes have the form for a CPU."""
    taking_part = np.arange(num_classes) < OUT

    def loss(z, q):
        z = jnp.pad(z, (0, num_classes - 3))
        z = z if by_where else jnp.where(taking_part, z, -jnp.inf)
        where = taking_part if by_where else None
        return jaxce.softmax_cross_entropy(z, jnp.pad(q, (0, num_classes - 3)), where=where)

    return loss


def lazy(implementation):
    def loss(z, q):
        logits = LinearLogits(z[None], jnp.eye(3, dtype=z.dtype), implementation=implementation)
        return jaxce.softmax_cross_entropy_sum(logits, q[None], where=jnp.array([[True, True, False]])).total

    return loss


LOSSES = {
    "where": dense(3, True),
    "-inf": dense(3, False),
    "where, many classes": dense(40_000, True),
    "lazy": lazy(None),
    "lazy, blocks": lazy(Chunked(1, 2)),
    "lazy, reference": lazy("reference"),
}
WAYS = {
    "one row": lambda f: f,
    "vmap of the derivative": lambda f: lambda *x: jax.vmap(f)(*(jnp.stack([a, a]) for a in x))[1],
    "scan of the derivative": lambda f: lambda *x: jax.lax.map(lambda y: f(*y), tuple(jnp.stack([a, a]) for a in x))[1],
}


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.covering(1, at_most=3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_mixed_second_derivatives(loss, way, dtype, x64):
    z, q = jnp.asarray(Z, dtype), jnp.asarray(Q, dtype)
    forward = way(jax.jacfwd(jax.grad(loss), 1))(z, q)  # [by z, by q]
    reverse = way(jax.jacrev(jax.grad(loss, 1), 0))(z, q)  # [by q, by z]
    p = np.exp(Z[:OUT]) / np.exp(Z[:OUT]).sum()
    want = np.zeros((3, 3))
    want[:OUT, :OUT] = p[:, None] - np.eye(OUT)  # of sum(q) log sum(exp z) - q z over the classes that take part
    tolerance = 8 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(forward, float), want, atol=tolerance)
    np.testing.assert_allclose(np.asarray(reverse, float), want.T, atol=tolerance)
    assert not np.asarray(forward, float)[:, OUT].any() and not np.asarray(reverse, float)[OUT].any()
