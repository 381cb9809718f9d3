"""A linear layer on a mesh of devices: which mesh axes split its arrays, and what each device does before and after its own work.

Each device works on its own tokens and its own classes. It needs all features of these classes. If the features of the classifier are split over
mesh axes that split the tokens too, as in fully sharded data parallelism, each device gathers its columns once, and their gradient is summed and
scattered once.
"""

from typing import NamedTuple

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxce._blocks.choice import Split
from jaxce._blocks.inputs import Inputs
from jaxce._blocks.reference import Layer
from jaxce._checks.top_labels import TopLabels
from jaxce._core.labels import first_local_class, local_indices
from jaxce._jax.mesh import AxisName, is_explicit, psum_over, varying_like
from jaxce._jax.rules import keep_statistics

# The letters of the axes of `hidden` and of `classifier`. Those of the tokens are t0, t1, ...
FEATURES, CLASSIFIER_FEATURES, CLASSES = "h", "f", "c"


class Layout(NamedTuple):
    """The mesh axes that split a layer."""

    tokens: tuple[tuple[str, ...], ...]  # of each axis of the tokens
    classes: tuple[str, ...]
    features: tuple[str, ...]  # of the classifier; some of those of the tokens

    @property
    def over_tokens(self) -> tuple[str, ...]:
        return tuple(axis for part in self.tokens for axis in part)

    def axes(self) -> dict:
        """Return the mesh axes that split the axis of each letter."""
        by_token = dict(zip(token_letters(len(self.tokens)), self.tokens, strict=True))
        return by_token | {CLASSES: self.classes, CLASSIFIER_FEATURES: self.features}


def layout_of(tokens, classes, features) -> Layout:
    """Return the layout of a device's work for arrays that are split in this way.

    The devices that split the classes between them need the same tokens, so tokens are not split over the mesh axes of the classes. Nor are two
    axes of the tokens split over one mesh axis, as they seem to be if `hidden` and the labels are split in different ways.
    """
    used, parts = set(classes), []
    for part in tokens:
        parts.append(tuple(axis for axis in part if axis not in used))
        used.update(part)
    layout = Layout(tuple(parts), tuple(classes), tuple(features))
    return layout if set(features) <= set(layout.over_tokens) else layout._replace(features=())


def token_letters(ndim: int) -> tuple[str, ...]:
    """Return the letters of the axes of the tokens."""
    return tuple(f"t{i}" for i in range(ndim))


def letters(layer: Layer) -> Layer:
    """Return the letters of the axes of each array."""
    tokens = token_letters(layer.hidden.ndim - 1)
    by_class = (CLASSES,)
    of_labels = tokens + by_class * (layer.labels.ndim == layer.hidden.ndim)
    all_letters = Layer(
        hidden=(*tokens, FEATURES),
        classifier=(CLASSIFIER_FEATURES, CLASSES),
        labels=of_labels,
        bias=by_class,
        where=by_class,
        mask=tokens,
        label_weights=by_class,
        class_weights=by_class,
        soft_cap=(),
        temperature=tokens,
        first_class=(),
        top_labels=layer.top_labels and TopLabels((*tokens, "k"), (*tokens, "k")),
    )
    return Layer(*(None if x is None else axes for x, axes in zip(layer, all_letters, strict=True)))


def letters_of_inputs(inputs: Inputs, layer: Layer) -> Inputs:
    """Return the letters of the axes of each array. Only the axes of the tokens are split."""
    tokens = token_letters(layer.hidden.ndim - 1)

    def whole(name, ndim):
        return tuple(f"{name}_{i}" for i in range(ndim))

    of_rows = [tokens + whole(f"r{n}", x.ndim - len(tokens)) for n, x in enumerate(inputs.per_row)]
    bound, tree = jax.tree.flatten(inputs.bound)
    return Inputs(of_rows, tree.unflatten([whole(f"b{n}", x.ndim) for n, x in enumerate(bound)]))


def on_devices(
    function, layer: Layer, inputs: Inputs, axis_name: AxisName, split: Split | None, *, is_sum: bool = False
):
    """Return `function(layer, inputs, axis_name)`. If it is known how the arrays are split, each device computes its own tokens and classes.

    Args:
      function: Returns a pytree of arrays with one row per token, or a pytree of sums over the tokens. Its labels count from the first class of
        the device.
      layer: The layer. Its tokens may have any shape.
      inputs: The inputs of a formula.
      axis_name: The caller's `axis_name`. If it is not None, the caller is already inside `jax.shard_map`.
      split: How the caller says that the arrays are split; None if their types say it, or if they are not split.
      is_sum: Whether the results are sums over the tokens.

    Returns:
      The result of `function`. A result per token is sharded like the labels, if their type says how.
    """
    mesh, layout = _mesh_and_layout(layer, split) if axis_name is None else (None, Layout((), axis_name, ()))

    def on_device(layer, inputs):
        result = function(on_this_device(layer, layout), inputs, layout.classes or None)
        return psum_over(layout.over_tokens or None, result) if is_sum else result

    on_device = on_device if is_sum else keep_statistics(on_device)
    if mesh is None:
        return on_device(layer, inputs)
    arrays, all_letters = (layer, inputs), (letters(layer), letters_of_inputs(inputs, layer))
    of_rows = jax.typeof(layer.labels).sharding.spec[: layer.hidden.ndim - 1]
    return over_mesh(on_device, mesh, layout, arrays, all_letters, of_rows=None if is_sum else of_rows)


