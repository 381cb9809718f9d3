"""The forms for a GPU, called directly and compiled for a CPU: they agree with the definition.

Measurements on a GPU are in `benchmarks/`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce._core import gpu
from jaxce._core.definition import Derivatives
from tests.support import cases, statistics
from tests.support.closeness import assert_within
from tests.support.oracle import Quantity

pytestmark = pytest.mark.usefixtures("fast_compilation")

INF, NAN = np.inf, np.nan
DTYPES = ["float8_e4m3fn", "float16", "bfloat16", "float32", "float64"]
# Different lengths of slices: fewer classes than slices, an empty slice, and a last slice with padding.
LENGTHS = [1, 2, 3, 7, 8, 9, 16, 17, 63, 64, 65, 1000]
run = jax.jit(gpu.statistics)
run_vjp = jax.jit(gpu.logits_vjp)
max_and_rest = jax.jit(gpu.max_and_rest)


def assert_max_and_rest(logits, ulps=8):
    m, rest = max_and_rest(logits)
    working = statistics.working_dtype(logits.dtype)
    assert m.dtype == rest.dtype == working
    want = statistics.exact(logits, np.zeros(logits.shape[:-1], np.int32))
    np.testing.assert_array_equal(m, want["max_logit"].value.astype(working))
    assert_within(rest, want["sum_exp_rest"], ulps)


@pytest.mark.covering(2, at_most=16)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", LENGTHS)
def test_one_pass_over_rows_of_any_length_and_dtype(size, dtype, rng, x64):
    assert_max_and_rest(np.asarray(3 * rng.standard_normal((40, size)), jnp.dtype(dtype)))


@pytest.mark.parametrize("size", [5, 100])
def test_one_pass_over_rows_of_any_rank(size, rng):
    assert_max_and_rest(cases.make_logits(rng, (2, 3, 4, size)))
    assert_max_and_rest(cases.make_logits(rng, (size,)))


@pytest.mark.covering(1, at_most=8)
@pytest.mark.parametrize("size", [2, 9, 64, 1000])
@pytest.mark.parametrize("margin", [1e-8, 1e-3, 1.0, 27.0, 80.0])
def test_tiny_sum_exp_rest_is_accurate_for_any_position_of_the_maximum(size, margin, rng):
    logits = np.full((size, size), -margin, np.float32) - rng.random((size, size), np.float32)
    np.fill_diagonal(logits, 0)
    assert_max_and_rest(logits)


def test_ties_are_counted_at_any_position(rng):
    for size in (2, 9, 64):
        assert_max_and_rest(rng.integers(-2, 3, (200, size)).astype(np.float32))
        _, rest = gpu.max_and_rest(np.zeros((1, size), np.float32))
        np.testing.assert_array_equal(rest, [size - 1])


def test_the_maximum_may_change_at_every_step():
    rising = np.linspace(0, np.float32(50), 5000, dtype=np.float32)[None]
    assert_max_and_rest(rising)
    assert_max_and_rest(rising[:, ::-1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [2, 9, 20])
def test_infinities_and_the_largest_numbers(size, dtype):
    largest = float(jnp.finfo(dtype).max)
    for place in range(size):

        def row(fill, at, place=place):
            logits = np.full((1, size), fill, jnp.dtype(dtype))
            logits[0, place] = at
            return [float(x[0]) for x in max_and_rest(logits)]

        assert row(-INF, 3) == [3, 0]
        assert row(-INF, -INF) == [-INF, 0]
        assert row(3, -INF) == [3, size - 2]
        assert row(3, INF) == [INF, 0]
        assert row(INF, 3) == [INF, size - 2]
        assert row(-INF, INF) == [INF, 0]
        assert row(-largest, largest) == [largest, 0]
        assert row(largest, -largest) == [largest, size - 2]
        assert row(largest, INF) == [INF, 0]
        assert row(INF, largest) == [INF, size - 2]
        assert row(-INF, -largest) == [-largest, 0]


@pytest.mark.covering(1)
@pytest.mark.parametrize("size", [1, 2, 9, 20])
@pytest.mark.parametrize("fill", [0.0, -INF, INF, 5.0])
def test_nan_at_any_position_is_in_sum_exp_rest(size, fill):
    """The library detects a NaN in `sum_exp_rest`, because a compiler for CPUs may lose a NaN in a maximum."""
    logits = np.full((size, size), fill, np.float32)
    np.fill_diagonal(logits, NAN)
    assert np.isnan(max_and_rest(logits)[1]).all()


@pytest.fixture
def short_slices(monkeypatch):
    """Cut rows of a thousand classes into more slices, as the form normally does for rows of more than 131,072 classes."""
    monkeypatch.setattr(gpu, "_LONGEST", 16)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.covering(1, at_most=2)
@pytest.mark.usefixtures("short_slices")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("num_classes", [1000, 1001])
def test_very_long_rows_are_cut_into_more_slices(num_classes, dtype, rng):
    assert_max_and_rest(np.asarray(3 * rng.standard_normal((5, num_classes)), jnp.dtype(dtype)))


def make_labels(kind, rng, shape):
    """Return integers, some of them outside the classes; or probabilities, some of them 0."""
    if kind == "integer":
        labels = rng.integers(0, shape[-1], shape[:-1]).astype(np.int32)
        no_class = np.int32([-1, shape[-1], 2**31 - 1, -(2**31)])
        return np.where(rng.random(labels.shape) < 0.2, rng.choice(no_class, labels.shape), labels)
    q = rng.random(shape) * (rng.random(shape) < 0.7)
    return (q / np.maximum(q.sum(-1, keepdims=True), 1e-3)).astype(np.float32)


@pytest.mark.covering(2, at_most=8)
@pytest.mark.parametrize("weights", [False, True], ids=["plain", "class_weights"])
@pytest.mark.parametrize("kind", ["integer", "soft"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 1), (8, 7), (8, 1001), (2, 3, 1000), (0, 9)], ids=str)
def test_statistics(shape, dtype, kind, weights, rng, x64):
    logits, labels = np.asarray(3 * rng.standard_normal(shape), jnp.dtype(dtype)), make_labels(kind, rng, shape)
    class_weights = rng.uniform(0, 2, shape[-1]).astype(np.float32) if weights else None
    found = run(logits, labels, class_weights)
    statistics.assert_statistics(found, logits, labels, class_weights=class_weights, ulps=8)


@pytest.mark.covering(1, at_most=8)
@pytest.mark.parametrize("kind", ["integer", "soft"])
@pytest.mark.parametrize("num_classes", [20, 1001])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_of_special_numbers(dtype, num_classes, kind, rng, x64):
    logits = np.repeat(statistics.special_rows(rng, num_classes, jnp.dtype(dtype)), 2, 0)
    labels = np.int32([0, 8] * (len(logits) // 2))
    if kind == "soft":
        labels = np.eye(num_classes, dtype=np.float32)[labels]
    statistics.assert_statistics(run(logits, labels, None), logits, labels, ulps=16)


@pytest.mark.covering(1, at_most=4)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "mask"])
@pytest.mark.parametrize("used", statistics.USED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 7), (9, 8), (5, 1), (5, 1001), (5, 1000), (2, 3, 1002), (0, 16)], ids=str)
def test_gradient(shape, dtype, used, masked, rng, x64):
    """Rows of any length. Narrow logits are read in pairs if the number of classes is a multiple of eight."""
    logits, labels = np.asarray(3 * rng.standard_normal(shape), jnp.dtype(dtype)), make_labels("integer", rng, shape)
    assert_gradient(logits, labels, rng, used=statistics.USED[used], masked=masked)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("used", statistics.USED)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "mask"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("run", "rows", "num_classes"), [(64, 64, 101), (64, 32, 1002), (16, 16, 33), (8, 8, 9)])
def test_gradient_of_unaligned_rows(run, rows, num_classes, dtype, masked, used, rng, monkeypatch):
    """A run of narrow logits may contain parts of two rows. There are labels at both ends of a row and of a run."""
    monkeypatch.setattr(gpu, "_RUN", run)
    jax.clear_caches()
    logits = np.asarray(4 * rng.standard_normal((rows, num_classes)), jnp.dtype(dtype))
    assert logits.size % run == 0
    labels = rng.integers(0, num_classes, rows).astype(np.int32)
    labels[:6] = np.clip([0, num_classes - 1, run - 2, run - 1, run, num_classes - 2], 0, num_classes - 1)
    labels[6:8] = -1, num_classes
    assert_gradient(logits, labels, rng, used=statistics.USED[used], masked=masked)
    jax.clear_caches()


def assert_gradient(logits, labels, rng, *, used, masked):
    working, rows = statistics.working_dtype(logits.dtype), labels.shape
    mask = rng.random(rows) < 0.7 if masked else np.ones(rows, bool)
    stats = statistics.by_definition(np.where(mask[..., None], logits, logits.dtype.type(0)), labels)
    cotangents = statistics.make_cotangents(rng, used, rows, logits.shape[-1], working, mask)
    # The values of a masked row do not matter.
    given = np.where(mask[..., None], logits, np.asarray(NAN, logits.dtype))
    found = run_vjp(cotangents, given, labels, mask if masked else None, stats)
    assert found.dtype == logits.dtype
    want = statistics.exact_gradient(cotangents, logits, labels)
    assert_within(found, Quantity(*(x * mask[..., None] for x in want)), 8, working=working)


@pytest.mark.covering(1, at_most=3)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("num_classes", [1000, 1002])
def test_row_without_a_loss_does_not_affect_other_rows(num_classes, dtype, rng):
    """The cotangent of a row without a loss is NaN, and its gradient has a NaN."""
    logits = statistics.special_rows(rng, num_classes, jnp.dtype(dtype))
    # A multiple of the run length, so that rows whose length is not a multiple of eight are computed in runs.
    logits = np.concatenate([logits] * 256)[: 256 * (len(logits) // 2)]
    labels = np.full(len(logits), 8, np.int32)
    stats = statistics.by_definition(logits, labels)
    is_defined = np.isfinite(np.asarray(stats.label_nll)) & np.isfinite(np.asarray(stats.max_logit))
    cotangent = np.where(is_defined, 1.5, NAN).astype(np.float32)
    found = np.asarray(run_vjp(Derivatives(label_nll=cotangent), logits, labels, None, stats))
    assert np.isnan(found[~is_defined].astype(np.float32)).any(1).all()
    some = np.flatnonzero(is_defined)[::50]
    want = statistics.exact_gradient(Derivatives(label_nll=cotangent[some]), logits[some], labels[some])
    assert_within(found[some], want, 8, working="float32")
    assert np.isfinite(found[is_defined].astype(np.float32)).all()


def test_suits_only_long_rows_of_the_last_axis_without_where():
    suits = functools.partial(gpu.suits, where=None, axis=1)
    assert suits(jnp.zeros((2, 1000)))
    assert not suits(jnp.zeros((2, 999)))
    assert not gpu.suits(jnp.zeros((1000, 1000)), None, 0)
    assert not gpu.suits(jnp.zeros((2, 1000)), jnp.ones((2, 1000), bool), 1)
