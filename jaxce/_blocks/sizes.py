"""Block sizes, from the shapes alone.

Whole rows of logits cost three matmuls for a value with its gradients, but every block of tokens then reads and writes the whole gradient
of the classifier. Blocks of classes cost a fourth matmul, which makes the logits again, and write each part of that gradient once. So rows
are whole where the blocks of tokens that fit are few or large; otherwise all tokens are taken at once, some classes at a time.
"""

import dataclasses
import functools
from typing import NamedTuple

from jaxce._jax.axes import is_known
from jaxce._jax.rules import choose


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How many tokens, and how many of their classes, are worked on at a time; None is all of them, also where their number is not known.

    If the blocks of a sum have all classes, the gradients with respect to the logits of `gathered` blocks of tokens are held until one matmul
    adds them to the gradient of the classifier. `narrow` says whether those are rounded to the dtype of the operands.
    """

    tokens: int | None
    classes: int | None
    gathered: int = 1
    narrow: bool = False


class Plans(NamedTuple):
    """The blocks of each platform; `default` where it has none of its own."""

    default: Blocks
    cpu: Blocks | None = None
    gpu: Blocks | None = None

    def choose(self, function, *args):
        """Return `function(blocks, *args)` with the blocks of the platform."""

        def form(blocks):
            return None if blocks in (None, self.default) else functools.partial(function, blocks)

        return choose(functools.partial(function, self.default), *args, cpu=form(self.cpu), gpu=form(self.gpu))


# Logits held at a time, of whole rows: 256 MiB of float32, or a sixteenth of all if that is more. Blocks of classes share their room with the
# gradient by `hidden`.
_ROOM = 2**26
_SHARE = 16
_ROOM_OF_CLASSES = 2**23
# Blocks of so many tokens keep a matmul of a CPU busy for longer than it takes to read and write the gradient that it adds to. More are taken
# where there are tokens enough.
_LARGE, _LARGEST = 512, 1024
# So few blocks are better than a fourth matmul, however small they are.
_FEW = 4
# On a GPU a matmul is two to three times slower if the rows of a matrix do not start at multiples of 16 bytes.
_ALIGNED = 8
# An H200 takes 1.12 times three bare matmuls in blocks of 1,024 tokens, 1.35 in blocks of 512 (8192, 4096, 128256, float32), so there an eighth
# of the logits is held. The slopes of a narrow classifier wait where its gradient will be, and what is left to hold is a 32nd, or 128 MiB: that
# takes 1.18 times, not 1.49 as in blocks of 512, and holds no more.
_SHARE_ON_GPU, _ROOM_OF_GATHERED, _SHARE_OF_GATHERED = 8, 2**25, 32
_LEAST_GATHERED = 256
# And 1.7 times, after 1.9, in blocks of twice as many classes.
_ROOM_OF_CLASSES_ON_GPU = 2**24

# The number of tokens that blocks of classes assume where it is not known. A block then has 1,024 classes, or a few less.
_TOKENS = 2**13


def whole_rows(tokens: int, num_classes: int, spare: int = 0, share: int = _SHARE) -> Blocks | None:
    """Blocks of tokens with all their classes; None where they would be too many and too small.

    `spare` is how many bytes per class lie idle until the end: where the gradient of a classifier will be that is narrower than its sum.
    """
    share, spare = tokens // share, spare // 4
    room = max(_ROOM // num_classes, share, spare) // 128 * 128
    most = max(1, min(room, max(_LARGE, min(_LARGEST, share), spare)))
    if tokens <= most:
        return Blocks(tokens, num_classes)
    if most < _LARGE and most * _FEW < tokens:
        return None
    return Blocks(_even(tokens, most), num_classes)


def gathered_rows(tokens: int, num_classes: int, spare: int) -> Blocks | None:
    """Small blocks of tokens, of which many are gathered in the spare room; None where that is no gain."""
    share, most = tokens // _SHARE_OF_GATHERED, min(tokens, spare // 2)
    block = max(_LEAST_GATHERED, min(_LARGE, share // 128 * 128))
    if block > max(share, _ROOM_OF_GATHERED // num_classes) or most < 2 * block:
        return None
    group = _even(tokens, most)
    gathered = -(-group // block)
    return Blocks(-(-group // gathered), num_classes, gathered)


def blocks_of_classes(tokens: int, num_classes: int, room: int = _ROOM_OF_CLASSES) -> Blocks:
    """All tokens, but no more than 16,384, with as many classes at a time as there is room for."""
    tokens = min(tokens, 2**14)
    room = max(256, room // max(tokens, 1) // 256 * 256)
    # Whole tiles, and none left over where that can be had: of a smaller last block XLA for TPU lays the gradient out anew.
    whole = (block for block in range(room, room // 2, -128) if num_classes % block == 0)
    return Blocks(tokens, min(num_classes, next(whole, room)))


def for_statistics(tokens: int, num_classes: int, _: int = 0, room: int = _ROOM_OF_CLASSES) -> Blocks:
    """For statistics of each token, whose derivatives make the logits again in any case."""
    if tokens * num_classes <= room:
        return Blocks(tokens, num_classes)
    return blocks_of_classes(tokens, num_classes, room)


def for_statistics_on_gpu(tokens: int, num_classes: int, _: int = 0) -> Blocks:
    """The same with more classes at a time."""
    return for_statistics(tokens, num_classes, room=_ROOM_OF_CLASSES_ON_GPU)


def for_value(tokens: int, num_classes: int, _: int = 0) -> Blocks:
    """For a sum of losses alone, beside which no room is spare."""
    return for_total(tokens, num_classes, 0)


def for_total(tokens: int, num_classes: int, spare: int) -> Blocks:
    """For a sum of losses with its gradients."""
    return whole_rows(tokens, num_classes, spare) or blocks_of_classes(tokens, num_classes)


def for_total_on_gpu(tokens: int, num_classes: int, spare: int) -> Blocks:
    """The same; where rows of logits would be laid out badly, in blocks of classes, whose own rows are not."""
    if num_classes % _ALIGNED:
        return for_statistics_on_gpu(tokens, num_classes)
    whole, gathered = whole_rows(tokens, num_classes, share=_SHARE_ON_GPU), gathered_rows(tokens, num_classes, spare)
    if gathered and (whole is None or _tokens_at_once(gathered) >= _tokens_at_once(whole)):
        return gathered
    return whole or blocks_of_classes(tokens, num_classes, _ROOM_OF_CLASSES_ON_GPU)


def for_unknown_sizes(tokens: int, num_classes: int) -> Blocks:
    """For a number of tokens or of classes that is a symbol of `jax.export`.

    With known classes a block has all tokens and up to 1,024 classes: `tokens * 1024` logits are held, and a sum takes a fourth matmul for its
    gradients. Blocks of tokens would save that matmul. They need a loop of unknown length and copies that fill up the last block.
    """
    if is_known(num_classes):
        return Blocks(None, blocks_of_classes(_TOKENS, num_classes).classes)
    return Blocks(_LARGE, None)


def _tokens_at_once(blocks):
    return blocks.tokens * blocks.gathered


def _even(tokens, most):
    """The largest block that divides the tokens evenly, if it is not much smaller than `most`; else blocks of nearly one size."""
    for block in range(most, most // 2, -1):
        if tokens % block == 0:
            return block
    return -(-tokens // -(-tokens // most))
