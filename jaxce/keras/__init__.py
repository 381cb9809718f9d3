"""The face of `tf.keras`: the same names, positions, defaults, shapes, dtypes and numbers. Replace `tf.keras` by `jaxce.keras`."""

from jaxce.keras import backend as backend
from jaxce.keras import losses as losses
from jaxce.keras import metrics as metrics
