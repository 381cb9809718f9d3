"""The library called in other ways: under `jax.vmap`, with many examples, and with many classes, for the table of non-finite cells."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import nonfinite_cells as cells
from tests.support.ours import OURS


class Changed:
    """The library, where `call(name, function, logits, labels, options)` calls each function."""

    options = OURS.options

    def __init__(self, call, functions=tuple(cells.LOSSES)):
        self._call, self._functions = call, functions

    def __getattr__(self, name):
        if name not in self._functions:
            raise AttributeError(name)
        return lambda logits, labels, **options: self._call(name, getattr(OURS, name), logits, labels, options)


def mapped(name, function, logits, labels, options):
    """Call the function on each example under `jax.vmap`."""
    if name == "loss_sum":
        one = lambda z, y, o: function(z[None], y[None], **{n: v[None] for n, v in o.items()})[0]  # noqa: E731
    else:
        one = lambda z, y, o: function(z, y, **o)  # noqa: E731
    return jax.vmap(one)(logits, labels, options)


def repeated(_, function, logits, labels, options):
    """Repeat the examples: XLA for CPU compiles large arrays into other loops."""
    many = jax.tree.map(lambda x: jnp.concatenate([x] * 512), (logits, labels, options))
    return function(*many[:2], **many[2])[-len(logits) :]


def among_many_classes(_, function, logits, labels, options):
    """Pad the rows with classes that take no part, so that they are long enough for the form of a GPU."""

    def longer(x, value):
        return jnp.pad(x, [(0, 0)] * (logits.ndim - 1) + [(0, 1001)], constant_values=value)

    labels = longer(labels, 0) if labels.ndim == logits.ndim else labels
    options = {n: longer(v, True) if n == "where" else v for n, v in options.items()}
    return function(longer(logits, -np.inf), labels, **options)
