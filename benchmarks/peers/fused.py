"""The fused linear losses of other JAX libraries: the mean loss of hidden, classifier and labels."""

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator

import jax

TOKAMAX, TOKAMAX_XLA, TOKAMAX_CHUNKED, JAX_CCE = "tokamax", 'tokamax, "xla"', 'tokamax, "chunked_xla"', "jax-cce"


@dataclasses.dataclass(frozen=True)
class Fused:
    """A fused loss. `loss(hidden, classifier, labels)` returns the mean. If `transposed`, the classifier is `[classes, features]`."""

    name: str
    package: str
    loss: Callable[..., jax.Array]
    transposed: bool = False

    @property
    def version(self) -> str:
        """Return the installed version."""
        return importlib.metadata.version(self.package)


def _module(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        raise
    except Exception as error:  # a library for another version of JAX may raise any exception
        raise ImportError(f"{type(error).__name__}: {error}") from error


def _tokamax(name, **options):
    loss = _module("tokamax").linear_softmax_cross_entropy_loss
    return Fused(name, "tokamax", lambda h, w, y: loss(h, y, w, reduction="mean", **options))


def _jax_cce():
    return Fused(JAX_CCE, "jax-cce", _module("jax_cce").linear_cross_entropy, transposed=True)


FUSED: dict[str, Callable[[], Fused]] = {
    TOKAMAX: lambda: _tokamax(TOKAMAX),
    TOKAMAX_XLA: lambda: _tokamax(TOKAMAX_XLA, implementation="xla"),
    TOKAMAX_CHUNKED: lambda: _tokamax(TOKAMAX_CHUNKED, implementation="chunked_xla"),
    JAX_CCE: _jax_cce,
}


def installed(*names: str) -> Iterator[Fused]:
    """Yield the losses that can be imported."""
    for name in names:
        try:
            yield FUSED[name]()
        except ImportError:
            continue
