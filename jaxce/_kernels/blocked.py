"""Blocks of tokens and of classes: folding over them, cutting arrays along them, adding to what they are parts of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._axes import is_known, varying_like
from jaxce._kernels.reference import dot


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How many tokens, and how many of their classes, are worked on at a time; None is all of them, also where their number is not known.

    Of a total whose blocks have all classes, the slopes of `gathered` blocks of tokens are held until one matmul adds them to the gradient of
    the classifier.
    """

    tokens: int | None
    classes: int | None
    gathered: int = 1


def has_all(block: int | None, size: int) -> bool:
    """Whether one block has everything. Where the size is not known, only a block of None has."""
    return block is None or (is_known(size) and block >= size)


def over_tokens(body, carry, rows, block):
    """Folds `body(carry, rows of a block) -> (carry, rows)` over blocks of tokens; the last one may be smaller.

    If the number of tokens is not known, copies of the last token fill up the last block. Their results are dropped.
    """
    tokens = jax.tree.leaves(rows)[0].shape[0]
    if has_all(block, tokens):
        return body(carry, rows)
    count = tokens // block if is_known(tokens) else -(-tokens // block)
    whole = count * block

    def of_whole_blocks(x):
        if is_known(tokens):
            return x[:whole]
        return jnp.concatenate((x, jnp.broadcast_to(x[-1:], (whole - tokens, *x.shape[1:]))))

    stacked = jax.tree.map(lambda x: of_whole_blocks(x).reshape(count, block, *x.shape[1:]), rows)
    carry, outs = lax.scan(body, carry, stacked)
    outs = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), outs)
    if not is_known(tokens):
        outs = jax.tree.map(lambda x: x[:tokens], outs)
    elif whole < tokens:
        carry, last = body(carry, jax.tree.map(lambda x: x[whole:], rows))
        outs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outs, last)
    return carry, outs


def over_classes(body, carry, num_classes, block):
    """Folds `body(carry, start, size) -> carry` over blocks of classes; the last one may be smaller, none is padded or overlaps."""
    if has_all(block, num_classes):
        return body(carry, 0, num_classes)
    whole = num_classes - num_classes % block
    carry, _ = lax.scan(
        lambda c, start: (body(c, start, block), None), carry, jnp.arange(0, whole, block, dtype=jnp.int32)
    )
    return carry if whole == num_classes else body(carry, whole, num_classes - whole)


def classes(arrays, start, size):
    """Some of the classes, the last axis, of each array."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, x.ndim - 1), arrays)


def over_valid_tokens(body, gather, carry, rows, mask, blocks, skips=True):
    """Folds `body(carry, rows of a block) -> (carry, rows)` over blocks of tokens, valid ones first.

    What it gives of `blocks.gathered` blocks goes through `gather(carry, hidden, rows) -> (carry, rows)` at once. If it `skips`, only while there
    are valid tokens: the rows of the rest are 0. Then JAX cannot transpose the loop, whose length the mask decides.
    """
    (hidden, labels), _ = rows
    tokens, block, group = hidden.shape[0], blocks.tokens, blocks.tokens * blocks.gathered
    groups = -(-tokens // group)
    padded, count = groups * group, groups * blocks.gathered
    order, skips = None, skips and mask is not None
    if mask is not None or not is_known(tokens) or padded > tokens:
        valid = jnp.ones(tokens, bool) if mask is None else mask
        if skips:
            count = (jnp.sum(valid, dtype=jnp.int32) + (block - 1)) // block
            groups = -(-count // blocks.gathered)
        order = jnp.argsort(~valid, stable=True)
        padding = (0, padded - tokens)
        rows = (
            (jnp.pad(hidden[order], (padding, (0, 0))), jnp.pad(labels[order], padding)),
            jnp.pad(valid[order], padding),
        )

    def some(start, size):
        return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), rows)

    def of_group(carry, first):
        if blocks.gathered == 1:
            return body(carry, some(first * block, block))

        def of_block(i, state):
            carry, outs = state
            carry, out = body(carry, some((first + i) * block, block))
            return carry, put(outs, out, i * block)

        _, out = jax.eval_shape(lambda carry: body(carry, some(0, block)), carry)
        outs = zeros(out, group)
        end = jnp.minimum(count - first, blocks.gathered) if skips else blocks.gathered
        return lax.fori_loop(0, end, of_block, (carry, outs))

    # So that JAX keeps nothing of a block: no residuals, and no loop invariants of what it compares or selects with, as large as the logits.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(i, state):
        carry, outs = state
        first = i * blocks.gathered
        carry, out = of_group(carry, first)
        carry, out = gather(carry, some(first * block, group)[0][0], out)
        return carry, put(outs, out, first * block)

    def put(outs, out, start):
        return jax.tree.map(lambda all_, x: lax.dynamic_update_slice_in_dim(all_, x, start, 0), outs, out)

    def zeros(like, rows):
        return varying_like(jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), like), carry)

    _, out = jax.eval_shape(lambda carry: gather(carry, some(0, group)[0][0], of_group(carry, 0)[1]), carry)
    carry, outs = lax.fori_loop(0, groups, step, (carry, zeros(out, padded)))
    if order is not None:
        outs = jax.tree.map(
            lambda x: jnp.zeros((tokens, *x.shape[1:]), x.dtype).at[order].set(x[:tokens], unique_indices=True), outs
        )
    return carry, outs


def add_at(total, part, start):
    """`total` with `part` added to its classes from `start` on."""
    if part.shape == total.shape:
        return total + part
    old = lax.dynamic_slice_in_dim(total, start, part.shape[-1], total.ndim - 1)
    return lax.dynamic_update_slice_in_dim(total, old + part, start, total.ndim - 1)


# On a CPU the product that a block adds to the gradient of the classifier is held until it is added: so many classes of it at a time.
_PRODUCT = 2**22


def add_matmul(total, a, b, start):
    """`total` with `a @ b` added to its classes from `start` on."""
    features, num_classes = a.shape[0], b.shape[1]
    size = max(128, _PRODUCT // features) if is_known(features) else 128

    def at_once(total, a, b, start=start):
        return add_at(total, dot(a, b, (1, 0)), start)

    def in_parts(total, a, b):
        def of_classes(total, offset, size):
            (part,) = classes((b,), offset, size)
            return at_once(total, a, part, start + offset)

        return over_classes(of_classes, total, num_classes, size)

    if not is_known(num_classes) or size >= num_classes:
        return at_once(total, a, b)
    return lax.platform_dependent(total, a, b, cpu=in_parts, default=at_once)
