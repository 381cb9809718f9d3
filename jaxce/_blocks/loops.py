"""Loops over blocks of tokens and blocks of classes."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._blocks.reference import dot
from jaxce._blocks.sizes import Blocks
from jaxce._jax.axes import is_known
from jaxce._jax.mesh import varying_like
from jaxce._jax.rules import choose

# On a CPU, a product is stored before it is added to the gradient with respect to the classifier. This is the largest number of its elements
# that are stored at a time.
_PRODUCT = 2**22

# The fields of a layer whose last axis is that of the classes.
OF_CLASSES = ("classifier", "bias", "where", "label_weights", "class_weights")


def has_all(block: int | None, size: int) -> bool:
    """Return whether one block has everything. If the size is unknown, only the block None has everything."""
    return block is None or (is_known(size) and block >= size)


def map_tokens(function, rows, block: int | None):
    """Return `function(rows)`, computed block by block. The last block may be smaller.

    If the number of tokens is unknown, the last block is padded with copies of the last token, and the results of the copies are dropped.
    """
    tokens = _length(rows)
    if has_all(block, tokens):
        return function(rows)
    known = is_known(tokens)
    count = tokens // block if known else -(-tokens // block)
    whole = count * block

    def first(x):
        return x[:whole] if known else jnp.concatenate((x, jnp.broadcast_to(x[-1:], (whole - tokens, *x.shape[1:]))))

    stacked = jax.tree.map(lambda x: first(x).reshape(count, block, *x.shape[1:]), rows)
    outs = lax.map(function, stacked)
    outs = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), outs)
    if not known:
        return jax.tree.map(lambda x: x[:tokens], outs)
    if whole == tokens:
        return outs
    last = function(jax.tree.map(lambda x: x[whole:], rows))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), outs, last)


def over_classes(body, carry, num_classes: int, block: int | None):
    """Fold `body(carry, start, size) -> carry` over blocks of classes. The last block may be smaller. Blocks are not padded and do not overlap."""
    if block is None or has_all(block, num_classes):
        return body(carry, 0, num_classes)
    whole = num_classes - num_classes % block
    starts = jnp.arange(0, whole, block, dtype=jnp.int32)
    carry, _ = lax.scan(lambda carry, start: (body(carry, start, block), None), carry, starts)
    return carry if whole == num_classes else body(carry, whole, num_classes - whole)


def sum_over_classes(function, num_classes: int, block: int | None, vary_like):
    """Return the sum of `function(start, size)` over blocks of classes. The result varies over the same mesh axes as `vary_like`."""
    if block is None or has_all(block, num_classes):
        return function(0, num_classes)
    shapes = jax.eval_shape(functools.partial(function, 0, min(block, num_classes)))
    zeros = varying_like(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), vary_like)
    return over_classes(lambda sums, *at: jax.tree.map(jnp.add, sums, function(*at)), zeros, num_classes, block)


def some_classes(layer, start, size: int):
    """Return the layer with only `size` classes from `start` on. Its integer labels count from the first of these classes."""

    def cut(x):
        return x if x is None or x.shape[-1] == size else lax.dynamic_slice_in_dim(x, start, size, x.ndim - 1)

    labels = layer.labels
    if labels is not None and labels.ndim == 2:
        labels = cut(labels)
    elif labels is not None and not (isinstance(start, int) and start == 0):
        labels = labels - jnp.asarray(start).astype(labels.dtype)
    top_labels = layer.top_labels
    if top_labels is not None and top_labels.indices is not None and not (isinstance(start, int) and start == 0):
        indices = top_labels.indices - jnp.asarray(start).astype(top_labels.indices.dtype)
        top_labels = top_labels._replace(indices=indices)
    of_classes = {name: cut(getattr(layer, name)) for name in OF_CLASSES}
    return layer._replace(
        labels=labels, top_labels=top_labels, first_class=_plus(layer.first_class, start), **of_classes
    )


def _plus(first_class, start):
    return start if first_class is None else first_class + start


def over_valid_tokens(of_block, of_group, carry, rows: dict, blocks: Blocks, *, skips: bool):
    """Fold over blocks of tokens. The valid tokens come first.

    Args:
      of_block: `of_block(carry, rows) -> (carry, results)`, with one row of results per token of the block.
      of_group: `of_group(carry, rows, results) -> (carry, results)`, for all tokens of `blocks.gathered` blocks at once.
      carry: The initial carry of both functions.
      rows: Arrays with one row per token. `mask`, one of them, is True for the valid tokens, or None.
      blocks: The sizes of blocks and groups.
      skips: Whether blocks without a valid token are skipped. Their results are then 0. JAX cannot transpose such a loop, because its length
        depends on the mask.
    """
    tokens = _length(rows)
    group = (blocks.tokens or tokens) * blocks.gathered
    order, count = _valid_first(rows, blocks, skips)

    # The checkpoint keeps JAX from storing residuals of a block, and loop invariants as large as the logits.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(i, state):
        carry, all_results = state
        some = _rows_at(rows, order, i * group, group)
        left = count - i * blocks.gathered if skips else blocks.gathered
        carry, results = _over_group(of_block, carry, some, blocks, left)
        carry, results = of_group(carry, some, results)
        return carry, _put_at(all_results, results, order, i * group)

    def results_of_group(carry):
        some = _rows_at(rows, order, 0, group)
        return of_group(carry, some, _over_group(of_block, carry, some, blocks, blocks.gathered)[1])[1]

    zeros = _zeros(jax.eval_shape(results_of_group, carry), tokens)
    return lax.fori_loop(0, -(-count // blocks.gathered), step, (carry, zeros))


def _over_group(of_block, carry, rows, blocks, left):
    """Fold `of_block` over the blocks of a group; `left` says how many blocks are left to visit."""
    if blocks.gathered == 1:
        return of_block(carry, rows)

    def step(i, state):
        carry, all_results = state
        carry, results = of_block(carry, _slice(rows, i * blocks.tokens, blocks.tokens))
        return carry, _put_at(all_results, results, None, i * blocks.tokens)

    shapes = jax.eval_shape(lambda carry: of_block(carry, _slice(rows, 0, blocks.tokens))[1], carry)
    end = left if isinstance(left, int) else jnp.minimum(left, blocks.gathered)
    return lax.fori_loop(0, end, step, (carry, _zeros(shapes, _length(rows))))


def _valid_first(rows, blocks, skips):
    """Return the order in which the tokens are visited, in whole groups, and the number of blocks to visit.

    The valid tokens come first; numbers of no token fill up the last group. The order is None for the tokens as they are: without a mask, if they
    fill whole groups.
    """
    tokens, mask, group = _length(rows), rows["mask"], blocks.tokens * blocks.gathered
    padded = -(-tokens // group) * group
    count = padded // blocks.tokens
    if mask is None:
        is_whole = is_known(tokens) and padded == tokens
        return (None if is_whole else jnp.arange(padded, dtype=jnp.int32)), count
    if skips:
        count = (jnp.sum(mask, dtype=jnp.int32) + (blocks.tokens - 1)) // blocks.tokens
    order = jnp.argsort(~mask, stable=True).astype(jnp.int32)
    return jnp.concatenate((order, jnp.arange(padded - tokens, dtype=jnp.int32) + tokens)), count


def _rows_at(rows, order, start, size):
    """Return some rows in the given order. A row of no token is 0, and its mask is False."""
    if order is None:
        return _slice(rows, start, size)
    at = lax.dynamic_slice_in_dim(order, start, size)
    mask = rows["mask"] if rows["mask"] is not None else jnp.ones(_length(rows), bool)
    return jax.tree.map(lambda x: x.at[at].get(mode="fill", fill_value=0), rows | {"mask": mask})


def _put_at(all_rows, rows, order, start):
    """Return `all_rows` with the rows that `_rows_at` took replaced."""
    if order is None:
        return jax.tree.map(lambda x, part: lax.dynamic_update_slice_in_dim(x, part, start, 0), all_rows, rows)

    def put(x, part):
        at = lax.dynamic_slice_in_dim(order, start, part.shape[0])
        return x.at[at].set(part, mode="drop", unique_indices=True)

    return jax.tree.map(put, all_rows, rows)


def add_at(total, part, start):
    """Return `total` with `part` added to its classes from `start` on."""
    if part.shape == total.shape:
        return total + part
    old = lax.dynamic_slice_in_dim(total, start, part.shape[-1], total.ndim - 1)
    return lax.dynamic_update_slice_in_dim(total, old + part, start, total.ndim - 1)


def transposed(hidden):
    """Return the transpose, computed once: a matmul with a transposed operand is slower on a CPU."""
    return lax.optimization_barrier(hidden.T)


def add_matmul(total, a, b, start):
    """Return `total` with `a @ b` added to its classes from `start` on."""
    features, num_classes = a.shape[0], b.shape[1]
    size = max(128, _PRODUCT // features) if is_known(features) else 128

    def at_once(total, a, b, start):
        return add_at(total, dot(a, b, 1, 0), start)

    def in_parts(total, a, b, start):
        return over_classes(functools.partial(_add_part, a, b, start), total, num_classes, size)

    if not is_known(num_classes) or size >= num_classes:
        return at_once(total, a, b, start)
    # A form is traced later than the code around it. So the start, which may be traced, is an argument.
    return choose(at_once, total, a, b, jnp.asarray(start, jnp.int32), cpu=in_parts)


def _add_part(a, b, start, total, offset, size):
    return add_at(total, dot(a, lax.dynamic_slice_in_dim(b, offset, size, 1), 1, 0), start + offset)


def _length(rows):
    return jax.tree.leaves(rows)[0].shape[0]


def _slice(rows, start, size):
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), rows)


def _zeros(shapes, length):
    return jax.tree.map(lambda x: varying_like(jnp.zeros((length, *x.shape[1:]), x.dtype), x), shapes)
