"""A weight whose label is 0, or whose row is masked, has derivative 0, even if it would multiply an infinite loss. In every mode and dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from tests.support import cases

INF = np.inf
DTYPES = [dtype for dtype in cases.DTYPES if dtype.id != "float8_e4m3fn"]  # it has no infinity
MODES = {"reverse": jax.jacrev, "forward": jax.jacfwd, "reverse under jit": lambda f: jax.jit(jax.jacrev(f))}


@pytest.fixture(params=MODES)
def derivative(request):
    return MODES[request.param]


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("logit", "label"), [(-INF, 0), (INF, 1)])
def test_pos_weight_beside_an_infinite_logit(logit, label, dtype, derivative, x64):
    def loss(weight):
        return jaxce.sigmoid_binary_cross_entropy(
            jnp.full(3, logit, dtype), jnp.full(3, label, dtype), pos_weight=weight
        )

    assert (loss(2.0) == 0).all()
    assert (derivative(loss)(2.0) == 0).all()


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [3, 40_000])  # the second is computed by the form for a CPU
def test_class_weights_beside_an_infinite_logit(num_classes, dtype, derivative, x64):
    """All of the label is on the class of +inf. The others are infinitely far below, or take no part."""
    logits = jnp.zeros((1, num_classes), dtype).at[0, 0].set(INF).at[0, 1].set(-INF)
    labels = jnp.zeros_like(logits).at[0, 0].set(1)

    def loss(scale):
        return jaxce.softmax_cross_entropy(logits, labels, class_weights=scale * jnp.ones(num_classes))

    assert (loss(1.0) == 0).all()
    assert (derivative(loss)(1.0) == 0).all()


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [None, jaxce.Chunked(block_tokens=1, block_classes=2)], ids=["default", "chunked"])
@pytest.mark.parametrize("option", ["class_weights", "label_smoothing", "z_loss", "soft_cap"])
def test_options_beside_a_masked_token_when_class_0_takes_no_part(option, blocks, dtype, derivative, x64):
    """The bias leaves class 0 out. Both other classes have the same logit."""
    hidden, classifier = jnp.ones((2, 2), dtype), jnp.ones((2, 3), dtype)
    given = {"bias": jnp.array([-INF, 0, 0], dtype), "mask": jnp.array([False, True]), "implementation": blocks}

    def with_option(function):
        def of_option(value):
            chosen = value * jnp.ones(3) if option == "class_weights" else value
            return function(hidden, classifier, jnp.array([1, 1]), **given, **{option: chosen})

        return of_option

    losses = derivative(with_option(jaxce.linear_softmax_cross_entropy))(0.5)
    total = derivative(
        with_option(lambda *args, **options: jaxce.linear_softmax_cross_entropy_sum(*args, **options).total)
    )(0.5)
    assert losses[0] == 0
    # The log-sum-exp is 2 + log 2; under a cap of c it is c tanh(2 / c) + log 2, and the label has the same logit.
    want = {
        "class_weights": np.log(2),
        "label_smoothing": 0,
        "z_loss": (2 + np.log(2)) ** 2,
        "soft_cap": 0,
    }[option]
    np.testing.assert_allclose([losses[1], total], want, rtol=1e-6, atol=1e-7)
