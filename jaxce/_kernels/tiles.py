"""Block sizes, from the shapes alone.

Whole rows of logits cost three matmuls for a value with its gradients, but every block of tokens then reads and writes the whole gradient
of the classifier. Blocks of classes cost a fourth matmul, which makes the logits again, and write each part of that gradient once. So rows
are whole where the blocks of tokens that fit are few or large; otherwise all tokens are taken at once, some classes at a time.
"""

from jaxce._kernels.blocked import Blocks

# Logits held at a time, of whole rows: 256 MiB of float32, or a sixteenth of all if that is more. Blocks of classes share their room with the
# gradient by `hidden`.
_ROOM = 2**26
_SHARE = 16
_ROOM_OF_CLASSES = 2**23
# Blocks of so many tokens keep a matmul of a CPU busy for longer than it takes to read and write the gradient that it adds to. An H200, measured,
# gains from twice as many: 46 ms after 57 at (8192, 4096, 128256) in bfloat16. They are taken where there are tokens enough.
_LARGE, _LARGEST = 512, 1024
# So few blocks are better than a fourth matmul, however small they are.
_FEW = 4
# On a GPU a matmul is two to three times slower if the rows of a matrix do not start at multiples of 16 bytes.
_ALIGNED = 8


def whole_rows(tokens: int, num_classes: int) -> Blocks | None:
    """Blocks of tokens with all their classes; None where they would be too many and too small."""
    share = tokens // _SHARE
    room = max(_ROOM // num_classes, share) // 128 * 128
    most = max(1, min(room, max(_LARGE, min(_LARGEST, share))))
    if tokens <= most:
        return Blocks(tokens, num_classes)
    if most < _LARGE and most * _FEW < tokens:
        return None
    return Blocks(_even(tokens, most), num_classes)


def blocks_of_classes(tokens: int, num_classes: int) -> Blocks:
    """All tokens, but no more than 16,384, with as many classes at a time as there is room for."""
    tokens = min(tokens, 2**14)
    room = max(256, _ROOM_OF_CLASSES // max(tokens, 1) // 256 * 256)
    # Whole tiles, and none left over where that can be had: of a smaller last block XLA for TPU lays the gradient out anew.
    whole = (block for block in range(room, room // 2, -128) if num_classes % block == 0)
    return Blocks(tokens, min(num_classes, next(whole, room)))


def for_statistics(tokens: int, num_classes: int) -> Blocks:
    """For statistics of each token, whose derivatives make the logits again in any case."""
    if tokens * num_classes <= _ROOM_OF_CLASSES:
        return Blocks(tokens, num_classes)
    return blocks_of_classes(tokens, num_classes)


def for_total(tokens: int, num_classes: int) -> Blocks:
    """For a sum of losses with its gradients."""
    return whole_rows(tokens, num_classes) or blocks_of_classes(tokens, num_classes)


def for_total_on_gpu(tokens: int, num_classes: int) -> Blocks:
    """The same where rows of logits may be laid out badly: then blocks of classes, whose own rows are not."""
    return for_statistics(tokens, num_classes) if num_classes % _ALIGNED else for_total(tokens, num_classes)


def _even(tokens, most):
    """The largest block that divides the tokens evenly, if it is not much smaller than `most`; else blocks of nearly one size."""
    for block in range(most, most // 2, -1):
        if tokens % block == 0:
            return block
    return -(-tokens // -(-tokens // most))
