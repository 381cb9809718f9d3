"""Block sizes, from the shapes alone.

With whole rows of logits, value and gradients cost three matmuls, but every block of tokens reads and writes the whole gradient with respect
to the classifier. Blocks of classes cost a fourth matmul, which recomputes the logits, but they write each part of that gradient once. So rows
are whole if the blocks of tokens that fit are few or large. Otherwise a block has all tokens and some of the classes.
"""

import dataclasses
import functools
from typing import NamedTuple

from jaxce._jax.axes import is_known
from jaxce._jax.rules import choose


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The number of tokens and of classes in a block; None means all, even if their number is unknown.

    If the blocks of a sum have all classes, the gradients with respect to the logits of `gathered` blocks of tokens are stored until one matmul
    adds them to the gradient with respect to the classifier. `narrow` says whether they are rounded to the dtype of the operands.
    """

    tokens: int | None
    classes: int | None
    gathered: int = 1
    narrow: bool = False


class Plans(NamedTuple):
    """The blocks of each platform; `default` for a platform without its own blocks."""

    default: Blocks
    cpu: Blocks | None = None
    gpu: Blocks | None = None

    def choose(self, function, *args):
        """Return `function(blocks, *args)` with the blocks of the platform."""

        def form(blocks):
            return None if blocks in (None, self.default) else functools.partial(function, blocks)

        return choose(functools.partial(function, self.default), *args, cpu=form(self.cpu), gpu=form(self.gpu))


# The number of logits stored at a time in whole rows: 256 MiB of float32, or a sixteenth of all logits if that is more. Blocks of classes get
# less, because the gradient with respect to `hidden` is stored at the same time.
_ROOM = 2**26
_SHARE = 16
_ROOM_OF_CLASSES = 2**23
# In a block of _LARGE tokens, a CPU's matmul takes longer than reading and writing the gradient to which the product is added. If there are many
# tokens, blocks grow up to _LARGEST.
_LARGE, _LARGEST = 512, 1024
# Up to this many blocks are cheaper than a fourth matmul, however small the blocks are.
_FEW = 4
# A GPU's matmul is two to three times slower if the rows of a matrix do not start at multiples of 16 bytes.
_ALIGNED = 8
# At (8192, 4096, 128256) in float32, an H200 takes 1.12 times as long as three bare matmuls in blocks of 1,024 tokens and 1.35 times in blocks of
# 512. So a GPU stores an eighth of the logits, up to 1,024 tokens, or 128 MiB. With a narrow classifier, the gradients with respect to the logits
# are buffered in the memory of the classifier's gradient, so the float32 sum is read and written once for many blocks.
_SHARE_ON_GPU, _ROOM_OF_GATHERED = 8, 2**25
_LEAST_GATHERED = 256
# Blocks of twice as many classes reduce the time of an H200 from 1.9 to 1.7 times the three bare matmuls.
_ROOM_OF_CLASSES_ON_GPU = 2**24

# The number of tokens that blocks of classes assume if it is unknown. A block then has 1,024 classes, or a few less.
_TOKENS = 2**13


def whole_rows(tokens: int, num_classes: int, free_bytes: int = 0, share: int = _SHARE) -> Blocks | None:
    """Return blocks of tokens with all their classes; None if the blocks would be too many and too small.

    `free_bytes` is the number of bytes per class that are free until the end. They will hold the classifier's gradient if it is narrower than
    float32.
    """
    share, free_rows = tokens // share, free_bytes // 4
    room = max(_ROOM // num_classes, share, free_rows) // 128 * 128
    most = max(1, min(room, max(_LARGE, min(_LARGEST, share), free_rows)))
    if tokens <= most:
        return Blocks(tokens, num_classes)
    if most < _LARGE and most * _FEW < tokens:
        return None
    return Blocks(_even(tokens, most), num_classes)


def gathered_rows(tokens: int, num_classes: int, free_bytes: int) -> Blocks | None:
    """Return blocks of tokens, with several of them buffered in the free memory; None if there is no gain."""
    share, most = tokens // _SHARE_ON_GPU, min(tokens, free_bytes // 2)
    block = max(_LEAST_GATHERED, min(_LARGEST, share // 128 * 128))
    if block > max(share, _ROOM_OF_GATHERED // num_classes) or most < 2 * block:
        return None
    group = _even(tokens, most)
    gathered = -(-group // block)
    return Blocks(-(-group // gathered), num_classes, gathered)


def blocks_of_classes(tokens: int, num_classes: int, room: int = _ROOM_OF_CLASSES) -> Blocks:
    """Return blocks of all tokens, but at most 16,384, with as many classes as there is room for."""
    tokens = min(tokens, 2**14)
    room = max(256, room // max(tokens, 1) // 256 * 256)
    # Take whole tiles, and if possible a size that divides the classes: XLA for TPU copies the gradient to another layout for a smaller last block.
    whole = (block for block in range(room, room // 2, -128) if num_classes % block == 0)
    return Blocks(tokens, min(num_classes, next(whole, room)))


def for_statistics(tokens: int, num_classes: int, _: int = 0, room: int = _ROOM_OF_CLASSES) -> Blocks:
    """Return the blocks for the statistics of each token, whose derivatives always recompute the logits."""
    if tokens * num_classes <= room:
        return Blocks(tokens, num_classes)
    return blocks_of_classes(tokens, num_classes, room)


def for_statistics_on_gpu(tokens: int, num_classes: int, _: int = 0) -> Blocks:
    """Return the blocks of `for_statistics` with more classes at a time."""
    return for_statistics(tokens, num_classes, room=_ROOM_OF_CLASSES_ON_GPU)


def for_value(tokens: int, num_classes: int, _: int = 0) -> Blocks:
    """Return the blocks for a sum of losses without gradients, where no memory is free."""
    return for_total(tokens, num_classes, 0)


def for_total(tokens: int, num_classes: int, free_bytes: int) -> Blocks:
    """Return the blocks for a sum of losses with its gradients."""
    return whole_rows(tokens, num_classes, free_bytes) or blocks_of_classes(tokens, num_classes)


def for_total_on_gpu(tokens: int, num_classes: int, free_bytes: int) -> Blocks:
    """Return the blocks for a sum with its gradients on a GPU: blocks of classes if whole rows of logits would not be aligned."""
    if num_classes % _ALIGNED:
        return for_statistics_on_gpu(tokens, num_classes)
    whole, gathered = (
        whole_rows(tokens, num_classes, share=_SHARE_ON_GPU),
        gathered_rows(tokens, num_classes, free_bytes),
    )
    if gathered and (whole is None or _tokens_at_once(gathered) >= _tokens_at_once(whole)):
        return gathered
    return whole or blocks_of_classes(tokens, num_classes, _ROOM_OF_CLASSES_ON_GPU)


def for_two_softmaxes(tokens: int, num_classes: int, share: int = 2 * _SHARE) -> Blocks:
    """Return the blocks of tokens for a divergence, which stores two arrays of logits with all classes. They are half as large as for one array."""
    room = max(_ROOM // 2 // num_classes, tokens // share, 128) // 128 * 128
    most = min(room, max(_LARGE // 2, min(_LARGEST // 2, tokens // share)))
    return Blocks(tokens if tokens <= most else _even(tokens, most), num_classes)


def for_two_softmaxes_on_gpu(tokens: int, num_classes: int) -> Blocks:
    """Return the blocks of `for_two_softmaxes` with more tokens at a time."""
    most = max(_LARGE // 2, tokens // (2 * _SHARE_ON_GPU) // 128 * 128)
    return Blocks(tokens if tokens <= most else _even(tokens, most), num_classes)


def for_two_softmaxes_of_unknown_sizes() -> Blocks:
    """Return the blocks of tokens for a divergence if the number of tokens or of classes is a symbol of `jax.export`."""
    return Blocks(_LARGE // 2, None)


def for_unknown_sizes(tokens: int, num_classes: int) -> Blocks:
    """Return the blocks if the number of tokens or of classes is a symbol of `jax.export`.

    If the number of classes is known, a block has all tokens and up to 1,024 classes: `tokens * 1024` logits are stored at a time, and the
    gradients of a sum take a fourth matmul. Blocks of tokens would save this matmul, but they need a loop of unknown length and a padded last block.
    """
    if is_known(num_classes):
        return Blocks(None, blocks_of_classes(_TOKENS, num_classes).classes)
    return Blocks(_LARGE, None)


def _tokens_at_once(blocks):
    return blocks.tokens * blocks.gathered


def _even(tokens, most):
    """Return the largest block that divides the tokens, if it is more than half of `most`; otherwise the size for nearly equal blocks."""
    for block in range(most, most // 2, -1):
        if tokens % block == 0:
            return block
    return -(-tokens // -(-tokens // most))
