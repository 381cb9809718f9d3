"""The functions of `tf.keras.metrics`, which are those of `tf.keras.losses`.

Guide: docs/pages/guides/from_keras.md
"""

from jaxce.keras.losses import binary_crossentropy as binary_crossentropy
from jaxce.keras.losses import categorical_crossentropy as categorical_crossentropy
from jaxce.keras.losses import sparse_categorical_crossentropy as sparse_categorical_crossentropy

__all__ = ["binary_crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy"]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
