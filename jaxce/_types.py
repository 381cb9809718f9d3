"""Aliases, closed sets of strings, and the dtype to work in: shared by every floor."""

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

NestedArrayLike = ArrayLike | Sequence[Any]
Reduction = Literal["sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none"]

__all__ = ["Array", "ArrayLike", "NestedArrayLike", "Reduction", "working_dtype"]


def working_dtype(values: Array) -> jnp.dtype:
    """float64 for float64, float32 for every smaller floating dtype: what statistics and losses are worked out and returned in."""
    # Not `promote_types`, which strict promotion forbids.
    return jnp.dtype(jnp.float64 if values.dtype == jnp.float64 else jnp.float32)
