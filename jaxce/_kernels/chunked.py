"""Blocks of logits in plain XLA, on any device: what `reference` means, with never more than a block of logits at a time.

Tokens are taken in blocks, and the classes of each in blocks. The statistics of blocks of classes merge; the derivative by a logit needs the
statistics of its whole row and nothing else of that row. So derivatives take a second round over the blocks of classes, which makes their
logits again, unless one block has all the classes and its logits are still there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxce import _dense as dense
from jaxce._dense import label_indices
from jaxce._kernels.reference import capped, dot, dtype_of_logits, dtype_of_operands, masked, raw_logits
from jaxce._rule import with_rule
from jaxce._stats import LogitStats


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How many tokens, and how many of their classes, are worked on at a time."""

    tokens: int
    classes: int


@functools.cache
def statistics(blocks: Blocks):
    """The fields of `LogitStats` as a function of the arguments of the contract, with their rule."""

    def primal(hidden, classifier, bias, labels, mask, class_weights, soft_cap):
        def of_tokens(_, rows):
            return None, _fields(*rows, classifier, bias, class_weights, soft_cap, blocks.classes)

        return _over_tokens(of_tokens, None, _rows(hidden, labels, mask), blocks.tokens)[1]

    def tangent(args, outs, tangents):
        hidden, classifier, bias, labels, mask, class_weights, soft_cap = args
        dtype = outs[0].dtype
        # In the dtype of the statistics, so that what reverse mode accumulates over blocks accumulates in it.
        hidden_dot, classifier_dot, bias_dot, _, _, class_weights_dot, soft_cap_dot = (
            None if t is None else t.astype(dtype) for t in tangents
        )

        def of_tokens(_, rows):
            (hidden, labels), hidden_dot, fields = rows

            def of_classes(total, start, size):
                w, b, u, w_dot, b_dot, u_dot = _classes(
                    (classifier, bias, class_weights, classifier_dot, bias_dot, class_weights_dot), start, size
                )
                terms = [] if hidden_dot is None else [dot(hidden_dot, w, (1, 0))]
                terms += [] if w_dot is None else [dot(hidden, w_dot, (1, 0))]
                terms += [] if b_dot is None else [jnp.broadcast_to(b_dot, (hidden.shape[0], size))]
                raw_dot = sum(terms[1:], terms[0]) if terms else None
                raw = raw_logits(hidden, w, b)
                part = _fields_dot(raw, _from(labels, start), u, soft_cap, fields, raw_dot, u_dot, soft_cap_dot)
                return tuple(map(jnp.add, total, part))

            zeros = tuple(map(jnp.zeros_like, fields))
            # What reverse mode would keep of every block is made again instead.
            again = jax.checkpoint(of_classes, prevent_cse=False, static_argnums=2)
            return None, _over_classes(again, zeros, classifier.shape[1], blocks.classes)

        rows = (_rows(hidden, labels, mask), hidden_dot, outs)
        return _over_tokens(of_tokens, None, rows, blocks.tokens)[1]

    return with_rule(primal, tangent)


def total_with_gradients(losses, args, blocks: Blocks, *, of_hidden: bool, of_classifier: bool):
    """The sum of the losses of all tokens, and its gradients, made in the same pass over the tokens.

    Args:
      losses: `losses(fields, labels, mask, class_weights, options)` gives the losses of a block of tokens from the fields of their `LogitStats`.
      args: The arguments of the contract, then `options`, a pytree of scalars that only `losses` sees.
      blocks: Where a block has all classes, gradients take three matmuls in all, otherwise four.
      of_hidden: Whether the gradient by `hidden` is wanted, which takes one of them.
      of_classifier: The same for `classifier`.

    Returns:
      The sum, and gradients in the dtype of the statistics, in the order of `args`: None for what has none.
    """
    hidden, classifier, bias, labels, mask, class_weights, soft_cap, options = args
    dtype = dtype_of_logits(hidden, classifier)
    num_classes = classifier.shape[1]
    zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, dtype))

    def of_tokens(carry, rows):
        total, sums = carry
        (hidden, labels), mask = rows
        fields = _fields(hidden, labels, classifier, bias, class_weights, soft_cap, blocks.classes)
        of_losses = lambda *args: jnp.sum(losses(args[0], labels, mask, *args[1:]))  # noqa: E731
        value, pull = jax.vjp(of_losses, fields, class_weights, options)
        fields_ct, weights_ct, options_ct = pull(jnp.ones_like(value))
        transposed = lax.optimization_barrier(hidden.T)  # once: a matmul by a transposed operand is slower on a CPU

        def of_classes(carry, start, size):
            hidden_ct, (classifier_ct, bias_ct, weights_ct, cap_ct) = carry
            w, b, u = _classes((classifier, bias, class_weights), start, size)
            raw = raw_logits(hidden, w, b)
            linear = lambda raw_dot, u_dot, cap_dot: _fields_dot(  # noqa: E731
                raw, _from(labels, start), u, soft_cap, fields, raw_dot, u_dot, cap_dot
            )
            raw_ct, u_ct, cap_part = jax.linear_transpose(linear, raw, *zeros((u, soft_cap)))(fields_ct)
            narrow = raw_ct.astype(dtype_of_operands(hidden, classifier))
            if of_hidden:
                hidden_ct = hidden_ct + dot(narrow, w, (1, 1))
            if of_classifier:
                classifier_ct = _add_matmul(classifier_ct, transposed, narrow, start)
            if bias is not None:
                bias_ct = _add_at(bias_ct, jnp.sum(raw_ct, 0), start)
            if u is not None:
                weights_ct = _add_at(weights_ct, u_ct, start)
            if soft_cap is not None:
                cap_ct = cap_ct + cap_part
            return hidden_ct, (classifier_ct, bias_ct, weights_ct, cap_ct)

        classifier_sum, bias_sum, weights_sum, cap_sum, options_sum = sums
        hidden_ct = zeros(hidden) if of_hidden else None
        hidden_ct, sums = _over_classes(
            of_classes, (hidden_ct, (classifier_sum, bias_sum, weights_sum, cap_sum)), num_classes, blocks.classes
        )
        classifier_sum, bias_sum, weights_sum, cap_sum = sums
        weights_sum, options_sum = jax.tree.map(
            lambda a, b: a + b.astype(dtype), (weights_sum, options_sum), (weights_ct, options_ct)
        )
        return (total + value, (classifier_sum, bias_sum, weights_sum, cap_sum, options_sum)), hidden_ct

    of_tokens = jax.checkpoint(of_tokens, prevent_cse=False)
    sums = (zeros(classifier) if of_classifier else None, *zeros((bias, class_weights, soft_cap, options)))
    rows = (_rows(hidden, labels, mask), mask)
    (total, sums), hidden_ct = _over_tokens(of_tokens, (jnp.zeros((), dtype), sums), rows, blocks.tokens)
    classifier_ct, bias_ct, weights_ct, cap_ct, options_ct = sums
    return total, (hidden_ct, classifier_ct, bias_ct, None, None, weights_ct, cap_ct, options_ct)


