"""The losses inside the transforms of JAX: vmap, loops, branches, checkpoint, and jit, which traces once."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import cases
from tests.support.cases import INTEGER, SIGMOID
from tests.support.closeness import assert_within

pytestmark = pytest.mark.usefixtures("fast_compilation")

SHAPE = (6, 4, 5)


@pytest.fixture
def batch(rng):
    def make(loss):
        return cases.make_logits(rng, SHAPE), loss.make_labels(rng, SHAPE, -1)

    return make


def total(loss, **options):
    return lambda z, y: loss.function(z, y, **options).sum()


@pytest.mark.parametrize("loss", cases.LOSSES)
def test_vmap_over_both(loss, batch):
    logits, labels = batch(loss)
    answer = loss.oracle(logits, labels)
    assert_within(jax.vmap(loss.function)(logits, labels), answer.loss, 6)
    assert_within(jax.vmap(jax.grad(total(loss)))(logits, labels), answer.logits, 6)
    assert_within(jax.grad(lambda z: jax.vmap(total(loss))(z, labels).sum())(logits), answer.logits, 6)


@pytest.mark.parametrize("loss", cases.LOSSES)
def test_vmap_over_logits_only(loss, batch):
    logits, labels = batch(loss)
    labels = labels[0]
    answer = loss.oracle(logits, np.stack([labels] * 6))
    assert_within(jax.vmap(loss.function, (0, None))(logits, labels), answer.loss, 6)
    assert_within(jax.vmap(jax.grad(total(loss)), (0, None))(logits, labels), answer.logits, 6)


@pytest.mark.parametrize("loss", cases.LOSSES)
def test_vmap_over_labels_only(loss, batch):
    logits, labels = batch(loss)
    logits = logits[0]
    answer = loss.oracle(np.stack([logits] * 6), labels)
    assert_within(jax.vmap(loss.function, (None, 0))(logits, labels), answer.loss, 6)
    assert_within(jax.vmap(jax.grad(total(loss)), (None, 0))(logits, labels), answer.logits, 6)


@pytest.mark.parametrize("in_axis", [0, 1, 2])
def test_vmap_over_any_axis_with_options_mapped_too(in_axis, rng):
    shape = (3, 4, 5)
    logits, labels = cases.make_logits(rng, shape), INTEGER.make_labels(rng, shape, -1)
    smoothing = np.float32([0, 0.1, 0.5])
    weights = rng.uniform(0.5, 2, (3, 5)).astype(np.float32)
    mask = rng.random((3, 4)) < 0.5

    def one(z, y, s, w, m):
        return INTEGER.function(z, y, label_smoothing=s, class_weights=w, mask=m)

    values = jax.vmap(one, (in_axis, 0, 0, 0, 0))(np.moveaxis(logits, 0, in_axis), labels, smoothing, weights, mask)
    for i in range(3):
        options = {"label_smoothing": smoothing[i], "class_weights": weights[i], "mask": mask[i]}
        assert_within(values[i], INTEGER.oracle(logits[i], labels[i], **options).loss, 6)


def in_scan(f, logits, labels):
    step = lambda carry, row: (carry + 1, f(*row))  # noqa: E731 - a step of one line
    return jax.lax.scan(step, 0, (logits, labels))[1]


def in_map(f, logits, labels):
    return jax.lax.map(lambda row: f(*row), (logits, labels))


def in_cond(f, logits, labels):
    return jax.lax.cond(jnp.sum(logits) < jnp.inf, f, lambda z, y: f(z, y) * 0, logits, labels)


def in_checkpoint(f, logits, labels):
    return jax.checkpoint(f)(logits, labels)


def in_checkpoint_that_saves_everything(f, logits, labels):
    return jax.checkpoint(f, policy=jax.checkpoint_policies.everything_saveable)(logits, labels)


def in_nested_jit(f, logits, labels):
    return jax.jit(jax.jit(f))(logits, labels)


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    "way",
    [in_scan, in_map, in_cond, in_checkpoint, in_checkpoint_that_saves_everything, in_nested_jit],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_values_and_gradients_in_control_flow(way, loss, batch):
    logits, labels = batch(loss)
    values, vjp = jax.vjp(lambda z: way(loss.function, z, labels), logits)
    answer = loss.oracle(logits, labels)
    assert_within(values, answer.loss, 6)
    assert_within(vjp(jnp.ones_like(values))[0], answer.logits, 6)


@pytest.mark.parametrize("loss", cases.LOSSES)
def test_forward_mode_in_a_while_loop(loss, batch):
    logits, labels = (x[0] for x in batch(loss))

    def twice(z):
        body = lambda state: (state[0] + 1, state[1] + loss.function(z, labels))  # noqa: E731
        return jax.lax.while_loop(lambda state: state[0] < 2, body, (0, jnp.zeros(loss.shape(z.shape))))[1]

    answer = loss.oracle(logits, labels)
    values, tangents = jax.jvp(twice, (logits,), (jnp.ones_like(logits),))
    tangents_wanted = [x if loss is SIGMOID else x.sum(-1) for x in answer.logits]
    assert_within(values, tuple(2 * x for x in answer.loss), 6)
    assert_within(tangents, tuple(2 * x for x in tangents_wanted), 6)


@pytest.mark.parametrize("loss", cases.LOSSES)
def test_gradient_descent_in_a_scan_is_differentiable(loss, batch):
    """Differentiate gradient descent in a loop, as in meta-learning. Compare with finite differences of the same steps by the oracle."""
    logits, labels = (x[0, :2] for x in batch(loss))
    rate = np.float32(0.5)

    def trained(rate):
        step = lambda z, _: (z - rate * jax.grad(total(loss))(z, labels), None)  # noqa: E731
        return total(loss)(jax.lax.scan(step, jnp.asarray(logits), None, length=3)[0], labels)

    def oracle_trained(rate):
        z = logits.astype(np.longdouble)
        for _ in range(3):
            z = z - rate * loss.oracle(z, labels).logits.value
        return loss.oracle(z, labels).loss.value.sum()

    step = np.longdouble(1e-5)
    expected = (oracle_trained(rate + step) - oracle_trained(rate - step)) / (2 * step)
    for mode in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(jax.jit(mode(trained))(rate), float(expected), rtol=1e-5)


@pytest.mark.parametrize("name", ["label_smoothing", "z_loss"])
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_another_value_of_an_option_traces_nothing(name, loss, rng):
    # No other test uses this shape, so it is not traced yet.
    shape = (3, 10 + len(name))
    logits, labels = cases.make_logits(rng, shape), loss.make_labels(rng, shape, -1)
    loss.function(logits, labels, **{name: 0.5})
    with jax.no_tracing():
        for value in (0.25, np.float32(0.125), 1, 1e-9, np.float64(0.3)):
            loss.function(logits, labels, **{name: value})


def test_sigmoid_traces_once_per_signature(rng):
    logits, labels = cases.make_logits(rng, (3, 19)), SIGMOID.make_labels(rng, (3, 19), -1)
    SIGMOID.function(logits, labels, label_smoothing=0.25)
    with jax.no_tracing():
        for value in (0.5, 1):
            SIGMOID.function(logits + np.float32(value), labels, label_smoothing=value)


def test_one_trace_for_each_shape_and_axis(rng):
    shapes_and_axes = [*itertools.product([(23, 23), (23, 29)], [0, 1])]
    arrays = [(cases.make_logits(rng, s), INTEGER.make_labels(rng, s, axis)) for s, axis in shapes_and_axes]
    calls = [
        functools.partial(INTEGER.function, *a, axis=axis) for a, (_, axis) in zip(arrays, shapes_and_axes, strict=True)
    ]
    for call in calls:
        call()
    with jax.no_tracing():
        for call in calls:
            call()


def test_a_call_that_was_not_made_before_is_traced(rng):
    """A new shape is traced. Otherwise the tests above could not fail."""
    with pytest.raises(RuntimeError, match="no_tracing"), jax.no_tracing():
        INTEGER.function(cases.make_logits(rng, (3, 31)), np.zeros(3, np.int32))
