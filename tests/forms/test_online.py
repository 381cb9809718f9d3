"""The maximum and the rest of a row, made in one reading: as GPUs make them, run here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import _online as online
from tests.support.oracle import EXTENDED

INF, NAN = np.inf, np.nan
SIZES = [1, 2, 3, 7, 8, 9, 16, 17, 63, 64, 65, 1000]


def truth(logits):
    """The maximum of each row, and the sum over all but the first class that has it, of exponentials in extended precision."""
    wide = np.asarray(logits).astype(EXTENDED)
    shift = wide.max(-1)
    e = np.exp(wide - shift[..., None])
    np.put_along_axis(e, wide.argmax(-1)[..., None], 0, -1)
    return shift, e.sum(-1)


def check(logits, ulps=4.0):
    shift, rest = jax.jit(online.shift_and_rest)(logits)
    working = np.dtype(np.float64 if logits.dtype == np.float64 else np.float32)
    assert shift.dtype == rest.dtype == working
    expected_shift, expected = truth(logits)
    np.testing.assert_array_equal(shift, expected_shift.astype(working))
    # Rounding a difference costs half an ulp of that difference: of the mean one, weighted by what the classes contribute.
    scale = expected * (1 + np.abs(np.log(np.maximum(expected, np.finfo(working).tiny))))
    off = np.abs(np.asarray(rest).astype(EXTENDED) - expected)
    assert np.max(off / np.maximum(np.finfo(working).eps * scale, np.finfo(working).tiny)) <= ulps


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("size", SIZES)
def test_any_length_and_dtype(size, dtype, rng):
    check(np.asarray(3 * rng.standard_normal((40, size)), jnp.dtype(dtype)))


@pytest.mark.parametrize("size", [5, 100])
def test_float64_and_rows_of_any_rank(size, rng, x64):
    check(3 * rng.standard_normal((2, 3, 4, size)))


@pytest.mark.parametrize("size", [2, 9, 64, 1000])
@pytest.mark.parametrize("margin", [1e-8, 1e-3, 1.0, 27.0, 80.0])
def test_a_tiny_rest_keeps_its_digits_wherever_the_maximum_is(size, margin, rng):
    logits = np.full((size, size), -margin, np.float32) - rng.random((size, size), np.float32)
    np.fill_diagonal(logits, 0)
    check(logits)


def test_ties_are_counted_wherever_they_are(rng):
    for size in (2, 9, 64):
        logits = rng.integers(-2, 3, (200, size)).astype(np.float32)
        check(logits)
        _, rest = online.shift_and_rest(np.zeros((1, size), np.float32))
        np.testing.assert_array_equal(rest, [size - 1])


def test_increasing_rows_join_at_every_step():
    check(np.linspace(0, np.float32(50), 5000, dtype=np.float32)[None])
    check(np.linspace(0, np.float32(50), 5000, dtype=np.float32)[None, ::-1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [2, 9, 20])
def test_infinities_and_the_largest_numbers(size, dtype):
    largest, run = float(jnp.finfo(dtype).max), jax.jit(online.shift_and_rest)
    for place in range(size):

        def row(fill, at, place=place):
            logits = np.full((1, size), fill, jnp.dtype(dtype))
            logits[0, place] = at
            return [float(x[0]) for x in run(logits)]

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
def test_a_nan_anywhere_is_in_both(size, fill):
    logits = np.full((size, size), fill, np.float32)
    np.fill_diagonal(logits, NAN)
    for x in online.shift_and_rest(logits):
        assert np.isnan(x).all()


def test_joining_is_symmetric_and_empty_sets_are_neutral(rng):
    a, b = (online.shift_and_rest(rng.standard_normal((5, n)).astype(np.float32)) for n in (3, 7))
    empty = jnp.full(5, -INF), jnp.full(5, -1.0)
    for pair in (a, b):
        for x, y in zip(online.joined(pair, empty), pair, strict=True):
            np.testing.assert_array_equal(x, y)
    for x, y in zip(online.joined(a, b), online.joined(b, a), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(online.joined(empty, empty), empty, strict=True):
        np.testing.assert_array_equal(x, y)
