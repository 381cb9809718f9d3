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
from jaxce._axes import varying_like
from jaxce._dense import label_indices
from jaxce._kernels import blocked
from jaxce._kernels.blocked import Blocks
from jaxce._kernels.reference import capped, dot, dtype_of_logits, dtype_of_operands, masked, raw_logits
from jaxce._rule import with_rule
from jaxce._sharded import AxisName, across, merged, over_all, weight_of_label
from jaxce._stats import LogitStats


@functools.cache
def statistics(blocks: Blocks, axis_name: AxisName = None):
    """The fields of `LogitStats` as a function of the arguments of the contract, with their rule."""

    def primal(hidden, classifier, bias, labels, mask, class_weights, soft_cap):
        def of_tokens(_, rows):
            hidden, labels = rows
            return None, _fields(hidden, labels, classifier, bias, class_weights, soft_cap, blocks.classes)[0]

        return blocked.over_tokens(of_tokens, None, _rows(hidden, labels, mask), blocks.tokens)[1]

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
                w, b, u, w_dot, b_dot, u_dot = blocked.classes(
                    (classifier, bias, class_weights, classifier_dot, bias_dot, class_weights_dot), start, size
                )
                terms = [] if hidden_dot is None else [dot(hidden_dot, w, (1, 0))]
                terms += [] if w_dot is None else [dot(hidden, w_dot, (1, 0))]
                terms += [] if b_dot is None else [jnp.broadcast_to(b_dot, (hidden.shape[0], size))]
                raw_dot = sum(terms[1:], terms[0]) if terms else None
                raw = raw_logits(hidden, w, b)
                part = _fields_dot(raw, _from(labels, start), u, soft_cap, fields, raw_dot, u_dot, soft_cap_dot)
                return tuple(map(jnp.add, total, part))

            zeros = varying_like(tuple(map(jnp.zeros_like, fields)), (args, tangents))
            # What reverse mode would keep of every block is made again instead.
            again = jax.checkpoint(of_classes, prevent_cse=False, static_argnums=2)
            return None, blocked.over_classes(again, zeros, classifier.shape[1], blocks.classes)

        rows = (_rows(hidden, labels, mask), hidden_dot, outs)
        return blocked.over_tokens(of_tokens, None, rows, blocks.tokens)[1]

    return with_rule(*across(axis_name, primal, tangent))


