"""The library called in other ways, as those who ask the non-finite cells of it may."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import nonfinite_cells as cells
from tests.support.ours import OURS


class Changed:
    """The library, each of whose functions is called by `call(name, function, logits, labels, options)`."""

    options = OURS.options

    def __init__(self, call, functions=tuple(cells.LOSSES)):
        self._call, self._functions = call, functions

    def __getattr__(self, name):
        if name not in self._functions:
            raise AttributeError(name)
        return lambda logits, labels, **options: self._call(name, getattr(OURS, name), logits, labels, options)


def mapped(name, function, logits, labels, options):
    """Over the examples one by one."""
    if name == "loss_sum":
        one = lambda z, y, o: function(z[None], y[None], **{n: v[None] for n, v in o.items()})[0]  # noqa: E731
    else:
        one = lambda z, y, o: function(z, y, **o)  # noqa: E731
    return jax.vmap(one)(logits, labels, options)


def repeated(_, function, logits, labels, options):
    """Of the examples over and over: XLA for CPU makes other loops of large arrays."""
    many = jax.tree.map(lambda x: jnp.concatenate([x] * 512), (logits, labels, options))
    return function(*many[:2], **many[2])[-len(logits) :]


def among_many_classes(_, function, logits, labels, options):
    """Of rows so long that their gradient is written by hand: more classes that take no part."""

    def longer(x, value):
        return jnp.pad(x, [(0, 0)] * (logits.ndim - 1) + [(0, 1001)], constant_values=value)

    labels = longer(labels, 0) if labels.ndim == logits.ndim else labels
    options = {n: longer(v, True) if n == "where" else v for n, v in options.items()}
    return function(longer(logits, -np.inf), labels, **options)
