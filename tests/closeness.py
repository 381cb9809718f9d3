"""How close is close: errors in ulps of what a quantity is made of, NaN and infinities in their places."""

import jax.numpy as jnp
import numpy as np


def assert_within(actual, expected, ulps, *, working=None):
    """`actual` is `expected` (an oracle's `Quantity`, or values) within `ulps` of its scale in the dtype `working`.

    `working` is the dtype that `actual` was worked out in, its own by default; rounding to a narrower one may add half an ulp of the value.
    """
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
    bound = ulps * (float(working_info.eps) * np.maximum(scale, np.abs(value)) + float(working_info.tiny))
    if actual_info.bits < working_info.bits:
        bound = bound + float(actual_info.eps) / 2 * np.abs(value) + float(actual_info.smallest_subnormal)
    ratio = np.where(
        finite, np.abs(np.where(finite, actual, 0) - np.where(finite, value, 0)) / np.where(finite, bound, 1), 0
    )
    if np.max(ratio, initial=0) > 1:
        worst = np.unravel_index(np.argmax(ratio), ratio.shape)
        off = f"{float(ratio[worst] * ulps):.2f} ulps, allowed {ulps}"
        raise AssertionError(
            f"off by {off} at {tuple(map(int, worst))}: got {actual[worst]!r}, expected {value[worst]!r}"
        )
