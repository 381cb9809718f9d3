"""float32 values and gradients against 50 digits of mpmath, in ulps of the result.

No formula can avoid one error: `z_k - max z` is rounded by at most half an ulp. This changes `exp(z_k - max z)` by a relative error of half an ulp
times `|z_k - max z|`. The bound allows this error in the terms with these exponentials, and no other error.
"""

import jax
import mpmath
import numpy as np
import pytest

from jaxce import sigmoid_binary_cross_entropy, softmax_cross_entropy, softmax_cross_entropy_with_integer_labels
from tests.support import cases, platform

mpmath.mp.dps = 50
EPS = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).tiny)
VALUE_ULPS, GRADIENT_ULPS = 4, 6


@pytest.fixture(scope="module", autouse=True, params=platform.PLATFORMS)
def on_platform(request):
    """Use the forms of each platform for rows of any length. A TPU has no forms, so it tests the definition."""
    with platform.forms_of(request.param):
        yield


def _margin_rows(size):
    z = np.zeros((10, 5), np.float32)
    z[:, 1] = -1
    z[:, 2] = np.float32(10.0) ** np.linspace(-8, 2, 10, dtype=np.float32)
    return size * z


SETS = {
    "random": lambda rng: cases.make_logits(rng, (24, 10)),
    "random, wide": lambda rng: cases.make_logits(rng, (12, 40), size=12),
    "two classes": lambda rng: cases.make_logits(rng, (24, 2), size=8),
    "1000 classes": lambda rng: cases.make_logits(rng, (2, 1000)),
    "near zero": lambda rng: cases.make_logits(rng, (12, 10), size=1e-6),
    "margins": lambda rng: _margin_rows(1),
    "negative margins": lambda rng: _margin_rows(-1),
    "offset by 1e4": lambda rng: cases.make_logits(rng, (24, 10)) + np.float32(1e4),
    "confident by 10": lambda rng: cases.make_logits(rng, (16, 10)) + 10 * np.eye(16, 10, dtype=np.float32),
    "confident by 20": lambda rng: cases.make_logits(rng, (16, 10)) + 20 * np.eye(16, 10, dtype=np.float32),
    "confident by 60": lambda rng: cases.make_logits(rng, (16, 10)) + 60 * np.eye(16, 10, dtype=np.float32),
    "confident by 20, offset by 1e4": lambda rng: (
        cases.make_logits(rng, (16, 10)) + 20 * np.eye(16, 10, dtype=np.float32) + np.float32(1e4)
    ),
}


# The worst rows among eight million random and adversarial ones, as (logits, label): the value is off by 3.0 ulps, the gradient by 3.3 ulps.
WORST = [
    (["0x1.a157ccp+6", "0x1.a3bc92p+6", "0x1.80176ap+6", "0x1.883248p+6", "0x1.8e3c70p+6"], 1),
    (["-0x1.3884bep+13", "-0x1.38808ep+13", "-0x1.38cce0p+13"], 1),
    (
        [
            "0x1.99ffe4p+2",
            "0x1.f46bf4p+3",
            "-0x1.014f12p+1",
            "-0x1.58365ap+0",
            "0x1.f2eb5ep+1",
            "-0x1.75a84ep+3",
            "0x1.95b634p+2",
            "0x1.054902p+4",
            "-0x1.1d85e0p+1",
            "-0x1.8d5b74p+3",
        ],
        7,
    ),
    (
        [
            "-0x1.5790c0p-3",
            "-0x1.e0149ep-3",
            "0x1.864e7ap-3",
            "0x1.ac19a0p-3",
            "0x1.4bd55ap-6",
            "-0x1.340eb2p-3",
            "0x1.a9b456p-3",
            "0x1.bb3f40p-3",
            "-0x1.02ebc8p-3",
            "-0x1.6e6362p-3",
        ],
        3,
    ),
    (
        [
            "-0x1.1f126ap-3",
            "0x1.4755ccp-4",
            "0x1.650384p-7",
            "-0x1.163174p-5",
            "0x1.6e0ce6p-4",
            "0x1.fb3564p-4",
            "-0x1.5221d8p-5",
            "0x1.1741f8p-6",
            "-0x1.e98d92p-6",
            "0x1.bdb72ap-5",
        ],
        5,
    ),
]


def exact_row(z, y):
    """Return the loss, its unavoidable error, the gradient, and its unavoidable errors. Errors are in ulps of the working precision."""
    z = [mpmath.mpf(float(v)) for v in z]
    most = max(z)
    e = [mpmath.exp(v - most) for v in z]
    total = mpmath.fsum(e)
    below = [most - v for v in z]
    top = z.index(most)
    rest = mpmath.fsum(v for k, v in enumerate(e) if k != top)
    rest_error = mpmath.fsum(v * d for v, d in zip(e, below, strict=True)) / 2
    loss, loss_error = mpmath.log1p(rest) + below[y], rest_error / total + below[y] / 2
    gradient, gradient_error = [], []
    for k in range(len(z)):
        p, others = e[k] / total, mpmath.fsum(v for j, v in enumerate(e) if j != k) / total
        gradient.append(-others if k == y else p)
        if k == y == top:
            gradient_error.append(rest_error / total)
        elif k == y:
            gradient_error.append(p * (below[k] / 2 + rest_error / total))
        else:
            gradient_error.append(p * (below[k] / 2 + rest_error / total))
    return loss, loss_error, gradient, gradient_error


