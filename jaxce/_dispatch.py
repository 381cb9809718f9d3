"""Which kernel makes the statistics of a linear layer: a pure function of the shapes and of what the caller asked for."""

from __future__ import annotations

import dataclasses
import operator
from typing import Literal

from jaxce._axes import is_known, is_on_auto_mesh
from jaxce._kernels import tiles
from jaxce._kernels.blocked import Blocks
from jaxce._kernels.reference import narrows_gradients
from jaxce._types import Array


@dataclasses.dataclass(frozen=True)
class Chunked:
    """Plain XLA over blocks of logits, of sizes of one's own choice: a value for `implementation=`.

    A size that is None is as large as the array. Smaller blocks hold less at a time. A sum whose blocks have all classes takes one matmul
    less for its gradients.

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


Implementation = Chunked | Literal["chunked", "reference"] | None


def checked(implementation: Implementation) -> Implementation:
    """What `implementation=` may be."""
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


def blocks(implementation: Implementation, hidden: Array, classifier: Array) -> tuple[Blocks, ...] | None:
    """The blocks for statistics of each token, anywhere and on a GPU; None for the reference, which has none."""
    return _chosen(implementation, hidden, classifier, tiles.for_statistics, tiles.for_statistics_on_gpu)


def blocks_of_total(implementation: Implementation, hidden: Array, classifier: Array) -> tuple[Blocks, ...] | None:
    """Return four plans: for the value alone; for value and gradients on a CPU, on a GPU, and elsewhere. None is the reference."""
    on_gpu, elsewhere = tiles.for_total_on_gpu, tiles.for_total
    # A matmul of a float32 gradient needs a float32 copy of a narrow classifier: blocks of classes copy a block at a time.
    if not narrows_gradients(hidden, classifier, on_cpu=False) and _is_narrow(hidden, classifier):
        on_gpu, elsewhere = tiles.for_statistics_on_gpu, tiles.for_statistics
    on_cpu = tiles.for_statistics if _is_narrow(hidden, classifier) else elsewhere
    return _chosen(implementation, hidden, classifier, tiles.for_value, on_cpu, on_gpu, elsewhere)


def _chosen(implementation, hidden, classifier, *rules):
    tokens, (features, num_classes) = hidden.shape[0], classifier.shape
    if implementation == "reference":
        return None
    if isinstance(implementation, Chunked):
        return (_of_own_choice(implementation, tokens, num_classes),) * len(rules)
    if implementation is None and (is_on_auto_mesh(hidden) or is_on_auto_mesh(classifier)):
        # XLA decides later which device has which tokens and classes; cut into blocks, they would have to be sent around.
        return None
    if not is_known(tokens, num_classes):
        # An unknown number of classes cannot be cut into blocks. The reference holds all logits; "chunked" takes blocks of tokens.
        is_reference = implementation is None and not is_known(num_classes)
        return None if is_reference else (tiles.for_unknown_sizes(tokens, num_classes),) * len(rules)
    spare = features * classifier.dtype.itemsize if _is_narrow(hidden, classifier) and is_known(features) else 0
    return tuple(rule(tokens, num_classes, spare) for rule in rules)


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
