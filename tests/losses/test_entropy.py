"""The statistics of the softmax itself: entropy, prediction and confidence, with and without labels, on every path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxce import Chunked, LinearLogits, LogitStats, linear_logit_stats, logit_stats
from tests.support import statistics
from tests.support.closeness import assert_within
from tests.support.oracle import EXTENDED, Quantity

pytestmark = pytest.mark.usefixtures("fast_compilation")

INF, NAN = np.inf, np.nan
ULPS = 4


def rows_of_any_entropy(rng, num_classes, dtype=np.float32):
    """Return rows whose differences are exact in every dtype, from one certain class to all classes equal."""
    gaps = np.array([0, 0.125, 1, 4, 16, 32, 64, 76])[:, None]
    z = -gaps - rng.integers(0, 9, (8, num_classes)) / 8 * (gaps > 0)
    z[np.arange(8), rng.integers(0, num_classes, 8)] = 0
    return (z + np.array([0, 1, -2, 0, 8, 0, 0, 0])[:, None]).astype(dtype)


def exact(logits):
    """Return the entropy, the prediction and the confidence of each row in extended precision."""
    z = np.asarray(logits).astype(EXTENDED)
    stats = statistics.exact(np.asarray(z, np.float64), np.zeros(z.shape[:-1], int))
    return stats["expected_nll"].value, z.argmax(-1), np.exp(-stats["top_nll"].value)


def spread(logits):
    """Return the mean distance of the logits of each row from the largest, under the softmax."""
    z = np.asarray(logits).astype(EXTENDED)
    below = z.max(-1, keepdims=True) - z
    return (np.exp(-below) * below).sum(-1) / np.exp(-below).sum(-1)


def merged(logits, cuts=(1, 3)):
    parts = [logit_stats(part) for part in np.split(np.asarray(logits), cuts, -1)]
    return functools.reduce(LogitStats.merge, parts)


def sharded(logits, check_vma=True):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    of_device = functools.partial(logit_stats, axis_name="model")
    split = jax.shard_map(of_device, mesh=mesh, in_specs=P(None, "model"), out_specs=P(), check_vma=check_vma)
    return jax.jit(split)(logits)


def lazy(implementation):
    def stats(logits):
        logits = jnp.asarray(logits)
        eye = jnp.eye(logits.shape[1], dtype=logits.dtype)
        return logit_stats(LinearLogits(logits, eye, implementation=implementation))

    return stats


WAYS = {
    "dense": logit_stats,
    "merged": merged,
    "sharded": sharded,
    "sharded unchecked": functools.partial(sharded, check_vma=False),
    "blocks": lazy(Chunked(3, 5)),
    "whole rows": lazy(Chunked(3)),
}


@pytest.mark.covering(1, at_most=3)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("num_classes", [8, 64])
@pytest.mark.parametrize("way", WAYS)
def test_entropy_prediction_and_confidence(way, num_classes, dtype, rng, x64):
    logits = rows_of_any_entropy(rng, num_classes, jnp.dtype(dtype))
    stats = WAYS[way](logits)
    entropy, prediction, confidence = exact(logits)
    assert entropy.min() < 1e-29 and entropy.max() > 2
    assert_within(stats.entropy, entropy, ULPS)
    np.testing.assert_array_equal(stats.prediction, prediction)
    assert_within(stats.confidence, confidence, 2)
    assert_within(stats.spread, spread(logits), ULPS)
    assert stats.entropy.dtype == stats.confidence.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert stats.prediction.dtype == np.int32
    np.testing.assert_array_equal(stats.size, np.full(8, num_classes))


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("num_classes", [1000, 50_257])
def test_long_rows_in_the_form_of_the_platform(num_classes, dtype, rng):
    logits = np.concatenate([rows_of_any_entropy(rng, num_classes, jnp.dtype(dtype)) for _ in range(5)])
    stats = jax.jit(logit_stats)(logits)
    entropy, prediction, confidence = exact(logits)
    assert_within(
        stats.entropy, entropy, 2 * ULPS
    )  # the exponentials of a row take few values here, so their errors add up
    np.testing.assert_array_equal(stats.prediction, prediction)
    assert_within(stats.confidence, confidence, ULPS)


def exact_gradients(logits):
    """Return the gradients of the entropy and of the confidence of each row, each a product without cancellation, in extended precision."""
    z = np.asarray(logits).astype(EXTENDED)
    below = z.max(-1, keepdims=True) - z
    others = np.exp(-below)
    top = z.argmax(-1)[..., None]
    np.put_along_axis(others, top, 0, -1)
    rest = np.sort(others, -1).sum(-1, keepdims=True)
    p, spread = (
        np.exp(-below) / (1 + rest),
        (np.where(others == 0, 0, others * below)).sum(-1, keepdims=True) / (1 + rest),
    )
    is_top = np.arange(z.shape[-1]) == top
    entropy = Quantity(p * (below - spread), p * (below + spread) * (1 + below + spread))
    of_top = np.where(is_top, rest / (1 + rest), p) / (1 + rest)
    return entropy, Quantity(np.where(is_top, of_top, -of_top), of_top * (1 + below + spread))


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("way", "num_classes"), [("dense", 8), ("dense", 5000), ("blocks", 8), ("whole rows", 8)])
def test_gradients_keep_every_digit(way, num_classes, dtype, rng, x64):
    logits = rows_of_any_entropy(rng, num_classes, jnp.dtype(dtype))

    @jax.jit
    def gradients(z):
        return [
            jax.grad(lambda z, name=name: jnp.sum(getattr(WAYS[way](z), name)))(z) for name in ("entropy", "confidence")
        ]

    for found, want in zip(gradients(logits), exact_gradients(logits), strict=True):
        assert_within(found, want, 12)


def plain(z):
    """The same sum of entropy, confidence and spread by textbook formulas."""
    log_p = jax.nn.log_softmax(z)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(jnp.where(p == 0, 0, p * jnp.where(p == 0, 0, log_p)), -1)
    return jnp.sum(jnp.sin(entropy) + jnp.square(jnp.max(p, -1)) * entropy)


def ours(stats_of, z):
    stats = stats_of(z)
    return jnp.sum(jnp.sin(stats.entropy) + jnp.square(stats.confidence) * stats.entropy)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("way", ["dense", "blocks", "whole rows"])
def test_derivatives_of_every_order(way, rng, x64):
    z, t = rng.standard_normal((4, 7)) * 3, rng.standard_normal((4, 7))
    if way == "dense":
        z[:, 2] = -INF

    def derivatives(f):
        along = lambda g: lambda z: jax.jvp(g, (z,), (t,))[1]  # noqa: E731
        gradient = jax.grad(f)
        return [
            gradient(z),
            along(gradient)(z),
            jax.grad(lambda z: jnp.vdot(gradient(z), t))(z),
            along(along(gradient))(z),
        ]

    def of_others(z):
        return plain(jnp.delete(z, 2, 1) if way == "dense" else z)

    found = jax.jit(lambda: derivatives(functools.partial(ours, WAYS[way])))()
    for x, y in zip(found, jax.jit(lambda: derivatives(of_others))(), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_second_derivatives_of_narrow_logits_under_vmap(dtype, rng, x64):
    z = np.asarray(rng.permuted(np.tile(np.arange(-3, 4) / 2, (4, 3, 1)), axis=-1), jnp.dtype(dtype))

    def second(f):
        def of_rows(z):
            return jax.jvp(jax.grad(f), (z,), (jnp.ones_like(z) / 2 + z / 4,))[1]

        return jax.jit(jax.vmap(of_rows))

    found = np.asarray(second(functools.partial(ours, logit_stats))(z), np.float64)
    want = np.asarray(second(plain)(z.astype(np.float64)))
    limit = {"bfloat16": 2e-2, "float16": 2e-3, "float32": 1e-5}[dtype]
    assert np.abs(found - want).max() <= limit * np.abs(want).max()


# logits, entropy, prediction, confidence
SPECIAL = {
    "one class": ([1, -INF, -INF], 0, 0, 1),
    "ties": ([2, 5, 5], np.log(2) + 2 * 0 + np.exp(-3) * 0, 1, None),
    "an infinity": ([0, INF, 1], 0, 1, 1),
    "two infinities": ([INF, 0, INF], NAN, 0, NAN),
    "a NaN": ([0, NAN, 1], NAN, -1, NAN),
    "a NaN and an infinity": ([INF, NAN, 1], NAN, -1, NAN),
    "no class": ([-INF] * 3, NAN, -1, NAN),
    "the largest numbers": ([3e38, -3e38, -3e38], 0, 0, 1),
}


@pytest.mark.parametrize("size", [3, 3 * 2**14])
def test_special_rows(size):
    rows, entropy, prediction, confidence = (np.array(x) for x in zip(*SPECIAL.values(), strict=True))
    logits = np.full((len(rows), size), -INF, np.float32)
    logits[:, -3:] = rows.astype(np.float32)
    stats = jax.jit(logit_stats)(logits)
    is_tie = np.array(list(SPECIAL)) == "ties"
    np.testing.assert_array_equal(np.asarray(stats.entropy)[~is_tie], entropy[~is_tie].astype(np.float32))
    np.testing.assert_array_equal(np.asarray(stats.confidence)[~is_tie], confidence[~is_tie].astype(np.float32))
    np.testing.assert_array_equal(stats.prediction, np.where(prediction < 0, -1, prediction + size - 3))
    p = 1 / (2 + np.exp(-3.0))
    np.testing.assert_allclose(stats.confidence[is_tie], p, rtol=1e-6)
    np.testing.assert_allclose(stats.entropy[is_tie], -np.log(p) + 3 * np.exp(-3) * p, rtol=1e-6)


def test_classes_left_out_caps_temperatures_and_bias(rng):
    hidden, classifier = (rng.integers(-8, 9, shape).astype(np.float32) / 8 for shape in ((6, 4), (4, 9)))
    where, bias = np.arange(9) % 4 != 1, np.where(np.arange(9) == 3, -INF, 0.25).astype(np.float32)
    cap, temperature = np.float32(2), np.linspace(0.5, 2, 6, dtype=np.float32)
    z = 2 * np.tanh((hidden.astype(EXTENDED) @ classifier + 0.25) / 2) / temperature[:, None]
    z = np.where(where & (np.arange(9) != 3), z, -INF)
    entropy, prediction, confidence = exact(z)
    for implementation in ("reference", Chunked(4, 5), Chunked(4)):
        layer = LinearLogits(hidden, classifier, bias=bias, soft_cap=cap, implementation=implementation)
        stats = logit_stats(layer, where=where[None], temperature=temperature)
        np.testing.assert_allclose(stats.entropy, entropy.astype(float), rtol=2e-6)
        np.testing.assert_allclose(stats.confidence, confidence.astype(float), rtol=2e-6)
        np.testing.assert_array_equal(stats.prediction, prediction)


def test_prediction_counts_along_any_class_axis(rng):
    logits = rng.standard_normal((3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(logit_stats(logits, axis=1).prediction, logits.argmax(1))
    np.testing.assert_array_equal(logit_stats(logits, axis=(1, 2)).prediction, logits.reshape(3, 20).argmax(1))
    np.testing.assert_array_equal(logit_stats(logits, axis=(1, 2)).size, [20] * 3)


def test_merged_prediction_counts_the_classes_in_the_order_of_the_merge(rng):
    a, b, c = (rng.standard_normal((6, n)).astype(np.float32) for n in (3, 4, 2))
    stats = [logit_stats(x) for x in (a, b, c)]
    merge = LogitStats.merge
    for found in (merge(merge(stats[0], stats[1]), stats[2]), merge(stats[0], merge(stats[1], stats[2]))):
        np.testing.assert_array_equal(found.prediction, np.concatenate((a, b, c), 1).argmax(1))
    swapped = merge(stats[1], stats[0])
    np.testing.assert_array_equal(swapped.prediction, np.concatenate((b, a), 1).argmax(1))


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("way", ["dense", "blocks", "whole rows"])
def test_a_masked_row_reads_as_a_certain_one_with_gradient_zero(way, rng):
    logits, mask = rng.standard_normal((4, 7)).astype(np.float32), np.array([True, False, True, False])
    labels = np.int32([1, -100, 3, 5])
    logits[1], logits[3] = NAN, INF
    eye, implementation = np.eye(7, dtype=np.float32), {"blocks": Chunked(3, 5), "whole rows": Chunked(3)}.get(way)

    def stats_of(z, labels=labels):
        if way == "dense":
            return logit_stats(z, labels, mask=mask)
        return linear_logit_stats(z, eye, labels, mask=mask, implementation=implementation)

    def total(z):
        stats = stats_of(z)
        return jnp.sum(stats.nll + stats.entropy + stats.log_z + stats.smooth_nll + stats.confidence), stats

    (value, stats), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    assert np.isfinite(value) and (np.asarray(gradient)[~mask] == 0).all() and np.isfinite(gradient).all()
    for name, certain in (("nll", 0), ("entropy", 0), ("log_z", 0), ("confidence", 1), ("correct", True)):
        np.testing.assert_array_equal(np.asarray(getattr(stats, name))[~mask], certain)
    np.testing.assert_array_equal(np.asarray(stats.prediction)[mask], logits[mask].argmax(-1))
    whole = logit_stats(logits[mask], labels[mask])
    for name in ("nll", "entropy", "log_z"):
        np.testing.assert_allclose(np.asarray(getattr(stats, name))[mask], getattr(whole, name), rtol=1e-6)


@pytest.mark.parametrize("way", ["dense", "blocks"])
def test_statistics_without_labels(way, rng):
    logits = rng.standard_normal((4, 7)).astype(np.float32)
    given = (
        logits if way == "dense" else LinearLogits(logits, np.eye(7, dtype=np.float32), implementation=Chunked(3, 5))
    )
    stats, labelled = logit_stats(given), logit_stats(given, np.int32([0, 1, 2, 3]))
    assert stats.integer_labels is None and stats.label_nll is stats.label_mass is stats.top_label_mass is None
    for name in ("entropy", "log_z", "prediction", "confidence", "smooth_nll", "num_classes"):
        np.testing.assert_array_equal(getattr(stats, name), getattr(labelled, name))
    for name in ("nll", "correct"):
        with pytest.raises(ValueError, match=rf"`{name}` needs labels; .*logit_stats\(logits, labels\)"):
            getattr(stats, name)
    with pytest.raises(ValueError, match="must come from the same labels; got no labels and integer labels"):
        LogitStats.merge(stats, labelled)
    mapped = jax.vmap(logit_stats)(jnp.asarray(logits))
    assert_within(mapped.entropy, np.asarray(stats.entropy, np.float64), 2)


@pytest.mark.parametrize("name", ["entropy", "confidence"])
def test_properties_of_tangents_raise(name, rng):
    logits = rng.standard_normal((4, 7)).astype(np.float32)
    _, tangents = jax.jvp(logit_stats, (logits,), (logits,))
    with pytest.raises(TypeError, match=rf"`{name}` of the tangents"):
        getattr(tangents, name)
