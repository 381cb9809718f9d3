"""The inputs of a formula over the statistics of a row: the arrays that it takes besides the statistics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._blocks.reference import Layer
from jaxce._jax.axes import joined_first_axes


class Inputs(NamedTuple):
    """The arrays that a formula takes, or some of them, or their gradients. None stands for one that is left out."""

    per_row: list  # arrays [tokens, ...]; the tokens may have any number of axes
    bound: Any  # a pytree of arrays of any shape, the same for all rows


NO_INPUTS = Inputs([], [])


def with_row(inputs: Inputs, row) -> Inputs:
    """Return the inputs with one more array per row, the last; None adds nothing."""
    return inputs if row is None else inputs._replace(per_row=[*inputs.per_row, row])


def selected(inputs: Inputs, wanted: Inputs) -> Inputs:
    """Return the arrays that are wanted, and None for the others."""
    return jax.tree.map(lambda x, is_one: x if is_one else None, inputs, wanted)


def replaced(inputs: Inputs, others: Inputs) -> Inputs:
    """Return the inputs, some of them replaced: those for which `others` has an array."""
    return jax.tree.map(lambda x, other: x if other is None else other, inputs, others)


def without_masked(inputs: Inputs, is_counted) -> Inputs:
    """Return the inputs of one row. Those of a masked row are 1, or are not differentiated, so that its NaN can reach no gradient."""

    def constant(x):
        return jnp.where(is_counted, x, lax.stop_gradient(x))

    per_row = [jnp.where(is_counted, x, jnp.ones((), x.dtype)) for x in inputs.per_row]
    return Inputs(per_row, jax.tree.map(constant, inputs.bound))


def flat_inputs(inputs: Inputs, layer: Layer) -> Inputs:
    """Return the inputs for the rows of a `flat_layer`."""
    ndim = layer.hidden.ndim - 1
    return inputs._replace(per_row=[joined_first_axes(x, ndim) for x in inputs.per_row])


def inputs_like(gradients: Inputs, inputs: Inputs) -> Inputs:
    """Return the gradients with respect to `flat_inputs` in the shapes of the inputs."""
    pairs = zip(gradients.per_row, inputs.per_row, strict=True)
    return gradients._replace(per_row=[None if g is None else g.reshape(x.shape) for g, x in pairs])
