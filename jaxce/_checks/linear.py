"""The checks of the arguments of a linear layer."""

from jaxce import _checks as checks
from jaxce._types import Array, ArrayLike


def hidden(value: ArrayLike) -> Array:
    """Check for rows of features."""
    value = checks.floating("hidden", value)
    if value.ndim == 0:
        raise ValueError("`hidden` must have a feature axis, its last; got a scalar.")
    if value.shape[-1] == 0:
        raise ValueError(f"`hidden` must have at least one feature; got shape {value.shape}.")
    return value


def classifier(value: ArrayLike, hidden: Array) -> Array:
    """Check for one column of weights per class."""
    value, features = checks.floating("classifier", value), hidden.shape[-1]
    if value.ndim != 2 or value.shape[0] != features:
        hint = ""
        if value.ndim == 2 and value.shape[1] == features:
            hint = " Pass the transpose: classifier.T."
        raise ValueError(
            f"`classifier` must have shape (features, num_classes) with the {features} features of `hidden`; got {value.shape}.{hint}"
        )
    if value.shape[1] == 0:
        raise ValueError(f"`classifier` must have at least one class; got shape {value.shape}.")
    return value


def bias(value: ArrayLike | None, classifier: Array) -> Array | None:
    """Check for one number per class."""
    return None if value is None else checks.per_class(checks.floating("bias", value), classifier.shape[1:], "bias")
