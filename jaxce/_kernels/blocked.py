"""Blocks of tokens and of classes: folding over them, cutting arrays along them, adding to what they are parts of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._axes import varying_like
from jaxce._kernels.reference import dot


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How many tokens, and how many of their classes, are worked on at a time."""

    tokens: int
    classes: int


def over_tokens(body, carry, rows, block):
    """Folds `body(carry, rows of a block) -> (carry, rows)` over blocks of tokens; the last one may be smaller."""
    tokens = jax.tree.leaves(rows)[0].shape[0]
    if block >= tokens:
        return body(carry, rows)
    whole = tokens - tokens % block
    stacked = jax.tree.map(lambda x: x[:whole].reshape(-1, block, *x.shape[1:]), rows)
    carry, outs = lax.scan(body, carry, stacked)
    outs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outs)
    if whole < tokens:
        carry, last = body(carry, jax.tree.map(lambda x: x[whole:], rows))
        outs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outs, last)
    return carry, outs


def over_classes(body, carry, num_classes, block):
    """Folds `body(carry, start, size) -> carry` over blocks of classes; the last one may be smaller, none is padded or overlaps."""
    if block >= num_classes:
        return body(carry, 0, num_classes)
    whole = num_classes - num_classes % block
    carry, _ = lax.scan(
        lambda c, start: (body(c, start, block), None), carry, jnp.arange(0, whole, block, dtype=jnp.int32)
    )
    return carry if whole == num_classes else body(carry, whole, num_classes - whole)


def classes(arrays, start, size):
    """Some of the classes, the last axis, of each array."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, x.ndim - 1), arrays)


def over_valid_tokens(body, carry, rows, mask, block, has_rows, skips=True):
    """Folds `body(carry, rows of a block) -> (carry, rows)` over blocks of tokens, valid ones first.

    If it `skips`, only while there are any: the rows of the rest are 0. Then JAX cannot transpose the loop, whose length the mask decides.
    """
    (hidden, labels), _ = rows
    tokens = hidden.shape[0]
    padded = -(-tokens // block) * block
    count, order = padded // block, None
    if mask is not None or padded > tokens:
        valid = jnp.ones(tokens, bool) if mask is None else mask
        if mask is not None and skips:
            count = (jnp.sum(valid, dtype=jnp.int32) + (block - 1)) // block
        order = jnp.argsort(~valid, stable=True)
        padding = (0, padded - tokens)
        rows = (
            (jnp.pad(hidden[order], (padding, (0, 0))), jnp.pad(labels[order], padding)),
            jnp.pad(valid[order], padding),
        )

    # So that JAX keeps nothing of a block: no residuals, and no loop invariants of what it compares or selects with, as large as the logits.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(i, state):
        carry, outs = state
        start = i * block
        carry, out = body(carry, jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, block), rows))
        return carry, lax.dynamic_update_slice_in_dim(outs, out, start, 0) if has_rows else None

    dtype = carry[0].dtype
    outs = varying_like(jnp.zeros((padded, hidden.shape[1]), dtype), carry) if has_rows else None
    carry, outs = lax.fori_loop(0, count, step, (carry, outs))
    if outs is not None and order is not None:
        outs = jnp.zeros((tokens, hidden.shape[1]), dtype).at[order].set(outs[:tokens], unique_indices=True)
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
    size = max(128, _PRODUCT // a.shape[0])

    def at_once(total, a, b, start=start):
        return add_at(total, dot(a, b, (1, 0)), start)

    def in_parts(total, a, b):
        def of_classes(total, offset, size):
            (part,) = classes((b,), offset, size)
            return at_once(total, a, part, start + offset)

        return over_classes(of_classes, total, b.shape[1], size)

    if size >= b.shape[1]:
        return at_once(total, a, b)
    return lax.platform_dependent(total, a, b, cpu=in_parts, default=at_once)
