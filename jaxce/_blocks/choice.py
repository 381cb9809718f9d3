"""The choice of blocks for a linear layer: a pure function of the shapes, the dtypes and the caller's `implementation`."""

from __future__ import annotations

import dataclasses
import operator
from typing import Literal

from jaxce._blocks import sizes
from jaxce._blocks.reference import narrows_gradients
from jaxce._blocks.sizes import Blocks, Plans
from jaxce._jax.axes import is_known
from jaxce._jax.mesh import is_on_auto_mesh
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


def plans_of_statistics(implementation: Implementation, hidden: Array, classifier: Array) -> Plans | None:
    """Return the blocks for the statistics of each token; None for the reference, which uses no blocks."""
    return _plans(implementation, hidden, classifier, default=sizes.for_statistics, gpu=sizes.for_statistics_on_gpu)


def plans_of_sum(implementation: Implementation, hidden: Array, classifier: Array) -> tuple[Plans, Plans] | None:
    """Return the blocks for the value of a sum alone, and for its value and gradients; None for the reference."""
    value = _plans(implementation, hidden, classifier, default=sizes.for_value)
    on_cpu, on_gpu, elsewhere = sizes.for_total, sizes.for_total_on_gpu, sizes.for_total
    narrows = narrows_gradients(hidden, classifier, on_cpu=False)
    if _is_narrow(hidden, classifier):
        # A matmul with a float32 gradient needs a float32 copy of a narrow classifier. Blocks of classes copy one block at a time.
        on_cpu = sizes.for_statistics
        if not narrows:
            on_gpu, elsewhere = sizes.for_statistics_on_gpu, sizes.for_statistics
    plans = _plans(implementation, hidden, classifier, default=elsewhere, cpu=on_cpu, gpu=on_gpu)
    if value is None or plans is None:
        return None
    default, gpu = (blocks and dataclasses.replace(blocks, narrow=narrows) for blocks in (plans.default, plans.gpu))
    return value, plans._replace(default=default, gpu=gpu)


def _plans(implementation, hidden, classifier, **rules) -> Plans | None:
    tokens, (features, num_classes) = hidden.shape[0], classifier.shape
    if implementation == "reference":
        return None
    if isinstance(implementation, Chunked):
        return Plans(**dict.fromkeys(rules, _of_own_choice(implementation, tokens, num_classes)))
    if implementation is None and (is_on_auto_mesh(hidden) or is_on_auto_mesh(classifier)):
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