def _rows(hidden, labels, mask):
    """What a block of tokens takes: a masked one holds nothing that could spread."""
    return masked(hidden, mask), label_indices(labels, mask)


def _fields(hidden, labels, classifier, bias, class_weights, soft_cap, block):
    """The fields of `LogitStats` of a block of tokens, merged over blocks of classes."""

    def of_classes(fields, start, size):
        w, b, u = _classes((classifier, bias, class_weights), start, size)
        logits = capped(raw_logits(hidden, w, b), soft_cap)
        part = dense.statistics(1)(logits, _from(labels, start), None, None, u)
        return part if fields is None else tuple(_merged(fields, part))

    num_classes = classifier.shape[1]
    if block >= num_classes:
        return of_classes(None, 0, num_classes)
    dtype = dtype_of_logits(hidden, classifier)
    none = jnp.zeros(hidden.shape[0], dtype)
    return _over_classes(of_classes, (jnp.full_like(none, -jnp.inf), *(none,) * 6), num_classes, block)


def _merged(a, b):
    merged = LogitStats.merge(LogitStats(*a, integer_labels=True), LogitStats(*b, integer_labels=True))
    return (getattr(merged, field.name) for field in dataclasses.fields(merged)[:-1])


def _fields_dot(raw, labels, class_weights, soft_cap, fields, raw_dot, class_weights_dot, soft_cap_dot):
    """What a block of classes contributes to the tangents of the fields of its rows."""
    logits, logits_dot = raw, raw_dot
    if soft_cap is not None:
        raw_dot = jnp.zeros_like(raw) if raw_dot is None else raw_dot
        soft_cap_dot = jnp.zeros_like(soft_cap) if soft_cap_dot is None else soft_cap_dot.astype(soft_cap.dtype)
        logits, logits_dot = jax.jvp(capped, (raw, soft_cap), (raw_dot, soft_cap_dot))
    return dense.tangent(
        (logits, labels, None, None, class_weights), fields, (logits_dot, None, None, None, class_weights_dot), axis=1
    )


def _over_tokens(body, carry, rows, block):
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


def _over_classes(body, carry, num_classes, block):
    """Folds `body(carry, start, size) -> carry` over blocks of classes; the last one may be smaller, none is padded or overlaps."""
    if block >= num_classes:
        return body(carry, 0, num_classes)
    whole = num_classes - num_classes % block
    carry, _ = lax.scan(
        lambda c, start: (body(c, start, block), None), carry, jnp.arange(0, whole, block, dtype=jnp.int32)
    )
    return carry if whole == num_classes else body(carry, whole, num_classes - whole)


def _classes(arrays, start, size):
    """Some of the classes, the last axis, of each array."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, x.ndim - 1), arrays)


def _from(labels, start):
    """Labels counted from a class on."""
    return labels - jnp.asarray(start).astype(labels.dtype)


def _add_at(total, part, start):
    """`total` with `part` added to its classes from `start` on."""
    if part.shape == total.shape:
        return total + part
    old = lax.dynamic_slice_in_dim(total, start, part.shape[-1], total.ndim - 1)
    return lax.dynamic_update_slice_in_dim(total, old + part, start, total.ndim - 1)


# The product that a block adds to the gradient of the classifier is made for so many classes at a time, as it is held until it is added.
_PRODUCT = 2**22


def _add_matmul(total, a, b, start):
    """`total` with `a @ b` added to its classes from `start` on."""

    def of_classes(total, offset, size):
        (part,) = _classes((b,), offset, size)
        return _add_at(total, dot(a, part, (1, 0)), start + offset)

    return _over_classes(of_classes, total, b.shape[1], max(128, _PRODUCT // a.shape[0]))
