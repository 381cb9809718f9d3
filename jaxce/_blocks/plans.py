"""The blocks of a linear layer on each platform, from the shapes, the dtypes and what the caller has chosen."""

import dataclasses
import math

from jaxce._blocks import sizes
from jaxce._blocks.choice import Chunked, Implementation
from jaxce._blocks.reference import narrows_gradients
from jaxce._blocks.sizes import Blocks, Plans
from jaxce._jax.axes import is_known
from jaxce._jax.mesh import is_inside_shard_map, is_on_auto_mesh
from jaxce._types import Array


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


def plans_of_divergences(implementations, tokens: int, num_classes: int, *, narrow: bool) -> Plans | None:
    """Return the blocks of tokens for a divergence of two softmaxes, whose layers ask for some implementations; None to store all logits.

    `narrow` says whether gradients with respect to the logits are rounded on a GPU or TPU.
    """
    if "reference" in implementations:
        return None
    sizes_of_blocks = [each.block_tokens for each in implementations if isinstance(each, Chunked) and each.block_tokens]
    if any(isinstance(each, Chunked) and each.block_classes for each in implementations):
        raise ValueError(
            "`block_classes` is not for divergences, whose blocks have all classes. Leave it out: Chunked(block_tokens=...)."
        )
    if sizes_of_blocks:
        own = gpu = Blocks(min(sizes_of_blocks), None)
    elif is_known(tokens, num_classes):
        own, gpu = sizes.for_two_softmaxes(tokens, num_classes), sizes.for_two_softmaxes_on_gpu(tokens, num_classes)
    elif is_known(num_classes) or "chunked" in implementations:
        own = gpu = sizes.for_two_softmaxes_of_unknown_sizes()
    else:
        return None
    return Plans(dataclasses.replace(own, narrow=narrow), cpu=own, gpu=dataclasses.replace(gpu, narrow=narrow))


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
