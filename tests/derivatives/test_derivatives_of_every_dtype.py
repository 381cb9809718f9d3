"""Second and third derivatives of every loss, in every dtype, under every transform and in every order of modes, against closed forms.

The forms compute parts of a derivative in special ways: they round by bit operations, read pairs of logits, and have their own transpose. Each of
these needs correct derivatives, also under `vmap` and in loops.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxce
from tests.support.platform import forms_of

pytestmark = pytest.mark.usefixtures("fast_compilation")

ROWS, FEATURES = 3, 4
DTYPES = ["float64", "float32", "bfloat16", "float16", "float8_e4m3fn"]


def working(dtype):
    return jnp.dtype("float64" if dtype == "float64" else "float32")


def softmax_terms(z, v, cotangent):
    """Return `H v` and the gradient of `v' H v`. H is the Hessian of `sum(cotangent * losses)` with respect to the logits."""
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mean = (p * v).sum(-1, keepdims=True)
    variance = (p * (v - mean) ** 2).sum(-1, keepdims=True)
    w = cotangent[:, None]
    return w * p * (v - mean), w * p * ((v - mean) ** 2 - variance)


def sigmoid_terms(z, v, cotangent):
    s, not_s, w = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z)), cotangent[:, None]
    return w * s * not_s * v, w * s * not_s * (not_s - s) * v**2


def integer(z, y):
    return jaxce.softmax_cross_entropy_with_integer_labels(z, y)


def smoothed(z, y):
    """A loss that also uses `uniform_nll`. Smoothing does not change its second derivatives."""
    return jaxce.softmax_cross_entropy_with_integer_labels(z, y, label_smoothing=0.25)


def soft(z, y):
    return jaxce.softmax_cross_entropy(z, y)


def sigmoid(z, y):
    return jaxce.sigmoid_binary_cross_entropy(z, y).sum(-1)


LOSSES = {
    "integer": (integer, softmax_terms),
    "smoothed": (smoothed, softmax_terms),
    "soft": (soft, softmax_terms),
    "sigmoid": (sigmoid, sigmoid_terms),
}


# Each way turns the loss of one row into the losses of all rows.
def over_rows(f):
    return f


def vmap(f):
    return jax.vmap(f)


def vmap_of_vmap(f):
    return lambda z, y: jax.vmap(jax.vmap(f))(z[None], jax.tree.map(lambda x: x[None], y))[0]


def scan(f):
    return lambda z, y: lax.scan(lambda n, row: (n, f(*row)), 0, (z, y))[1]


def in_map(f):
    return lambda z, y: lax.map(lambda row: f(*row), (z, y))


def vmap_of_scan(f):
    return lambda z, y: jax.vmap(scan(f))(z[None], jax.tree.map(lambda x: x[None], y))[0]


def checkpoint(f):
    return jax.vmap(jax.checkpoint(f))


WAYS = {f.__name__: f for f in (over_rows, vmap, vmap_of_vmap, scan, in_map, vmap_of_scan, checkpoint)}


def forward(g, v):
    return lambda z: jax.jvp(g, (z,), (v,))[1]


def reverse(g, v):
    """Differentiate the product with `v`, computed in at least float32, so that its rounding does not hide other errors."""
    wide = working(v.dtype)
    return jax.grad(lambda z: jnp.sum(g(z).astype(wide) * v.astype(wide)))


ORDERS = {
    "reverse over reverse": lambda total, v: reverse(jax.grad(total), v),
    "forward over reverse": lambda total, v: forward(jax.grad(total), v),
    "reverse over forward": lambda total, v: jax.grad(forward(total, v)),
    "third: reverse over reverse over reverse": lambda total, v: reverse(reverse(jax.grad(total), v), v),
    "third: reverse over forward over reverse": lambda total, v: reverse(forward(jax.grad(total), v), v),
}


def problem(loss, dtype, classes, rng):
    z, v = (np.asarray(x, jnp.dtype(dtype)) for x in rng.standard_normal((2, ROWS, classes)))
    y = rng.integers(0, classes, ROWS).astype(np.int32)
    if loss == "soft":
        y = rng.dirichlet(np.ones(classes), ROWS)
        # The label probabilities sum to 1 only in a wide dtype. The dtype of the labels is not tested here.
        y = y.astype(np.float64 if dtype == "float64" else np.float32)
    elif loss == "sigmoid":
        y = np.asarray(rng.integers(0, 2, (ROWS, classes)), jnp.dtype(dtype))
    cotangent = np.array([1, -0.5, 2], np.float64 if dtype == "float64" else np.float32)
    return z, y, v, cotangent


def assert_close(found, want, dtype, roundings=1):
    """Assert equality up to the rounding of each result, and of its terms, to the dtype of the logits."""
    eps = {"float64": 1e-13, "float32": 1e-5}.get(dtype, 4 * float(jnp.finfo(dtype).eps) * roundings)
    tiny = float(jnp.finfo(dtype).smallest_subnormal)
    assert found.dtype == jnp.dtype(dtype)
    found = np.asarray(found, np.float64)
    np.testing.assert_allclose(found, want, rtol=0, atol=eps * abs(want).max() + tiny)


@pytest.fixture
def platform(request):
    """Use the forms of this platform."""
    with forms_of(request.param):
        yield request.param


@pytest.mark.covering(1, at_most=4)
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"], indirect=True)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [5, 1002])
@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives(loss, classes, dtype, way, order, platform, rng, x64):
    row_loss, terms = LOSSES[loss]
    z, y, v, cotangent = problem(loss, dtype, classes, rng)
    losses = WAYS[way](row_loss)

    def total(z):
        return jnp.sum(cotangent * losses(z, y))

    found = jax.jit(ORDERS[order](total, v))(z)
    second, third = terms(z.astype(np.float64), v.astype(np.float64), cotangent.astype(np.float64))
    assert_close(found, third if order.startswith("third") else second, dtype)


@pytest.mark.covering(1)
@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("between", ["vmap", "map", "jit of vmap"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [5, 1002])
@pytest.mark.parametrize("loss", LOSSES)
def test_transform_between_two_derivatives(loss, classes, dtype, between, mode, rng, x64):
    """A transform between the two derivatives, as in a penalty on the gradients of single examples."""
    row_loss, terms = LOSSES[loss]
    z, y, v, _ = problem(loss, dtype, classes, rng)
    of_rows = {
        "vmap": jax.vmap(jax.grad(row_loss)),
        "map": lambda z, y: lax.map(lambda row: jax.grad(row_loss)(*row), (z, y)),
        "jit of vmap": jax.jit(jax.vmap(jax.jit(jax.grad(row_loss)))),
    }[between]
    mode = {"reverse": reverse, "forward": forward}[mode]
    found = jax.jit(mode(lambda z: of_rows(z, y), v))(z)
    second, _ = terms(z.astype(np.float64), v.astype(np.float64), np.ones(ROWS))
    assert_close(found, second, dtype)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_penalty(loss, dtype, rng, x64):
    """The derivative of the sum of the squared gradients is `2 H g`."""
    row_loss, terms = LOSSES[loss]
    z, y, _, _ = problem(loss, dtype, 5, rng)
    wide = working(dtype)
    found = jax.grad(lambda z: jnp.sum(jax.vmap(jax.grad(row_loss))(z, y).astype(wide) ** 2))(z)
    gradient = np.asarray(jax.vmap(jax.grad(row_loss))(z, y), np.float64)
    second, _ = terms(z.astype(np.float64), 2 * gradient, np.ones(ROWS))
    assert_close(found, second, dtype)


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_inside_of_a_while_loop(loss, dtype, rng, x64):
    """JAX can differentiate a `while_loop` only in forward mode."""
    row_loss, terms = LOSSES[loss]
    z, y, v, cotangent = problem(loss, dtype, 5, rng)

    def looped(z):
        gradient = jax.grad(lambda z: jnp.sum(cotangent * jax.vmap(row_loss)(z, y)))
        return lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, gradient(z)), (0, jnp.zeros_like(z)))[1]

    second, _ = terms(z.astype(np.float64), v.astype(np.float64), cotangent.astype(np.float64))
    assert_close(jax.jit(forward(looped, v))(z), second, dtype)


@functools.cache
def linear_problem(dtype):
    rng = np.random.default_rng(1)
    classes = 6
    h, h_dot = (np.asarray(x, jnp.dtype(dtype)) for x in rng.standard_normal((2, ROWS, FEATURES)))
    w, w_dot = (np.asarray(x, jnp.dtype(dtype)) for x in rng.standard_normal((2, FEATURES, classes)))
    y = rng.integers(0, classes, ROWS).astype(np.int32)
    return (h, w), (h_dot, w_dot), y


def linear_second(primals, tangents, y):
    """Return the directional derivatives of the two gradients of the sum of the losses (with respect to hidden and classifier), in float64."""
    (h, w), (h_dot, w_dot) = ([x.astype(np.float64) for x in xs] for xs in (primals, tangents))
    z, z_dot = h @ w, h_dot @ w + h @ w_dot
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    z_gradient = p - np.eye(w.shape[1])[y]
    z_gradient_dot = p * (z_dot - (p * z_dot).sum(1, keepdims=True))
    return z_gradient_dot @ w.T + z_gradient @ w_dot.T, h_dot.T @ z_gradient + h.T @ z_gradient_dot


LINEAR = {
    "per token": lambda h, w, y, i: jaxce.linear_softmax_cross_entropy(h, w, y, implementation=i).sum(),
    "sum": lambda h, w, y, i: jaxce.linear_softmax_cross_entropy_sum(h, w, y, implementation=i).total,
    "statistics": lambda h, w, y, i: jaxce.linear_logit_stats(h, w, y, implementation=i).nll.sum(),
}
LINEAR_WAYS = {
    "plain": lambda f: f,
    "vmap": lambda f: lambda h, w, y: jax.vmap(f, (0, None, 0))(h[None], w, y[None]).sum(),
    "vmap of rows": lambda f: lambda h, w, y: jax.vmap(f, (0, None, 0))(h[:, None], w, y[:, None]).sum(),
    "scan": lambda f: (
        lambda h, w, y: lax.scan(
            lambda n, x: (n + f(x[0][None], w, x[1][None]), None), jnp.zeros((), working(h.dtype)), (h, y)
        )[0]
    ),
    "checkpoint": lambda f: jax.checkpoint(f),
}


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("platform", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("order", ["reverse over reverse", "forward over reverse", "reverse over forward"])
@pytest.mark.parametrize("way", LINEAR_WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", [None, jaxce.Chunked(2, 4), jaxce.Chunked(2), "reference"], ids=str)
@pytest.mark.parametrize("loss", LINEAR)
def test_derivatives_of_linear_losses(loss, implementation, dtype, way, order, platform, x64):
    primals, tangents, y = linear_problem(dtype)
    total = LINEAR_WAYS[way](lambda h, w, y: LINEAR[loss](h, w, y, implementation))
    wide = working(dtype)

    def directional(h, w):
        gradients = jax.grad(lambda h, w: total(h, w, y), (0, 1))(h, w)
        return sum(jnp.sum(g.astype(wide) * d.astype(wide)) for g, d in zip(gradients, tangents, strict=True))

    derivative = {
        "reverse over reverse": jax.grad(directional, (0, 1)),
        "forward over reverse": lambda h, w: jax.jvp(jax.grad(lambda h, w: total(h, w, y), (0, 1)), (h, w), tangents)[
            1
        ],
        "reverse over forward": jax.grad(
            lambda h, w: jax.jvp(lambda h, w: total(h, w, y), (h, w), tangents)[1], (0, 1)
        ),
    }[order]
    found = jax.jit(derivative)(*primals)
    for one, want in zip(found, linear_second(primals, tangents, y), strict=True):
        assert_close(one, want, dtype)
