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
from jaxce._axes import is_explicit, varying_like
from jaxce._kernels import blocked
from jaxce._kernels.blocked import Blocks
from jaxce._kernels.reference import capped, dot, dtype_of_logits, dtype_of_operands, masked, raw_logits
from jaxce._reading import label_indices
from jaxce._rule import with_rule
from jaxce._sharded import AxisName, across
from jaxce._stats import LogitStats
from jaxce._transpose import with_transpose


@functools.cache
def statistics(blocks: Blocks, on_gpu: Blocks, axis_name: AxisName = None):
    """The fields of `LogitStats` as a function of the arguments of the contract, with their rule."""

    def primal(blocks, hidden, classifier, bias, labels, mask, class_weights, soft_cap):
        def of_tokens(_, rows):
            hidden, labels = rows
            return None, fields_of(hidden, labels, classifier, bias, class_weights, soft_cap, blocks.classes)[0]

        return blocked.over_tokens(of_tokens, None, rows_of(hidden, labels, mask), blocks.tokens)[1]

    def tangent(blocks, args, outs, tangents):
        hidden, classifier, bias, labels, mask, class_weights, soft_cap = args
        dtype, operands = outs[0].dtype, dtype_of_operands(hidden, classifier)
        by_hidden = _narrowed_when_transposed(
            lambda hidden_dot, w: dot(hidden_dot, w, (1, 0)), lambda ct, w: dot(ct, w, (1, 1)), operands
        )
        by_classifier = _narrowed_when_transposed(
            lambda w_dot, hidden: dot(hidden, w_dot, (1, 0)), lambda ct, hidden: dot(hidden, ct, (0, 0)), operands
        )
        # In the dtype of the statistics, so that what reverse mode accumulates over blocks accumulates in it.
        hidden_dot, classifier_dot, bias_dot, _, _, class_weights_dot, soft_cap_dot = (
            None if t is None else t.astype(dtype) for t in tangents
        )

        def of_tokens(_, rows):
            (hidden, labels), hidden_dot, fields = rows

            def of_classes(total, start, size):
                w, b, u, w_dot, b_dot, u_dot = blocked.classes(
                    (classifier, bias, class_weights, classifier_dot, bias_dot, class_weights_dot), start, size
                )
                terms = [] if hidden_dot is None else [by_hidden(hidden_dot, w)]
                terms += [] if w_dot is None else [by_classifier(w_dot, hidden)]
                terms += [] if b_dot is None else [jnp.broadcast_to(b_dot, (hidden.shape[0], size))]
                raw_dot = sum(terms[1:], terms[0]) if terms else None
                raw = raw_logits(hidden, w, b)
                part = fields_dot(raw, counted_from(labels, start), u, soft_cap, fields, raw_dot, u_dot, soft_cap_dot)
                return tuple(map(jnp.add, total, part))

            zeros = varying_like(tuple(map(jnp.zeros_like, fields)), (args, tangents))
            # What reverse mode would keep of every block is made again instead.
            again = jax.checkpoint(of_classes, prevent_cse=False, static_argnums=2)
            return None, blocked.over_classes(again, zeros, classifier.shape[1], blocks.classes)

        rows = (rows_of(hidden, labels, mask), hidden_dot, outs)
        return blocked.over_tokens(of_tokens, None, rows, blocks.tokens)[1]

    def by_platform(function):
        if blocks == on_gpu:
            return functools.partial(function, blocks)
        anywhere, cuda = (functools.partial(function, b) for b in (blocks, on_gpu))
        return lambda *args: lax.platform_dependent(*args, cuda=cuda, default=anywhere)

    return with_rule(*across(axis_name, by_platform(primal), by_platform(tangent)))


def _narrowed_when_transposed(product, transposed, operands):
    """`product(tangent, other)`, linear in the tangent, of operands of the layer in this dtype; its transpose is `transposed(cotangent, other)`.

    Where they are bfloat16, a GPU multiplies the cotangent in bfloat16 too (slopes, times whatever the caller's is): as the matmul of a layer
    would, and with the range of float32, which float16 has not.
    """
    if operands != jnp.bfloat16:
        return product

    def narrowed(ct, other):
        return transposed(ct.astype(operands), other)

    def transpose(cts, other):
        return lax.platform_dependent(cts[0], other, cuda=narrowed, default=transposed)

    def function(tangent, other):
        if is_explicit(tangent) or is_explicit(other):
            return product(tangent, other)
        return with_transpose(lambda *args: [product(*args)], transpose, tangent, other)[0]

    return function


def rows_of(hidden, labels, mask):
    """What a block of tokens takes: a masked one holds nothing that could spread."""
    return masked(hidden, mask), label_indices(labels, mask)


def fields_of(hidden, labels, classifier, bias, class_weights, soft_cap, block):
    """The fields of `LogitStats` of a block of tokens, merged over blocks of classes.

    And the logits before their cap, if one block has all the classes.
    """
    num_classes = classifier.shape[1]

    def of_raw(raw, start, class_weights):
        return dense.statistics(1)(capped(raw, soft_cap), counted_from(labels, start), None, None, class_weights)

    def of_classes(fields, start, size):
        w, b, u = blocked.classes((classifier, bias, class_weights), start, size)
        return _merged(fields, of_raw(raw_logits(hidden, w, b), start, u))

    if blocked.has_all(block, num_classes):
        raw = raw_logits(hidden, classifier, bias)
        return of_raw(raw, 0, class_weights), raw
    none = jnp.zeros(hidden.shape[0], dtype_of_logits(hidden, classifier))
    start = varying_like(
        (jnp.full_like(none, -jnp.inf), *(none,) * 7), (hidden, labels, classifier, bias, class_weights, soft_cap)
    )
    return blocked.over_classes(of_classes, start, num_classes, block), None


@functools.partial(jax.jit, inline=True)  # traced once for all blocks of the same size
def _merged(a, b):
    merged = LogitStats.merge(LogitStats(*a, integer_labels=True), LogitStats(*b, integer_labels=True))
    return tuple(getattr(merged, field.name) for field in dataclasses.fields(merged)[:-1])


def fields_dot(raw, labels, class_weights, soft_cap, fields, raw_dot, class_weights_dot, soft_cap_dot):
    """What a block of classes contributes to the tangents of the fields of its rows."""
    logits, logits_dot = raw, raw_dot
    if soft_cap is not None:
        raw_dot = jnp.zeros_like(raw) if raw_dot is None else raw_dot
        soft_cap_dot = jnp.zeros_like(soft_cap) if soft_cap_dot is None else soft_cap_dot.astype(soft_cap.dtype)
        logits, logits_dot = jax.jvp(capped, (raw, soft_cap), (raw_dot, soft_cap_dot))
    return dense.tangent(
        (logits, labels, None, None, class_weights), fields, (logits_dot, None, None, None, class_weights_dot), axis=1
    )


def counted_from(labels, start):
    """Labels counted from a class on."""
    return labels - jnp.asarray(start).astype(labels.dtype)
