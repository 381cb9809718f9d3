"""A masked example has loss 0 and gradient 0, whatever values it has. A mean over no examples is 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import LossSum
from tests.support import cases
from tests.support.cases import INTEGER, SIGMOID
from tests.support.closeness import assert_within
from tests.support.ways import INF, LABELS, LOGITS, NAN, WAYS, C, targets, value_and_gradient

pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("junk", [NAN, INF, -INF, 3e38])
def test_masked_row_has_zero_loss_and_gradient_whatever_it_holds(way, loss, junk):
    logits, labels = LOGITS.copy(), targets(loss, LABELS.copy())
    logits[1, 1:4] = junk
    labels[1] = -100 if loss is INTEGER else junk
    mask = np.array([True, False, True])
    values, gradient = value_and_gradient(way, loss, logits, labels, mask, names=("mask",))
    answer = loss.oracle(logits, labels, mask=mask)
    assert values[1] == 0 and (gradient[1] == 0).all()
    assert_within(values, answer.loss, 6)
    assert_within(gradient, answer.logits, 6)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_masked_row_of_nan_affects_no_derivative(loss, rng):
    """Check the derivatives with respect to every input, in both modes, with all options."""
    labels = LOGITS * 0 if loss is SIGMOID else targets(loss, LABELS.copy())
    mask = np.ones(loss.shape(LOGITS.shape), bool)
    mask[1] = False
    names = [n for n in loss.options if n not in ("where", "mask")]
    options = cases.make_options(rng, names, loss, LOGITS.shape, labels)
    dirty_logits, dirty_labels = LOGITS.copy(), labels.copy()
    dirty_logits[1], dirty_labels[1] = NAN, NAN if loss is not INTEGER else -100

    def derivatives(logits, labels):
        arrays = (logits, options, *(labels for _ in loss.label_argnums))

        def total(logits, options, labels=labels):
            return loss.function(logits, labels, mask=mask, **options).sum()

        argnums = tuple(range(len(arrays)))
        return [jax.jit(d(total, argnums=argnums))(*arrays) for d in (jax.grad, jax.jacfwd)]

    dirty, clean = derivatives(dirty_logits, dirty_labels), derivatives(LOGITS, labels)
    for actual, expected in zip(jax.tree.leaves(dirty), jax.tree.leaves(clean), strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.covering(1)
@pytest.mark.parametrize("names", [(), ("label_smoothing", "class_weights")], ids=cases.name_of)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_masked_row_of_nan_affects_no_second_derivative_through_loops(loss, names, rng):
    """In loops, JAX may differentiate the code of the statistics instead of using their rule."""
    mask = np.array([True, False, True])
    dirty_logits, labels = LOGITS.copy(), targets(loss, LABELS)
    dirty_logits[1] = NAN
    options = cases.make_options(rng, names, loss, LOGITS.shape, labels)

    def total(arrays):
        logits, options = arrays
        zero = jnp.zeros((), logits.dtype)
        add = lambda carry, _: (carry + loss.function(logits, labels, mask=mask, **options).sum(), None)  # noqa: E731
        return jax.lax.scan(add, zero, None, length=2)[0]

    second = jax.jit(jax.jacfwd(jax.jacrev(total)))
    dirty, clean = (second((logits, options)) for logits in (dirty_logits, LOGITS))
    for actual, expected in zip(jax.tree.leaves(dirty), jax.tree.leaves(clean), strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("junk", [NAN, INF, -INF])
def test_sigmoid_masked_entry_has_zero_loss_and_gradient(junk):
    logits, labels = np.float32([1, junk, junk]), np.float32([1, junk, 1])
    values, gradient = value_and_gradient(
        jax.jit, SIGMOID, logits, labels, np.array([True, False, False]), names=("mask",)
    )
    assert values[0] > 0 and gradient[0] < 0
    np.testing.assert_array_equal(values[1:], 0)
    np.testing.assert_array_equal(gradient[1:], 0)


@pytest.mark.parametrize("loss", cases.LOSSES)
@pytest.mark.parametrize("none", ["all masked", "no rows"])
def test_mean_over_nothing_is_0_with_zero_gradient(loss, none):
    logits = np.full((0 if none == "no rows" else 3, C), NAN, np.float32)
    labels = loss.make_labels(np.random.default_rng(0), logits.shape, -1)
    mask = np.zeros(loss.shape(logits.shape), bool)
    mean, gradient = jax.value_and_grad(lambda z: LossSum.of(loss.function(z, labels, mask=mask), mask=mask).mean())(
        logits
    )
    assert mean == 0
    np.testing.assert_array_equal(gradient, np.zeros(logits.shape))


@pytest.mark.parametrize("loss", cases.LOSSES)
@pytest.mark.parametrize("by", ["mask", "where"])
def test_nan_tangents_of_excluded_logits_do_not_affect_the_tangents(loss, by, rng):
    """In forward mode, the computation that made a logit NaN also made its tangent NaN."""
    if loss is SIGMOID and by == "where":
        pytest.skip("the sigmoid loss has no classes to leave out")
    labels = (LOGITS > 0).astype(np.float32) if loss is SIGMOID else targets(loss, LABELS)
    excluded = np.zeros(LOGITS.shape, bool)
    excluded[1 if by == "mask" else ..., 1 if by == "where" else ...] = True
    options = {"where": ~excluded} if by == "where" else {"mask": ~excluded if loss is SIGMOID else ~excluded[:, 0]}
    dirty = np.where(excluded, np.float32(NAN), LOGITS)
    z_dot = rng.standard_normal(LOGITS.shape).astype(np.float32)
    _, tangents = jax.jvp(
        lambda z: loss.function(z, labels, **options), (dirty,), (np.where(excluded, np.float32(NAN), z_dot),)
    )
    gradient = loss.oracle(dirty, labels, **options).logits
    tangents_wanted = (gradient.value * z_dot, gradient.scale * abs(z_dot))
    assert_within(tangents, tangents_wanted if loss is SIGMOID else tuple(x.sum(1) for x in tangents_wanted), 8)
