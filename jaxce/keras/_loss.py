"""The base class of the loss objects: it calls the loss function, applies sample weights and reduces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from jaxce._types import Array, NestedArrayLike, Reduction
from jaxce.keras import _arguments as arguments
from jaxce.keras import _masks as masks
from jaxce.keras import _options as options_
from jaxce.keras import _reduction as reductions


class _NoKeras:
    """The base class of `Loss` until Keras is imported. Python can replace any base class but `object`."""


class Loss(_NoKeras):
    """The base class of the loss objects: it calls the loss function, applies sample weights and reduces.

    Once Keras is imported, `_registration` makes this class a subclass of `keras.losses.Loss`. `model.compile` would treat an object of another
    class as a plain function of two arguments, and would apply the sample weights to the mean instead of to each loss.
    """

    def __init__(
        self, function: Callable[..., Array], name: str | None, reduction: Reduction | None, dtype: Any, **options: Any
    ):
        self.name = options_.name(name, default=function.__name__)
        self.reduction = reductions.checked(reduction)
        self._dtype = options_.dtype(dtype)
        self._dtype_is_given = dtype is not None
        self._function = function
        self._options = options_.checked(options)

    @property
    def dtype(self) -> str:
        """The dtype to which predictions are converted."""
        return self._dtype

    def __call__(
        self, y_true: NestedArrayLike, y_pred: NestedArrayLike, sample_weight: NestedArrayLike | None = None
    ) -> Array:
        """Return the losses, weighted and reduced.

        Args:
          y_true: As for the function of the same name. A last axis of size 1 may be missing or extra.
          y_pred: As for the function of the same name; converted to `dtype`.
          sample_weight: A scalar, or an array with the shape of the losses or of their first axes. A weight applies to all losses at its index.

        Returns:
          A scalar, or the losses if `reduction` is `none` or None.
        """
        y_true = arguments.array("y_true", y_true)
        predictions = arguments.array("y_pred", y_pred)
        mask_of_layer, y_pred = masks.mask_of(y_pred), predictions.astype(self.dtype)
        if sample_weight is not None:
            sample_weight = arguments.array("sample_weight", sample_weight)
        mask = self._mask(y_true, y_pred)
        if mask_of_layer is not None:
            mask = mask_of_layer if mask is None else mask & mask_of_layer
        return reductions.reduce(self.call(y_true, y_pred), sample_weight, mask, reduction=self.reduction)

    def call(self, y_true: Array, y_pred: Array) -> Array:
        """Return one loss per example."""
        return self._function(*reductions.same_rank(y_true, y_pred), **self._options)

    def _mask(self, y_true: Array, y_pred: Array) -> Array | None:
        """Return the mask of the examples that count, or None if all count."""
        del y_true, y_pred
        return None

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as Keras stores them. Unlike Keras's own losses, include a `dtype` that was given."""
        dtype = {"dtype": self.dtype} if self._dtype_is_given else {}
        return {"name": self.name, "reduction": self.reduction, **self._options, **dtype}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the loss that `get_config` describes."""
        return cls(**config)

    def __reduce__(self) -> tuple[Any, ...]:
        """Use Python's default for `copy` and `pickle`, because `keras.losses.Loss` would save the object as if it were a model."""
        return _uninitialised, (type(self),), self.__dict__


def _uninitialised(cls: type[Loss]) -> Loss:
    return cls.__new__(cls)
