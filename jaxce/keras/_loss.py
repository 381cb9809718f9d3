"""What the loss objects share: they call their function, weigh, and reduce; and how they become losses of Keras."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxce._types import Array, NestedArrayLike, Reduction
from jaxce.keras import _arguments as arguments
from jaxce.keras import _reduction as reductions


class Loss:
    """What the loss objects share: they call their function, weigh, and reduce.

    Where Keras is in use, an object is a `keras.losses.Loss` as well: otherwise `model.compile` would take it for a plain function of two
    arguments, and weigh its mean instead of its losses. Nothing imports Keras for that.
    """

    def __new__(cls, *_args: Any, **_kwargs: Any):
        keras_losses = getattr(sys.modules.get("keras"), "losses", None)
        keras_loss = getattr(keras_losses, "Loss", None)
        return object.__new__(cls if keras_loss is None or issubclass(cls, keras_loss) else _joined(cls, keras_loss))

    def __init__(
        self, function: Callable[..., Array], name: str, reduction: Reduction | None, dtype: Any, **options: Any
    ):
        self.name = name
        self.reduction = reductions.checked(reduction)
        self._dtype = "float32" if dtype is None else jnp.dtype(getattr(dtype, "compute_dtype", dtype)).name
        self._function = function
        self._options = options

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
        handed_on = self._mask_handed_on(y_pred)
        y_true = arguments.array("y_true", y_true)
        y_pred = arguments.array("y_pred", y_pred).astype(self.dtype)
        if sample_weight is not None:
            sample_weight = arguments.array("sample_weight", sample_weight)
        mask = self._mask(y_true, y_pred)
        if handed_on is not None:
            mask = handed_on if mask is None else mask & handed_on
        return reductions.reduce(self.call(y_true, y_pred), sample_weight, mask, reduction=self.reduction)

    def call(self, y_true: Array, y_pred: Array) -> Array:
        """One loss per example."""
        return self._function(*reductions.same_rank(y_true, y_pred), **self._options)

    def _mask(self, y_true: Array, y_pred: Array) -> Array | None:
        """The examples that count, where not all do."""
        del y_true, y_pred
        return None

    def _mask_handed_on(self, y_pred: NestedArrayLike) -> Array | None:
        """The mask that a Keras layer gave to its output."""
        del y_pred
        return None

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as Keras stores them."""
        return {"name": self.name, "reduction": self.reduction, **self._options}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Loss":
        """The loss that `get_config` describes."""
        return cls(**config)


@functools.cache
def _joined(loss: type, keras_loss: type) -> type:
    """`loss` as a `keras.losses.Loss`, which `model.compile` lets weigh and reduce by itself."""

    def mask_handed_on(self, y_pred):
        del self
        return sys.modules["keras"].src.backend.get_keras_mask(y_pred)

    names = {"_mask_handed_on": mask_handed_on, "__module__": loss.__module__, "__doc__": loss.__doc__}
    return type(loss.__name__, (loss, keras_loss), names)
