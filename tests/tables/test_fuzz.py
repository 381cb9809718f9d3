"""Random problems against the oracle: every value and every gradient, for every set of options of every loss.

An example is one problem (`problems.py`): a few losses with their own options. One call computes a batch of 32 examples. Hypothesis draws the
regimes, the numbers and the seed of a batch. The nightly tier runs forty times as many examples, in every dtype and layout.
JAXCE_FUZZ_EXAMPLES=1000000 sets another number of examples.
"""

import functools
import itertools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import jaxce
from tests.support import oracle
from tests.support.cases import INTEGER
from tests.support.closeness import assert_within
from tests.support.oracle import Quantity
from tests.support.problems import REGIMES, configurations, largest, stack_of

EXAMPLES = int(os.environ.get("JAXCE_FUZZ_EXAMPLES", 5_000))
NIGHTLY_EXAMPLES = int(os.environ.get("JAXCE_FUZZ_EXAMPLES", 200_000))
BATCH = 32
# A failure shows the position in the batch. Shrinking a batch would not make the failure clearer.
PHASES = [Phase.explicit, Phase.generate]
CONFIGURATIONS, EVERY = (configurations(all_of_them=all_of_them) for all_of_them in (False, True))
# In ulps of the working dtype, for the losses of at most eight classes. A gradient and a sum of losses need a few more operations.
ULPS = 6
GRADIENT_ULPS = 10


def batches_of(configuration):
    bound = largest(configuration.dtype)
    numbers = st.floats(-bound, bound) | st.sampled_from([0.0, -0.0, 1.0, 0.5, bound, -bound])
    return (
        st.integers(0, 2**32 - 1),
        st.lists(st.sampled_from(list(REGIMES)), min_size=BATCH, max_size=BATCH),
        st.lists(numbers, min_size=6, max_size=6),
    )


@pytest.mark.covering(1, at_most=6)
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: c.name)
def test_agrees_with_the_oracle(configuration):
    check(configuration, math.ceil(EXAMPLES / (BATCH * len(CONFIGURATIONS))), derandomize=True)


@pytest.mark.nightly
@pytest.mark.parametrize("configuration", EVERY, ids=lambda c: c.name)
def test_agrees_with_the_oracle_in_every_dtype_and_layout(configuration):
    check(configuration, math.ceil(NIGHTLY_EXAMPLES / (BATCH * len(EVERY))), derandomize=False)


def check(configuration, batches, *, derandomize):
    seen = 0

    @settings(
        max_examples=batches,
        derandomize=derandomize,
        deadline=None,
        database=None,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )
    @given(*batches_of(configuration))
    def agrees(seed, regimes, numbers):
        nonlocal seen
        rng = np.random.default_rng([seed, *configuration.name.encode()])
        stack = stack_of(configuration, regimes, numbers, rng)
        CHECKS[configuration.kind.split()[0]](configuration, stack)
        seen += len(regimes)

    with jax.enable_x64(configuration.dtype == np.float64):
        agrees()
    assert seen >= batches * BATCH


def answered(configuration, stack, function):
    """Return the values of the function for the stack, and the gradients under the cotangents, by name."""
    values, gradients = compiled(configuration, function)(stack.differentiable, stack.fixed, stack.cotangent)
    for name, gradient in gradients.items():
        assert gradient.dtype == stack.differentiable[name].dtype, name
    return values, gradients


@functools.cache
def compiled(configuration, function):
    def problem(differentiable, fixed, cotangent):
        values, vjp = jax.vjp(lambda given: function(configuration, **given, **fixed), differentiable)
        return values, vjp(cotangent)[0]

    return jax.jit(jax.vmap(problem))


def stacked(quantities):
    return Quantity(*(np.stack(parts) for parts in zip(*quantities, strict=True)))


def assert_gradient(actual, expected, places, working):
    """Compare a gradient with the expected one, at `places` and where the expected value does not overflow the dtype of the input."""
    places = np.asarray(places).reshape(np.shape(places) + (1,) * (actual.ndim - np.ndim(places)))
    places = places & (np.abs(expected.value) < 0.99 * float(jnp.finfo(actual.dtype).max))
    kept = Quantity(np.where(places, expected.value, 0), expected.scale)
    assert_within(np.where(places, actual, np.zeros_like(actual)), kept, GRADIENT_ULPS, working=working)


def losses(configuration, logits, labels, **options):
    axis = {"axis": configuration.axis} if configuration.loss.has_class_axis else {}
    return configuration.loss.function(logits, labels, **axis, **options)


