"""The functions of `tf.keras.losses` and Keras 3 (`y_true` first, one loss per example), and loss objects with Keras 3's constructors.

Guide: docs/pages/guides/from_keras.md
"""

from jaxce.keras._crossentropy_losses import binary_crossentropy as binary_crossentropy
from jaxce.keras._crossentropy_losses import categorical_crossentropy as categorical_crossentropy
from jaxce.keras._crossentropy_losses import sparse_categorical_crossentropy as sparse_categorical_crossentropy
from jaxce.keras._crossentropy_objects import BinaryCrossentropy as BinaryCrossentropy
from jaxce.keras._crossentropy_objects import CategoricalCrossentropy as CategoricalCrossentropy
from jaxce.keras._crossentropy_objects import SparseCategoricalCrossentropy as SparseCategoricalCrossentropy
from jaxce.keras._focal_losses import BinaryFocalCrossentropy as BinaryFocalCrossentropy
from jaxce.keras._focal_losses import CategoricalFocalCrossentropy as CategoricalFocalCrossentropy
from jaxce.keras._focal_losses import binary_focal_crossentropy as binary_focal_crossentropy
from jaxce.keras._focal_losses import categorical_focal_crossentropy as categorical_focal_crossentropy
from jaxce.keras._probability_losses import CategoricalGeneralizedCrossEntropy as CategoricalGeneralizedCrossEntropy
from jaxce.keras._probability_losses import KLDivergence as KLDivergence
from jaxce.keras._probability_losses import (
    categorical_generalized_cross_entropy as categorical_generalized_cross_entropy,
)
from jaxce.keras._probability_losses import kl_divergence as kl_divergence

__all__ = [
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "KLDivergence",
    "SparseCategoricalCrossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_generalized_cross_entropy",
    "kl_divergence",
    "sparse_categorical_crossentropy",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
