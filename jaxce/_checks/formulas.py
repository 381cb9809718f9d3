"""The checks of a formula over the statistics of a row, of its inputs and of its result."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxce import _checks as checks
from jaxce._types import Array


class RowFunction(NamedTuple):
    """A function with some of its arguments bound, as by `functools.partial`. The arrays among them are taken out, so that it is hashable."""

    function: Callable[..., Any]
    tree: Any  # of (args, keywords)
    constants: tuple  # for each leaf (type, value), or None for an array

    def call(self, arrays: list, *args):
        """Call the function. `arrays` are the arrays that were taken out."""
        left = iter(arrays)
        leaves = [next(left) if constant is None else constant[1] for constant in self.constants]
        bound, keywords = self.tree.unflatten(leaves)
        return self.function(*bound, *args, **keywords)


def row_function(loss) -> tuple[RowFunction, list]:
    """Check the argument `loss`. Return the function, and the arrays that `functools.partial` has bound."""
    if not callable(loss):
        raise TypeError(f"`loss` must be a function of the statistics of a row; got {type(loss).__name__}.")
    bound = ((), {})
    if isinstance(loss, functools.partial):
        loss, bound = loss.func, (loss.args, loss.keywords)
    leaves, tree = jax.tree.flatten(bound)
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    for array in arrays:
        if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            raise TypeError(
                f"An array bound to `loss` must hold real numbers; got {array.dtype}. For a key pass jax.random.key_data(key)."
            )
    for value in (loss, *(leaf for leaf in leaves if not _is_array(leaf))):
        _hashable(value)
    # The types tell True from 1 and from 1.0, which are equal.
    constants = tuple(None if _is_array(leaf) else (type(leaf), leaf) for leaf in leaves)
    return RowFunction(loss, tree, constants), arrays


def _hashable(value) -> None:
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"`loss` and what functools.partial binds to it must be arrays or hashable, so that JAX can tell whether it has traced them before; "
            f"got {value!r} ({error}). Pass a function of a module, and bind arrays to it as arguments of their own."
        ) from None


def _is_array(leaf):
    return isinstance(leaf, (jax.Array, np.ndarray))


def has_aux(value) -> bool:
    """Check the argument `has_aux`."""
    if not isinstance(value, bool):
        raise TypeError(f"`has_aux` must be True or False; got {value!r}.")
    return value


def per_row(value) -> tuple:
    """Check the argument `per_row`: a tuple of arrays, or of pytrees of them."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f"`per_row` must be a tuple of arrays, one for each further argument of `loss`; got {type(value).__name__}. "
            "For one array pass per_row=(array,)."
        )
    for leaf in jax.tree.leaves(tuple(value)):
        if not (_is_array(leaf) or isinstance(leaf, (int, float, np.generic))):
            raise TypeError(f"`per_row` must hold arrays; got {type(leaf).__name__}.")
    return tuple(value)


def array_per_row(value: Array, rows: tuple[int, ...]) -> Array:
    """Check an array of `per_row`: one number, or one array of numbers, for each row."""
    value = checks.real("per_row", value)
    if value.shape[: len(rows)] != rows:
        raise ValueError(
            f"Each array of `per_row` must have one entry per row, shape {rows}; got {value.shape}. "
            "A number for all rows is bound to the loss: functools.partial(loss, number). A list of numbers is a pytree: convert it to an array."
        )
    return value


def has_no_traced_closure(constants) -> None:
    """Check that a traced formula closes over no traced value: the formula is called again in other traces."""
    if any(isinstance(constant, Tracer) for constant in constants):
        raise TypeError(
            "`loss` must not close over traced values: jaxce calls it in other traces, and could not differentiate with respect to them. "
            "Make them arguments and bind them: functools.partial(loss, beta=beta). Numbers per row go into `per_row`."
        )


def result(value, *, has_aux: bool) -> tuple[Array, dict[str, Array]]:
    """Check what `loss` returns for one row, and return its loss and its metrics."""
    if not has_aux:
        hint = " To return metrics too, pass has_aux=True." if isinstance(value, tuple) else ""
        return _number("`loss` must return a floating-point number for each row", value, jnp.floating, hint), {}
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping)):
        raise TypeError(
            f"With `has_aux`, `loss` must return a number and a dict of numbers for each row; got {_shown(value)}."
        )
    loss, metrics = value
    loss = _number("`loss` must return a floating-point number for each row", loss, jnp.floating)
    if not all(isinstance(name, str) for name in metrics):
        raise TypeError(f"The names of the metrics that `loss` returns must be strings; got {list(metrics)}.")
    return loss, {
        name: _number(f"The metric {name!r} that `loss` returns must be a real number for each row", x, jnp.generic)
        for name, x in metrics.items()
    }


def _number(rule: str, value, kind, hint: str = "") -> Array:
    is_number = isinstance(value, (jax.Array, np.ndarray, np.generic, float, int, bool))
    array = jnp.asarray(value) if is_number else None
    if array is None or not jnp.issubdtype(array.dtype, kind) or jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{rule}; got {_shown(value)}.{hint}")
    if array.shape != ():
        raise ValueError(
            f"{rule}; got an array of shape {array.shape}. `loss` is called for one row: each statistic is a scalar, and an array of `per_row` has "
            "lost the axes of the rows. Has an array of `per_row` more axes than the labels? Does `loss` close over an array with an entry per row? "
            "Then pass it in `per_row`."
        )
    return array


def _shown(value):
    return f"{value.dtype}" if hasattr(value, "dtype") else type(value).__name__
