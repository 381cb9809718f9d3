"""The choices of a caller for a linear layer, `Chunked` and `Split`. `plans` makes blocks of them."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Literal

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxce._jax.axes import is_known
from jaxce._types import Array


@dataclasses.dataclass(frozen=True)
class Chunked:
    """Plain XLA over blocks of logits of the given sizes: a value for `implementation=`. Smaller blocks need less memory.

    Attributes:
      block_tokens: The number of tokens of a block; None for all tokens.
      block_classes: The number of classes of a block; None for all classes. If a block has all classes, the gradients of a sum take one matmul
        less. The divergences always take all.

    Example:
      >>> Chunked(block_tokens=512)
      Chunked(block_tokens=512, block_classes=None)

    References:
      Guide: docs/pages/guides/large_vocabularies.md
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

    References:
      Guide: docs/pages/guides/sharding.md
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
                f"`tokens` of `Split` must have at most one entry for each of the {hidden.ndim - 1} axes of tokens of `hidden`, "
                f"shape {hidden.shape}; got {len(self.tokens)}: {self.tokens}."
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
                raise ValueError(
                    f"`{name}` of `Split` must cut {size} evenly; got {axes}, which are {parts} devices. "
                    "Pad the arrays, or leave these mesh axes out."
                )
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
