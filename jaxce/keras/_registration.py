"""Registers the losses with Keras: as subclasses of `keras.losses.Loss`, and under names by which Keras finds them in a saved model."""

from jaxce._keras_hook import imported_keras
from jaxce.keras import backend, losses
from jaxce.keras._loss import Loss


def register_with_keras() -> None:
    """Register every loss function and class, if Keras is imported. A second call changes nothing."""
    keras = imported_keras()
    if keras is None:
        return
    if keras.losses.Loss not in Loss.__bases__:
        # Not a new class for each loss: objects that were made before Keras was imported are Keras's losses too, and pickle finds the class.
        Loss.__bases__ = (keras.losses.Loss,)
    # Keras looks for a name without a package among its own functions, which have the same names.
    for package, module in {"jaxce": losses, "jaxce.backend": backend}.items():
        for name in module.__all__:
            keras.saving.register_keras_serializable(package)(getattr(module, name))
