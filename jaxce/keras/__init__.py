"""The cross-entropies of `tf.keras` with the same names, positions, defaults, shapes, dtypes and numbers. Replace `tf.keras` by `jaxce.keras`.

Guide: docs/pages/guides/from_keras.md
"""

from jaxce.keras import _registration
from jaxce.keras import backend as backend
from jaxce.keras import losses as losses
from jaxce.keras import metrics as metrics

__all__ = ["backend", "losses", "metrics"]

# `import jaxce` has already done this if Keras was fully imported before.
_registration.register_with_keras()
