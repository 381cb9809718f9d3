"""The losses of a linear layer with any blocks, against the oracle: every option, shape, dtype and mode."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import (
    Chunked,
    LogitStats,
    linear_logit_stats,
    linear_softmax_cross_entropy,
    linear_softmax_cross_entropy_sum,
)
from tests.support import covering
from tests.support.closeness import assert_within
from tests.support.linear import MODES, ULPS, answers, check, differentiate
from tests.support.linear_cases import CLASSES, FEATURES, OPTIONS, TOKENS, expected, make
from tests.support.oracle import Quantity

pytestmark = pytest.mark.usefixtures("fast_compilation")


# The default; no blocks; blocks of tokens, of classes, and of both, with a smaller last block; blocks of one token and one class.
IMPLEMENTATIONS = {
    "None": None,
    "reference": "reference",
    "tokens": Chunked(4, None),
    "classes": Chunked(None, 8),
    "both": Chunked(6, 7),
    "single": Chunked(1, 1),
}
IMPLEMENTATION_NAMES = ["None", "both", "reference", *covering.nightly_values("tokens", "classes", "single")]


@pytest.mark.nightly  # the quick tier has test_losses_and_sums_with_every_option
@pytest.mark.parametrize("names", covering.subsets(OPTIONS), ids=lambda names: "+".join(names) or "plain")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_implementation(rng, implementation, names):
    check(rng, IMPLEMENTATIONS[implementation], names)


@pytest.mark.covering(1, at_most=3)
@pytest.mark.parametrize("sizes", [(0, 4, 5), (1, 1, 1), (1, 4, 1), (5, 1, 2), (7, 3, 9), (9, 5, 130)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_sizes(rng, sizes, implementation):
    hidden, classifier, labels = make(rng, *sizes)
    cotangent = np.ones(sizes[0], np.float32)
    (value, gradients), (total, total_gradients) = answers(
        hidden, classifier, labels, cotangent, IMPLEMENTATIONS[implementation]
    )
    want, want_gradients = expected(hidden, classifier, labels, cotangent)
    assert_within(value, want, ULPS)
    assert_within(total, Quantity(want.value.sum(), want.scale.sum()), ULPS)
    for name in ("hidden", "classifier"):
        assert_within(gradients[name], want_gradients[name], ULPS)
        assert_within(total_gradients[name], want_gradients[name], ULPS)


def test_very_long_rows(rng):
    """Rows of 70,001 classes, with labels in all parts of a row. The logits are small, so that every class contributes."""
    hidden, classifier, _ = make(rng, 6, 2, 70_001)
    labels = np.int32([0, 23_551, 23_552, 47_104, 70_000, 35_000])
    z = hidden.astype(np.float64) @ classifier.astype(np.float64)
    log_z = np.log(np.exp(z).sum(1))
    want = log_z - z[np.arange(6), labels]
    onehot = np.zeros_like(z)
    onehot[np.arange(6), labels] = 1
    z_gradient = np.exp(z - log_z[:, None]) - onehot
    (value, gradients), (total, total_gradients) = answers(
        hidden, classifier, labels, np.ones(6, np.float32), Chunked(4)
    )
    np.testing.assert_allclose(value, want, rtol=2e-6)
    np.testing.assert_allclose(total, want.sum(), rtol=2e-6)
    for found in (gradients, total_gradients):
        np.testing.assert_allclose(found["classifier"], hidden.T @ z_gradient, rtol=2e-5, atol=1e-7)
        np.testing.assert_allclose(found["hidden"], z_gradient @ classifier.T, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (2, 3), *covering.nightly_values((6,), (3, 1, 2))], ids=str)
def test_tokens_of_any_rank(rng, shape):
    hidden, classifier, labels = make(rng, 6 if shape else 1)
    mask = np.arange(labels.size) != 2
    want, _ = expected(hidden, classifier, labels, None, mask=mask)
    shaped = hidden.reshape(*shape, FEATURES), classifier, labels.reshape(shape)
    loss = linear_softmax_cross_entropy(*shaped, mask=mask.reshape(shape), implementation=Chunked(4, 5))
    assert loss.shape == shape
    assert_within(loss, Quantity(*(x.reshape(shape) for x in want)), ULPS)
    summed = linear_softmax_cross_entropy_sum(*shaped, mask=mask.reshape(shape))
    assert float(summed.weight) == mask.sum()
    assert_within(summed.mean(), want.value.sum() / mask.sum(), 4)
    stats = linear_logit_stats(*shaped)
    assert all(field.shape == shape for field in jax.tree.leaves(stats))


@pytest.mark.parametrize(
    "blocks",
    [Chunked(3, 5), Chunked(5, None), *covering.nightly_values(Chunked(None, 4), Chunked(2, 12), Chunked(10, 7))],
    ids=str,
)
def test_statistics_are_those_of_the_logits(rng, blocks):
    hidden, classifier, labels = make(rng)
    weights = OPTIONS["class_weights"]
    stats = linear_logit_stats(hidden, classifier, labels, class_weights=weights, implementation=blocks)
    dense = jaxce.logit_stats(jnp.asarray(hidden @ classifier), labels, class_weights=weights)
    assert isinstance(stats, LogitStats) and stats.integer_labels
    for got, want in zip(jax.tree.leaves(stats), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stats.smooth_nll, dense.smooth_nll, rtol=1e-6)
    np.testing.assert_array_equal(stats.num_classes, CLASSES)


@pytest.mark.parametrize(
    "sizes",
    [(1, 20), (5, 3), (8, 21), *covering.nightly_values((1, 1), (2, 39), (2, 64), (5, 1), (8, 40), (9, 3), (9, 39))],
    ids=str,
)
def test_result_does_not_depend_on_the_blocks(rng, sizes):
    hidden, classifier, labels = make(rng, 9, 5, 40)
    hidden[:4] *= 30  # some tokens are certain
    run = lambda blocks: linear_softmax_cross_entropy(hidden, classifier, labels, z_loss=1e-3, implementation=blocks)  # noqa: E731
    want = run("reference")
    np.testing.assert_array_max_ulp(run(Chunked(*sizes)), want, 4)


@pytest.mark.parametrize("implementation", IMPLEMENTATION_NAMES)
def test_invalid_label_gives_nan_only_in_its_loss_and_its_hidden_gradient(rng, implementation):
    hidden, classifier, labels = make(rng)
    bad = [-1, -100, CLASSES, np.iinfo(np.int32).min, np.iinfo(np.int32).max]
    labels[: len(bad)] = bad
    function = lambda h: linear_softmax_cross_entropy(  # noqa: E731
        h, classifier, labels, label_smoothing=0.1, implementation=IMPLEMENTATIONS[implementation]
    )
    loss, pull = jax.vjp(function, hidden)
    (gradient,) = pull(jnp.ones_like(loss))
    want, _ = expected(hidden[5:], classifier, labels[5:], None, label_smoothing=0.1)
    assert np.isnan(loss[:5]).all() and np.isnan(gradient[:5]).all()
    assert_within(loss[5:], want, ULPS)
    assert np.isfinite(gradient[5:]).all()


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("implementation", IMPLEMENTATION_NAMES)
def test_masked_token_has_zero_loss_and_does_not_affect_other_tokens(rng, implementation):
    hidden, classifier, labels = make(rng)
    mask = np.arange(TOKENS) % 2 == 0
    poisoned, bad_labels = hidden.copy(), labels.copy()
    poisoned[~mask] = np.array([np.nan, np.inf, -np.inf, 1e38])
    bad_labels[~mask] = -100
    cotangent = np.ones(TOKENS, np.float32)
    options = {"label_smoothing": OPTIONS["label_smoothing"], "class_weights": OPTIONS["class_weights"]}
    got = answers(poisoned, classifier, bad_labels, cotangent, IMPLEMENTATIONS[implementation], mask=mask, **options)
    want, want_gradients = expected(hidden[mask], classifier, labels[mask], np.ones(mask.sum()), **options)
    for value, gradients in got:
        if value.ndim:
            np.testing.assert_array_equal(value[~mask], 0)
            value = value[mask].sum()
        np.testing.assert_array_equal(gradients["hidden"][~mask], 0)
        assert_within(value, Quantity(want.value.sum(), want.scale.sum()), ULPS)
        assert_within(gradients["hidden"][mask], want_gradients["hidden"], ULPS)
        assert_within(gradients["classifier"], want_gradients["classifier"], ULPS)
        assert_within(gradients["class_weights"], want_gradients["class_weights"], ULPS)


def test_everything_masked_is_0(rng):
    hidden, classifier, labels = make(rng)
    mask = np.zeros(TOKENS, bool)
    total = lambda h, w: linear_softmax_cross_entropy_sum(h, w, labels, mask=mask, implementation=Chunked(4)).mean()  # noqa: E731
    value, gradients = jax.value_and_grad(total, (0, 1))(hidden, classifier)
    assert float(value) == 0
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), gradients)


DTYPES = [
    (jnp.bfloat16, jnp.bfloat16),
    (jnp.float32, jnp.bfloat16),
    (jnp.float16, jnp.float16),
    *covering.nightly_values((jnp.bfloat16, jnp.float32), (jnp.float16, jnp.bfloat16), (jnp.float32, jnp.float32)),
]


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: f"{d[0].__name__}-{d[1].__name__}")
@pytest.mark.parametrize("implementation", ["None", "both"])
def test_any_mix_of_dtypes(rng, dtypes, implementation):
    hidden, classifier, labels = make(rng)
    arrays = jnp.asarray(hidden, dtypes[0]), jnp.asarray(classifier, dtypes[1])
    cotangent = np.ones(TOKENS, np.float32)
    got = answers(*arrays, labels, cotangent, IMPLEMENTATIONS[implementation])
    want, want_gradients = expected(hidden, classifier, labels, cotangent)
    for value, gradients in got:
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value.sum(), float(want.value.sum()), rtol=1e-6)
        for name, array in zip(("hidden", "classifier"), arrays, strict=True):
            assert gradients[name].dtype == array.dtype
            # If both operands are narrow, the gradient with respect to the logits is rounded to their dtype before the matmul.
            working = jnp.result_type(*dtypes) if dtypes[0] == dtypes[1] else jnp.float32
            assert_within(gradients[name], want_gradients[name], 8, working=working)


def test_float64(rng, x64):
    hidden, classifier, labels = make(rng, dtype=np.float64)
    for mixed in (
        (hidden, classifier),
        (hidden.astype(np.float32), classifier),
        (hidden, classifier.astype(np.float32)),
    ):
        loss = linear_softmax_cross_entropy(*mixed, labels, implementation=Chunked(4, 5))
        assert loss.dtype == np.float64
        assert_within(loss, expected(hidden, classifier, labels, None)[0], ULPS)


def test_gradient_of_a_narrow_classifier_is_summed_in_float32(rng):
    """There are 1,024 blocks. Each block adds less than half an ulp of the sum in bfloat16."""
    hidden = jnp.ones((1024, 1), jnp.bfloat16)
    classifier = jnp.zeros((1, 4), jnp.bfloat16)
    labels = jnp.zeros(1024, jnp.int32)
    for function in (linear_softmax_cross_entropy, linear_softmax_cross_entropy_sum):
        for blocks in (Chunked(1, None), Chunked(1, 3)):
            total = lambda w, f=function, b=blocks: jax.tree.leaves(f(hidden, w, labels, implementation=b))[0].sum()  # noqa: E731
            np.testing.assert_array_equal(jax.grad(total)(classifier), np.array([[-768, 256, 256, 256]]))


WHOLE_ROWS = Chunked(4, None)
DIFFERENTIATED = [
    *itertools.product((False, True), (Chunked(4, 5), Chunked(3, 4)), MODES),
    # Blocks of whole rows are differentiated by the same code, but they reuse their logits. These modes test the difference.
    *((True, WHOLE_ROWS, mode) for mode in ("grad", "hvp", "checkpoint", "hvp of scan", "vmap of grad")),
]


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize(
    ("total", "blocks", "mode"),
    covering.quick(
        DIFFERENTIATED,
        [
            *((False, Chunked(4, 5), mode) for mode in ("jvp", "vmap of grad")),
            *((True, Chunked(4, 5), mode) for mode in ("hvp of scan", "grad of vmap")),
            *((True, WHOLE_ROWS, mode) for mode in ("hvp", "checkpoint")),
        ],
    ),
    ids=str,
)
def test_every_mode_of_differentiation(rng, mode, total, blocks, x64):
    differentiate(rng, mode, total, blocks)


def number_of_matmuls(jaxpr):
    """Return the number of matmuls of a program. Inner programs count once. Of several branches, the branch with the most matmuls counts."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "cond":
            count += max(number_of_matmuls(branch.jaxpr) for branch in equation.params["branches"])
            continue
        count += equation.primitive.name == "dot_general"
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                count += number_of_matmuls(inner)
    return count


