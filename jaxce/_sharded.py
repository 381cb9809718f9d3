"""Classes split over an axis of the mesh, inside `jax.shard_map`: what one device has of them, and the statistics of all.

Every device makes the statistics of its own classes; they merge by a maximum and sums of a few numbers per row. The derivative by a logit
needs the statistics of its whole row and nothing else of that row: so a device makes the part that its own classes contribute to the tangents
of the merged statistics, and those parts are summed. JAX transposes that sum, whichever way its `shard_map` counts what is replicated.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._axes import is_explicit, is_tracked

AxisName = tuple[str, ...] | None


def across(axis_name: AxisName, primal, tangent):
    """`primal` and `tangent` of the fields of `LogitStats` (see `_rule.with_rule`), for classes of which each device has its own."""
    if axis_name is None:
        return primal, tangent

    def merged_primal(*args):
        return merged(primal(*args), axis_name)

    def merged_tangent(args, outs, tangents):
        _, *parts, _, of_top = tangent(args, outs, tangents)
        shift, num_classes = jnp.zeros_like(outs[0]), jnp.zeros_like(outs[-2])  # constants of differentiation
        return shift, *(lax.psum(part, axis_name) for part in parts), num_classes, lax.psum(of_top, axis_name)

    return merged_primal, merged_tangent


def merged(fields, axis_name: AxisName):
    """The fields of `LogitStats` over the classes of all devices, from those over the classes of each; the same on every one."""
    if axis_name is None:
        return fields
    own_shift, own_rest, label_nll, label_mass, total_nll, total_mass, num_classes, top_label_mass = fields
    shift = lax.pmax(lax.stop_gradient(own_shift), axis_name)
    has_top = own_shift == shift
    below = jnp.where(has_top, 0, own_shift - shift)
    # One maximal class of each device that has one is left out of its sum; then all but one come back: a sum of exact ones.
    rest = lax.psum(jnp.where(has_top, own_rest, (1 + own_rest) * jnp.exp(below)), axis_name)
    rest = jnp.where(shift == -jnp.inf, 0, rest + (lax.psum(has_top.astype(rest.dtype), axis_name) - 1))
    # XLA for CPU may lose a NaN from the maximum, but not from the sum.
    has_top = has_top & ~jnp.isnan(rest)
    shift = jnp.where(jnp.isnan(rest), jnp.nan, shift)
    # log_z less what it is of one's own classes. What it is rounded by is small beside the nll of any of them.
    increase = (jnp.log1p(rest) - jnp.log1p(own_rest)) - below

    def among_all(nll, mass):
        nothing = (mass == 0) & (increase == jnp.inf)
        return lax.psum(nll + mass * jnp.where(nothing, 0, increase), axis_name)

    return (
        shift,
        rest,
        among_all(label_nll, label_mass),
        lax.psum(label_mass, axis_name),
        among_all(total_nll, total_mass),
        lax.psum(total_mass, axis_name),
        lax.psum(num_classes, axis_name),
        lax.psum(jnp.where(has_top, top_label_mass, 0), axis_name),
    )


def local_indices(labels, num_classes: int, axis_name: AxisName):
    """Labels counted from the first of the `num_classes` classes that a device has; of a class that it has not, any index outside them."""
    if axis_name is None:
        return labels
    labels = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
    # An unsigned label below the first class wraps around, to an index far beyond the last.
    return labels - (lax.axis_index(axis_name) * num_classes).astype(labels.dtype)


def weight_of_label(class_weights, labels):
    """The class weight of each integer label; 0 for one that is none of these classes."""
    if class_weights is None:
        return None
    if is_explicit(labels) or is_explicit(class_weights):
        # JAX refuses to look up, but not to compare, what its type says lies on several devices.
        axes = tuple(range(labels.ndim))
        classes = jnp.expand_dims(lax.iota(labels.dtype, class_weights.shape[0]), axes)
        chosen = jnp.expand_dims(labels, labels.ndim) == classes
        return jnp.sum(jnp.where(chosen, jnp.expand_dims(class_weights, axes), 0), labels.ndim)
    own = (labels >= 0) & (labels < class_weights.shape[0])
    return jnp.where(own, class_weights.at[labels].get(mode="clip"), 0)


def over_all(own, axis_name: AxisName):
    """The sum over devices; of None nothing."""
    return own if axis_name is None else jax.tree.map(lambda x: lax.psum(x, axis_name), own)


def share_of_cotangent(axis_name: AxisName):
    """For a cotangent of a merged value that is pulled back here, inside `jax.shard_map`: by what to multiply it, and what to do with the
    gradient by something that did not go through a merge.

    Where JAX keeps track of what varies over devices, nothing. Where it does not, the transpose of a sum over devices is that sum, so each
    device is to pull back its share; what no sum made whole again is to be summed here.
    """  # fmt: skip
    if axis_name is None or is_tracked(axis_name):
        return 1, lambda gradient: gradient
    return 1 / lax.axis_size(axis_name), lambda gradient: lax.psum(gradient, axis_name)
