"""Registers jaxce's losses with Keras as soon as both are imported, in either order. This module never imports Keras.

Keras must know the losses before it compiles, copies or loads a model. Keras may be imported after jaxce, and a program that only loads a
model never imports `jaxce.keras`. So `import jaxce` puts a finder on `sys.meta_path`. This finder waits for `import keras`, registers the
losses once Keras has been executed, and then removes itself. If Keras is never imported, the finder stays and `jaxce.keras` is not imported.
"""

import contextlib
import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from typing import Any


def install() -> None:
    """Register the losses with Keras now, or once Keras is imported."""
    if "keras" in sys.modules:
        # Another thread may still be importing Keras. Wait for that thread; an error there must not make `import jaxce` fail.
        with contextlib.suppress(Exception):
            importlib.import_module("keras")
    if imported_keras() is not None:
        _register()
    elif _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def imported_keras() -> Any:
    """Return the module `keras` if it has been imported and is Keras 3, else None."""
    # Keras imports its submodules in alphabetical order. Once `saving` is imported, every other submodule that jaxce needs is too.
    keras = sys.modules.get("keras")
    loss = getattr(getattr(keras, "losses", None), "Loss", None)
    register = getattr(getattr(keras, "saving", None), "register_keras_serializable", None)
    return keras if isinstance(loss, type) and callable(register) and hasattr(keras, "config") else None


def attribute_of_package(name: str) -> Any:
    """Return `jaxce.keras`, which is imported on first use. This is the `__getattr__` of the package."""
    if name == "keras":
        return importlib.import_module("jaxce.keras")
    raise AttributeError(f"module 'jaxce' has no attribute {name!r}", name=name, obj=sys.modules["jaxce"])


def names_of_package() -> list[str]:
    """Return the names of the package, including `keras` before its first use. This is the `__dir__` of the package."""
    return sorted({*vars(sys.modules["jaxce"]), "keras"})


class _KerasFinder:
    """A finder that lets the other finders find Keras, and wraps its loader in one that registers the losses."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "keras":
            return None
        finders = list(sys.meta_path)
        # Ask only the finders after this one. Two hooks that ask each other would never return.
        for finder in finders[finders.index(self) + 1 :] if self in finders else ():
            find_spec = getattr(finder, "find_spec", None)
            spec = None if find_spec is None else find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _RegisteringLoader(spec.loader)
                return spec
        return None


class _RegisteringLoader:
    """Keras's loader, wrapped to register the losses after Keras is executed. If Keras fails to import, the finder waits for the next attempt."""

    def __init__(self, loader: Any):
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # a copy whose attributes are not set yet
            raise AttributeError(name)
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        # Put the original loader back, so that this wrapper is not visible on the module.
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        # Assign a new list: another thread may be iterating over the old list, and would skip a finder.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not _FINDER]
        _register()


_FINDER: Any = _KerasFinder()


def _register() -> None:
    try:
        importlib.import_module("jaxce.keras._registration").register_with_keras()
    except Exception as error:  # `import keras` must not fail because of jaxce
        warnings.warn(
            f"Keras does not know jaxce's losses, and models with them cannot be saved or copied: {error!r}.",
            RuntimeWarning,
            stacklevel=2,
        )
