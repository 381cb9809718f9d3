"""Check the losses of a linear layer against the oracle, and every mode of differentiation of these losses against the textbook formula."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxce import linear_softmax_cross_entropy, linear_softmax_cross_entropy_sum
from tests.support import covering
from tests.support.closeness import assert_within
from tests.support.linear_cases import DIFFERENTIABLE, OPTIONS, TOKENS, expected, make
from tests.support.oracle import Quantity

ALL_OR_NONE = [tuple(OPTIONS), *covering.nightly_values(())]
# Includes the rounding of the logits, of their cap and of the matrix products of the gradients, in addition to that of the loss.
ULPS = 8


def answers(hidden, classifier, labels, cotangent, implementation, **options):
    """Return the losses and their gradients under a cotangent, then the total and its gradients. Gradients are by name."""
    by_name = {"hidden": hidden, "classifier": classifier, **{n: v for n, v in options.items() if n in DIFFERENTIABLE}}
    fixed = {n: v for n, v in options.items() if n not in by_name}

    def run(by_name, labels, cotangent, fixed):
        def losses(function):
            return lambda x: function(labels=labels, implementation=implementation, **x, **fixed)

        value, pull = jax.vjp(losses(linear_softmax_cross_entropy), by_name)
        summed, gradients = jax.value_and_grad(lambda x: losses(linear_softmax_cross_entropy_sum)(x).total)(by_name)
        return (value, pull(cotangent)[0]), (summed, gradients)

    return jax.jit(run)(*jax.tree.map(jnp.asarray, (by_name, labels, cotangent, fixed)))


def check(rng, implementation, names, ulps=ULPS):
    hidden, classifier, labels = make(rng)
    options = {name: OPTIONS[name] for name in names}
    cotangent = rng.uniform(-2, 2, TOKENS).astype(np.float32)
    (value, gradients), (total, of_total) = answers(hidden, classifier, labels, cotangent, implementation, **options)
    want, want_gradients = expected(hidden, classifier, labels, cotangent, **options)
    assert_within(value, want, ulps)
    assert_within(total, Quantity(want.value.sum(), want.scale.sum()), ulps)
    for name, gradient in gradients.items():
        assert_within(gradient, want_gradients[name], ulps)
    _, want_gradients = expected(hidden, classifier, labels, np.ones(TOKENS), **options)
    for name, gradient in of_total.items():
        assert_within(gradient, want_gradients[name], ulps)


def plain(hidden, classifier, labels, *, bias, soft_cap=None, z_loss=0.0):
    """Compute the losses by the textbook formula, which JAX differentiates."""
    z = hidden @ classifier + bias[None]
    z = z if soft_cap is None else soft_cap * jnp.tanh(z / soft_cap)
    picked = jnp.take_along_axis(z, labels[:, None], 1)[:, 0]
    log_z = jax.nn.logsumexp(z, axis=1)
    return log_z - picked + z_loss * log_z**2


MODES = {
    "jvp": lambda f, x, t: jax.jvp(f, (x,), (t,)),
    "linearize": lambda f, x, t: jax.linearize(f, x)[1](t),
    "grad": lambda f, x, t: jax.grad(lambda x: f(x).sum())(x),
    "jacfwd": lambda f, x, t: jax.jacfwd(f)(x),
    "jacrev": lambda f, x, t: jax.jacrev(f)(x),
    "hvp": lambda f, x, t: jax.jvp(jax.grad(lambda x: (f(x) ** 2).sum()), (x,), (t,))[1],
    "hvp in reverse": lambda f, x, t: jax.grad(lambda x: _vdot(jax.grad(lambda x: (f(x) ** 2).sum())(x), t))(x),
    "hessian": lambda f, x, t: jax.hessian(lambda x: f(x).sum())(x),
    "third": lambda f, x, t: jax.grad(lambda x: _vdot(jax.jvp(jax.grad(lambda x: f(x).sum()), (x,), (t,))[1], t))(x),
    "checkpoint": lambda f, x, t: jax.grad(jax.checkpoint(lambda x: f(x).sum()))(x),
    "scan": lambda f, x, t: jax.grad(lambda x: _in_scan(f, x))(x),
    "hvp of scan": lambda f, x, t: jax.jvp(jax.grad(lambda x: _in_scan(f, x)), (x,), (t,))[1],
    "vmap": lambda f, x, t: jax.vmap(f)(jax.tree.map(lambda a, b: jnp.stack([a, b]), x, t)),
    "vmap of grad": lambda f, x, t: jax.vmap(jax.grad(lambda x: f(x).sum()))(
        jax.tree.map(lambda a, b: jnp.stack([a, b]), x, t)
    ),
    "grad of vmap": lambda f, x, t: jax.grad(
        lambda x: jax.vmap(lambda s: f(jax.tree.map(lambda v: v * s, x)))(jnp.arange(3.0)).sum()
    )(x),
}


def _in_scan(f, x):
    return jax.lax.scan(lambda c, s: (c + f(jax.tree.map(lambda v: v * s, x)).sum(), None), 0.0, jnp.arange(3.0))[0]


def _vdot(a, b):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


def differentiate(rng, mode, total, blocks):
    hidden, classifier, labels = make(rng, 6, 3, 8, np.float64)
    x = {"hidden": hidden, "classifier": classifier, "bias": rng.normal(size=8), "soft_cap": np.float64(4)}
    t = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=np.shape(v))), x)
    x = jax.tree.map(jnp.asarray, x)
    x["soft_cap"], t["soft_cap"] = jnp.asarray(4.0), jnp.asarray(0.5)
    if mode == "vmap" or mode == "vmap of grad":
        t["soft_cap"] = jnp.asarray(3.0)

    def ours(x):
        if total:
            return linear_softmax_cross_entropy_sum(labels=labels, z_loss=0.1, implementation=blocks, **x).total
        return linear_softmax_cross_entropy(labels=labels, z_loss=0.1, implementation=blocks, **x)

    def theirs(x):
        losses = plain(labels=labels, z_loss=0.1, **x)
        return losses.sum() if total else losses

    if mode in ("scan", "hvp of scan", "grad of vmap"):  # these scale the inputs by 0, and a cap of 0 has no derivative
        del x["soft_cap"], t["soft_cap"]
    got, want = (jax.jit(lambda x, t, f=f: MODES[mode](f, x, t))(x, t) for f in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, want)