def test_number_of_matmuls(rng):
    hidden, classifier, labels = make(rng, 8)
    mean = lambda h, w, b: linear_softmax_cross_entropy_sum(h, w, labels, implementation=b).mean()  # noqa: E731
    run = lambda h, w: mean(h, w, Chunked(4))  # noqa: E731
    count = lambda f: number_of_matmuls(jax.make_jaxpr(f)(hidden, classifier).jaxpr)  # noqa: E731
    assert count(run) == 1
    assert count(jax.value_and_grad(run, (0, 1))) == 3
    assert count(jax.value_and_grad(run, 0)) == 2 and count(jax.value_and_grad(run, 1)) == 2
    by_classes = lambda h, w: mean(h, w, Chunked(None, 7))  # noqa: E731 - the code for a full block, then for the last block
    assert count(jax.value_and_grad(by_classes, (0, 1))) == 2 * 4


def test_cotangents_of_total_and_weight_are_exact(rng):
    hidden, classifier, labels = make(rng)
    run = lambda h, f: f(linear_softmax_cross_entropy_sum(h, classifier, labels, mask=OPTIONS["mask"]))  # noqa: E731
    one = jax.grad(run)(hidden, lambda s: s.total)
    for use, factor in (
        (lambda s: s.mean(), 1 / OPTIONS["mask"].sum()),
        (lambda s: -3 * s.total + 5 * s.weight, -3),
        (lambda s: (s + s).total, 2),
        (lambda s: s.weight, 0),
    ):
        np.testing.assert_allclose(jax.grad(run)(hidden, use), one * np.float32(factor), rtol=1e-6)


