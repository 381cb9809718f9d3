"""Check the losses and their gradients on the device against float64: every dtype, prime sizes, both matmul precisions.

The oracle and the error measure are those of the tests. The error of a sum is in ulps of the terms of the sum.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import jaxce
from tests.support import closeness, oracle
from tests.support.oracle import EXTENDED, Quantity

# The exponential of a device may have an error of some ulps. A formula that loses digits has an error of thousands of ulps.
LIMIT = 16.0
SHAPES = [(3, 1), (2, 257), (33, 130), (5, 1003)]
WIDE = [(2, 50257), (3, 131072), (512, 1001)]
LINEAR_SHAPES = [(7, 24, 33), (130, 40, 257)]
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01}


@dataclasses.dataclass(frozen=True)
class Check:
    """The worst error of one quantity of one loss."""

    subject: str
    dtype: str
    shape: tuple[int, ...]
    quantity: str
    ulps: float

    @property
    def holds(self) -> bool:
        """Return whether the error is within the limit; NaN is not."""
        return self.ulps <= LIMIT


def checks(*, tiny: bool) -> Iterator[Check]:
    """Yield every check as soon as it is computed."""
    dtypes = ["float32", "bfloat16"]
    if not tiny:
        dtypes += ["float16"] if jax.default_backend() == "tpu" else ["float16", "float64"]  # a TPU has no float64
    for dtype in dtypes:
        with jax.enable_x64(dtype == "float64"):
            for shape in SHAPES[:2] if tiny else SHAPES:
                yield from _dense(dtype, shape)
            for shape in WIDE[:1] if tiny else WIDE:
                yield from _wide(dtype, shape)
            for shape in LINEAR_SHAPES[:1] if tiny else LINEAR_SHAPES:
                for precision in ("default", "highest"):
                    yield from _linear(dtype, shape, precision)


def _dense(dtype, shape):
    rng = np.random.default_rng(0)
    z = _rounded(10 * rng.standard_normal(shape), dtype)
    y = rng.integers(0, shape[1], shape[0]).astype(np.int32)
    mask, q = np.arange(shape[0]) % 3 != 1, _rounded(rng.dirichlet(np.ones(shape[1]), shape[0]), dtype)
    integer, soft = jaxce.softmax_cross_entropy_with_integer_labels, jaxce.softmax_cross_entropy
    of_integer, of_soft = oracle.integer_softmax, oracle.softmax
    cases = {
        "integer": (lambda z: integer(z, y), lambda c: of_integer(z, y, cotangent=c)),
        "integer, mask, smoothing, z-loss": (
            lambda z: integer(z, y, mask=mask, **OPTIONS),
            lambda c: of_integer(z, y, mask=mask, cotangent=c, **OPTIONS),
        ),
        "soft": (lambda z: soft(z, q), lambda c: of_soft(z, q, cotangent=c)),
        "sigmoid": (
            lambda z: jaxce.sigmoid_binary_cross_entropy(z, q),
            lambda c: oracle.sigmoid(z, q, cotangent=c),
        ),
    }
    for subject, (loss, truth) in cases.items():
        cotangent = rng.uniform(0.5, 2, z.shape if subject == "sigmoid" else shape[:1]).astype(np.float32)
        value, gradient = _value_and_gradient(loss, z, cotangent)
        answer = truth(cotangent)
        yield _check(subject, dtype, shape, "value", value, answer.loss)
        yield _check(subject, dtype, shape, "gradient", gradient, answer.logits)


def _wide(dtype, shape):
    """Check rows that are too long for the oracle, with the textbook formula in float64. Its error is far below the error of float32.

    The textbook formula is not exact enough to check float64.
    """
    if dtype == "float64":
        return
    rng = np.random.default_rng(1)
    z = _rounded(3 * rng.standard_normal(shape), dtype)
    y = rng.integers(0, shape[1], shape[0]).astype(np.int32)
    value, gradient = _value_and_gradient(
        lambda z: jaxce.softmax_cross_entropy_with_integer_labels(z, y), z, np.ones(shape[0], np.float32)
    )
    wide = z.astype(np.float64)
    below = wide - wide.max(1, keepdims=True)
    e = np.exp(below)
    p = e / e.sum(1, keepdims=True)
    one_hot = np.arange(shape[1]) == y[:, None]
    nll = np.log(e.sum(1)) - below[one_hot]
    spread = np.sum(p * -below, 1)
    yield _check("integer", dtype, shape, "value", value, Quantity(nll, nll + spread))
    scale = p * (1 - below + spread[:, None]) + one_hot
    yield _check("integer", dtype, shape, "gradient", gradient, Quantity(p - one_hot, scale))


def _linear(dtype, shape, precision):
    """Check a linear layer whose factors are small multiples of 1/8. Its logits are exact in every precision, so only the loss has an error.

    In the default precision a device may round the gradient with respect to the logits before a matmul. Such gradients are checked as bfloat16.
    """
    tokens, features, classes = shape
    rng = np.random.default_rng(2)
    h = _rounded(rng.integers(-8, 9, (tokens, features)) / 8, dtype)
    w = _rounded(rng.integers(-8, 9, (features, classes)) / 8, dtype)
    y = rng.integers(0, classes, tokens).astype(np.int32)
    answer = oracle.integer_softmax(h.astype(EXTENDED) @ w.astype(EXTENDED), y, cotangent=np.ones(tokens))
    logits_gradient, scale = answer.logits
    wide_h, wide_w = h.astype(EXTENDED), w.astype(EXTENDED)
    truths = {
        "gradient by hidden": Quantity(logits_gradient @ wide_w.T, scale @ abs(wide_w).T),
        "gradient by classifier": Quantity(wide_h.T @ logits_gradient, abs(wide_h).T @ scale),
    }
    total = Quantity(answer.loss.value.sum(), answer.loss.scale.sum())
    losses = {
        "linear losses": lambda h, w: jaxce.linear_softmax_cross_entropy(h, w, y).sum(),
        "linear sum": lambda h, w: jaxce.linear_softmax_cross_entropy_sum(h, w, y).total,
    }
    working = "bfloat16" if precision == "default" or dtype in ("bfloat16", "float16") else dtype
    for subject, loss in losses.items():
        with jax.default_matmul_precision(precision):
            value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(h, w)
        subject = f"{subject}, matmuls {precision}"
        yield _check(subject, dtype, shape, "value", value, total)
        for (quantity, truth), gradient in zip(truths.items(), gradients, strict=True):
            yield _check(subject, dtype, shape, quantity, gradient.astype(value.dtype), truth, working)


def _value_and_gradient(loss, z, cotangent):
    """Return the losses and the gradient of their sum weighted by `cotangent`, from one program."""

    def both(z, cotangent):
        value, pull = jax.vjp(loss, z)
        return value, pull(cotangent.astype(value.dtype))[0]

    return jax.jit(both)(z, cotangent)


def _check(subject, dtype, shape, quantity, actual, expected, working=None):
    working = working or ("float64" if dtype == "float64" else "float32")
    try:
        ulps = float(np.max(closeness.ulps_off(np.asarray(actual), expected, working=working)))
    except AssertionError:  # an unexpected NaN or infinity
        ulps = float("nan")
    return Check(subject, dtype, shape, quantity, ulps)


def _rounded(values, dtype):
    return np.asarray(values, jnp.dtype(dtype))