def check_losses(configuration, stack):
    """Check values and gradients. A row with a NaN loss has no finite nonzero gradient.

    In a row with an infinite loss, the classes that take part have their usual gradient.
    """
    values, gradients = answered(configuration, stack, losses)
    problems = [stack.problem(i) for i in range(BATCH)]
    axis = {"axis": configuration.axis} if configuration.loss.has_class_axis else {}
    with np.errstate(invalid="ignore"):  # a sum of infinite losses of both signs
        answers = [
            configuration.loss.oracle(**p, **axis, cotangent=c) for p, c in zip(problems, stack.cotangent, strict=True)
        ]
    loss = stacked([a.loss for a in answers])
    assert_within(values, loss, ULPS)

    spread = functools.partial(spread_over_classes, configuration)
    whole = ~spread(labelled_outside(configuration, stack)) & ~spread(np.isinf(loss.value))
    undefined = spread(np.isnan(loss.value))
    for name, gradient in gradients.items():
        expected = stacked([getattr(a, name) for a in answers])
        if name == "logits":
            assert not np.any(is_finite(gradient) & (np.asarray(gradient).astype(np.float64) != 0) & undefined)
            expected = above_underflow(configuration, expected)
        if name in ("logits", "labels"):
            places = ~undefined & (whole | takes_part(configuration, stack))
        else:
            places = (whole & ~undefined).all(axis=tuple(range(1, whole.ndim)))
        assert_gradient(gradient, expected, places, configuration.working)


def is_finite(array):
    return np.isfinite(np.asarray(array).astype(np.float64))


def takes_part(configuration, stack):
    """Return whether each logit takes part."""
    part = is_finite(stack.differentiable["logits"])
    return part & stack.fixed["where"] if "where" in stack.fixed else part


def class_axis(configuration):
    """Return the class axis of a stack of problems."""
    return configuration.axis % len(configuration.shape) + 1


def spread_over_classes(configuration, rows):
    if not configuration.loss.has_class_axis:
        return rows
    repeats = configuration.shape[configuration.axis]
    return np.repeat(np.expand_dims(rows, class_axis(configuration)), repeats, class_axis(configuration))


def labelled_outside(configuration, stack):
    """Return the unmasked rows whose label puts a weight on a class that takes no part. Their loss is usually infinite."""
    part, counts = takes_part(configuration, stack), stack.fixed.get("mask", True)
    if not configuration.loss.has_class_axis:
        return ~part & counts
    axis = class_axis(configuration)
    if configuration.loss is not INTEGER:
        return np.any((stack.differentiable["labels"] != 0) & ~part, axis=axis) & counts
    labels = np.expand_dims(np.clip(stack.fixed["labels"], 0, part.shape[axis] - 1), axis)
    return ~np.take_along_axis(part, labels, axis).squeeze(axis) & counts


def above_underflow(configuration, expected):
    """Add underflow to the scale: a probability may have an error of the smallest normal number, times the scale of its row."""
    if not configuration.loss.has_class_axis:
        return expected
    info = jnp.finfo(configuration.working)
    largest_of_row = expected.scale.max(axis=class_axis(configuration), keepdims=True)
    return Quantity(expected.value, expected.scale + largest_of_row * float(info.tiny) / float(info.eps))


def mean_loss(configuration, logits, labels, weights=None, mask=None):
    """Return the mean over two micro-batches: the even and the odd rows."""
    values = losses(configuration, logits, labels, **({} if mask is None else {"mask": mask}))
    parts = [
        jaxce.LossSum.of(values[i::2], *(None if x is None else x[i::2] for x in (weights, mask))) for i in range(2)
    ]
    return sum(parts).mean()


def check_loss_sum(configuration, stack):
    values, gradients = answered(configuration, stack, mean_loss)
    mean, by_logits, by_weights = [], [], []
    for i, cotangent in enumerate(stack.cotangent.astype(np.longdouble)):
        problem = stack.problem(i)
        rows = INTEGER.shape(configuration.shape, configuration.axis)
        mask = problem.get("mask", np.ones(rows, bool))
        weights = problem.pop("weights", np.ones(rows)).astype(np.longdouble) * mask
        divisor = weights.sum() or 1
        answer = oracle.integer_softmax(**problem, axis=configuration.axis, cotangent=cotangent * weights / divisor)
        value, scale = (np.sum(weights * x) / divisor for x in answer.loss)
        mean.append((value, scale))
        by_logits.append(answer.logits)
        counts = mask & (weights.sum() > 0)
        by_weights.append(
            (
                cotangent * counts * (answer.loss.value - value) / divisor,
                abs(cotangent) * (answer.loss.scale + scale) / divisor,
            )
        )
    assert_within(values, stacked(mean), GRADIENT_ULPS)
    assert_gradient(gradients["logits"], stacked(by_logits), True, configuration.working)
    if "weights" in gradients:
        assert_gradient(gradients["weights"], stacked(by_weights), True, configuration.working)


