"""Registers the losses with Keras: as subclasses of `keras.losses.Loss`, and under the names that saved models use."""

from jaxce._keras_hook import imported_keras
from jaxce.keras import backend, losses
from jaxce.keras._loss import Loss


def register_with_keras() -> None:
    """Register every loss function and class if Keras is imported. A second call has no effect."""
    keras = imported_keras()
    if keras is None:
        return
    if keras.losses.Loss not in Loss.__bases__:
        # Replace the base instead of creating new classes. So objects created before Keras was imported become Keras losses too, and pickle
        # finds their class.
        Loss.__bases__ = (keras.losses.Loss,)
    # Without a package, Keras would look for the name among its own functions, which have the same names.
    for package, module in {"jaxce": losses, "jaxce.backend": backend}.items():
        for name in module.__all__:
            keras.saving.register_keras_serializable(package)(getattr(module, name))