def test_micro_batches_add_up_to_one_batch(rng):
    hidden, classifier, labels = make(rng, 12)
    mask = np.arange(12) % 5 < 2
    mean = lambda w: linear_softmax_cross_entropy_sum(hidden, w, labels, mask=mask).mean()  # noqa: E731
    parts = [slice(0, 2), slice(2, 9), slice(9, 12)]

    def accumulated(w):
        sums = [linear_softmax_cross_entropy_sum(hidden[p], w, labels[p], mask=mask[p]) for p in parts]
        return sum(sums).mean()

    (value, gradient), (want, want_gradient) = (
        jax.value_and_grad(f)(jnp.asarray(classifier)) for f in (accumulated, mean)
    )
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(
    "blocks", [None, Chunked(2, 5), *covering.nightly_values(Chunked(1, None), Chunked(None, 5))], ids=str
)
def test_tokens_on_several_devices(rng, blocks, check_vma):
    """The gradients through `jax.shard_map` equal those of one batch."""
    hidden, classifier, labels = make(rng, 12)
    mask = np.arange(12) % 5 != 2
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))

    def mean(hidden, classifier, labels, mask):
        options = {"mask": mask, "label_smoothing": 0.1, "implementation": blocks}
        losses = linear_softmax_cross_entropy(hidden, classifier, labels, **options)
        total = linear_softmax_cross_entropy_sum(hidden, classifier, labels, **options)
        return total.psum("rows").mean() + jaxce.LossSum.of(losses, mask=mask).psum("rows").mean()

    specs = P("rows"), P(), P("rows"), P("rows")
    sharded = jax.shard_map(mean, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
    value, gradients = jax.jit(jax.value_and_grad(sharded, (0, 1)))(hidden, classifier, labels, mask)
    cotangent = 2 * mask / mask.sum()
    want, want_gradients = expected(hidden, classifier, labels, cotangent, mask=mask, label_smoothing=0.1)
    np.testing.assert_allclose(value, float((want.value * cotangent).sum()), rtol=1e-6)
    assert_within(gradients[0], want_gradients["hidden"], 2 * ULPS)
    assert_within(gradients[1], want_gradients["classifier"], 2 * ULPS)


def test_residuals_of_the_losses_are_small(rng):
    hidden, classifier, labels = make(rng, 64, 4, 32)
    _, pull = jax.vjp(
        lambda h, w: linear_softmax_cross_entropy(h, w, labels, implementation=Chunked(8, 8)), hidden, classifier
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size")]
    assert max(sizes) <= hidden.size and sum(sizes) <= hidden.size + classifier.size + 10 * 64


def test_memory_of_a_sum_is_a_few_blocks(rng):
    """By the memory analysis of the compiler. A block has 32 x 2,048 float32 logits; all logits would be 32 blocks."""
    shapes = [(1024, 16), (16, 2048), (1024,)]
    args = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, (jnp.bfloat16, jnp.bfloat16, jnp.int32), strict=True)]
    run = lambda b: jax.value_and_grad(  # noqa: E731
        lambda h, w, y: linear_softmax_cross_entropy_sum(h, w, y, implementation=b).mean(), (0, 1)
    )
    temp = lambda b: jax.jit(run(b)).lower(*args).compile().memory_analysis().temp_size_in_bytes  # noqa: E731
    logits = 1024 * 2048 * 4
    assert temp(Chunked(32)) <= logits / 4
    assert temp(Chunked(None, 64)) <= logits / 4
    assert temp("reference") >= logits