def merged(configuration, logits, labels, where=None, class_weights=None):
    """Return `nll`, `smooth_nll` and the square of `log_z`, from the merged statistics of blocks of classes."""
    stats = []
    for start, stop in itertools.pairwise(configuration.detail):
        options = {} if where is None else {"where": where[:, start:stop]}
        if class_weights is not None:
            options["class_weights"] = class_weights[start:stop]
        block = labels - start if configuration.loss is INTEGER else labels[:, start:stop]
        stats.append(jaxce.logit_stats(logits[:, start:stop], block, **options))
    whole = functools.reduce(jaxce.LogitStats.merge, stats)
    return jnp.stack([whole.nll, whole.smooth_nll, jnp.square(whole.log_z)])


def check_merge(configuration, stack):
    values, gradients = answered(configuration, stack, merged)
    expected = []
    for i, cotangents in enumerate(stack.cotangent):
        p = stack.problem(i)
        where, none = p.get("where"), np.zeros(configuration.shape)
        nll = configuration.loss.oracle(p["logits"], p["labels"], where=where, cotangent=cotangents[0])
        smooth = oracle.softmax(
            p["logits"],
            none,
            where=where,
            label_smoothing=1.0,
            class_weights=p.get("class_weights", np.ones(none.shape[1])),
            cotangent=cotangents[1],
        )
        square = oracle.softmax(p["logits"], none, where=where, z_loss=1.0, cotangent=cotangents[2])
        expected.append((nll, smooth, square))
    loss = stacked([stacked([answer.loss for answer in e]) for e in expected])
    defined = ~np.isnan(loss.value)
    # If no class takes part, log_z is -inf, so its square is inf.
    defined[:, 2] = True
    loss.value[:, 2][np.isnan(loss.value[:, 2])] = np.inf
    assert_within(values, loss, 2 * ULPS)
    finite = np.isfinite(loss.value).all(axis=1)
    rows = np.broadcast_to(finite[..., None], stack.differentiable["logits"].shape)
    by_logits = stacked([tuple(sum(parts) for parts in zip(*(a.logits for a in e), strict=True)) for e in expected])
    by_logits = above_underflow(configuration, above_cancellation(configuration, stack, by_logits))
    assert_gradient(gradients["logits"], by_logits, rows, configuration.working)
    if "labels" in gradients:
        # The gradient with respect to the label of a class that takes no part is not specified.
        places = rows & takes_part(configuration, stack)
        assert_gradient(gradients["labels"], stacked([e[0].labels for e in expected]), places, configuration.working)
    if "class_weights" in gradients:
        weights = stacked([e[1].class_weights for e in expected])
        assert_gradient(gradients["class_weights"], weights, finite.all(axis=1), configuration.working)


def above_cancellation(configuration, stack, expected):
    """Add the rounding errors of cancellation to the scale.

    If a class has a high probability in its block and a low one among all classes, the gradients of the block and of the merge nearly cancel.
    """
    z = np.where(takes_part(configuration, stack), stack.differentiable["logits"].astype(np.longdouble), -np.inf)
    within = np.zeros_like(z)
    for start, stop in itertools.pairwise(configuration.detail):
        block = z[..., start:stop]
        most = np.maximum(block.max(-1, keepdims=True), -float(np.finfo(np.float64).max))
        e = np.exp(block - most)
        within[..., start:stop] = e / np.maximum(e.sum(-1, keepdims=True), 1)
    mass = stack.differentiable["labels"].sum(-1) if "labels" in stack.differentiable else 1
    weight = stack.differentiable.get("class_weights", np.ones((1, 1))).max(-1)[..., None]
    log_z = np.maximum(np.logaddexp.reduce(z, axis=-1), -largest(configuration.dtype))
    size = np.stack([np.ones_like(log_z) * mass, np.ones_like(log_z) * weight, 2 * np.abs(log_z)], axis=1)
    total = np.sum(np.abs(stack.cotangent) * size, axis=1)
    return Quantity(expected.value, expected.scale + total[..., None] * within)


CHECKS = {
    "integer": check_losses,
    "soft": check_losses,
    "sigmoid": check_losses,
    "loss_sum": check_loss_sum,
    "merge": check_merge,
}
