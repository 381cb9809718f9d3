"""The face of `tf.keras`: the same names, positions, defaults, shapes, dtypes and numbers. Replace `tf.keras` by `jaxce.keras`."""

from jaxce.keras import _registration
from jaxce.keras import backend as backend
from jaxce.keras import losses as losses
from jaxce.keras import metrics as metrics

__all__ = ["backend", "losses", "metrics"]

# `import jaxce` did this if Keras was imported to the end by then.
_registration.register_with_keras()
