"""The statistics and gradients of a linear layer on a mesh of `AxisType.Auto`, where XLA says late how it has split the arrays.

Each function has a plain definition, which XLA partitions by itself: TPUs run it, and so do programs under `jax.vmap` and programs for
`jax.export`. It stores all logits, unless the caller has named blocks. On CPU and GPU, XLA asks what each device has to do
(`jaxce._jax.partitioning`), and the answer is that of the other modes: blocks of the device's own tokens and classes. Only the value and the first
gradients are computed in blocks; derivatives of higher order are those of the definition.

The definitions also take the `columns` that a device has gathered, and do not use them: a function and its partitioned form have the same arguments.

A function whose name ends in `_of_device` is the work of a device. It takes the device's parts of the arrays and returns its parts of the results.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._blocks import chunked, reference
from jaxce._blocks.choice import Implementation
from jaxce._blocks.chunked import flat_layer, shaped_like
from jaxce._blocks.inputs import Inputs, flat_inputs, inputs_like
from jaxce._blocks.mesh import (
    CLASSES,
    CLASSIFIER_FEATURES,
    Layout,
    layout_of,
    letters,
    letters_of_inputs,
    on_this_device,
    token_letters,
)
from jaxce._blocks.plans import plans_of_gradients, plans_of_statistics
from jaxce._blocks.reference import Layer, by_array
from jaxce._blocks.sizes import Blocks, Plans
from jaxce._blocks.value_and_gradients import Loss, value_and_gradients
from jaxce._core.definition import Statistics
from jaxce._core.merge import merge_devices
from jaxce._jax.mesh import mesh_of, psum_over
from jaxce._jax.partitioning import partitioned
from jaxce._jax.rules import choose_on_auto_mesh, linear, with_rule

# The letters of their axes, see `mesh`. Nothing splits g.
_OF_CLASSIFIER, _OF_COLUMNS = (CLASSIFIER_FEATURES, CLASSES), ("g", CLASSES)


@functools.cache
def statistics(implementation: Implementation, plans_of):
    """Return the function of a `Layer` that computes the statistics of each token, with its derivative rule.

    `plans_of` is the function of `choice` that chooses the blocks of the value.
    """

    def value(layer):
        # The columns that a device has gathered are kept for the gradient, which would gather them again.
        columns = choose_on_auto_mesh(lambda x: x, layer.classifier, partitioned=_gathered)
        definition, in_blocks = (functools.partial(f, implementation, plans_of) for f in (_value, _value_in_blocks))
        return choose_on_auto_mesh(definition, layer, columns, partitioned=in_blocks), columns

    def tangent(args, outs, tangents):
        (layer,), (stats, columns), (dots,) = args, outs, tangents
        dots = jax.tree.map(lambda dot: dot.astype(stats.label_nll.dtype), dots)
        transpose = functools.partial(_transpose, implementation, jax.tree.map(lambda _: True, dots))
        return linear(functools.partial(_tangent, implementation), transpose, dots, layer, columns, stats), None

    with_columns = with_rule(value, tangent)
    return lambda layer: with_columns(layer)[0]


def value_with_gradients(loss: Loss, implementation: Implementation, definition):
    """Return the function of a layer and inputs that computes the sums and the gradients; `definition` is the same function."""

    def in_blocks(layer, inputs):
        of_layer, of_inputs = letters(layer), letters_of_inputs(inputs, layer)
        gradients = of_layer._replace(
            hidden=of_layer.hidden if loss.of_hidden else None,
            classifier=of_layer.classifier if loss.of_classifier else None,
            labels=None,
            where=None,
            mask=None,
            top_labels=None,
        )
        of_sums, of_wanted = ((), dict.fromkeys(loss.metrics, ())), _selected_letters(of_inputs, loss.of_inputs)
        work = functools.partial(_sum_of_device, loss, implementation)
        return _partitioned(work, (layer, inputs), (of_layer, of_inputs), (of_sums, (gradients, of_wanted)))

    return lambda layer, inputs: choose_on_auto_mesh(definition, layer, inputs, partitioned=in_blocks)


def _selected_letters(of_inputs: Inputs, wanted: Inputs) -> Inputs:
    leaves, tree = jax.tree.flatten(wanted)
    pairs = zip(tree.flatten_up_to(of_inputs), leaves, strict=True)
    return tree.unflatten([axes if is_one else None for axes, is_one in pairs])


def _gathered(classifier):
    def layout_of(axes):
        return Layout((), axes.get(CLASSES, ()), axes.get(CLASSIFIER_FEATURES, ()))

    args, dims = (classifier,), (_OF_CLASSIFIER,)
    return partitioned(_gather_on_device, layout_of, args, dims, _OF_COLUMNS, mesh=mesh_of(classifier))


def _gather_on_device(layout: Layout, classifier):
    return lax.all_gather(classifier, layout.features, axis=0, tiled=True) if layout.features else classifier


def _value(implementation, plans_of, layer: Layer, columns) -> Statistics:
    del columns
    plans = plans_of(implementation, layer.hidden, layer.classifier)
    if plans is None:
        return reference.statistics(layer)
    stats = plans.choose(chunked.value_in_blocks, flat_layer(layer))
    return jax.tree.map(lambda x: x.reshape(layer.hidden.shape[:-1]), stats)


def _value_in_blocks(implementation, plans_of, layer: Layer, columns) -> Statistics:
    work = functools.partial(_value_of_device, implementation, plans_of)
    return _partitioned(work, (layer, columns), (letters(layer), _OF_COLUMNS), _letters_of_statistics(layer))


def _value_of_device(implementation, plans_of, layout: Layout, layer: Layer, columns) -> Statistics:
    own = _with_columns(layer, columns, layout)
    plans = _own_plans(plans_of, implementation, own)
    stats = merge_devices(plans.choose(chunked.value_in_blocks, flat_layer(own)), layout.classes or None)
    return jax.tree.map(lambda x: x.reshape(own.hidden.shape[:-1]), stats)


def _tangent(implementation, dots: Layer, layer: Layer, columns, stats: Statistics) -> Statistics:
    del columns
    plans, tokens = plans_of_statistics(implementation, layer.hidden, layer.classifier), layer.hidden.shape[:-1]
    if plans is None:
        return chunked.tangent_of_part(reference.without_masked(layer), stats, dots)
    flat_dots = flat_layer(dots, len(tokens))
    tangents = plans.choose(chunked.tangent_in_blocks, flat_layer(layer), jax.tree.map(jnp.ravel, stats), flat_dots)
    return jax.tree.map(lambda x: x.reshape(tokens), tangents)


def _transpose(implementation, moving: Layer, cotangents: Statistics, *args) -> Layer:
    """Return the cotangents of the arrays of the layer that are `moving`: the transpose of `_tangent`."""
    used = {name: ct for name, ct in cotangents._asdict().items() if ct is not None}
    definition = functools.partial(_linear_transpose, functools.partial(_tangent, implementation), moving)
    in_blocks = functools.partial(_transpose_in_blocks, implementation, moving)
    return choose_on_auto_mesh(definition, used, *args, partitioned=in_blocks)


def _transpose_in_blocks(implementation, moving: Layer, cotangents: dict, layer: Layer, columns, stats: Statistics):
    work = functools.partial(_transpose_of_device, implementation, moving)
    of_layer, of_stats = letters(layer), _letters_of_statistics(layer)
    of_cotangents = dict.fromkeys(cotangents, of_stats.label_nll)
    tree = jax.tree.structure(layer)
    pairs = zip(tree.flatten_up_to(of_layer), tree.flatten_up_to(moving), strict=True)
    out_dims = tree.unflatten([axes if is_one else None for axes, is_one in pairs])
    dims = of_layer, _OF_COLUMNS, of_stats, of_cotangents
    return _partitioned(work, (layer, columns, stats, cotangents), dims, out_dims)


def _transpose_of_device(implementation, moving, layout: Layout, layer: Layer, columns, stats, cotangents) -> Layer:
    own = _with_columns(layer, columns, layout)
    plans = _own_plans(plans_of_statistics, implementation, own)
    stats, cotangents = jax.tree.map(jnp.ravel, (stats, cotangents))
    of_blocks = functools.partial(_transpose_of_blocks, moving)
    gradients = plans.choose(of_blocks, cotangents, flat_layer(own), stats)
    return _reduced(shaped_like(gradients, own), layer, layout)


def _transpose_of_blocks(moving, blocks: Blocks, cotangents: dict, layer: Layer, stats: Statistics) -> Layer:
    def tangent(dots, layer, stats):
        return chunked.tangent_in_blocks(blocks, layer, stats, dots)

    return _linear_transpose(tangent, moving, cotangents, layer, stats)


def _linear_transpose(tangent, moving, cotangents: dict, layer: Layer, *others) -> Layer:
    """Transpose `tangent(dots, layer, *others)`, whose results have cotangents by name."""

    def of_dots(dots):
        tangents = tangent(dots, layer, *others)
        return {name: getattr(tangents, name) for name in cotangents}

    (dtype,) = {ct.dtype for ct in cotangents.values()}
    leaves, tree = jax.tree.flatten(layer)
    arrays = zip(leaves, tree.flatten_up_to(moving), strict=True)
    dots = tree.unflatten([jax.ShapeDtypeStruct(x.shape, dtype) if is_one else None for x, is_one in arrays])
    return jax.linear_transpose(of_dots, dots)(cotangents)[0]


def _sum_of_device(loss: Loss, implementation, layout: Layout, layer: Layer, inputs: Inputs):
    own, over = on_this_device(layer, layout), layout.over_tokens or None
    plans = _own_plans(plans_of_gradients, implementation, own)
    of_blocks = functools.partial(value_and_gradients, loss._replace(axis_name=layout.classes or None))
    sums, (gradients, of_inputs) = plans.choose(of_blocks, flat_layer(own), flat_inputs(inputs, own))
    gradients, of_inputs = shaped_like(gradients, own), inputs_like(of_inputs, inputs)
    of_inputs = of_inputs._replace(bound=psum_over(over, of_inputs.bound))
    return psum_over(over, sums), (_reduced(gradients, layer, layout), of_inputs)


def _own_plans(plans_of, implementation, own: Layer) -> Plans:
    return plans_of(implementation, own.hidden, own.classifier, is_own=True)


def _with_columns(layer: Layer, columns, layout: Layout) -> Layer:
    return on_this_device(layer._replace(classifier=columns), layout._replace(features=()))


def _letters_of_statistics(layer: Layer) -> Statistics:
    return Statistics(*(token_letters(layer.hidden.ndim - 1),) * len(Statistics._fields))


def _partitioned(work, args, dims, out_dims):
    """Return `work` of whole arrays, of which the first argument is a layer. Each device of a mesh does the work of its parts."""
    layer, *_ = args

    def layout(axes):
        tokens = [axes.get(letter, ()) for letter in token_letters(layer.hidden.ndim - 1)]
        return layout_of(tokens, axes.get(CLASSES, ()), axes.get(CLASSIFIER_FEATURES, ()))

    return partitioned(work, layout, args, dims, out_dims, mesh=mesh_of(layer.hidden, layer.classifier))


def _reduced(gradients: Layer, layer: Layer, layout: Layout) -> Layer:
    """Return this device's parts of the gradients, summed over the devices that have contributed to them.

    They are sent in the dtype of their arrays, as for any linear layer.
    """
    axes = layout.axes()

    def reduced(gradient, array, of_array):
        own = {axis for letter in of_array if letter != CLASSIFIER_FEATURES for axis in axes.get(letter, ())}
        others = [axis for axis in (*layout.over_tokens, *layout.classes) if axis not in own]
        scattered = layout.features if CLASSIFIER_FEATURES in of_array else ()
        total = gradient.astype(array.dtype) if others else gradient
        total = psum_over(tuple(axis for axis in others if axis not in scattered) or None, total)
        if scattered:
            total = lax.psum_scatter(total, scattered, scatter_dimension=0, tiled=True)
        return total.astype(gradient.dtype)

    return by_array(reduced, gradients, layer, letters(layer))
