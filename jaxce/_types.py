"""Type aliases, closed sets of strings, the working dtype, and exportable results. Every module may import from here."""

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
    """Return the dtype in which statistics and losses are computed and returned: float64 for float64, float32 for smaller floating dtypes."""
    # `promote_types` would raise under strict dtype promotion.
    return jnp.dtype(jnp.float64 if values.dtype == jnp.float64 else jnp.float32)


def exportable(result: _Result) -> _Result:
    """Register a pytree class with `jax.export`, so that a program that returns it can be exported."""
    export.register_pytree_node_serialization(
        result,
        serialized_name=f"jaxce.{result.__name__}",
        serialize_auxdata=lambda static: json.dumps(static).encode(),
        deserialize_auxdata=lambda saved: tuple(json.loads(saved)),
    )
    return result
