"""A linear function with a transpose of its own: reverse mode of the first order takes that, all else its code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from jaxce._transpose import with_transpose

SCALE = jnp.float32([1, 2, 3])


def linear(x, scale):
    return jnp.sum(jnp.sin(scale) * x, -1)


def tenfold(ct, scale):
    """Not the transpose, so that it shows."""
    return 10 * jnp.sin(scale) * ct[..., None]


def f(x, scale=SCALE):
    return with_transpose(linear, tenfold, x, scale)


X = jnp.float32([0.5, -1, 2])
ONCE, TENFOLD = jnp.sin(SCALE), 10 * jnp.sin(SCALE)


@pytest.mark.parametrize(
    "gradient",
    [
        jax.grad(f),
        jax.jit(jax.grad(f)),
        jax.grad(jax.jit(f)),
        jax.grad(jax.checkpoint(f)),
        lambda x: jax.linear_transpose(f, x)(jnp.float32(1))[0],
        lambda x: jax.vjp(jax.linearize(f, x)[1], x)[1](jnp.float32(1))[0],
        jax.grad(lambda x: jax.lax.scan(lambda c, s: (c + f(x * s), None), 0.0, jnp.float32([0.25, 0.75]))[0]),
    ],
    ids=["grad", "jit of grad", "grad of jit", "checkpoint", "linear_transpose", "vjp of linearize", "scan"],
)
def test_reverse_mode_takes_the_transpose(gradient):
    np.testing.assert_allclose(gradient(X), TENFOLD, rtol=1e-6)


def test_values_tangents_and_batches_are_of_its_own_code():
    want = jnp.vdot(ONCE, X)
    np.testing.assert_allclose(f(X), want, rtol=1e-6)
    with jax.disable_jit():
        np.testing.assert_allclose(f(X), want, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(f, (X,), (X,)), [want, want], rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(f)(X), ONCE, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(f, (0, None))(jnp.stack([X, 2 * X]), SCALE), [want, 2 * want], rtol=1e-6)
    batch = lambda x: jax.vmap(f, (0, None))(x, SCALE)  # noqa: E731
    np.testing.assert_allclose(jax.vjp(batch, X[None])[1](jnp.ones(1))[0][0], ONCE, rtol=1e-6)


def test_derivatives_by_what_it_is_not_linear_in():
    np.testing.assert_allclose(
        jax.jvp(lambda s: f(X, s), (SCALE,), (SCALE,))[1], jnp.vdot(jnp.cos(SCALE) * X, SCALE), 1e-6
    )
    # Forward over reverse is the derivative of the transpose's code, reverse over forward that of its own.
    np.testing.assert_allclose(jax.jacfwd(lambda s: jax.grad(f)(X, s))(SCALE), 10 * jnp.diag(jnp.cos(SCALE)), rtol=1e-6)
    by_both = jax.jacrev(lambda s: jax.jvp(lambda x: f(x, s), (X,), (X,))[1])(SCALE)
    np.testing.assert_allclose(by_both, jnp.cos(SCALE) * X, rtol=1e-6)


def test_no_cotangent_gives_none():
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(x) + 0 * jax.lax.stop_gradient(f(x)))(X), np.ones(3))


def scatters(text):
    return text.count('"stablehlo.scatter"')


def test_the_gradient_of_an_integer_label_is_put_in_its_place_on_one_cpu_alone():
    """And where that would make a copy, or where other derivatives of the logits are wanted too, it is not."""
    logits, labels = jax.ShapeDtypeStruct((4, 9), "float32"), jax.ShapeDtypeStruct((4,), "int32")

    def count(platform="cpu", logits=logits, **options):
        loss = lambda z, y: jaxce.softmax_cross_entropy_with_integer_labels(z, y, **options).sum()  # noqa: E731
        return scatters(jax.jit(jax.grad(loss)).trace(logits, labels).lower(lowering_platforms=(platform,)).as_text())

    assert count() == 1
    assert count("cuda") == count("tpu") == 0
    assert count(logits=jax.ShapeDtypeStruct((4, 9), "bfloat16")) == 0
    assert count(z_loss=0.1) == count(label_smoothing=0.1) == count(where=np.ones((4, 9), bool)) == 0
