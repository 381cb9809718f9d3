"""Aliases, closed sets of strings, the dtype to work in, and results that can be saved: shared by every floor."""

import json
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
from jax import Array, export
from jax.typing import ArrayLike

NestedArrayLike = ArrayLike | Sequence[Any]
Reduction = Literal["sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none"]

_Result = TypeVar("_Result", bound=type)

__all__ = ["Array", "ArrayLike", "NestedArrayLike", "Reduction", "exportable", "working_dtype"]


def working_dtype(values: Array) -> jnp.dtype:
    """float64 for float64, float32 for every smaller floating dtype: what statistics and losses are worked out and returned in."""
    # Not `promote_types`, which strict promotion forbids.
    return jnp.dtype(jnp.float64 if values.dtype == jnp.float64 else jnp.float32)


def exportable(result: _Result) -> _Result:
    """A class that is a registered pytree; `jax.export` can save a program that returns one."""
    export.register_pytree_node_serialization(
        result,
        serialized_name=f"jaxce.{result.__name__}",
        serialize_auxdata=lambda static: json.dumps(static).encode(),
        deserialize_auxdata=lambda saved: tuple(json.loads(saved)),
    )
    return result