def over_mesh(on_device, mesh, layout: Layout, arrays, all_letters, *, of_rows):
    """Return `on_device(*arrays)`, computed by each device for its own tokens and classes.

    Args:
      on_device: A function of the parts of a device.
      mesh: The mesh, explicit or automatic.
      layout: Which of its axes split the arrays.
      arrays: The arguments, pytrees of arrays.
      all_letters: The letters of the axes of each array.
      of_rows: How results with one row per token are split at last on an explicit mesh; None for results that are sums over the tokens.
    """
    leaves, tree = jax.tree.flatten(arrays)
    axes, of_leaves = layout.axes(), tree.flatten_up_to(all_letters)
    specs = [P(*(axes.get(letter) or None for letter in of_leaf)) for of_leaf in of_leaves]
    if _is_explicit(mesh):
        arrays = tree.unflatten([_put(mesh, x, spec) for x, spec in zip(leaves, specs, strict=True)])
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    names = {name for name, kind in kinds if kind != AxisType.Manual}
    if _is_explicit(mesh) and not layout.features:
        # A `jax.vmap` around this call may use another axis. If `names` is empty, JAX takes all axes that no `jax.vmap` uses. If the features are
        # split, `names` has all axes: jax 0.12 fails to lower `psum_scatter` if one axis of the mesh is still explicit.
        names = {*layout.over_tokens, *layout.classes}
    out_specs = P() if of_rows is None else P(*(part or None for part in layout.tokens))
    in_specs = tree.unflatten(specs)
    result = jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=names)(*arrays)
    if of_rows is None or not _is_explicit(mesh):
        return result
    return jax.tree.map(lambda x: _put(mesh, x, P(*of_rows)), result)


def on_this_device(layer: Layer, layout: Layout) -> Layer:
    """Return the layer with all features of its columns, and integer labels that count from the first class of this device."""
    if layout.features:
        columns = lax.all_gather(layer.classifier, layout.features, axis=0, tiled=True)
        layer = layer._replace(classifier=columns)
    if layer.labels.ndim < layer.hidden.ndim:
        labels = local_indices(layer.labels, layer.classifier.shape[1], layout.classes or None)
        layer = layer._replace(labels=labels)
    if layer.top_labels is not None:
        indices = local_indices(layer.top_labels.indices, layer.classifier.shape[1], layout.classes or None)
        layer = layer._replace(top_labels=layer.top_labels._replace(indices=indices))
    if layout.classes:
        layer = layer._replace(first_class=first_local_class(layer.classifier.shape[1], layout.classes))
    # The gradient with respect to a replicated array is summed over the devices once, not in every block.
    names = ("labels", "mask", "first_class", "top_labels")
    integers = {name: getattr(layer, name) for name in names}
    return varying_like(layer._replace(**dict.fromkeys(integers)), layer)._replace(**integers)


def _mesh_and_layout(layer: Layer, split: Split | None):
    """Return the mesh over whose axes the arrays are split, and how; None if it is not known."""
    return mesh_and_layout(layer.hidden, layer.classifier, jax.tree.leaves(layer), split)


def mesh_and_layout(hidden, classifier, arrays, split: Split | None):
    """Return the mesh over whose axes the arrays of a layer and some others are split, and how the layer is; None if it is not known."""
    ndim = hidden.ndim - 1
    if split is not None:
        mesh, tokens = split.checked_for(hidden, classifier)
        return mesh, layout_of(tokens, split.classes, split.features)
    mesh = _explicit_mesh(arrays)
    if mesh is None:
        return None, Layout(((),) * ndim, (), ())
    of_hidden, of_classifier = ([_axes(part) for part in jax.typeof(x).sharding.spec] for x in (hidden, classifier))
    features, classes = of_classifier
    return mesh, layout_of(of_hidden[:-1], classes, features)


def _explicit_mesh(arrays):
    """Return the explicit mesh of the arguments, or None.

    The mesh is that of an argument that is split, otherwise that of any argument on a mesh with explicit axes. Unsplit arguments need the
    mesh too: outside `jax.set_mesh`, jax 0.12 cannot transpose slices of arrays on such a mesh, but inside `jax.shard_map` it can.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in arrays]
    split = [mesh for x, mesh in zip(arrays, meshes, strict=True) if is_explicit(x)]
    return next(iter([*split, *filter(_is_explicit, meshes)]), None)


def _is_explicit(mesh):
    return bool(mesh.axis_names) and all(kind == AxisType.Explicit for kind in mesh.axis_types)


def _put(mesh, array, spec):
    return jax.sharding.reshard(array, NamedSharding(mesh, spec))


def _axes(part):
    """Return the mesh axes over which an entry of a `PartitionSpec` splits an array axis."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
