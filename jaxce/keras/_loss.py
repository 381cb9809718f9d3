"""What the loss objects share: they call their function, weigh, and reduce."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from jaxce._types import Array, NestedArrayLike, Reduction
from jaxce.keras import _arguments as arguments
from jaxce.keras import _masks as masks
from jaxce.keras import _options as options_
from jaxce.keras import _reduction as reductions


class _NoKeras:
    """The base of the losses until Keras is imported. Python lets a class exchange any base but `object`."""


class Loss(_NoKeras):
    """What the loss objects share: they call their function, weigh, and reduce.

    Once Keras is imported `_registration` makes this a subclass of `keras.losses.Loss`: `model.compile` would take any other object for a
    plain function of two arguments, and weigh the mean instead of the losses.
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
        """What predictions are converted to."""
        return self._dtype

    def __call__(
        self, y_true: NestedArrayLike, y_pred: NestedArrayLike, sample_weight: NestedArrayLike | None = None
    ) -> Array:
        """The losses, weighted and reduced.

        Args:
          y_true: As the function of the same name takes it; or with a last axis of size 1 more or less than `y_pred` calls for.
          y_pred: As the function takes it; converted to `dtype`.
          sample_weight: A scalar, or the shape of the losses, or of their first axes: each weighs all losses that share its indices.

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
        """One loss per example."""
        return self._function(*reductions.same_rank(y_true, y_pred), **self._options)

    def _mask(self, y_true: Array, y_pred: Array) -> Array | None:
        """The examples that count, where not all do."""
        del y_true, y_pred
        return None

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as Keras stores them. Unlike Keras's own, a `dtype` that was given is among them."""
        dtype = {"dtype": self.dtype} if self._dtype_is_given else {}
        return {"name": self.name, "reduction": self.reduction, **self._options, **dtype}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The loss that `get_config` describes."""
        return cls(**config)

    def __reduce__(self) -> tuple[Any, ...]:
        """Python's default, for `copy` and `pickle`: `keras.losses.Loss` would save the object as if it were a model."""
        return _uninitialised, (type(self),), self.__dict__


def _uninitialised(cls: type[Loss]) -> Loss:
    return cls.__new__(cls)