BAD = {
    "integer hidden": ({"hidden": np.zeros((3, 4), np.int32)}, TypeError, "`hidden` must be floating point; got int32"),
    "scalar hidden": ({"hidden": np.float32(1)}, ValueError, "`hidden` must have a feature axis, its last; got a scalar"),
    "no features": ({"hidden": np.zeros((3, 0), np.float32)}, ValueError, r"`hidden` must have at least one feature; got shape \(3, 0\)"),
    "list as hidden": ({"hidden": [[0.0] * 4] * 3}, TypeError, "`hidden` must be an array; got list"),
    "integer classifier": ({"classifier": np.zeros((4, 5), np.int32)}, TypeError, "`classifier` must be floating point; got int32"),
    "classifier of other features": ({"classifier": np.zeros((3, 5), np.float32)}, ValueError, r"the 4 features of `hidden`; got \(3, 5\)\.(\n|$)"),
    "transposed classifier": ({"classifier": np.zeros((5, 4), np.float32)}, ValueError, r"got \(5, 4\)\. Pass the transpose: classifier\.T\."),
    "classifier of rank 1": ({"classifier": np.zeros(4, np.float32)}, ValueError, r"shape \(features, num_classes\).*got \(4,\)"),
    "no classes": ({"classifier": np.zeros((4, 0), np.float32)}, ValueError, r"at least one class; got shape \(4, 0\)"),
    "float labels": ({"labels": np.zeros(3, np.float32)}, TypeError, "`labels` must be integers.*got float32"),
    "labels of another shape": ({"labels": np.zeros(4, np.int32)}, ValueError, r"shape of `logits` without axis 1, \(3,\); got \(4,\)"),
    "labels with an axis more": ({"labels": np.zeros((3, 1), np.int32)}, ValueError, r"got \(3, 1\)\. Reshape them: labels\.reshape\(\(3,\)\)"),
    "bias of another length": ({"bias": np.zeros(4, np.float32)}, ValueError, r"each of the 5 classes, shape \(5,\); got \(4,\)"),
    "integer bias": ({"bias": np.zeros(5, np.int32)}, TypeError, "`bias` must be floating point; got int32"),
    "class_weights of another length": ({"class_weights": np.zeros(4, np.float32)}, ValueError, r"5 classes, shape \(5,\); got \(4,\)"),
    "soft_cap of 0": ({"soft_cap": 0.0}, ValueError, r"`soft_cap` must be positive and finite; got 0\.0\. For no cap pass None"),
    "negative soft_cap": ({"soft_cap": -1}, ValueError, r"`soft_cap` must be positive and finite; got -1\.0"),
    "infinite soft_cap": ({"soft_cap": np.inf}, ValueError, "`soft_cap` must be positive and finite; got inf"),
    "soft_cap of another type": ({"soft_cap": "30"}, TypeError, "`soft_cap` must be a number; got '30'"),
    "boolean soft_cap": ({"soft_cap": True}, TypeError, "`soft_cap` must be a number; got True"),
    "soft_cap of shape": ({"soft_cap": np.ones(2, np.float32)}, ValueError, r"`soft_cap` must be a scalar; got shape \(2,\)"),
    "unknown implementation": ({"implementation": "pallas"}, ValueError, "`implementation` must be None.*got 'pallas'"),
    "implementation of another type": ({"implementation": 8}, TypeError, "`implementation` must be None.*got int"),
}  # fmt: skip
BAD_LOSS_OPTIONS = {
    "integer mask": ({"mask": np.ones(3, np.int32)}, TypeError, "`mask` must be boolean; got int32"),
    "mask of another shape": ({"mask": np.ones(4, bool)}, ValueError, r"shape of the loss, \(3,\); got \(4,\)"),
    "smoothing above 1": ({"label_smoothing": 1.5}, ValueError, r"`label_smoothing` must be from 0 to 1; got 1\.5"),
    "negative z_loss": ({"z_loss": -1.0}, ValueError, r"`z_loss` must be finite and not negative; got -1\.0"),
}
FUNCTIONS = [linear_logit_stats, linear_softmax_cross_entropy, linear_softmax_cross_entropy_sum]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", [*BAD, *BAD_LOSS_OPTIONS])
def test_invalid_input_raises_under_tracing(function, case):
    if case in BAD_LOSS_OPTIONS and function is linear_logit_stats:
        return
    arguments, error, message = {**BAD, **BAD_LOSS_OPTIONS}[case]
    good = {
        "hidden": np.zeros((3, 4), np.float32),
        "classifier": np.zeros((4, 5), np.float32),
        "labels": np.zeros(3, np.int32),
    }
    with pytest.raises(error, match=message):
        jax.eval_shape(lambda: function(**{**good, **arguments}))


