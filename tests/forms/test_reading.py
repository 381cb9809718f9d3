"""How numbers are looked up, widened, rounded and compared with labels: exactly as in one line of NumPy, whatever a CPU is given instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import _reading as reading
from jaxce import _reductions as reductions

pytestmark = pytest.mark.usefixtures("made_quickly")

BFLOAT16 = np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16)  # all there are


def bits(values):
    """Those of a NaN aside, of which there are many."""
    values = np.asarray(values)
    return np.where(np.isnan(values.astype(np.float32)), 0x7FC0, values.view(np.uint16))


def test_every_float32_between_two_bfloat16_is_rounded_to_the_nearest():
    """The values themselves, the middles, of which the even one is taken, and what is beside a middle; to infinity above the largest."""
    values = (
        np.arange(2**16, dtype=np.uint32)[:, None] << 16 | np.uint32([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    ).view(np.float32)
    # XLA for CPU flushes what is less than the least normal number.
    values = np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)
    with np.errstate(invalid="ignore", over="ignore"):
        want = values.astype(jnp.bfloat16)
    rounded = jax.jit(lambda x: reading.rounded(x, jnp.dtype("bfloat16")))(values)
    np.testing.assert_array_equal(bits(rounded), bits(want))


def test_narrow_values_are_widened_exactly_and_the_gradient_is_rounded(rng):
    wide, pull = jax.vjp(jax.jit(lambda x: reading.widened(x, jnp.dtype("float32"))), BFLOAT16)
    np.testing.assert_array_equal(wide, BFLOAT16.astype(np.float32))
    cotangent = rng.standard_normal(wide.shape).astype(np.float32)
    (gradient,) = pull(jnp.asarray(cotangent))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(bits(gradient), bits(cotangent.astype(jnp.bfloat16)))


def test_rounding_and_widening_have_the_derivatives_of_a_conversion(rng):
    """Also of the second order, where a bitcast would have none."""
    x = rng.standard_normal(8).astype(jnp.bfloat16)

    def of_rounded(x):
        return jnp.sum(reading.widened(reading.rounded(x.astype(jnp.float32), jnp.dtype("bfloat16")), jnp.float32) ** 3)

    with_dots = jax.jvp(jax.grad(of_rounded), (x,), (jnp.ones_like(x),))
    z = x.astype(np.float64)
    for found, want in zip(with_dots, (3 * z**2, 6 * z), strict=True):
        np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=2**-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "float64"])
def test_numbers_that_are_looked_up(dtype, rng, x64):
    values = np.asarray(rng.standard_normal((5, 7)), jnp.dtype(dtype))
    values[1, 2], values[2, 0] = np.nan, -0.0
    at = np.array([[3], [2], [0], [6], [0]])

    def look(values, at):
        return jnp.take_along_axis(values, at, 1, mode="clip")

    def find(values):
        return reading.looked_up(look, values, at)

    found = jax.jit(find)(values)
    assert found.dtype == values.dtype
    assert np.asarray(found).tobytes() == np.take_along_axis(values, at, 1).tobytes()
    found = jax.vmap(lambda x: reading.looked_up(lambda x, i: x[i], x, 2))(values)
    assert np.asarray(found).tobytes() == values[:, 2].tobytes()


@pytest.mark.covering(1)
@pytest.mark.parametrize("floats_below", [0, 2**23])
@pytest.mark.parametrize("num_classes", [1, 10, 65535, 65536, 65537, 131072])
@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_which_class_is_that_of_the_label(monkeypatch, x64, dtype, num_classes, floats_below):
    """None is where it is no class, however close to one its bits are."""
    monkeypatch.setattr(reductions, "_FLOATS_BELOW", floats_below)
    ends = [np.iinfo(dtype).min, np.iinfo(dtype).max]
    others = [2**16 - 1, 2**16, 2**16 + 9, 2**17, 2**20, 2**31 - 1, *([-1, -(2**16)] if "u" not in dtype else [])]
    others += [2**32 + 1, 2**32 - 1, 2**48] if "64" in dtype else []
    labels = np.array([0, num_classes // 2, num_classes - 1, num_classes, *ends, *others], dtype)
    for axis, shape in ((1, (labels.size, num_classes)), (0, (num_classes, labels.size))):
        z = jax.ShapeDtypeStruct(shape, "float32")
        found = np.asarray(jax.jit(lambda y, z=z, axis=axis: reductions.is_label(z, y, axis))(labels))
        rows, classes = np.nonzero(found if axis == 1 else found.T)
        want = [(i, int(y)) for i, y in enumerate(labels.tolist()) if 0 <= y < num_classes]
        assert list(zip(rows.tolist(), classes.tolist(), strict=True)) == want


def test_a_class_that_float32_cannot_count_is_told_from_its_neighbour():
    z = jax.ShapeDtypeStruct((1, 2**24 + 2), "float32")
    found = jax.jit(lambda y: jnp.nonzero(reductions.is_label(z, y, 1)[0], size=2, fill_value=-1)[0])(
        np.int32([2**24 + 1])
    )
    np.testing.assert_array_equal(found, [2**24 + 1, -1])
