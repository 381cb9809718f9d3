"""Derivatives of the losses of a linear layer through loops, branches and checkpoint, in every mode and of higher order.

All compositions compute the same function: the sum over two micro-batches. So they must have the derivatives of the textbook formula.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxce import Chunked, LossSum, linear_softmax_cross_entropy, linear_softmax_cross_entropy_sum
from tests.support import covering

pytestmark = pytest.mark.usefixtures("fast_compilation")

BATCHES, TOKENS, FEATURES, CLASSES = 2, 5, 2, 4


def in_scan(f, hidden, classifier, labels):
    step = lambda total, rows: (total + f(rows[0], classifier, rows[1]), None)  # noqa: E731
    return lax.scan(step, jnp.zeros(()), (hidden, labels))[0]


def in_fori_loop(f, hidden, classifier, labels):
    return lax.fori_loop(0, BATCHES, lambda i, total: total + f(hidden[i], classifier, labels[i]), jnp.zeros(()))


def in_map(f, hidden, classifier, labels):
    return lax.map(lambda rows: f(rows[0], classifier, rows[1]), (hidden, labels)).sum()


def in_vmap(f, hidden, classifier, labels):
    return jax.vmap(f, (0, None, 0))(hidden, classifier, labels).sum()


def in_checkpoint(f, hidden, classifier, labels):
    return sum(jax.checkpoint(f)(hidden[i], classifier, labels[i]) for i in range(BATCHES))


def in_cond(f, hidden, classifier, labels):
    total = lambda: sum(f(hidden[i], classifier, labels[i]) for i in range(BATCHES))  # noqa: E731
    return lax.cond(hidden[0, 0, 0] < jnp.inf, total, lambda: jnp.zeros(()))


def in_scan_of_checkpoint(f, hidden, classifier, labels):
    return in_scan(jax.checkpoint(f), hidden, classifier, labels)


def in_checkpoint_of_scan(f, hidden, classifier, labels):
    return jax.checkpoint(functools.partial(in_scan, f))(hidden, classifier, labels)


CONTEXTS = [in_scan, in_fori_loop, in_map, in_scan_of_checkpoint, in_checkpoint_of_scan, in_checkpoint, in_cond]


def vdot(a, b):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


def jvp_along(g, t):
    return lambda x: jax.jvp(g, (x,), (t,))[1]


def grad_along(g, t):
    return jax.grad(lambda x: vdot(g(x), t))


def gradient_times_value(f):
    """Return the function `value * gradient`, whose derivative needs both."""

    def product(x):
        value, gradient = jax.value_and_grad(f)(x)
        return jax.tree.map(lambda g: value * g, gradient)

    return product


SECOND = {
    "forward over reverse": lambda f, t: jvp_along(jax.grad(f), t),
    "reverse over forward": lambda f, t: jax.grad(jvp_along(f, t)),
    "reverse over reverse": lambda f, t: grad_along(jax.grad(f), t),
    "reverse over reverse with the value": lambda f, t: grad_along(gradient_times_value(f), t),
}
TWICE = {"twice": SECOND["reverse over reverse"]}
THIRD = {
    "forward over forward over reverse": lambda f, t: jvp_along(jvp_along(jax.grad(f), t), t),
    "reverse thrice": lambda f, t: grad_along(grad_along(jax.grad(f), t), t),
}


def problem():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    x, t = ((draw(BATCHES, TOKENS, FEATURES), draw(FEATURES, CLASSES)) for _ in range(2))
    return x, t, jnp.asarray(rng.integers(0, CLASSES, (BATCHES, TOKENS)))


def textbook(hidden, classifier, labels):
    log_p = jax.nn.log_softmax(hidden @ classifier)
    return -jnp.take_along_axis(log_p, labels[:, None], 1).sum()


def total_of_sum(blocks, mask=None):
    return lambda h, w, y: linear_softmax_cross_entropy_sum(h, w, y, mask=mask, implementation=blocks).total


def total_of_losses(blocks, mask=None):
    def total(h, w, y):
        losses = linear_softmax_cross_entropy(h, w, y, mask=mask, implementation=blocks)
        return LossSum.of(losses, mask=mask).total

    return total


def derivatives(modes, f, around, x, t, labels):
    """Return the derivatives in all modes by name. The program is compiled without optimisation, because compiling takes most of the time."""

    def run(x, t):
        composed = lambda x: around(f, *x, labels)  # noqa: E731
        return {name: mode(composed, t)(x) for name, mode in modes.items()}

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(x, t)


@functools.cache
def wanted(modes, plain):
    return derivatives(dict(modes), plain, in_vmap, *problem())


def check(modes, f, around, plain=textbook):
    got = derivatives(modes, f, around, *problem())
    want = wanted(tuple(modes.items()), plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), got, want)


CONTEXTS_AND_MODES = [*itertools.product(CONTEXTS, SECOND)]
QUICK = [*zip((in_scan, in_map, in_checkpoint_of_scan, in_cond), SECOND, strict=True)]


@pytest.mark.covering(1, at_most=2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("around", "mode"), covering.quick(CONTEXTS_AND_MODES, QUICK), ids=lambda x: getattr(x, "__name__", x)
)
def test_second_derivatives_of_a_sum(mode, around):
    check({mode: SECOND[mode]}, total_of_sum(Chunked(3, None)), around)


@pytest.mark.usefixtures("x64")
@pytest.mark.covering(1)
@pytest.mark.parametrize("around", [in_scan, in_scan_of_checkpoint, in_cond], ids=lambda f: f.__name__)
@pytest.mark.parametrize("mode", SECOND)
@pytest.mark.nightly
def test_second_derivatives_of_losses(mode, around):
    check({mode: SECOND[mode]}, total_of_losses(Chunked(3, None)), around)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "loss", [total_of_losses, pytest.param(total_of_sum, marks=pytest.mark.nightly)], ids=["losses", "sum"]
)
def test_second_derivatives_in_blocks_of_classes(loss):
    check(TWICE, loss(Chunked(3, 3)), in_scan)


@pytest.mark.usefixtures("x64")
@pytest.mark.covering(1)
@pytest.mark.parametrize("around", [in_scan, in_checkpoint], ids=lambda f: f.__name__)
@pytest.mark.parametrize("loss", [total_of_sum, total_of_losses], ids=["sum", "losses"])
@pytest.mark.parametrize("mode", THIRD)
@pytest.mark.nightly
def test_third_derivatives(mode, loss, around):
    check({mode: THIRD[mode]}, loss(Chunked(3, None)), around)


MASK = np.array([True, False, True, True, True])


def masked_textbook(hidden, classifier, labels):
    return textbook(hidden[MASK], classifier, labels[MASK])


@pytest.mark.usefixtures("x64")
def test_reverse_mode_twice_through_a_loop_of_a_masked_sum():
    """The number of visited blocks of tokens depends on the mask. JAX cannot transpose such a loop."""
    masked = total_of_sum(Chunked(2, None), MASK)
    check(TWICE, masked, in_checkpoint, masked_textbook)
    check(TWICE, masked, in_scan, masked_textbook)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_hessian_with_respect_to_an_option_of_another_dtype(dtype, rng, x64):
    hidden, classifier = (rng.standard_normal(shape).astype("float32") for shape in ((4, 3), (3, 5)))
    labels = np.int32([0, 1, 2, 3])

    def total(weight):
        return linear_softmax_cross_entropy_sum(hidden, classifier, labels, z_loss=weight**2).total

    z = hidden.astype("float64") @ classifier
    want = 2 * np.sum(np.log(np.sum(np.exp(z), 1)) ** 2)
    found = jax.hessian(total)(jnp.asarray(0.5, dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(np.float64(found), want, rtol=2e-2 if dtype == "bfloat16" else 2e-3)