def total_with_gradients(
    losses, used, args, blocks: Blocks, axis_name: AxisName = None, *, of_hidden: bool, of_classifier: bool
):
    """The sum of the losses of all tokens, and its gradients, made in the same pass over the tokens.

    Masked tokens come last, and blocks of nothing else are not visited: with a mask the number of blocks is dynamic. Up to jax 0.11.2 reverse
    mode through a loop of the caller's takes second derivatives from this code, and with several blocks under a mask it refuses to.

    Args:
      losses: `losses(fields, label_weight, mask, options)` gives the losses of a block of tokens from the fields of their `LogitStats`.
      used: The indices of the fields by which `losses` is to be differentiated: those that it makes use of.
      args: The arguments of the contract, then `options`, a pytree of scalars that only `losses` sees.
      blocks: Where a block has all classes, gradients take three matmuls in all, otherwise four.
      of_hidden: Whether the gradient by `hidden` is wanted, which takes one of them.
      of_classifier: The same for `classifier`.
      axis_name: Merging the statistics of a block of tokens is all that is communicated: no gradient is summed over devices.

    Returns:
      The sum, and in the dtype of the statistics the gradients by hidden, classifier, bias, class_weights, soft_cap and options: but for the
      last, which are whole, of what the classes given contribute.
    """
    hidden, classifier, bias, labels, mask, class_weights, soft_cap, options = args
    dtype = dtype_of_logits(hidden, classifier)
    tokens, num_classes = hidden.shape[0], classifier.shape[1]

    def zeros(tree, but=()):
        return varying_like(jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), tree), args, but=but)

    def of_tokens(carry, rows):
        total, (classifier_sum, bias_sum, weights_sum, cap_sum, options_sum) = carry
        (hidden, labels), mask = rows
        own_fields, whole_raw = _fields(hidden, labels, classifier, bias, class_weights, soft_cap, blocks.classes)
        fields = merged(own_fields, axis_name)
        own_weight, pull_weight = jax.vjp(lambda u: weight_of_label(u, labels), class_weights)

        def of_losses(some, label_weight, options):
            whole = list(fields)
            for i, field in zip(used, some, strict=True):
                whole[i] = field
            return jnp.sum(losses(whole, label_weight, mask, options))

        value, pull = jax.vjp(of_losses, [fields[i] for i in used], over_all(own_weight, axis_name), options)
        fields_ct, weight_ct, options_ct = pull(jnp.ones_like(value))
        fields_ct, weight_ct = varying_like((fields_ct, weight_ct), args)
        (weights_ct,) = pull_weight(weight_ct)
        transposed = lax.optimization_barrier(hidden.T)  # once: a matmul by a transposed operand is slower on a CPU

        def of_classes(carry, start, size):
            hidden_ct, classifier_ct, bias_ct, weights_ct, cap_ct = carry
            w, b, u = blocked.classes((classifier, bias, class_weights), start, size)
            raw = raw_logits(hidden, w, b) if whole_raw is None else whole_raw

            def linear(raw_dot, u_dot, cap_dot):
                dots = _fields_dot(raw, _from(labels, start), u, soft_cap, fields, raw_dot, u_dot, cap_dot)
                return [dots[i] for i in used]

            raw_ct, u_ct, cap_part = jax.linear_transpose(linear, raw, *zeros((u, soft_cap)))(fields_ct)
            narrow = raw_ct.astype(dtype_of_operands(hidden, classifier))
            if of_hidden:
                hidden_ct = hidden_ct + dot(narrow, w, (1, 1))
            if of_classifier:
                classifier_ct = blocked.add_matmul(classifier_ct, transposed, narrow, start)
            if bias is not None:
                bias_ct = blocked.add_at(bias_ct, jnp.sum(raw_ct, 0), start)
            if u is not None:
                weights_ct = blocked.add_at(weights_ct, u_ct, start)
            if soft_cap is not None:
                cap_ct = cap_ct + cap_part
            return hidden_ct, classifier_ct, bias_ct, weights_ct, cap_ct

        sums = (zeros(hidden) if of_hidden else None, classifier_sum, bias_sum, weights_sum, cap_sum)
        sums = blocked.over_classes(of_classes, sums, num_classes, blocks.classes)
        hidden_ct, classifier_sum, bias_sum, weights_sum, cap_sum = sums
        weights_sum, options_sum = jax.tree.map(
            lambda a, b: a + b.astype(dtype), (weights_sum, options_sum), (weights_ct, options_ct)
        )
        return (total + value, (classifier_sum, bias_sum, weights_sum, cap_sum, options_sum)), hidden_ct

    sums = (zeros(classifier) if of_classifier else None, *zeros((bias, class_weights, soft_cap)))
    total, of_options = zeros((jnp.zeros(()), options), but=axis_name or ())
    carry, rows = (total, (*sums, of_options)), (_rows(hidden, labels, mask), mask)
    if blocks.tokens >= tokens:
        (total, sums), hidden_ct = of_tokens(carry, rows)
    else:
        # Where blocks communicate, every device visits all of them: each takes part in as many merges as any other.
        skips = axis_name is None
        (total, sums), hidden_ct = blocked.over_valid_tokens(
            of_tokens, carry, rows, mask, blocks.tokens, of_hidden, skips
        )
    return total, (hidden_ct, *sums)


def _rows(hidden, labels, mask):
    """What a block of tokens takes: a masked one holds nothing that could spread."""
    return masked(hidden, mask), label_indices(labels, mask)


def _fields(hidden, labels, classifier, bias, class_weights, soft_cap, block):
    """The fields of `LogitStats` of a block of tokens, merged over blocks of classes.

    And the logits before their cap, if one block has all the classes.
    """
    num_classes = classifier.shape[1]

    def of_raw(raw, start, class_weights):
        return dense.statistics(1)(capped(raw, soft_cap), _from(labels, start), None, None, class_weights)

    def of_classes(fields, start, size):
        w, b, u = blocked.classes((classifier, bias, class_weights), start, size)
        return _merged(fields, of_raw(raw_logits(hidden, w, b), start, u))

    if block >= num_classes:
        raw = raw_logits(hidden, classifier, bias)
        return of_raw(raw, 0, class_weights), raw
    none = jnp.zeros(hidden.shape[0], dtype_of_logits(hidden, classifier))
    start = varying_like(
        (jnp.full_like(none, -jnp.inf), *(none,) * 6), (hidden, labels, classifier, bias, class_weights, soft_cap)
    )
    return blocked.over_classes(of_classes, start, num_classes, block), None


def _merged(a, b):
    merged = LogitStats.merge(LogitStats(*a, integer_labels=True), LogitStats(*b, integer_labels=True))
    return tuple(getattr(merged, field.name) for field in dataclasses.fields(merged)[:-1])


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


def _from(labels, start):
    """Labels counted from a class on."""
    return labels - jnp.asarray(start).astype(labels.dtype)
