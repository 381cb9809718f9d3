"""The sum of the losses of a linear layer with its gradients, made in one pass over blocks of tokens; see `chunked` for a block of logits."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxce._axes import varying_like
from jaxce._kernels import blocked
from jaxce._kernels.blocked import Blocks
from jaxce._kernels.chunked import counted_from, fields_dot, fields_of, rows_of
from jaxce._kernels.reference import dot, dtype_of_logits, dtype_of_operands, raw_logits
from jaxce._sharded import AxisName, merged, over_all, weight_of_label


def total_with_gradients(
    losses,
    used,
    args,
    blocks: Blocks,
    axis_name: AxisName = None,
    *,
    narrow: bool,
    of_hidden: bool,
    of_classifier: bool,
):
    """The sum of the losses of all tokens, and its gradients, made in the same pass over the tokens.

    Masked tokens come last, and blocks of nothing else are not visited: with a mask the number of blocks is dynamic.

    Args:
      losses: `losses(fields, label_weight, mask, options)` gives the losses of a block of tokens from the fields of their `LogitStats`.
      used: The indices of the fields by which `losses` is to be differentiated: those that it makes use of.
      args: The arguments of the contract, then `options`, a pytree of scalars that only `losses` sees.
      blocks: Where a block has all classes, gradients take three matmuls in all, otherwise four.
      narrow: Whether the gradients by the logits are rounded to the dtype of the operands before they are multiplied.
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
    is_whole = blocked.has_all(blocks.classes, num_classes)

    def zeros(tree, but=()):
        return varying_like(jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), tree), args, but=but)

    def of_tokens(carry, rows):
        total, (classifier_sum, bias_sum, weights_sum, cap_sum, options_sum) = carry
        (hidden, labels), mask = rows
        own_fields, whole_raw = fields_of(hidden, labels, classifier, bias, class_weights, soft_cap, blocks.classes)
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
        transposed = _transposed(hidden)

        def of_classes(carry, start, size):
            rows_ct, classifier_ct, bias_ct, weights_ct, cap_ct = carry
            w, b, u = blocked.classes((classifier, bias, class_weights), start, size)
            raw = raw_logits(hidden, w, b) if whole_raw is None else whole_raw

            def linear(raw_dot, u_dot, cap_dot):
                dots = fields_dot(raw, counted_from(labels, start), u, soft_cap, fields, raw_dot, u_dot, cap_dot)
                return [dots[i] for i in used]

            raw_ct, u_ct, cap_part = jax.linear_transpose(linear, raw, *zeros((u, soft_cap)))(fields_ct)
            slopes = raw_ct.astype(dtype_of_operands(hidden, classifier)) if narrow else raw_ct
            if is_whole:
                rows_ct = slopes if of_hidden or of_classifier else None
            else:
                rows_ct, classifier_ct = add_products(rows_ct, classifier_ct, slopes, transposed, w, start)
            if bias is not None:
                bias_ct = blocked.add_at(bias_ct, jnp.sum(raw_ct, 0), start)
            if u is not None:
                weights_ct = blocked.add_at(weights_ct, u_ct, start)
            if soft_cap is not None:
                cap_ct = cap_ct + cap_part
            return rows_ct, classifier_ct, bias_ct, weights_ct, cap_ct

        sums = (nothing_of(hidden), classifier_sum, bias_sum, weights_sum, cap_sum)
        sums = blocked.over_classes(of_classes, sums, num_classes, blocks.classes)
        rows_ct, classifier_sum, bias_sum, weights_sum, cap_sum = sums
        weights_sum, options_sum = jax.tree.map(
            lambda a, b: a + b.astype(dtype), (weights_sum, options_sum), (weights_ct, options_ct)
        )
        return (total + value, (classifier_sum, bias_sum, weights_sum, cap_sum, options_sum)), rows_ct

    def add_products(hidden_ct, classifier_ct, slopes, transposed, w, start):
        if of_hidden:
            hidden_ct = hidden_ct + dot(slopes, w, (1, 1))
        if of_classifier:
            classifier_ct = blocked.add_matmul(classifier_ct, transposed, slopes, start)
        return hidden_ct, classifier_ct

    def nothing_of(hidden):
        return zeros(hidden) if of_hidden else None

    def gather(carry, hidden, rows_ct):
        """Of slopes of whole rows the products, of all tokens that are gathered at once."""
        if rows_ct is None or not is_whole:
            return carry, rows_ct
        total, (classifier_sum, *sums) = carry
        hidden_ct, classifier_sum = add_products(
            nothing_of(hidden), classifier_sum, rows_ct, _transposed(hidden), classifier, 0
        )
        return (total, (classifier_sum, *sums)), hidden_ct

    sums = (zeros(classifier) if of_classifier else None, *zeros((bias, class_weights, soft_cap)))
    total, of_options = zeros((jnp.zeros(()), options), but=axis_name or ())
    carry, rows = (total, (*sums, of_options)), (rows_of(hidden, labels, mask), mask)
    if blocked.has_all(blocks.tokens, tokens):
        carry, rows_ct = of_tokens(carry, rows)
        (total, sums), hidden_ct = gather(carry, rows[0][0], rows_ct)
    else:
        # Where blocks communicate, every device visits all of them: each takes part in as many merges as any other.
        skips = axis_name is None
        (total, sums), hidden_ct = blocked.over_valid_tokens(of_tokens, gather, carry, rows, mask, blocks, skips)
    return total, (hidden_ct, *sums)


def _transposed(hidden):
    """The transpose, made once: a matmul by a transposed operand is slower on a CPU."""
    return lax.optimization_barrier(hidden.T)