def ulps_beyond(actual, exact, unavoidable):
    """Return the largest error beyond the unavoidable error, in ulps of the exact value."""
    off = [abs(mpmath.mpf(float(a)) - x) - EPS * u - TINY for a, x, u in zip(actual, exact, unavoidable, strict=True)]
    return max(float(o / (EPS * abs(x))) if x else float(o > 0) * np.inf for o, x in zip(off, exact, strict=True))


@pytest.mark.covering(1, at_most=5)
@pytest.mark.parametrize("kind", ["integer", "one-hot"])
@pytest.mark.parametrize("name", SETS)
def test_softmax_values_and_gradients(name, kind, rng):
    logits = np.asarray(SETS[name](rng), np.float32)
    rows, num_classes = logits.shape
    labels = np.where(np.arange(rows) % 3 == 2, rng.integers(0, num_classes, rows), logits.argmax(1)).astype(np.int32)
    if kind == "integer":
        function, given = softmax_cross_entropy_with_integer_labels, labels
    else:
        function, given = softmax_cross_entropy, np.eye(num_classes, dtype=np.float32)[labels]
    values = np.asarray(function(logits, given))
    gradients = np.asarray(jax.jit(jax.grad(lambda z: function(z, given).sum()))(logits))
    for z, y, value, gradient in zip(logits, labels, values, gradients, strict=True):
        loss, loss_error, exact_gradient, gradient_error = exact_row(z, int(y))
        assert ulps_beyond([value], [loss], [loss_error]) <= VALUE_ULPS
        assert ulps_beyond(gradient, exact_gradient, gradient_error) <= GRADIENT_ULPS


@pytest.mark.covering(1, at_most=5)
@pytest.mark.parametrize(("row", "label"), WORST)
def test_the_worst_rows_found(row, label):
    logits = np.float32([[float.fromhex(v) for v in row]])
    value, gradient = jax.value_and_grad(
        lambda z: softmax_cross_entropy_with_integer_labels(z, np.int32([label])).sum()
    )(logits)
    loss, loss_error, exact_gradient, gradient_error = exact_row(logits[0], label)
    assert ulps_beyond([value], [loss], [loss_error]) <= VALUE_ULPS
    assert ulps_beyond(gradient[0], exact_gradient, gradient_error) <= GRADIENT_ULPS


@pytest.mark.parametrize("label", [0.0, 1.0, 0.5, 1e-6, 0.75])
@pytest.mark.parametrize("size", [1e-6, 1.0, 10.0, 80.0])
def test_sigmoid_values_and_gradients(label, size, rng):
    logits = cases.make_logits(rng, (40,), size=size)
    logits = np.where(np.abs(logits) < 85, logits, np.float32(0))  # larger logits give subnormal results
    labels = np.full_like(logits, label)
    values = np.asarray(sigmoid_binary_cross_entropy(logits, labels))
    gradients = np.asarray(jax.jit(jax.grad(lambda z: sigmoid_binary_cross_entropy(z, labels).sum()))(logits))
    y = mpmath.mpf(float(np.float32(label)))
    for x, value, gradient in zip(logits, values, gradients, strict=True):
        x = mpmath.mpf(float(x))
        p, not_p = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
        loss = y * mpmath.log1p(mpmath.exp(-x)) + (1 - y) * mpmath.log1p(mpmath.exp(x))
        assert ulps_beyond([value], [loss], [0]) <= VALUE_ULPS
        # Near sigmoid(x) = y the difference is ill-conditioned, so the error is relative to its terms.
        exact, larger = (1 - y) * p - y * not_p, max((1 - y) * p, y * not_p)
        assert abs(mpmath.mpf(float(gradient)) - exact) <= GRADIENT_ULPS * EPS * larger + TINY


@pytest.mark.parametrize("margin", [20, 40, 60, 80])
def test_a_tiny_loss_and_its_gradient_keep_every_digit(margin):
    """The formulas `log_z - z_y` and `p - 1` would lose all digits here."""
    logits = np.float32([[0, margin, 0]])
    value, gradient = jax.value_and_grad(lambda z: softmax_cross_entropy_with_integer_labels(z, np.int32([1])).sum())(
        logits
    )
    exact = mpmath.log1p(2 * mpmath.exp(-margin))
    assert ulps_beyond([value], [exact], [0]) <= VALUE_ULPS
    assert ulps_beyond([gradient[0, 1]], [mpmath.expm1(-exact)], [0]) <= GRADIENT_ULPS
