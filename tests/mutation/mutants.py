"""The mutants: small wrong versions of the losses, each of which some test must refuse.

Among them is every bug that other libraries shipped and that can be written in this code: classes padded with 0, classes counted twice,
a label of -1 read as the last class, a label outside the classes with loss 0 or with a finite gradient, labels that broadcast, `log_z - z_y`
and `p - 1` without digits, NaN tangents at -inf, a z-loss without its gradient, a mean of means.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    module: str  # of the package
    old: str  # stands in it exactly once
    new: str
    tests: tuple[str, ...]  # files, or tests of them, to try before all others


def _of(module, tests, *mutants):
    return [Mutant(name, module, old, new, tuple(tests)) for name, old, new in mutants]


# Tests that mutants of several modules meet.
_OF_LABELS = [
    "values::test_a_label_that_is_no_class_gives_nan_to_its_row_alone",
    "values::test_labels_are_never_wrapped_to_another_dtype",
    "softmax::test_any_shape_and_class_axis",
    "softmax::test_labels_of_any_integer_dtype",
]
_OF_MASKED_ROWS = [
    "masks::test_masked_row_has_zero_loss_and_gradient_whatever_it_holds",
    "masks::test_masked_row_of_nan_is_nowhere_in_any_derivative",
    "linear::test_masked_token_costs_nothing_and_poisons_nothing",
]
_OF_CLASSES_LEFT_OUT = [
    "masks::test_masked_row_has_zero_loss_and_gradient_whatever_it_holds",
    "values::test_excluded_true_class_makes_the_loss_infinite",
    "values::test_class_probability_0_on_minus_infinity_is_0_in_value_vjp_and_jvp",
    "values::test_excluded_class_takes_no_part_and_has_zero_gradient",
    "values::test_lowest_finite_logit_is_a_class_like_any_other",
    "softmax::test_options_and_their_combinations",
    "rule::test_second_derivatives_of_every_input_in_every_mode",
]
_OF_DIGITS = [
    "accuracy::test_a_tiny_loss_and_its_gradient_keep_every_digit",
    "softmax::test_hard_logits",
    "values::test_infinite_logit_alone_as_the_true_class_costs_nothing",
    "stats::test_two_blocks_of_minus_infinity_are_still_none",
    "softmax::test_class_probabilities_need_not_sum_to_one",
    "values::test_infinite_logit_of_the_only_class_costs_nothing_smoothed_either",
    "values::test_infinite_logit_as_the_true_class_is_no_loss_when_smoothing_asks_for_others",
    "softmax::test_small_probability_keeps_its_digits_even_as_the_largest",
    "softmax::test_class_probabilities_most_of_which_are_the_largest_logits",
    "softmax::test_any_shape_and_class_axis",
    "accuracy::test_softmax_values_and_gradients",
]
_OF_HESSIANS = [
    "hessians::test_hessian_in_four_orders",
    "hessians::test_hessian_where_the_maximum_is_the_largest_number",
    "hessians::test_hessian_through_loops_and_checkpoint",
    "rule::test_second_derivatives_of_every_input_in_every_mode",
]


MUTANTS = [
    # Labels
    *_of(
        "_dense",
        _OF_LABELS,
        (
            "label_mass of any label is 1",
            "label_mass = is_class.astype(dtype)",
            "label_mass = jnp.ones_like(is_class, dtype)",
        ),
        (
            "negative labels are inside",
            "is_class = (labels >= 0) & (labels < logits.shape[axis])",
            "is_class = labels < logits.shape[axis]",
        ),
        ("label C is inside", "labels < logits.shape[axis]", "labels <= logits.shape[axis]"),
        (
            "the last class is outside",
            "(labels >= 0) & (labels < logits.shape[axis])",
            "(labels >= 0) & (labels < logits.shape[axis] - 1)",
        ),
        (
            "class 0 is outside",
            "is_class = (labels >= 0) & (labels < logits.shape[axis])",
            "is_class = (labels > 0) & (labels < logits.shape[axis])",
        ),
    ),
    *_of(
        "_reading",
        _OF_LABELS,
        (
            "narrow labels stay narrow",
            "labels = labels if labels.dtype.itemsize >= 4 else apart(labels.astype(jnp.int32))",
            "labels = labels",
        ),
        (
            "wide labels are cut to 32 bits",
            "labels if labels.dtype.itemsize >= 4 else apart(labels.astype(jnp.int32))",
            "labels.astype(jnp.int32)",
        ),
    ),
    *_of(
        "_reading",
        _OF_MASKED_ROWS,
        ("labels of masked rows are read", "labels if mask is None else jnp.where(mask, labels, 0)", "labels"),
        (
            "probabilities of masked rows are read",
            "return labels if mask is None else jnp.where(per_row(mask, axis), labels, jnp.zeros((), labels.dtype))",
            "return labels",
        ),
    ),
    *_of(
        "_softmax",
        [
            "values::test_a_label_that_is_no_class_gives_nan_to_its_row_alone",
        ],
        (
            "label -1 is the last class",
            "labels = checks.class_indices(labels, logits, axis)",
            "labels = (lambda y: jnp.where(y < 0, y + jnp.asarray(logits.shape[axis], y.dtype), y))(checks.class_indices(labels, logits, axis))",
        ),
        (
            "labels outside the classes are clipped",
            "labels = checks.class_indices(labels, logits, axis)",
            "labels = jnp.clip(checks.class_indices(labels, logits, axis), 0, logits.shape[axis] - 1)",
        ),
    ),
    *_of(
        "_stats",
        [
            "values::test_a_label_that_is_no_class_gives_nan_to_its_row_alone",
            "values::test_row_without_a_loss_trains_nothing",
            "values::test_infinite_logit_alone_as_the_true_class_costs_nothing",
            "values::test_row_without_a_loss_is_nan_and_others_are_untouched",
        ],
        ("a label that is no class has loss 0", "            defined &= self.label_mass != 0\n", "            pass\n"),
        (
            "a NaN loss has a finite gradient",
            "values * jnp.where(defined, 1, jnp.nan).astype(values.dtype)",
            "jnp.where(defined, values, jnp.nan)",
        ),
        ("a row without a loss has loss 0", "jnp.where(defined, 1, jnp.nan)", "jnp.where(defined, 1, 0)"),
        ("a row of no classes has a loss", "(shift > -jnp.inf) & (", "(shift == shift) & ("),
        ("a +inf logit is no loss, even as the true class", "((shift < jnp.inf) | (nll == 0))", "(shift < jnp.inf)"),
        ("a +inf logit is like any other", "((shift < jnp.inf) | (nll == 0))", "(shift == shift)"),
        (
            "any nll of a row with a +inf logit counts",
            "(shift < jnp.inf) | (nll == 0)",
            "(shift < jnp.inf) | (nll >= 0)",
        ),
    ),
    # Masks and classes that take no part
    *_of(
        "_softmax",
        _OF_MASKED_ROWS,
        ("losses of masked rows stay", "return loss if mask is None else jnp.where(mask, loss, 0)", "return loss"),
        ("the mask is turned round", "jnp.where(mask, loss, 0)", "jnp.where(mask, 0, loss)"),
        (
            "a NaN probability of a masked row reaches the gradient of the weights",
            "            if mask is not None:\n                labels = jnp.where(",
            "            if False:\n                labels = jnp.where(",
        ),
    ),
    *_of(
        "_reading",
        _OF_CLASSES_LEFT_OUT,
        ("masked rows are read", "return z if mask is None else jnp.where(per_row(mask, axis), z, 0)", "return z"),
        (
            "excluded classes have a gradient as of their weight",
            "return jnp.where(z > -jnp.inf, weights, jnp.zeros((), z.dtype))",
            "return jnp.broadcast_to(jnp.asarray(weights, z.dtype), z.shape)",
        ),
    ),
    *_of(
        "_slopes",
        _OF_CLASSES_LEFT_OUT,
        ("tangents of classes left out count", "z_dot = jnp.where(where, z_dot, 0)", "z_dot = z_dot"),
    ),
    *_of(
        "_dense",
        _OF_CLASSES_LEFT_OUT,
        ("an infinite gap of the total is NaN", "* jnp.minimum(largest, -below)", "* -below"),
        (
            "excluded classes are counted",
            "total_mass = sum_of(_weight, *bounds, after=label_gap)",
            "total_mass = sum_of(lambda z, *_: jnp.ones_like(z), *bounds, after=label_gap)",
        ),
        (
            "excluded classes count in the mass of the weights",
            "total_mass = sum_of(_weight, *bounds, beside=u, after=num_classes)",
            "total_mass = sum_of(lambda z, *rest: rest[-1] * jnp.ones_like(z), *bounds, beside=u, after=num_classes)",
        ),
        (
            "the lowest finite logit is excluded",
            "bounds = (0, 0.5, 1, largest)",
            "bounds = (0, 1, 1, largest)",
        ),
        (
            "NaN tangents by the labels at -inf",
            "nll = jnp.where(z > -jnp.inf, per_row(jnp.log1p(rest), axis) - below(z, shift, axis), 0)",
            "nll = per_row(jnp.log1p(rest), axis) - below(z, shift, axis)",
        ),
        (
            "excluded classes have a gradient by their weights",
            "u_dot = jnp.where(z > -jnp.inf, per_class(class_weights_dot.astype(z.dtype), axis, z.ndim), 0)",
            "u_dot = jnp.broadcast_to(per_class(class_weights_dot.astype(z.dtype), axis, z.ndim), z.shape)",
        ),
    ),
    # Digits
    *_of(
        "_dense",
        _OF_DIGITS,
        (
            "the loss is log_z - z_y",
            "label_mass * log_norm + label_gap",
            "label_mass * (finite(shift) + log_norm) - (label_mass * finite(shift) - label_gap)",
        ),
        ("log of 1 + rest", "log_norm = jnp.log1p(rest)", "log_norm = jnp.log(1 + rest)"),
        ("a clipped loss", "log_norm = jnp.log1p(rest)", "log_norm = jnp.log1p(jnp.maximum(rest, 1e-7))"),
        ("a label at +inf has a loss of -inf", "finite(shift) - capped(of_label)", "finite(shift) - of_label"),
        (
            "a +inf logit has a total of -inf",
            "total_gap = jnp.where(shift < jnp.inf, total_gap, jnp.where(num_classes == 1, 0, jnp.inf))",
            "total_gap = total_gap",
        ),
        ("a +inf logit costs the total nothing", "jnp.where(num_classes == 1, 0, jnp.inf)", "0"),
        ("a +inf logit costs the total, even alone", "jnp.where(num_classes == 1, 0, jnp.inf)", "jnp.inf"),
    ),
    *_of(
        "_slopes",
        _OF_DIGITS,
        (
            "the gradient is p - 1",
            "jnp.where(label_nll < 0.5, jnp.expm1(-label_nll), jnp.exp(-label_nll) - 1)",
            "jnp.exp(-label_nll) - 1",
        ),
        (
            "the gradient is p - q",
            "jnp.where((gap == 0) & (2 * q > mass), near, per_row(label_mass * inverse, axis) * e - q)",
            "per_row(label_mass * inverse, axis) * e - q",
        ),
        (
            "a clipped exponential in the gradient",
            "jnp.exp(jnp.minimum(1, z - per_row(finite(shift), axis)))",
            "jnp.exp(jnp.clip(z - per_row(finite(shift), axis), -80, 1))",
        ),
        ("near q == p for any label", "(gap == 0) & (2 * q > mass)", "gap == 0"),
        ("near q == p, q is label_mass", "* per_row(inverse, axis) + (mass - q)", "* per_row(inverse, axis)"),
    ),
    *_of(
        "_slopes",
        _OF_HESSIANS,
        (
            "the derivative of a small p is 1 more than its value",
            "jnp.where(label_nll < 0.5, jnp.expm1(-label_nll), jnp.exp(-label_nll) - 1)",
            "jnp.expm1(-label_nll)",
        ),
        ("near p == q, e is a constant", "((e - 1) - per_row(rest, axis)) *", "(0 - per_row(rest, axis)) *"),
    ),
    # The rule
    *_of(
        "_slopes",
        [
            "softmax::test_options_and_their_combinations",
            "stats::test_gradient_flows_through_merges",
            "rule::test_derivatives_of_every_statistic",
            "stats::test_an_infinite_logit_moves_no_rest",
        ],
        (
            "the gradient has the other sign",
            "return [jnp.sum(of * z_dot, axis) for of in (_of_rest(z, e), of_label, of_total)]",
            "return [jnp.sum(of * z_dot, axis) for of in (_of_rest(z, e), -of_label, of_total)]",
        ),
        (
            "p of total_nll is not weighed",
            "return total_mass * (1 / (1 + rest))",
            "return 1 / (1 + rest)",
        ),
        (
            "p of label_nll is not weighed",
            "per_row(label_mass * inverse, axis) * e - q)",
            "per_row(inverse, axis) * e - q)",
        ),
        (
            "rest has no tangent",
            "for of in (_of_rest(z, e), of_label, of_total)]",
            "for of in (0 * e, of_label, of_total)]",
        ),
        ("a capped logit moves the rest", "return jnp.where(z == jnp.inf, 0, e)", "return e"),
        (
            "rest has the tangent of log_norm",
            "for of in (_of_rest(z, e), of_label, of_total)]",
            "for of in (_of_rest(z, per_row(1 / (1 + rest), axis) * e), of_label, of_total)]",
        ),
    ),
    *_of(
        "_dense",
        [
            "softmax::test_options_and_their_combinations",
            "stats::test_gradient_flows_through_merges",
            "rule::test_derivatives_of_statistics_by_class_probabilities",
            "rule::test_derivatives_of_every_statistic",
            "stats::test_an_infinite_logit_moves_no_rest",
        ],
        ("a label in a row of no class is correct", "(of_label == shift) & (shift > -jnp.inf)", "(of_label == shift)"),
        (
            "the gap of a label that is no class counts",
            "jnp.where(is_class, finite(shift) - capped(of_label), 0)",
            "finite(shift) - capped(of_label)",
        ),
        ("labels have no gradient", "label_nll_dot = label_nll_dot + jnp.sum(nll * q_dot, axis)", "pass"),
        (
            "the gradient of labels replaces the one of logits",
            "label_nll_dot = label_nll_dot + jnp.sum(nll * q_dot, axis)",
            "label_nll_dot = jnp.sum(nll * q_dot, axis)",
        ),
        ("label_mass has no tangent", "label_mass_dot = jnp.sum(q_dot, axis)", "pass"),
        ("class weights have no gradient", "total_nll_dot = total_nll_dot + jnp.sum(nll * u_dot, axis)", "pass"),
        ("total_mass has no tangent", "total_mass_dot = jnp.sum(u_dot, axis)", "pass"),
    ),
    *_of(
        "_transpose",
        ["derivatives_of_every_dtype", "compositions"],
        (
            "a batch loses its transpose",
            "outs = _linear.bind(x, *leaves, code=code_of_batch, transpose=transpose_of_batch)",
            "outs = jaxpr_as_fun(code_of_batch)(x, *leaves)",
        ),
        ("what is not batched becomes a batch", "if all(dim is None for dim in dims):", "if False:"),
    ),
    *_of(
        "_rule",
        [
            "rule::test_reverse_pass_keeps_the_logits_in_their_own_dtype_and_numbers_per_row",
            "hessians::test_hessian_in_four_orders",
            "rule",
            "transforms",
        ],
        (
            "nothing is recomputed",
            "return jax.checkpoint(function, prevent_cse=False, policy=policy)",
            "return function",
        ),
        (
            "everything is saved",
            "policy = jax.checkpoint_policies.save_only_these_names(_NAME)",
            "policy = jax.checkpoint_policies.everything_saveable",
        ),
        (
            "statistics have no name",
            "outs = tuple(checkpoint_name(out, _NAME) for out in function(*args))",
            "outs = tuple(function(*args))",
        ),
        (
            "second derivatives miss the rule",
            "for out in function(*args))",
            "for out in jax.lax.stop_gradient(function(*args)))",
        ),
        (
            "an absent tangent is differentiated",
            "absent = tangent is None or isinstance(tangent, SymbolicZero) or",
            "absent = tangent is None or",
        ),
    ),
    *_of(
        "_rule",
        [
            "hessians::test_second_derivatives_of_long_rows_through_a_loop",
            "hessians::test_hessian_through_loops_and_checkpoint",
        ],
        (
            "a batch has the tangents of its first",
            "[None if t is None else dim for t, dim in zip(",
            "[None for t, dim in zip(",
        ),
        (
            "a loop forgets the rule",
            "return made_of(primal(*jax.tree.map(lax.stop_gradient, args)), args, tangent)",
            "return primal(*args)",
        ),
    ),
    # dtypes and axes
    *_of(
        "_types",
        [
            "stats::test_statistics_of_small_dtypes_are_float32",
            "stats::test_statistics_of_float64_are_float64",
        ],
        ("small dtypes are worked in as they are", "else jnp.float32)", "else values.dtype)"),
        (
            "float64 is worked in as float32",
            "jnp.float64 if values.dtype == jnp.float64 else jnp.float32",
            "jnp.float32",
        ),
    ),
    *_of(
        "_axes",
        [
            "softmax::test_any_shape_and_class_axis",
            "softmax::test_options_and_their_combinations",
        ],
        ("rows lie along the last axis", "return jnp.expand_dims(rows, axis)", "return jnp.expand_dims(rows, -1)"),
        ("classes lie along the last axis", "tuple(i for i in range(ndim) if i != axis)", "tuple(range(ndim - 1))"),
    ),
    # Options
    *_of(
        "_stats",
        [
            "softmax::test_options_and_their_combinations",
        ],
        ("smoothing is spread over 5 classes", "self.total_nll) / num_classes", "self.total_nll) / 5"),
        ("smoothing is not spread", "self.total_nll) / num_classes", "self.total_nll)"),
        (
            "a block's correct labels stay correct",
            "jnp.where(b.shift == shift, b.top_label_mass, 0)",
            "b.top_label_mass",
        ),
    ),
    *_of(
        "_softmax",
        [
            "softmax::test_options_and_their_combinations",
        ],
        (
            "smoothing adds to the whole loss",
            "_weighted(1 - s, loss) + s * stats.smooth_nll",
            "loss + s * stats.smooth_nll",
        ),
        (
            "smoothing is turned round",
            "_weighted(1 - s, loss) + s * stats.smooth_nll",
            "s * loss + (1 - s) * stats.smooth_nll",
        ),
        ("the weight of the label is lost", "loss = _weighted(label_weight.astype(dtype), loss)", "loss = 1 * loss"),
        ("z-loss of log_norm", "jnp.square(stats.log_z)", "jnp.square(stats.log_norm)"),
        ("z-loss without a square", "jnp.square(stats.log_z)", "jnp.abs(stats.log_z)"),
        ("z-loss has no gradient", "jnp.square(stats.log_z)", "jax.lax.stop_gradient(jnp.square(stats.log_z))"),
        ("z-loss is taken away", "loss = loss + z_loss.astype(dtype)", "loss = loss - z_loss.astype(dtype)"),
        ("z-loss replaces the loss", "loss = loss + z_loss.astype(dtype)", "loss = z_loss.astype(dtype)"),
        ("class probabilities are not weighed", "* per_class(class_weights.astype(dtype), axis, logits.ndim)", "* 1"),
        (
            "weights are lost to smoothing",
            "dense_stats(logits, labels, where, mask, class_weights, axis=axis, axis_name=axis_name)",
            "dense_stats(logits, labels, where, mask, None, axis=axis, axis_name=axis_name)",
        ),
        ("where is lost", "dense_stats(logits, labels, where, mask,", "dense_stats(logits, labels, None, mask,"),
    ),
    *_of(
        "_dense",
        [
            "softmax::test_options_and_their_combinations",
        ],
        (
            "class weights are lost",
            "u = per_class(class_weights.astype(dtype), axis, logits.ndim)",
            "u = jnp.ones_like(per_class(class_weights.astype(dtype), axis, logits.ndim))",
        ),
        (
            "the total is not weighed by class",
            "total_gap = sum_of(_weighted_gap, *bounds, beside=u, after=total_mass)",
            "total_gap = sum_of(_weighted_gap, *bounds, after=total_mass)",
        ),
        (
            "the mass of the weights is the number of classes",
            "total_mass = sum_of(_weight, *bounds, beside=u, after=num_classes)",
            "total_mass = num_classes",
        ),
        (
            "the number of classes is the mass of the weights",
            "        total_mass = sum_of(_weight, *bounds, beside=u, after=num_classes)",
            "        num_classes = total_mass = sum_of(_weight, *bounds, beside=u, after=num_classes)",
        ),
    ),
    *_of(
        "_reading",
        [
            "softmax::test_options_and_their_combinations",
        ],
        (
            "class weights are lost to the gradient",
            "per_class(class_weights.astype(z.dtype), axis, z.ndim)\n    return",
            "1\n    return",
        ),
    ),
    # One reading
    *_of(
        "_online",
        ["online", "stats"],
        (
            "the smaller maximum is the shift",
            "shift = jnp.where(is_first, shift_a, shift_b)",
            "shift = jnp.where(is_first, shift_b, shift_a)",
        ),
        ("the first maximum is the shift", "shift = jnp.where(is_first, shift_a, shift_b)", "shift = shift_a"),
        (
            "the smaller sum is the larger",
            "jnp.where(is_first, rest_a + (1 + rest_b) * e, rest_b + (1 + rest_a) * e)",
            "jnp.where(is_first, rest_b + (1 + rest_a) * e, rest_a + (1 + rest_b) * e)",
        ),
        ("the first set counts twice", "rest_a + (1 + rest_b) * e,", "rest_a + (1 + rest_a) * e,"),
        ("joining forgets the maximum of a set", "rest_a + (1 + rest_b) * e,", "rest_a + rest_b * e,"),
        ("equal infinities are not equal", "jnp.where(jnp.isnan(below), 0, below)", "below"),
        ("a NaN is lost", "shift = jnp.where(jnp.isnan(rest), jnp.nan, shift)", "shift = shift"),
        ("a row of no classes has a rest", "return shift, jnp.where(shift == -jnp.inf, 0, rest)", "return shift, rest"),
        (
            "the maximum is not empty at first",
            "lax.complex(dtype.type(-jnp.inf), dtype.type(-1))",
            "lax.complex(dtype.type(-1e9), dtype.type(-1))",
        ),
        (
            "equal infinities of one step are NaN",
            "[jnp.where(z == shift, 0, z - shift) for z in others]",
            "[z - shift for z in others]",
        ),
        (
            "a step counts its maximum",
            "jnp.where(shift == -jnp.inf, -1, _sum(",
            "jnp.where(shift == -jnp.inf, -1, 1 + _sum(",
        ),
        ("the maximum of a step is among the others", "others += [jnp.minimum(a, b)", "others += [jnp.maximum(a, b)"),
        ("an odd term is lost", "strict=False)] + odd", "strict=False)]"),
        ("slices are filled up with 0", "lax.pad(part, least, [", "lax.pad(part, jnp.zeros_like(least), ["),
        ("the last classes are left out", "size = -(-length // number)", "size = length // number"),
        ("slices begin a class early", "min(start, length), min", "max(0, min(start, length) - 1), min"),
        (
            "pairs are filled up with half a -inf",
            "jnp.full(2, -jnp.inf, logits.dtype)",
            "jnp.asarray([-jnp.inf, 0], logits.dtype)",
        ),
    ),
    # Merging
    *_of(
        "_stats",
        [
            "stats::test_statistics_of_blocks_merge_into_those_of_all_classes",
            "stats::test_a_block_of_minus_infinity_is_neutral",
            "stats::test_two_blocks_of_minus_infinity_are_still_none",
            "stats::test_merge_keeps_the_digits_of_blocks_far_apart",
            "stats::test_gradient_flows_through_merges",
            "stats",
        ],
        (
            "merge forgets half of the classes of a label",
            "_among_more(b.label_nll, b.label_mass, b.shift, -b_over_a)",
            "b.label_nll",
        ),
        (
            "merge of total_nll is the wrong way round",
            "_among_more(b.total_nll, b.total_mass, b.shift, -b_over_a)",
            "_among_more(b.total_nll, b.total_mass, b.shift, b_over_a)",
        ),
        ("merge compares maxima alone", "b_over_a = step + (b.log_norm - a.log_norm)", "b_over_a = step"),
        ("an empty block is not neutral", "jnp.where(empty, 0, increase)", "increase"),
        ("any empty block is neutral", "empty = (shift == -jnp.inf) & (mass == 0)", "empty = shift == -jnp.inf"),
        ("merge of two empty blocks has a rest", "rest=jnp.where(shift == -jnp.inf, 0, rest)", "rest=rest"),
        (
            "merge counts the first block twice",
            "online.joined((a.shift, a.rest), (b.shift, b.rest))",
            "online.joined((a.shift, a.rest), (b.shift, a.rest))",
        ),
        (
            "the increase of a merge overflows",
            "increase = jax.nn.softplus(others_over_own)",
            "increase = jnp.log1p(jnp.exp(others_over_own))",
        ),
        ("merge weighs an increase by 1", "return nll + mass * jnp.where", "return nll + jnp.where"),
        (
            "merge counts the classes of one block",
            "0, a.num_classes + b.num_classes)",
            "0, a.num_classes)",
        ),
        (
            "merge loses mass",
            "total_mass=a.total_mass + b.total_mass",
            "total_mass=jnp.maximum(a.total_mass, b.total_mass)",
        ),
        (
            "statistics forget the kind of their labels",
            "integer_labels = labels.ndim < logits.ndim",
            "integer_labels = False",
        ),
    ),
    # The sigmoid loss
    *_of(
        "_sigmoid",
        [
            "values::test_sigmoid_at_infinity_is_its_limit",
            "sigmoid::test_options_and_their_combinations",
            "sigmoid::test_hard_logits_keep_every_digit",
            "sigmoid::test_label_smoothing_from_none_to_all",
            "masks::test_sigmoid_masked_entry_has_zero_loss_and_gradient",
            "accuracy::test_sigmoid_values_and_gradients",
            "hessians::test_hessian_in_four_orders",
        ],
        (
            "max(x, 0) - x y + log_norm",
            "part = no * up + yes * (up - bounded)",
            "part = up - yes * bounded",
        ),
        (
            "yes and no change places",
            "part = no * up + yes * (up - bounded)",
            "part = yes * up + no * (up - bounded)",
        ),
        (
            "log of 1 + exp",
            "    log_norm = jnp.log1p(jnp.exp(-size))\n    bounded",
            "    log_norm = jnp.log(1 + jnp.exp(-size))\n    bounded",
        ),
        ("an infinite loss is the largest number", "times_excess(part, size, one, largest)", "part"),
        ("a weight weighs not all", "mass = None if others[-1] is None else yes + no", "mass = None"),
        (
            "no is 1 - yes after smoothing",
            "(1 - s) * yes + s / 2, (1 - s) * no + s / 2",
            "(1 - s) * yes + s / 2, 1 - ((1 - s) * yes + s / 2)",
        ),
        ("smoothing by s, not s / 2", "(1 - s) * yes + s / 2, (", "(1 - s) * yes + s, ("),
        (
            "0 times an infinite logit is NaN",
            "bounded = jnp.minimum(largest, jnp.maximum(least, x))",
            "bounded = x",
        ),
        (
            "the derivative is a difference",
            "jnp.where(x > 0, slope, -slope) * (1 / (1 + small))",
            "((yes + no) * jax.nn.sigmoid(x) - yes)",
        ),
        (
            "a sigmoid is 1 less the other",
            "jnp.where(x > 0, slope, -slope) * (1 / (1 + small))",
            "(no * jax.nn.sigmoid(x) - yes * (1 - jax.nn.sigmoid(x)))",
        ),
        (
            "pos_weight weighs both sides",
            "yes = yes * pos_weight.astype(dtype)",
            "yes, no = yes * pos_weight.astype(dtype), no * pos_weight.astype(dtype)",
        ),
        ("labels have no gradient", "loss_dot = loss_dot + yes_dot * (log_norm + jnp.where(x > 0, 0, size))", "pass"),
        (
            "log_norm is lost to the gradient of labels",
            "loss_dot = loss_dot + no_dot * (log_norm + jnp.where(x > 0, size, 0))",
            "loss_dot = loss_dot + no_dot * jnp.where(x > 0, size, 0)",
        ),
        ("losses that are masked stay", "return loss if mask is None else jnp.where(mask, loss, 0)", "return loss"),
        ("masked entries are read", "x, yes = jnp.where(mask, x, 0), jnp.where(mask, yes, 0)", "pass"),
        ("the size of x has no derivative at 0", "jnp.where(x > 0, x_dot, -x_dot)", "jnp.sign(x) * x_dot"),
    ),
    # LossSum
    *_of(
        "_loss_sum",
        ["loss_sum"],
        (
            "a mean over nothing is NaN",
            "jnp.where(none, 0, self.total) / jnp.where(none, 1, self.weight)",
            "self.total / self.weight",
        ),
        ("a mean over nothing has a gradient", "jnp.where(none, 0, self.total)", "self.total"),
        (
            "masked losses have their weight",
            "values, weights = jnp.where(mask, values, 0), jnp.where(mask, weights, 0)",
            "values = jnp.where(mask, values, 0)",
        ),
        (
            "masked losses multiply",
            "values, weights = jnp.where(mask, values, 0), jnp.where(mask, weights, 0)",
            "values, weights = values * mask.astype(dtype), weights * mask.astype(dtype)",
        ),
        ("the weights are not divided by", "jnp.where(none, 1, self.weight)", "1"),
        ("rounding errors are lost", "error + (a_remainder + b_remainder)", "a_remainder + b_remainder"),
        ("only the last rounding error is kept", "error + (a_remainder + b_remainder)", "error"),
        (
            "remainders are never added to the sum",
            "rounded, remainder = _two_sum(rounded, error + (a_remainder + b_remainder))",
            "remainder = error + (a_remainder + b_remainder)",
        ),
        (
            "losses are counted, not weighed",
            "jnp.sum(values * weights), jnp.sum(weights),",
            "jnp.sum(values * weights), jnp.sum(jnp.ones_like(weights)),",
        ),
        (
            "the total is not weighed",
            "jnp.sum(values * weights), jnp.sum(weights)",
            "jnp.sum(values), jnp.sum(weights)",
        ),
        (
            "psum of the total alone",
            "return jax.tree.map(lambda x: lax.psum(x, axis_name), self)",
            "return LossSum(lax.psum(self.total, axis_name), self.weight)",
        ),
        (
            "the mean of the means of devices",
            "jax.tree.map(lambda x: lax.psum(x, axis_name), self)",
            "LossSum(lax.pmean(self.mean(), axis_name), jnp.ones_like(self.weight))",
        ),
        (
            "the mean of means of micro-batches",
            "LossSum(total, weight, total_remainder, weight_remainder)",
            "LossSum(self.mean() + other.mean(), jnp.float32(2))",
        ),
        (
            "plus loses a weight",
            "LossSum(total, weight, total_remainder",
            "LossSum(total, self.weight, total_remainder",
        ),
    ),
    # Checks
    *_of(
        "_checks",
        ["checks"],
        (
            "labels may have any shape of that size",
            "    if value.shape != rows:",
            "    if value.size != math.prod(rows):",
        ),
        (
            "class probabilities broadcast",
            'value = real("labels", value)\n    if value.shape != logits.shape:\n        hint',
            'value = jnp.broadcast_to(real("labels", value), logits.shape)\n    if value.shape != logits.shape:\n        hint',
        ),
        (
            "binary labels broadcast",
            'value = real("labels", value)\n    if value.shape != logits.shape:\n        raise',
            'value = jnp.broadcast_to(real("labels", value), logits.shape)\n    if value.shape != logits.shape:\n        raise',
        ),
        ("where broadcasts in rank", "    if not fits:", "    if False:"),
        (
            "masks may have any shape of that size",
            "    if value.shape != shape:\n        hint",
            "    if value.size != math.prod(shape):\n        hint",
        ),
        (
            "masks may be numbers",
            "    value = array(name, value)\n    if not _is(value, jnp.bool_):",
            "    value = array(name, value)\n    if False:",
        ),
        (
            "weights broadcast",
            "    if value.shape != classes:",
            "    if value.shape not in (classes, (1,)):",
        ),
        (
            "an axis may be a boolean",
            '    if isinstance(value, (bool, np.bool_)):\n        raise TypeError(f"`{name}` must be an integer',
            '    if False:\n        raise TypeError(f"`{name}` must be an integer',
        ),
        (
            "an axis may be out of range",
            "    if not -of.ndim <= value < of.ndim:",
            "    if not -of.ndim <= value <= of.ndim:",
        ),
        ("there may be no classes", "    if of.shape[value] == 0 and not may_be_empty:", "    if False:"),
        (
            "smoothing may be more than 1",
            '_scalar("label_smoothing", value, 1.0, "from 0 to 1")',
            '_scalar("label_smoothing", value, 2.0, "from 0 to 1")',
        ),
        (
            "smoothing may be NaN",
            "if not (0 <= number <= largest and math.isfinite(number)):",
            "if number < 0 or number > largest or number == math.inf:",
        ),
        (
            "logits may be integers",
            '    if not _is(value, jnp.floating):\n        raise TypeError(\n            f"`{name}` must be floating',
            '    if not (_is(value, jnp.floating) or _is(value, jnp.integer)):\n        raise TypeError(\n            f"`{name}` must be floating',
        ),
        (
            "labels may be booleans",
            "    if not _is(value, jnp.integer):",
            "    if not (_is(value, jnp.integer) or _is(value, jnp.bool_)):",
        ),
    ),
    *_of(
        "_result_checks",
        ["stats", "checks"],
        (
            "weights of losses broadcast",
            "    if value.shape != losses.shape:",
            "    if value.shape not in (losses.shape, ()):",
        ),
        ("statistics of any rows merge", "if a.shift.shape != b.shift.shape:", "if False:"),
    ),
    # Devices
    *_of(
        "_sharded",
        [
            "axis_name::test_any_number_of_devices",
            "axis_name::test_labels_of_any_dtype_count_the_classes_of_all_devices",
        ],
        (
            "the maxima of all devices count as left out",
            "rest + (lax.psum(has_top.astype(rest.dtype), axis_name) - 1)",
            "rest",
        ),
        (
            "no device leaves its maximum out",
            "jnp.where(has_top, own_rest, (1 + own_rest)",
            "jnp.where(has_top, 1 + own_rest, (1 + own_rest)",
        ),
        ("the loss of a device is that of all", "nll + mass * jnp.where", "nll + 0 * jnp.where"),
        ("devices merge at their own maxima", "* jnp.exp(below)), axis_name)", "), axis_name)"),
        ("every device counts labels from its first class", "    return labels - (lax", "    return labels - 0 * (lax"),
        (
            "tangents of one device stand for all",
            "(lax.psum(part, axis_name) for part in parts)",
            "(part for part in parts)",
        ),
    ),
    # Sums over the classes
    *_of(
        "_reductions",
        _OF_LABELS,
        ("labels count from 1", "indices = per_row(labels, axis)", "indices = per_row(labels - 1, axis)"),
        (
            "labels count from 1 in the gradient",
            "classes = jnp.arange(num_classes, dtype=labels.dtype)",
            "classes = jnp.arange(1, 1 + num_classes, dtype=labels.dtype)",
        ),
    ),
    *_of(
        "_reading",
        _OF_CLASSES_LEFT_OUT,
        (
            "classes are padded with 0",
            "z if where is None else jnp.where(where, z, -jnp.inf)",
            "z if where is None else jnp.where(where, z, 0)",
        ),
        (
            "classes are padded with a large number",
            "z if where is None else jnp.where(where, z, -jnp.inf)",
            "z if where is None else jnp.where(where, z, -1e9)",
        ),
        (
            "where is turned round",
            "z if where is None else jnp.where(where, z, -jnp.inf)",
            "z if where is None else jnp.where(where, -jnp.inf, z)",
        ),
    ),
    *_of(
        "_reductions",
        _OF_CLASSES_LEFT_OUT,
        (
            "the maximum is also over classes left out",
            "    shift = jnp.max(read(logits, where), axis)",
            "    shift = jnp.max(read(logits, None), axis)",
        ),
        (
            "a true class that is excluded has a loss",
            "allowed = None if where is None else at_labels(jnp.broadcast_to(where, logits.shape), indices)",
            "allowed = None",
        ),
    ),
    *_of(
        "_dense",
        [
            *_OF_CLASSES_LEFT_OUT,
            "values::test_a_small_probability_of_an_excluded_class_makes_the_loss_infinite",
        ],
        (
            "0 times an infinite gap is NaN",
            "times_excess(q * jnp.minimum(largest, gap), gap,",
            "times_excess(q * gap, gap,",
        ),
        (
            "an infinite gap counts as the largest number",
            "times_excess(q * jnp.minimum(largest, gap), gap, one, largest)",
            "q * jnp.minimum(largest, gap)",
        ),
    ),
    *_of(
        "_reductions",
        _OF_DIGITS,
        ("the sum is whole, less 1", "return e - _is_top(z, below, zero, one, big) * e", "return e"),
        ("a tied maximum is left out", "others + (ties - 1)", "others"),
        ("nearly tied logits are tied", "jnp.minimum(zero, below) * big", "jnp.minimum(zero, below) * 1e3"),
        (
            "a clipped exponential",
            "e = jnp.exp(jnp.minimum(one, below))  # only a +inf is above its shift\n",
            "e = jnp.exp(jnp.clip(below, -80, one))\n",
        ),
        (
            "no maximum is subtracted",
            "    shift = jnp.max(read(logits, where), axis)",
            "    shift = 0 * jnp.max(read(logits, where), axis)",
        ),
        (
            "the minimum is subtracted",
            "    shift = jnp.max(read(logits, where), axis)",
            "    shift = jnp.min(read(logits, where), axis)",
        ),
        ("+inf is more than a maximum", "one + jnp.minimum(zero, below) * big", "one + below * big"),
        (
            "the exponential of +inf is counted",
            "e = jnp.exp(jnp.minimum(one, below))  # only a +inf is above its shift\n",
            "e = jnp.exp(below)\n",
        ),
        (
            "rest of no classes",
            "jnp.where((shift == -jnp.inf) & ~jnp.isnan(others), 0, others + (ties - 1))",
            "others + (ties - 1)",
        ),
    ),
    *_of(
        "_infinities",
        _OF_DIGITS,
        ("+inf is subtracted from itself", "    return jnp.clip(shift, -largest, largest)\n", "    return shift\n"),
        ("a +inf logit stays infinite", "jnp.where(z == jnp.inf, jnp.finfo(z.dtype).max, z)", "z"),
    ),
    *_of(
        "_reductions",
        _OF_HESSIANS,
    ),
    *_of(
        "_infinities",
        _OF_HESSIANS,
        (
            "the largest number has half a derivative",
            "jnp.where(z == jnp.inf, jnp.finfo(z.dtype).max, z)",
            "jnp.minimum(z, jnp.finfo(z.dtype).max)",
        ),
    ),
    *_of(
        "_reductions",
        ["reductions", "softmax::test_options_and_their_combinations", "accuracy"],
        (
            "the part that has the maximum is not the one that is read again",
            "looked_up(_rows_at, matrix, start + first.reshape(-1))",
            "looked_up(_rows_at, matrix, start)",
        ),
        (
            "the part that has the maximum counts twice",
            "jnp.sum(jnp.where(is_own, 0, sums), -1)",
            "jnp.sum(sums, -1)",
        ),
        (
            "every part that has a maximum is left out",
            "jnp.sum(jnp.where(is_own, 0, sums), -1)",
            "jnp.sum(jnp.where(tops == shift[..., None], 0, sums), -1)",
        ),
        (
            "the part that has the maximum is lost",
            "_all_but_one(jnp.where(is_infinite, own * 0, own) + others, ties, shift)",
            "_all_but_one(others, ties, shift)",
        ),
        (
            "ties in one part count once",
            "jnp.where(is_infinite, own * math.exp(-1), own_sum - own)",
            "jnp.where(is_infinite, own * math.exp(-1), jnp.ones_like(own))",
        ),
        (
            "the number of ties is not a whole one",
            "ties = jnp.round(",
            "ties = (",
        ),
        (
            "a logit all but maximal counts twice",
            "jnp.abs(below) * largest",
            "jnp.abs(below)",
        ),
        (
            "every part has the shift of the first row",
            "return jnp.broadcast_to(shift[..., None], (*shift.shape, parts)).reshape(-1)",
            "return jnp.broadcast_to(shift.reshape(-1)[:1], (shift.size * parts,))",
        ),
        (
            "rows are cut across",
            "    return where is None and axis == logits.ndim - 1 and is_whole",
            "    return where is None and is_whole",
        ),
        (
            "rows are cut whatever is left out",
            "    return where is None and axis == logits.ndim - 1 and is_whole",
            "    return axis == logits.ndim - 1 and is_whole",
        ),
        (
            "a sum in parts is that of the first",
            "return jnp.sum(sums.reshape(*shift.shape, parts), -1)",
            "return sums.reshape(*shift.shape, parts)[..., 0]",
        ),
    ),
    *_of(
        "_dense",
        ["values", "softmax", "large_nonfinite"],
        ("probabilities at +inf have a loss of -inf", "gap = jnp.maximum(zero, -below)", "gap = -below"),
    ),
    *_of(
        "_dense",
        ["values", "masks", "softmax::test_options_and_their_combinations", "stats", "rule", "hessians"],
        (
            "statistics of masked rows are what they hold",
            "    if mask is None:\n        return fields\n",
            "    return fields\n",
        ),
    ),
    *_of(
        "_slopes",
        ["values", "masks", "softmax::test_options_and_their_combinations", "stats", "rule", "hessians"],
        (
            "the label's own logit counts twice",
            "per_row(of_own, axis), p)",
            "per_row(of_own, axis) + p, p)",
        ),
        ("the label's own logit is lost", "per_row(of_own, axis), p)", "jnp.zeros_like(p), p)"),
        (
            "a +inf of the label is infinite in second derivatives",
            "jnp.exp(jnp.minimum(1, z - per_row(finite(shift), axis)))",
            "jnp.exp(z - per_row(finite(shift), axis))",
        ),
    ),
    # Arrays so large that XLA for CPU loses a NaN
    *_of(
        "_reductions",
        ["large_nonfinite"],
        (
            "a NaN is lost from a sum",
            "e = jnp.exp(jnp.minimum(one, below))  # only a +inf is above its shift\n    return e - _is_top(z, below, zero, one, big) * e",
            "e = jnp.exp(jnp.minimum(below, one))\n    return e - jnp.maximum(one + jnp.minimum(below, zero) * big, zero) * e",
        ),
        ("a NaN in a row of no maximum is lost", "(shift == -jnp.inf) & ~jnp.isnan(others)", "shift == -jnp.inf"),
        ("infinities are no ties", "jnp.where(is_infinite, own * math.exp(-1), own_sum - own)", "own_sum - own"),
        ("infinities of other parts are infinite", "jnp.where(sums == jnp.inf, 1, sums)", "sums"),
        (
            "a NaN beside an infinity is lost",
            "jnp.where(sums == jnp.inf, 1, sums)",
            "jnp.where(sums < jnp.inf, sums, 1)",
        ),
    ),
    *_of(
        "_dense",
        ["large_nonfinite"],
        (
            "a NaN is a class",
            "(jnp.where(jnp.isnan(rest), jnp.nan, x) for x in (shift, total_mass, num_classes))",
            "(jnp.where(jnp.isnan(rest), jnp.nan, shift), total_mass, num_classes)",
        ),
        (
            "a NaN is not in the shift",
            "(jnp.where(jnp.isnan(rest), jnp.nan, x) for x in (shift, total_mass, num_classes))",
            "(shift, *(jnp.where(jnp.isnan(rest), jnp.nan, x) for x in (total_mass, num_classes)))",
        ),
    ),
    # Numbers that are looked up, rounded and compared
    *_of(
        "_reading",
        ["reading"],
        ("a NaN rounds to infinity", "jnp.where(jnp.isnan(values), 0x7FC0, bits)", "bits"),
        ("numbers are cut off", "lax.reduce_precision(values, 8, 7)", "values"),
        (
            "rounding has no derivative",
            "lambda cts, _: cts[0].astype(jnp.float32), values, ())",
            "lambda cts, _: 0 * cts[0].astype(jnp.float32), values, ())",
        ),
        (
            "a gradient is rounded twice",
            "rounded(cts[0], jnp.bfloat16)",
            "rounded(rounded(cts[0], jnp.float16), jnp.bfloat16)",
        ),
    ),
    *_of(
        "_reductions",
        ["reading"],
        ("half of a label is compared", "[0, 16] if not is_known(num_classes) or num_classes >= 2**16 else [0]", "[0]"),
        (
            "a label that is no class has the lower half of one",
            "labels = jnp.where((labels >= 0) & (labels < num_classes), labels, jnp.full((), -1, labels.dtype))",
            "labels = labels + jnp.zeros((), labels.dtype)",
        ),
        ("float32 counts all classes", "if is_known(z.size) and z.size < _FLOATS_BELOW:", "if True:"),
    ),
    *_of(
        "_reductions",
        ["symbolic_shapes::test_labels_of_more_than_65536_classes"],
        (
            "half of a label is compared where classes are unknown",
            "not is_known(num_classes) or num_classes",
            "num_classes",
        ),
    ),
    *_of(
        "_kernels/blocked",
        ["symbolic_shapes::test_large_logits_where_a_block_is_filled_up"],
        ("zeros fill the last block", "jnp.broadcast_to(x[-1:],", "jnp.broadcast_to(0 * x[-1:],"),
    ),
    *_of(
        "_linear_mesh",
        ["layouts::test_losses_and_statistics_are_split_as_labels_are"],
        ("losses are split as hidden is", "jax.sharding.reshard(x, of_labels)", "x"),
    ),
    *_of(
        "_axes",
        ["layouts::test_every_layout_and_dtype_of_an_explicit_mesh"],
        ("devices sum in bfloat16", "if x.dtype == jnp.bfloat16 and", "if False and"),
    ),
    # What a GPU is given
    *_of(
        "_slopes",
        ["on_a_gpu"],
        ("two narrow gradients change places", "low | high << 16", "high | low << 16"),
        ("the label is the other of two", "first + i == per_row(own, 1)", "first + 1 - i == per_row(own, 1)"),
        ("the next row is not made again", "gradient = lax.dynamic_update_slice(", "lax.dynamic_update_slice("),
        ("a class of the next row is not made again", "of_first(_RUN - 1)", "of_first(_RUN - 8)"),
        ("a label is counted from the row", "own[row] - (start - row * num_classes)", "own[row]"),
        (
            "a mask is read as a number",
            "row.astype(integer) if row.dtype == bool else",
            "row.astype(integer) if row.dtype == bool and 0 else",
        ),
        (
            "a bitcast is differentiated",
            "return jax.jvp(_derived_gradient, primals, tangents)",
            "return jax.jvp(_gradient.fun, primals, tangents)",
        ),
        ("a GPU reads masked rows", 'read(z, None, rows.get("mask"), axis=1)', "read(z, None, None, axis=1)"),
        ("a GPU loses z-loss", "terms += [] if rest_ct is None", "terms += [] if rest_ct is not None"),
        ("a GPU loses smoothing", "terms += [] if total_ct is None", "terms += [] if total_ct is not None"),
        ("a GPU loses the cotangent", "(label_ct * row for row in _rows_of_label(outs))", "_rows_of_label(outs)"),
    ),
    *_of(
        "_online",
        ["online"],
        ("two infinities are NaN", "top = jnp.minimum(shift, jnp.finfo(shift.dtype).max)", "top = shift"),
        ("two infinities are infinitely many", "jnp.minimum(z - top, 0)", "z - top"),
        (
            "narrow infinities are those of a wide dtype",
            "jnp.finfo(logits.dtype).max < jnp.finfo(dtype).max",
            "True",
        ),
    ),
    *_of(
        "_kernels/chunked",
        ["on_a_gpu"],
        ("slopes of float16 lose their range", "if operands != jnp.bfloat16:", "if operands == jnp.float32:"),
    ),
    *_of(
        "_kernels/blocked",
        ["linear_blocks::test_gathered_blocks", "linear_blocks::test_only_blocks_with_valid_tokens_are_visited"],
        ("of gathered slopes the last block is kept", "put(outs, out, i * block)", "put(outs, out, 0)"),
        ("gathered blocks overlap", "first = i * blocks.gathered", "first = i"),
        (
            "gathered blocks are all visited",
            "jnp.minimum(count - first, blocks.gathered) if skips",
            "blocks.gathered if skips",
        ),
    ),
    *_of(
        "_kernels/total",
        ["linear_blocks::test_gathered_blocks"],
        ("gathered slopes move no hidden", "*sums)), hidden_ct\n", "*sums)), 0 * hidden_ct\n"),
        (
            "gathered slopes move no classifier",
            "return (total, (classifier_sum, *sums))",
            "return (total, (carry[1][0], *sums))",
        ),
    ),
    # Blocks of a linear layer
    *_of(
        "_kernels/chunked",
        [
            "linear::test_every_implementation",
            "linear::test_masked_token_costs_nothing_and_poisons_nothing",
            "linear::test_every_mode_of_differentiation",
        ],
        (
            "every block of classes counts labels from its first",
            "    return labels - jnp.asarray(start).astype(labels.dtype)",
            "    return labels",
        ),
        ("masked tokens are read", "return masked(hidden, mask), label", "return hidden, label"),
        ("labels of masked tokens are read", "label_indices(labels, mask)\n", "label_indices(labels, None)\n"),
        (
            "a cap does not flatten",
            "logits, logits_dot = jax.jvp(capped, (raw, soft_cap), (raw_dot, soft_cap_dot))",
            "logits, logits_dot = capped(raw, soft_cap), raw_dot",
        ),
        ("only the last block of classes moves", "return tuple(map(jnp.add, total, part))", "return part"),
        (
            "the bias has no tangent",
            "terms += [] if b_dot is None else [jnp.broadcast_to(b_dot, (hidden.shape[0], size))]",
            "pass",
        ),
        ("blocks merge with a class at 0", "jnp.full_like(none, -jnp.inf)", "jnp.zeros_like(none)"),
        (
            "a whole row has the bias of none",
            "raw = raw_logits(hidden, classifier, bias)",
            "raw = raw_logits(hidden, classifier, None)",
        ),
    ),
    *_of(
        "_kernels/total",
        [
            "linear::test_every_implementation",
            "linear::test_masked_token_costs_nothing_and_poisons_nothing",
            "linear::test_every_mode_of_differentiation",
        ],
        ("the weight of a label has no gradient", "pull_weight(weight_ct)", "pull_weight(0 * weight_ct)"),
    ),
    *_of(
        "_kernels/blocked",
        [
            "linear::test_every_implementation",
            "linear::test_masked_token_costs_nothing_and_poisons_nothing",
            "linear_blocks::test_only_blocks_with_valid_tokens_are_visited",
        ],
        (
            "the last classes are left out",
            "return carry if whole == num_classes else body(carry, whole, num_classes - whole)",
            "return carry",
        ),
        (
            "the last classes count twice",
            "body(carry, whole, num_classes - whole)",
            "body(carry, num_classes - block, block)",
        ),
        ("every block of classes is the first", "(body(c, start, block), None)", "(body(c, 0 * start, block), None)"),
        ("masked tokens come first", "jnp.argsort(~valid, stable=True)", "jnp.argsort(valid, stable=True)"),
        ("gradients of tokens are in the order of the blocks", ".at[order].set(", ".at[jnp.sort(order)].set("),
        (
            "what fills the last block counts",
            "jnp.pad(valid[order], padding)",
            "jnp.pad(valid[order], padding, constant_values=True)",
        ),
        ("a block that is not full is not visited", "+ (block - 1)) // block", ") // block"),
        ("a block replaces the sum of those before", "total, old + part, start", "total, part, start"),
    ),
]
