"""`LogitStats`: the fields, the properties, and the merge of the statistics of disjoint classes into those of all classes."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxce import Chunked, LogitStats, linear_logit_stats, logit_stats
from tests.support import cases, covering, oracle
from tests.support.cases import INTEGER, SOFT
from tests.support.closeness import assert_within

pytestmark = pytest.mark.usefixtures("fast_compilation")

ULPS = 6
C = 12


@pytest.fixture
def logits(rng):
    return cases.make_logits(rng, (5, C))


@pytest.fixture
def integer(rng):
    return INTEGER.make_labels(rng, (5, C), -1)


@pytest.fixture
def soft(rng):
    return SOFT.make_labels(rng, (5, C), -1)


def either(name):
    return pytest.mark.parametrize(name, ["integer", "soft"])


def label_part(labels, start, stop):
    """Return the labels for the block of classes from `start` to `stop`."""
    return labels[:, start:stop] if labels.ndim == 2 else labels - start


def blocks(logits, labels, bounds, **options):
    weights = options.pop("class_weights", None)
    for start, stop in itertools.pairwise(bounds):
        part = {} if weights is None else {"class_weights": weights[start:stop]}
        yield logit_stats(logits[:, start:stop], label_part(labels, start, stop), **part)


def smooth_nll(logits, weights=None, **options):
    """Return the cross-entropy against the uniform distribution: the loss with a label smoothing of 1."""
    return oracle.softmax(logits, np.zeros_like(logits), label_smoothing=1.0, class_weights=weights, **options).loss


@either("kind")
def test_fields_agree_with_their_definitions(kind, logits, request):
    labels = request.getfixturevalue(kind)
    stats = logit_stats(logits, labels)
    z = logits.astype(np.float64)
    np.testing.assert_array_equal(stats.max_logit, logits.max(1))
    assert_within(stats.sum_exp_rest, np.exp(z - z.max(1, keepdims=True)).sum(1) - 1, 8)
    assert_within(stats.label_nll, (INTEGER if kind == "integer" else SOFT).oracle(logits, labels).loss, ULPS)
    assert_within(stats.label_mass, np.ones(5) if kind == "integer" else labels.astype(np.float64).sum(1), 4)
    assert_within(stats.uniform_nll, tuple(C * x for x in smooth_nll(logits)), ULPS)
    np.testing.assert_array_equal(stats.weight_sum, np.full(5, C))
    np.testing.assert_array_equal(stats.num_classes, np.full(5, C))
    assert stats.integer_labels == (kind == "integer")


@either("kind")
def test_properties_are_losses(kind, logits, request):
    labels = request.getfixturevalue(kind)
    weights = np.linspace(0.5, 2, C, dtype=np.float32)
    stats = logit_stats(logits, labels, class_weights=weights)
    log_z = np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    assert_within(stats.nll, (INTEGER if kind == "integer" else SOFT).oracle(logits, labels).loss, ULPS)
    assert_within(stats.smooth_nll, smooth_nll(logits, weights), ULPS)
    assert_within(stats.log_z, (log_z, abs(log_z) + abs(logits).max(1)), ULPS)
    assert_within(stats.log_norm, log_z - logits.max(1), ULPS)


@pytest.mark.parametrize(
    ("shape", "axis"),
    covering.quick(
        [s for s in cases.SHAPES_AND_AXES if len(s[0]) > 1],
        [((5, 3), 0), ((3, 1), 1), ((0, 4), -1), ((2, 3, 4), 1), ((2, 3, 5, 4), -3)],
    ),
)
def test_any_class_axis(shape, axis, rng):
    logits, labels = cases.make_logits(rng, shape), INTEGER.make_labels(rng, shape, axis)
    stats = logit_stats(logits, labels, axis=axis)
    assert_within(stats.nll, INTEGER.oracle(logits, labels, axis=axis).loss, ULPS)
    assert {x.shape for x in jax.tree.leaves(stats)} == {INTEGER.shape(shape, axis)}


def dtypes_of(stats):
    found = {name: x.dtype.name for name, x in vars(stats).items() if name != "integer_labels"}
    return {
        "integers": {found.pop(name) for name in ("num_classes", "prediction", "size")},
        "others": set(found.values()),
    }


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_statistics_of_small_dtypes_are_float32(dtype, logits, integer):
    assert dtypes_of(logit_stats(logits.astype(dtype), integer)) == {"integers": {"int32"}, "others": {"float32"}}


def test_statistics_of_float64_are_float64(logits, integer, x64):
    assert dtypes_of(logit_stats(logits.astype(np.float64), integer)) == {"integers": {"int32"}, "others": {"float64"}}


def test_excluded_classes_are_not_counted(logits, integer, rng):
    where = rng.random((5, C)) < 0.6
    stats = logit_stats(logits, integer, where=where)
    np.testing.assert_array_equal(stats.num_classes, where.sum(1))
    assert_within(stats.smooth_nll, smooth_nll(logits, where=where), ULPS)


@pytest.mark.parametrize("way", [jax.jacrev, jax.jacfwd], ids=lambda f: f.__name__)
@pytest.mark.parametrize("label", [0, 1])
def test_sum_exp_rest_has_zero_derivatives_in_a_row_with_an_infinite_logit(way, label):
    """An infinite logit stays infinite, so its derivative is 0. The terms of the other classes are 0."""
    rows = jnp.float32([[np.inf, 0, 1], [np.inf, np.inf, 2]])
    labels = jnp.full(2, label)
    np.testing.assert_array_equal(way(lambda z: logit_stats(z, labels).sum_exp_rest)(rows), np.zeros((2, 2, 3)))


@pytest.mark.covering(1)
@either("kind")
@pytest.mark.parametrize("bounds", [(0, 6, C), (0, 1, C), (0, 11, C), (0, 5, 10, C), tuple(range(C + 1))], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_statistics_of_blocks_merge_into_those_of_all_classes(kind, bounds, weighted, logits, request):
    labels = request.getfixturevalue(kind)
    weights = np.linspace(0.5, 2, C, dtype=np.float32)
    options = {"class_weights": weights} if weighted else {}
    stats = functools.reduce(LogitStats.merge, blocks(logits, labels, bounds, **options))
    log_z = np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    assert_within(stats.nll, (INTEGER if kind == "integer" else SOFT).oracle(logits, labels).loss, 2 * ULPS)
    assert_within(stats.smooth_nll, smooth_nll(logits, weights if weighted else None), 2 * ULPS)
    assert_within(stats.log_z, (log_z, abs(log_z) + abs(logits).max(1)), ULPS)
    np.testing.assert_array_equal(stats.num_classes, np.full(5, C))


@either("kind")
def test_merge_is_associative_and_commutative(kind, logits, request):
    a, b, c = blocks(logits, request.getfixturevalue(kind), (0, 3, 7, C))
    merge = LogitStats.merge
    expected = SOFT.oracle(logits, request.getfixturevalue("soft")).loss if kind == "soft" else None
    expected = expected or INTEGER.oracle(logits, request.getfixturevalue("integer")).loss
    for stats in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(merge(c, a), b), merge(b, merge(c, a))):
        assert_within(stats.nll, expected, 2 * ULPS)
        assert_within(
            stats.sum_exp_rest, np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True)).sum(1) - 1, 16
        )


@either("kind")
@pytest.mark.parametrize("order", ["first", "last"])
def test_a_block_of_minus_infinity_is_neutral(kind, order, logits, request):
    """A block may have only padding classes."""
    labels = request.getfixturevalue(kind)
    outside = np.full(5, -1, np.int32) if kind == "integer" else np.zeros((5, 4), np.float32)
    padding = logit_stats(np.full((5, 4), -np.inf, np.float32), outside)
    stats = logit_stats(logits, labels)

    def merged(z):
        stats = logit_stats(z, labels)
        both = LogitStats.merge(padding, stats) if order == "first" else LogitStats.merge(stats, padding)
        return both.nll.sum() + both.smooth_nll.sum(), both

    (_, both), gradient = jax.value_and_grad(merged, has_aux=True)(logits)
    before = 4 if order == "first" else 0
    expected = dataclasses.replace(stats, size=stats.size + 4, prediction=stats.prediction + before)
    for field in dataclasses.fields(stats):
        actual, wanted = getattr(both, field.name), getattr(expected, field.name)
        assert_within(actual, wanted, 1) if field.name in ("spread", "expected_nll") else np.testing.assert_array_equal(
            actual, wanted
        )
    answer, smooth = ((INTEGER if kind == "integer" else SOFT).oracle(logits, labels).logits), None
    smooth = oracle.softmax(logits, np.zeros_like(logits), label_smoothing=1.0).logits
    assert_within(gradient, (answer.value + smooth.value, answer.scale + smooth.scale), ULPS)


@pytest.mark.parametrize("order", ["first", "last"])
def test_a_block_of_minus_infinity_is_neutral_to_the_largest_logits(order):
    # The difference between the maximum of an empty block (-inf) and this logit would overflow.
    z = np.float32([[3e38, 1, 0]])
    padding = logit_stats(np.full((1, 2), -np.inf, np.float32), np.int32([-1]))
    stats = logit_stats(z, np.int32([0]))
    both = LogitStats.merge(padding, stats) if order == "first" else LogitStats.merge(stats, padding)
    assert both.nll == 0 and both.num_classes == 3


def test_two_blocks_of_minus_infinity_have_no_classes():
    empty = logit_stats(np.full((1, 3), -np.inf, np.float32), np.int32([-1]))
    both = LogitStats.merge(empty, empty)
    assert both.max_logit == -np.inf and both.sum_exp_rest == 0 and both.num_classes == 0
    assert np.isnan(both.nll) and np.isnan(both.smooth_nll)
    label_inside = logit_stats(np.full((1, 3), -np.inf, np.float32), np.int32([1]))
    finite = logit_stats(np.float32([[1, 2]]), np.int32([-2]))
    assert LogitStats.merge(label_inside, finite).nll == np.inf


@either("kind")
@pytest.mark.parametrize("order", ["first", "last"])
def test_label_in_a_block_of_minus_infinity_gives_the_other_classes_their_gradient(kind, order):
    """The loss is infinite. The gradient of the other classes is their probability, as without blocks."""
    z, none = np.float32([[1, 3, 0.5]]), np.full((1, 2), -np.inf, np.float32)

    def nll(z):
        if kind == "integer":
            with_label, others = logit_stats(none, np.int32([1])), logit_stats(z, np.int32([-1]))
        else:
            with_label, others = logit_stats(none, np.float32([[0, 1]])), logit_stats(z, jnp.zeros_like(z))
        pair = (with_label, others) if order == "first" else (others, with_label)
        return LogitStats.merge(*pair).nll.sum()

    value, gradient = jax.value_and_grad(nll)(z)
    assert value == np.inf
    p = np.exp(z.astype(np.float64))
    assert_within(gradient, p / p.sum(), ULPS)


@pytest.mark.parametrize("label", [-1, C, C + 3, -100])
def test_label_outside_all_blocks_gives_a_nan_nll_after_all_merges(label, logits):
    labels = np.full(5, label, np.int32)
    stats = functools.reduce(LogitStats.merge, blocks(logits, labels, (0, 4, 8, C)))
    np.testing.assert_array_equal(stats.label_mass, np.zeros(5))
    assert np.isnan(stats.nll).all()
    assert_within(stats.smooth_nll, smooth_nll(logits), 2 * ULPS)


@pytest.mark.parametrize("gap", [0, 1e-3, 30, 90, 200, 1e4, 3e38])
@pytest.mark.parametrize("sign", [1, -1])
def test_merge_is_accurate_for_blocks_with_distant_maxima(gap, sign):
    z = np.float32([[0.5, 0.25, 0, sign * gap, sign * gap - 1]])
    for label in range(5):
        labels = np.int32([label])
        stats = functools.reduce(LogitStats.merge, blocks(z, labels, (0, 3, 5)))
        assert_within(stats.nll, INTEGER.oracle(z, labels).loss, ULPS)


@either("kind")
@pytest.mark.parametrize("bounds", [(0, 7, C), (0, 4, 8, C)], ids=str)
def test_gradient_flows_through_merges(kind, bounds, logits, rng, request):
    labels = request.getfixturevalue(kind)
    weights = np.float32(rng.uniform(0.5, 2, C))
    cotangent = np.float32(rng.uniform(-2, 2, 5))

    def loss(z):
        stats = functools.reduce(LogitStats.merge, blocks(z, labels, bounds, class_weights=weights))
        return jnp.sum(cotangent * (stats.nll + 2 * stats.smooth_nll + 0.5 * stats.log_z**2))

    gradient = jax.jit(jax.grad(loss))(logits)
    parts = [
        (INTEGER if kind == "integer" else SOFT).oracle(logits, labels, z_loss=0.5, cotangent=cotangent).logits,
        oracle.softmax(logits, 0 * logits, label_smoothing=1.0, class_weights=weights, cotangent=2 * cotangent).logits,
    ]
    assert_within(gradient, (sum(p.value for p in parts), sum(p.scale for p in parts)), 2 * ULPS)


def test_entropy_perplexity_and_confidence(logits, integer):
    """The entropy of softmax(z) is its cross-entropy against itself."""
    z = logits.astype(np.float64)
    p = np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True))
    entropy = logit_stats(logits, jnp.asarray(p, jnp.float32)).nll
    assert_within(entropy, -(p * np.log(p)).sum(1), 4 * ULPS)
    stats = logit_stats(logits, integer)
    nll = -np.log(p[np.arange(5), integer])
    assert_within(jnp.exp(stats.nll.mean()), np.exp(nll.mean()), 8 * ULPS)
    assert_within(jnp.exp(-stats.log_norm), p.max(1), 2 * ULPS)


def test_statistics_are_a_pytree_that_keeps_integer_labels(logits, integer):
    stats = logit_stats(logits, integer)
    leaves, tree = jax.tree.flatten(stats)
    assert len(leaves) == 13
    assert jax.tree.unflatten(tree, leaves).integer_labels is True
    assert jax.jit(lambda s: s)(stats).integer_labels is True
    mapped = jax.vmap(logit_stats)(logits, integer)
    assert_within(mapped.nll, INTEGER.oracle(logits, integer).loss, ULPS)


def test_statistics_of_different_kinds_of_labels_do_not_merge(logits, integer, soft):
    with pytest.raises(
        ValueError, match=r"`a` and `b` must come from the same .*got integer labels and class probabilities"
    ):
        LogitStats.merge(logit_stats(logits, integer), logit_stats(logits, soft))


def test_statistics_of_different_rows_do_not_merge(logits, integer):
    with pytest.raises(
        ValueError, match=r"`a` and `b` must be statistics of the same rows; got shapes \(5,\) and \(1,\)"
    ):
        LogitStats.merge(logit_stats(logits, integer), logit_stats(logits[:1], integer[:1]))


@pytest.mark.parametrize("order", ["first", "last"])
def test_nan_in_one_block_makes_the_merged_statistics_nan(order):
    with_nan, finite = (logit_stats(np.float32([[1, value, 3]]), np.int32([0])) for value in (np.nan, 2))
    both = LogitStats.merge(with_nan, finite) if order == "first" else LogitStats.merge(finite, with_nan)
    values = [both.max_logit, both.sum_exp_rest, both.log_z, both.nll, both.smooth_nll, both.spread, both.entropy]
    assert np.isnan([*values, both.top_nll, both.confidence]).all() and both.prediction == -1


CORRECT_ROWS = {  # logits, label, and whether the label is correct
    "the largest": ([1, 2, 3], 2, True),
    "not the largest": ([1, 2, 3], 1, False),
    "one of several largest": ([3, 1, 3], 2, True),
    "all the same": ([0, 0, 0], 1, True),
    "less by one ulp": ([1, np.nextafter(np.float32(1), np.float32(0)), 0], 1, False),
    "a NaN elsewhere": ([np.nan, 1, 2], 2, False),
    "infinite": ([np.inf, 1, 2], 0, True),
    "-inf": ([-np.inf, 1, 2], 0, False),
    "no class left": ([-np.inf] * 3, 0, False),
    "-1": ([1, 2, 3], -1, False),
    "beyond the classes": ([1, 2, 3], 3, False),
    "the largest number": ([np.finfo(np.float32).max, 0, 0], 0, True),
    "the largest number beside infinity": ([np.finfo(np.float32).max, np.inf, 0], 0, False),
}


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("check_vma", [True, False])
def test_label_in_a_row_with_a_nan_is_not_correct_with_split_classes(check_vma):
    """XLA for CPU may lose the NaN in the maximum over devices."""
    logits = np.zeros((2, 16), np.float32)
    logits[0, 0], logits[:, 15] = np.nan, 5
    labels = np.array([15, 15])
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    local_stats = functools.partial(logit_stats, axis_name="model")
    specs = P(None, "model"), P()
    split = jax.shard_map(local_stats, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)(logits, labels)
    merged = LogitStats.merge(logit_stats(logits[:, :4], labels), logit_stats(logits[:, 4:], labels - 4))
    for stats in (split, merged, logit_stats(logits, labels)):
        np.testing.assert_array_equal(stats.correct, [False, True])
        np.testing.assert_array_equal(stats.num_classes, [0, 16])
        np.testing.assert_array_equal(np.isnan(stats.max_logit), [True, False])


def test_merging_something_else_raises(logits, integer):
    with pytest.raises(TypeError, match="`b` must be a LogitStats; got ndarray"):
        LogitStats.merge(logit_stats(logits, integer), logits)


def test_label_is_correct_if_no_logit_is_larger():
    logits, labels, right = (np.array(x) for x in zip(*CORRECT_ROWS.values(), strict=True))
    logits = logits.astype(np.float32)
    found = logit_stats(logits, labels).correct
    assert dict(zip(CORRECT_ROWS, found.tolist(), strict=True)) == dict(zip(CORRECT_ROWS, right.tolist(), strict=True))
    for cut in (1, 2):
        parts = LogitStats.merge(logit_stats(logits[:, :cut], labels), logit_stats(logits[:, cut:], labels - cut))
        np.testing.assert_array_equal(parts.correct, right)


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("implementation", [None, "reference", Chunked(7, 11), Chunked(16)], ids=str)
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_correct_of_a_linear_layer_agrees_with_argmax(implementation, dtype, soft_cap, rng):
    """Products of small integers are exact, so there are many ties and no rounding errors. A cap creates more ties."""
    hidden, classifier = rng.integers(-2, 3, (40, 5)), rng.integers(-2, 3, (5, 30))
    labels = rng.integers(0, 30, 40)
    z = (hidden @ classifier).astype(np.float32)
    z = z if soft_cap is None else np.asarray(soft_cap * jnp.tanh(z / np.float32(soft_cap)))
    labels[::2] = z.argmax(1)[::2]
    hidden, classifier = hidden.astype(jnp.dtype(dtype)), classifier.astype(jnp.dtype(dtype))
    stats = linear_logit_stats(hidden, classifier, labels, soft_cap=soft_cap, implementation=implementation)
    np.testing.assert_array_equal(stats.correct, z[np.arange(40), labels] == z.max(1))


def test_correct_is_exact_for_merged_statistics(rng):
    """The test `nll <= log_norm` misses correct labels, because merging rounds `nll` and `log_norm` differently."""
    logits = cases.make_logits(rng, (4000, 64))
    labels = logits.argmax(1).astype(np.int32)
    blocks = [logit_stats(logits[:, i : i + 16], labels - i) for i in range(0, 64, 16)]
    merged = functools.reduce(LogitStats.merge, blocks)
    assert merged.correct.all()
    assert not (merged.nll <= merged.log_norm).all()  # otherwise this formula would be sufficient


def test_correct_needs_integer_labels(logits, integer, soft):
    with pytest.raises(ValueError, match=r"`correct` is about integer labels.*`top_label_mass`.*argmax"):
        _ = logit_stats(logits, soft).correct
    one_hot = np.eye(C, dtype=np.float32)[integer]
    np.testing.assert_array_equal(logit_stats(logits, one_hot).top_label_mass, logit_stats(logits, integer).correct)
    expected = np.where(logits == logits.max(1, keepdims=True), soft, 0).sum(1)
    assert_within(logit_stats(logits, soft).top_label_mass, expected, 1)


@pytest.mark.parametrize("name", ["nll", "log_z", "log_norm", "smooth_nll", "correct"])
def test_properties_of_tangents_raise(name, logits, integer):
    """`log_z` of the tangents would not be the tangent of `log_z`."""
    _, tangents = jax.jvp(lambda z: logit_stats(z, integer), (logits,), (logits,))
    with pytest.raises(TypeError, match=rf"`{name}` of the tangents .* is not the tangent of `{name}`.*jax.jvp"):
        getattr(tangents, name)
    _, expected = jax.jvp(lambda z: logit_stats(z, integer).sum_exp_rest, (logits,), (logits,))
    np.testing.assert_array_equal(tangents.sum_exp_rest, expected)
