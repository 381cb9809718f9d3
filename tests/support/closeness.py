"""Comparison of arrays: errors in ulps of the scale of a quantity; NaN and infinities must be in the same places."""

import jax.numpy as jnp
import numpy as np


def assert_within(actual, expected, ulps, *, working=None):
    """Assert that `actual` equals `expected` (a `Quantity` of the oracle, or values) within `ulps` of its scale in the dtype `working`.

    `working` is the dtype in which `actual` was computed, by default its own dtype. Rounding to a narrower dtype may add half an ulp of the value.
    """
    off = ulps_off(actual, expected, working=working)
    if np.max(off, initial=0) > ulps:
        worst = np.unravel_index(np.argmax(off), off.shape)
        value = expected[0] if isinstance(expected, tuple) else expected
        raise AssertionError(
            f"off by {float(off[worst]):.2f} ulps, allowed {ulps}, at {tuple(map(int, worst))}: "
            f"got {np.asarray(actual)[worst]!r}, expected {np.asarray(value)[worst]!r}"
        )


def ulps_off(actual, expected, *, working=None):
    """Return the error of each number in ulps, as defined in `assert_within`. Raise AssertionError if a NaN or infinity is misplaced."""
    value, scale = expected if isinstance(expected, tuple) else (expected, np.abs(expected))
    actual_info = jnp.finfo(actual.dtype)
    working_info = jnp.finfo(working or actual.dtype)
    value, scale, actual = (np.asarray(x).astype(np.longdouble) for x in (value, scale, actual))
    assert actual.shape == value.shape
    limit = float(actual_info.max)
    value = np.where(np.abs(value) > limit, np.copysign(np.inf, value), value)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(value), err_msg="NaN elsewhere")
    finite = np.isfinite(value)
    np.testing.assert_array_equal(actual[~finite], value[~finite])
    value, scale, actual = (np.where(finite, x, 0) for x in (value, scale, actual))
    unit = float(working_info.eps) * np.maximum(scale, np.abs(value)) + float(working_info.tiny)
    narrowing = 0.0
    if actual_info.bits < working_info.bits:
        narrowing = float(actual_info.eps) / 2 * np.abs(value) + float(actual_info.smallest_subnormal)
    return np.maximum(np.abs(actual - value) - narrowing, 0) / unit
