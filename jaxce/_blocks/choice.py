"""The choices of a caller for a linear layer, `Chunked` and `Split`. They determine the blocks, together with the shapes and the dtypes."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Literal

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxce._blocks import sizes
from jaxce._blocks.reference import narrows_gradients
from jaxce._blocks.sizes import Blocks, Plans
from jaxce._jax.axes import is_known
from jaxce._jax.mesh import is_inside_shard_map, is_on_auto_mesh
from jaxce._types import Array


@dataclasses.dataclass(frozen=True)
class Chunked:
    """Plain XLA over blocks of logits of the given sizes: a value for `implementation=`.

    A size of None means all tokens or all classes. Smaller blocks need less memory. If a block has all classes, the gradients of a sum take
    one matmul less.

    Example:
      >>> Chunked(block_tokens=512)
      Chunked(block_tokens=512, block_classes=None)
    """

    block_tokens: int | None = None
    block_classes: int | None = None

    def __post_init__(self):
        for name in ("block_tokens", "block_classes"):
            value = getattr(self, name)
            if value is None:
                continue
            try:
                size = 0 if isinstance(value, bool) else operator.index(value)
            except TypeError:
                raise TypeError(f"`{name}` must be an integer or None; got {value!r}.") from None
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value!r}.")
            object.__setattr__(self, name, size)


@dataclasses.dataclass(frozen=True, init=False)
class Split:
    """How the arrays of a `LinearLogits` are split over the axes of a mesh: a value for `split=`.

    Needed on a mesh of `AxisType.Auto` where only the compiler knows how arrays are split. Each device then computes blocks of its own tokens and
    classes, as on a mesh of `AxisType.Explicit`. Arrays that are split in another way are moved. The sizes must divide evenly.

    Attributes:
      tokens: The mesh axis, or a tuple of mesh axes, that splits the first axis of `hidden`. Or a `PartitionSpec` for all axes of the tokens:
        `P("data", "sequence")`.
      classes: The mesh axis, or axes, that splits the classes of the classifier.
      features: The mesh axis, or axes, that splits the features of the classifier, as fully sharded data parallelism does. These axes must split
        the tokens too. Otherwise the compiler gathers the classifier.
      mesh: The mesh; that of `jax.set_mesh` by default.

    Example:
      >>> Split(tokens="data", classes="model", features="data")
      Split(tokens=P('data',), classes=('model',), features=('data',), mesh=None)
    """

    tokens: PartitionSpec
    classes: tuple[str, ...]
    features: tuple[str, ...]
    mesh: Mesh | jax.sharding.AbstractMesh | None

    def __init__(
        self,
        tokens: PartitionSpec | tuple[str, ...] | str | None = None,
        classes: tuple[str, ...] | str | None = None,
        features: tuple[str, ...] | str | None = None,
        mesh: Mesh | jax.sharding.AbstractMesh | None = None,
    ):
        if not isinstance(tokens, PartitionSpec):
            tokens = PartitionSpec(_mesh_axes("tokens", tokens) or None)
        of_tokens = [axis for part in tokens for axis in _mesh_axes("tokens", part)]
        of_classes, of_features = _mesh_axes("classes", classes), _mesh_axes("features", features)
        for name, axes in (("tokens", of_tokens), ("classes", of_classes), ("features", of_features)):
            if twice := [axis for axis in axes if axes.count(axis) > 1]:
                raise ValueError(f"`{name}` of `Split` must name each mesh axis once; got {twice[0]!r} twice.")
        if twice := sorted({axis for axis in of_classes if axis in of_tokens or axis in of_features}):
            raise ValueError(
                f"A mesh axis that splits the classes cannot split tokens or features too; got {twice[0]!r} twice in `Split`."
            )
        if not (mesh is None or isinstance(mesh, (Mesh, jax.sharding.AbstractMesh))):
            raise TypeError(f"`mesh` of `Split` must be a mesh or None; got {type(mesh).__name__}.")
        for name, value in (("tokens", tokens), ("classes", of_classes), ("features", of_features), ("mesh", mesh)):
            object.__setattr__(self, name, value)

    def checked_for(self, hidden: Array, classifier: Array):
        """Return the mesh, and for each axis of the tokens the mesh axes that split it. Check that they split the arrays evenly."""
        mesh = jax.sharding.get_abstract_mesh() if self.mesh is None else self.mesh
        if not mesh.axis_names:
            raise ValueError(
                "`split` needs a mesh. Call this inside `jax.set_mesh(mesh)`, or pass `Split(..., mesh=mesh)`."
            )
        if len(self.tokens) > hidden.ndim - 1:
            raise ValueError(
                f"`tokens` of `Split` has {len(self.tokens)} entries for the {hidden.ndim - 1} axes of tokens of `hidden`, shape {hidden.shape}."
            )
        tokens = [_mesh_axes("tokens", part) for part in (*self.tokens, *[None] * (hidden.ndim - 1 - len(self.tokens)))]
        kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        features, num_classes = classifier.shape
        of_tokens = [("tokens", axes, size) for axes, size in zip(tokens, hidden.shape, strict=False)]
        for name, axes, size in (
            *of_tokens,
            ("classes", self.classes, num_classes),
            ("features", self.features, features),
        ):
            for axis in axes:
                if axis not in kinds:
                    raise ValueError(
                        f"`{name}` of `Split` must name axes of the mesh, {mesh.axis_names}; got {axis!r}."
                    )
                if kinds[axis] == AxisType.Manual:
                    raise ValueError(
                        f"`split` names {axis!r}, over which `jax.shard_map` around this call has split the arrays already. "
                        "Pass the mesh axis of the classes as `axis_name` instead, and no `split`."
                    )
            parts = math.prod(mesh.shape[axis] for axis in axes)
            if is_known(size) and size % parts:
                raise ValueError(f"`{name}` of `Split` must cut {size} evenly; got {axes}, which are {parts} devices.")
        return mesh, tokens


def _mesh_axes(name, value) -> tuple[str, ...]:
    axes = () if value is None else (value,) if isinstance(value, str) else value
    if not (isinstance(axes, tuple) and all(isinstance(axis, str) for axis in axes)):
        raise TypeError(f"`{name}` of `Split` must be a mesh axis, a tuple of mesh axes or None; got {value!r}.")
    return axes


def checked_split(split: Split | None) -> Split | None:
    """Check the argument `split`."""
    if not (split is None or isinstance(split, Split)):
        raise TypeError(f"`split` must be a jaxce.Split or None; got {type(split).__name__}.")
    return split


Implementation = Chunked | Literal["chunked", "reference"] | None


def checked(implementation: Implementation) -> Implementation:
    """Check the argument `implementation`."""
    if implementation is None or isinstance(implementation, Chunked):
        return implementation
    if not isinstance(implementation, str):
        raise TypeError(
            f'`implementation` must be None, "chunked", "reference" or a Chunked; got {type(implementation).__name__}.'
        )
    if implementation not in ("chunked", "reference"):
        raise ValueError(
            f'`implementation` must be None, "chunked", "reference" or a Chunked; got {implementation!r}. None lets jaxce choose.'
        )
    return implementation


def is_partitioned_by_compiler(implementation: Implementation, hidden: Array, classifier: Array) -> bool:
    """Return whether XLA decides later which device has which tokens and classes, so that it has to ask for the work of a device."""
    if implementation == "reference" or not is_known(*hidden.shape, *classifier.shape):
        return False
    return any(is_on_auto_mesh(x) and not is_inside_shard_map(x) for x in (hidden, classifier))


def plans_of_statistics(
    implementation: Implementation, hidden: Array, classifier: Array, *, is_own=False
) -> Plans | None:
    """Return the blocks for the statistics of each token; None for the reference, which uses no blocks.

    `is_own` says that the arrays are parts of one device.
    """
    rules = {"default": sizes.for_statistics, "gpu": sizes.for_statistics_on_gpu}
    return _plans(implementation, hidden, classifier, is_own, **rules)


def plans_of_value(implementation: Implementation, hidden: Array, classifier: Array, *, is_own=False) -> Plans | None:
    """Return the blocks for the value of a sum alone."""
    return _plans(implementation, hidden, classifier, is_own, default=sizes.for_value)


def plans_of_gradients(
    implementation: Implementation, hidden: Array, classifier: Array, *, is_own=False
) -> Plans | None:
    """Return the blocks for the value and gradients of a sum."""
    on_cpu, on_gpu, elsewhere = sizes.for_total, sizes.for_total_on_gpu, sizes.for_total
    narrows = narrows_gradients(hidden, classifier, on_cpu=False)
    if _is_narrow(hidden, classifier):
        # A matmul with a float32 gradient needs a float32 copy of a narrow classifier. Blocks of classes copy one block at a time.
        on_cpu = sizes.for_statistics
        if not narrows:
            on_gpu, elsewhere = sizes.for_statistics_on_gpu, sizes.for_statistics
    plans = _plans(implementation, hidden, classifier, is_own, default=elsewhere, cpu=on_cpu, gpu=on_gpu)
    if plans is None:
        return None
    default, gpu = (blocks and dataclasses.replace(blocks, narrow=narrows) for blocks in (plans.default, plans.gpu))
    return plans._replace(default=default, gpu=gpu)


def _plans(implementation, hidden, classifier, is_own, **rules) -> Plans | None:
    tokens, (features, num_classes) = math.prod(hidden.shape[:-1]), classifier.shape
    if implementation == "reference":
        return None
    if isinstance(implementation, Chunked):
        return Plans(**dict.fromkeys(rules, _of_own_choice(implementation, tokens, num_classes)))
    if implementation is None and not is_own and (is_on_auto_mesh(hidden) or is_on_auto_mesh(classifier)):
        # XLA decides later which device has which tokens and classes. Blocks would have to be sent between devices.
        return None
    if not is_known(tokens, num_classes):
        # An unknown number of classes cannot be cut into blocks. The reference stores all logits; "chunked" uses blocks of tokens.
        is_reference = implementation is None and not is_known(num_classes)
        return None if is_reference else Plans(**dict.fromkeys(rules, sizes.for_unknown_sizes(tokens, num_classes)))
    free_bytes = features * classifier.dtype.itemsize if _is_narrow(hidden, classifier) and is_known(features) else 0
    return Plans(**{platform: rule(tokens, num_classes, free_bytes) for platform, rule in rules.items()})


def _is_narrow(hidden, classifier):
    return hidden.dtype == classifier.dtype and classifier.dtype.itemsize <= 2


def _of_own_choice(implementation, tokens, num_classes):
    if implementation.block_classes is not None and not is_known(num_classes):
        raise ValueError(
            f"`block_classes` needs a number of classes that is known; got {num_classes}, a symbol of `jax.export`. "
            "Leave it out: Chunked(block_tokens=...) takes whole rows."
        )
    all_tokens = max(tokens, 1) if is_known(tokens) else None
    all_classes = num_classes if is_known(num_classes) else None
    return Blocks(implementation.block_tokens or all_tokens, implementation.block_classes or all_classes)
