"""The rules for invalid labels, non-finite logits and rows without a loss. They hold eagerly, under jit and under vmap."""

import functools

import jax
import numpy as np
import pytest

from jaxce import logit_stats, softmax_cross_entropy
from tests.support import cases, oracle
from tests.support.cases import INTEGER, SIGMOID, SOFT
from tests.support.closeness import assert_within
from tests.support.ways import EXTRA_IDS, EXTRAS, INF, LABELS, LOGITS, NAN, WAYS, C, targets, value_and_gradient

pytestmark = pytest.mark.usefixtures("fast_compilation")

INT_MIN, INT_MAX = np.iinfo(np.int32).min, np.iinfo(np.int32).max


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [-1, -2, -C, -100, C, C + 1, 2 * C, INT_MIN, INT_MAX])
def test_invalid_label_gives_nan_only_in_its_row(way, bad):
    labels = LABELS.copy()
    labels[1] = bad
    values, gradient = value_and_gradient(way, INTEGER, LOGITS, labels)
    answer = oracle.integer_softmax(LOGITS, labels)
    assert np.isnan(values[1]) and np.isnan(gradient[1]).all()
    assert_within(values, answer.loss, 6)
    assert_within(gradient, answer.logits, 6)


@pytest.mark.covering(1)
@pytest.mark.parametrize("extra", EXTRAS, ids=EXTRA_IDS)
@pytest.mark.parametrize("bad", [-1, C])
def test_invalid_label_gives_nan_with_every_option(extra, bad):
    labels = LABELS.copy()
    labels[1] = bad
    values, gradient = value_and_gradient(jax.jit, INTEGER, LOGITS, labels, **extra)
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])
    np.testing.assert_array_equal(np.isnan(gradient).all(axis=1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(gradient).any(axis=1), [False, True, False])


@pytest.mark.parametrize(
    ("dtype", "num_classes", "label", "inside"),
    [
        ("uint8", 300, 255, True),
        ("uint8", 255, 255, False),
        ("int8", 300, 127, True),
        ("int8", 300, -1, False),
        ("int8", 300, -128, False),
        ("uint16", 70000, 65535, True),
        ("uint32", 5, 2**32 - 1, False),
        ("uint32", 5, 2**31 + 3, False),
        ("int64", 5, 2**32 + 3, False),
        ("int64", 5, -(2**32) + 3, False),
        ("uint64", 5, 2**64 - 1, False),
    ],
)
def test_labels_are_never_wrapped_to_another_dtype(dtype, num_classes, label, inside, x64):
    logits = np.zeros((1, num_classes), np.float32)
    logits[0, label % 256 % num_classes] = 1  # the class of a label that is wrapped to 8 bits
    right = label % 256 % num_classes == label
    expected = np.log(num_classes - 1 + np.e) - right if inside else np.nan
    values = INTEGER.function(logits, np.array([label]).astype(dtype))
    assert_within(values, np.array([expected]), 8)


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("by", ["where", "-inf"])
@pytest.mark.parametrize("extra", EXTRAS, ids=EXTRA_IDS)
def test_excluded_class_takes_no_part_and_has_zero_gradient(way, loss, by, extra):
    logits, labels = LOGITS.copy(), targets(loss, LABELS)
    where = np.ones(LOGITS.shape, bool)
    where[:, 3] = where[0, 0] = False
    if by == "where":
        logits[0, 0], logits[1, 3], logits[2, 3] = NAN, INF, -INF
        values, gradient = value_and_gradient(way, loss, logits, labels, where, names=("where",), **extra)
    else:
        logits[~where] = -INF
        values, gradient = value_and_gradient(way, loss, logits, labels, **extra)
    answer = loss.oracle(logits, labels, where=where, **{k: np.float32(v) for k, v in extra.items()})
    np.testing.assert_array_equal(gradient[~where], 0)
    assert_within(values, answer.loss, 6)
    assert_within(gradient, answer.logits, 8)


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("by", ["where", "-inf"])
def test_excluded_true_class_makes_the_loss_infinite(way, loss, by):
    """The gradient is 0 for a class excluded by `where`. For a logit of -inf it is the limit, -1, as in every recorded system."""
    where = np.arange(C)[None] != LABELS[:1, None]
    logits, labels = LOGITS[:1], targets(loss, LABELS[:1])
    if by == "where":
        values, gradient = value_and_gradient(way, loss, logits, labels, where, names=("where",))
    else:
        values, gradient = value_and_gradient(way, loss, np.where(where, logits, np.float32(-INF)), labels)
    assert values[0] == INF
    assert gradient[0, 2] == (0 if by == "where" else -1)
    others = loss.oracle(logits, labels, where=where).logits
    assert_within(gradient[where], (others.value[where], others.scale[where]), 6)


@pytest.mark.parametrize("names", [(), ("label_smoothing", "class_weights")], ids=cases.name_of)
def test_class_probability_0_on_minus_infinity_is_0_in_value_vjp_and_jvp(names, rng):
    logits, q = LOGITS.copy(), np.float32([[0.5, 0, 0.5, 0, 0], [0, 1, 0, 0, 0], [0.25, 0, 0.25, 0.25, 0.25]])
    logits[:, 1], logits[1, 1], logits[1, 4] = -INF, 2, -INF
    options = cases.make_options(rng, names, SOFT, LOGITS.shape, q)
    answer = oracle.softmax(logits, q, **options)
    loss = functools.partial(SOFT.function, **options)
    assert_within(loss(logits, q), answer.loss, 6)
    d_logits, d_labels = jax.grad(lambda z, q: loss(z, q).sum(), argnums=(0, 1))(logits, q)
    assert_within(d_logits, answer.logits, 6)
    assert_within(d_labels, answer.labels, 6)
    z_dot, q_dot = rng.standard_normal((2, 3, C)).astype(np.float32)
    _, tangents = jax.jvp(loss, (logits, q), (z_dot, q_dot))
    expected = (answer.logits.value * z_dot + answer.labels.value * q_dot).sum(1)
    scale = (answer.logits.scale * abs(z_dot) + answer.labels.scale * abs(q_dot)).sum(1)
    assert_within(tangents, (expected, scale), 8)


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize(
    "row",
    [
        [-INF] * C,
        [NAN, 1, 2, 3, 4],
        [1, 2, 3, NAN, -INF],
        [NAN] * C,
        [INF, INF, 0, 0, 0],
        [INF] * C,
        [0, 0, 0, INF, -INF],
    ],
    ids=str,
)
def test_row_without_a_loss_is_nan_and_others_are_untouched(way, loss, row):
    logits, labels = LOGITS.copy(), targets(loss, np.int32([2, 0, 4]))
    logits[1] = row
    values, gradient = value_and_gradient(way, loss, logits, labels)
    answer = loss.oracle(logits, labels)
    assert np.isnan(values[1])
    assert_within(values, answer.loss, 6)
    assert_within(gradient[::2], type(answer.logits)(*(x[::2] for x in answer.logits)), 6)


@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("row", [[NAN, 1, 2, 3, 4], [NAN] * C, [INF, INF, 0, 0, 0], [0, 0, 0, INF, -INF]], ids=str)
def test_row_without_a_loss_has_no_finite_nonzero_gradient(loss, row):
    logits, labels = np.float32([row]), targets(loss, np.int32([0]))
    _, gradient = value_and_gradient(jax.jit, loss, logits, labels)
    # The gradient of a class that takes no part may be NaN or 0.
    assert np.isnan(gradient[~(logits == -INF)]).all()
    assert not np.any(np.isfinite(gradient) & (gradient != 0))


@pytest.mark.parametrize("way", WAYS)
def test_excluded_class_has_zero_gradient_even_in_a_row_without_a_loss(way):
    where = np.ones(LOGITS.shape, bool)
    where[:, 3] = False
    values, gradient = value_and_gradient(way, INTEGER, LOGITS, np.int32([2, -1, 4]), where, names=("where",))
    assert np.isnan(values[1])
    np.testing.assert_array_equal(gradient[:, 3], 0)
    assert np.isnan(gradient[1, [0, 1, 2, 4]]).all()


@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_tangent_of_an_excluded_class_is_ignored(loss):
    where, tangent = np.ones(LOGITS.shape, bool), np.ones_like(LOGITS)
    where[:, 3] = False
    tangent[:, 3] = NAN
    labels = targets(loss, LABELS)
    _, losses_dot = jax.jvp(lambda z: loss.function(z, labels, where=where), (LOGITS,), (tangent,))
    # The tangents of all other classes are equal, so the tangents of the losses are 0.
    np.testing.assert_allclose(losses_dot, 0, atol=1e-6)


@pytest.mark.covering(1)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("by", ["where", "-inf"])
@pytest.mark.parametrize("extra", EXTRAS, ids=EXTRA_IDS)
def test_row_without_classes_is_nan_with_every_option(loss, by, extra):
    logits, where = LOGITS.copy(), np.ones(LOGITS.shape, bool)
    where[1] = False
    if by == "where":
        extra = {"where": where, **extra}
    else:
        logits[~where] = -INF
    values = loss.function(logits, targets(loss, LABELS), **extra)
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("rest", [0.0, -INF, 3e38])
def test_single_infinite_logit_at_the_true_class_has_loss_zero(way, loss, rest):
    logits = np.full((1, C), rest, np.float32)
    logits[0, 2] = INF
    values, gradient = value_and_gradient(way, loss, logits, targets(loss, np.int32([2])))
    assert values[0] == 0
    np.testing.assert_array_equal(gradient, np.zeros((1, C)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_infinite_logit_of_the_only_class_has_loss_zero_with_smoothing(way, loss):
    logits = np.full((1, C), -INF, np.float32)
    logits[0, 2] = INF
    values, gradient = value_and_gradient(way, loss, logits, targets(loss, np.int32([2])), label_smoothing=0.1)
    assert values[0] == 0
    np.testing.assert_array_equal(gradient, np.zeros((1, C)))


@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_infinite_logit_at_the_true_class_is_nan_with_smoothing(loss):
    logits, labels = LOGITS.copy(), targets(loss, LABELS)
    logits[1, 0] = INF
    values = loss.function(logits, labels, label_smoothing=0.1)
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])
    assert_within(values, loss.oracle(logits, labels, label_smoothing=np.float32(0.1)).loss, 6)


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("extra", EXTRAS, ids=EXTRA_IDS)
def test_lowest_finite_logit_is_a_class_like_any_other(way, loss, extra):
    """Many models exclude a class by this number. In jaxce only -inf and `where` exclude a class."""
    logits, labels = LOGITS.copy(), targets(loss, LABELS)
    logits[0, 0] = logits[1, 3] = np.finfo(np.float32).min
    values, gradient = value_and_gradient(way, loss, logits, labels, **extra)
    answer = loss.oracle(logits, labels, **{k: np.float32(v) for k, v in extra.items()})
    assert_within(values, answer.loss, 6)
    assert_within(gradient, answer.logits, 8)


@pytest.mark.parametrize("way", WAYS)
def test_sigmoid_at_infinity_is_its_limit(way):
    logits = np.float32([INF, INF, -INF, -INF, INF, -INF, NAN])
    labels = np.float32([1, 0, 0, 1, 0.5, 0.5, 1])
    values, gradient = value_and_gradient(way, SIGMOID, logits, labels)
    np.testing.assert_array_equal(values, [0, INF, 0, INF, INF, INF, NAN])
    np.testing.assert_array_equal(gradient, [0, 1, 0, -1, 0.5, -0.5, NAN])


@pytest.mark.parametrize("bad", [-1, C])
def test_statistics_of_an_invalid_label_have_no_label_mass_and_a_nan_nll(bad):
    stats = logit_stats(LOGITS, np.int32([2, bad, 4]))
    np.testing.assert_array_equal(stats.label_mass, [1, 0, 1])
    np.testing.assert_array_equal(np.isnan(stats.nll), [False, True, False])
    assert np.isfinite(stats.log_z).all() and np.isfinite(stats.smooth_nll).all()


@pytest.mark.parametrize("probability", [1e-30, 0.1, 0.5])
def test_a_small_probability_of_an_excluded_class_makes_the_loss_infinite(probability):
    logits, labels = np.float32([[0, -INF, 1]]), np.float32([[1 - probability, probability, 0]])
    np.testing.assert_array_equal(softmax_cross_entropy(logits, labels), [INF])
    finite = softmax_cross_entropy(np.where(logits == -INF, np.float32(-5), logits), labels)
    assert np.isfinite(finite).all()