@pytest.mark.parametrize(
    ("sizes", "error"),
    [((0, None), ValueError), ((None, -1), ValueError), ((2.0, None), TypeError), ((True, None), ValueError)],
)
def test_block_sizes_are_positive_integers(sizes, error):
    with pytest.raises(error, match=r"`block_(tokens|classes)` must be"):
        Chunked(*sizes)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["bfloat16", *covering.nightly_values("float32")])
def test_many_features_in_blocks_of_classes(dtype):
    """A CPU adds the product to the classifier's gradient in parts of the block."""
    rng = np.random.default_rng(0)
    hidden, classifier, labels = make(rng, 5, 4096, 2500, jnp.dtype(dtype))
    hidden, classifier = hidden / jnp.asarray(32, dtype), classifier / jnp.asarray(32, dtype)

    def total(hidden, classifier):
        return linear_softmax_cross_entropy_sum(hidden, classifier, labels, implementation=Chunked(5, 1200)).total

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, classifier)
    want, wanted = expected(hidden, classifier, labels, np.ones(5))
    np.testing.assert_allclose(value, np.float64(want.value.sum()), rtol=1e-5)
    for name, gradient in zip(("hidden", "classifier"), gradients, strict=True):
        exact = np.asarray(wanted[name].value, np.float64)
        error = np.abs(np.asarray(gradient, np.float64) - exact).max()
        assert error <= {"bfloat16": 8e-3, "float32": 1e-5}[dtype] * np.abs(exact).max()
