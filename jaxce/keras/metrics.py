"""`tf.keras.metrics`: the loss functions under their other name."""

from jaxce.keras.losses import binary_crossentropy as binary_crossentropy
from jaxce.keras.losses import categorical_crossentropy as categorical_crossentropy
from jaxce.keras.losses import sparse_categorical_crossentropy as sparse_categorical_crossentropy
