"""The checks in the methods of the results, `LogitStats` and `LossSum`, with their error messages."""

from typing import NoReturn

import jax
import jax.numpy as jnp

from jaxce import _checks as checks
from jaxce._checks import scalars
from jaxce._types import Array, ArrayLike


def mergeable(a, b) -> None:
    """Check for two `LogitStats` of the same rows and the same kind of labels."""
    for name, stats in (("a", a), ("b", b)):
        if not hasattr(stats, "integer_labels"):
            raise TypeError(
                f"`{name}` must be a LogitStats; got {type(stats).__name__}. Make it by logit_stats(logits, labels)."
            )
    if a.max_logit.shape != b.max_logit.shape:
        raise ValueError(
            f"`a` and `b` must be statistics of the same rows; got shapes {a.max_logit.shape} and {b.max_logit.shape}."
        )
    if a.integer_labels != b.integer_labels:
        kinds = {True: "integer labels", False: "class probabilities", None: "no labels"}
        got = f"{kinds[a.integer_labels]} and {kinds[b.integer_labels]}"
        raise ValueError(f"`a` and `b` must come from the same labels; got {got}.")


def not_tangents(stats, name: str) -> None:
    """Check for a `LogitStats` that holds values, not tangents. The tangent of an integer has the dtype float0."""
    if stats.num_classes.dtype == jax.dtypes.float0:
        raise TypeError(
            f"`{name}` of the tangents of a LogitStats is not the tangent of `{name}`. Differentiate a function that returns `{name}`: "
            f"jax.jvp(lambda z: jaxce.logit_stats(z, labels).{name}, (logits,), (logits_dot,))."
        )


def with_labels(stats, name: str) -> None:
    """Check for a `LogitStats` that was made with labels."""
    if stats.integer_labels is None:
        raise ValueError(f"`{name}` needs labels; these statistics were made without: logit_stats(logits, labels).")


def of_integer_labels(stats) -> None:
    """Check for a `LogitStats` of integer labels."""
    with_labels(stats, "correct")
    if not stats.integer_labels:
        raise ValueError(
            "`correct` is about integer labels; these statistics are of class probabilities. Take `top_label_mass`, the probability of "
            "a label that is a maximal class, or give `logit_stats` the indices of the likeliest classes: labels.argmax(axis)."
        )


def loss_dtype(value) -> jnp.dtype:
    """Check the dtype of a sum of losses."""
    try:
        value = jnp.dtype(value)
    except TypeError:
        raise TypeError(f"`dtype` must be a dtype; got {value!r}.") from None
    if value not in (jnp.float32, jnp.float64):
        raise TypeError(f"`dtype` must be float32 or float64, the dtypes of losses; got {value}.")
    return value


def no_sum_with(other) -> NoReturn:
    """Refuse to add anything but a `LossSum` to a `LossSum`."""
    raise TypeError(
        f"a LossSum can be added to a LossSum alone; got {type(other).__name__}. "
        "Start a `scan`, a loop or a `sum` from `LossSum.zero()`."
    )


def same_segments(a, b) -> None:
    """Check for sums of the same shape: those of one number, or those of as many segments."""
    shapes = jnp.shape(a.total), jnp.shape(b.total)
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"two LossSums can be added if they have the same number of segments; got shapes {shapes[0]} and {shapes[1]}."
        )


def no_float_of_a_sum() -> NoReturn:
    """Refuse to convert a `LossSum` to a number."""
    raise TypeError("a LossSum is not a number. Take its mean, `float(loss_sum.mean())`, or its `.total`.")


def no_quotient_with(other) -> NoReturn:
    """Refuse to divide a `LossSum`."""
    raise TypeError(
        f"a LossSum cannot be divided by {type(other).__name__}. `.mean()` divides its total by its weight; for another divisor take `.total`."
    )


def number_of_segments(value) -> int:
    """Check for a number of segments that is known while tracing."""
    value = scalars.static_int("num_segments", value)
    if value < 0:
        raise ValueError(f"`num_segments` must not be negative; got {value}.")
    return value


def segment_ids(value: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Check for the number of the segment of each loss. `shape` is that of the losses."""
    value = checks.array("segment_ids", value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(
            f"`segment_ids` must be integers; got {value.dtype}. Convert them: segment_ids.astype(jnp.int32)."
        )
    if value.shape != shape:
        raise ValueError(f"`segment_ids` must have the shape of the losses, {shape}; got {value.shape}.")
    return value


def loss_weights(value: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """Check for one weight per loss. `shape` is that of the losses."""
    if value is None:
        return None
    value = checks.array("weights", value)
    if value.dtype == bool:
        raise TypeError("`weights` must be numbers; got booleans. To leave out losses pass `mask`.")
    value = checks.weights("weights", value)
    if value.shape != shape:
        raise ValueError(f"`weights` must have the shape of the losses, {shape}; got {value.shape}.")
    return value
