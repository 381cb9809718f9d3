"""What the losses do on other platforms than CPUs, run on a CPU: they ask `lax.platform_dependent` for what only CPUs need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import Chunked, logit_stats
from tests.support import cases, hessians, linear
from tests.support.cases import INTEGER, SIGMOID, SOFT
from tests.support.closeness import assert_within
from tests.support.dense import check_sigmoid, check_softmax
from tests.support.linear_cases import OPTIONS
from tests.support.ways import INF, LOGITS, NAN, C, targets, value_and_gradient

pytestmark = pytest.mark.usefixtures("made_quickly")


@pytest.fixture(scope="module", autouse=True, params=["cuda", "any other"])
def elsewhere(request):
    """Every branch is the one of that platform; on a GPU that of long rows, for short ones too."""

    def platform_dependent(*args, default, **branches):
        return branches.get(request.param, default)(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", platform_dependent)
        if request.param == "cuda":
            patch.setattr("jaxce._reductions._SHORT", 1)
        jax.clear_caches()
        yield request.param
    jax.clear_caches()


@pytest.mark.parametrize("loss", cases.LOSSES)
def test_no_branch_for_a_platform_is_left(loss, rng, elsewhere):
    logits, labels = cases.make_logits(rng, (3, 2000)), loss.make_labels(rng, (3, 2000), -1)
    program = str(jax.make_jaxpr(jax.value_and_grad(lambda z: loss.function(z, labels).sum()))(logits))
    assert "exp" in program and "platform_index" not in program
    assert ("reduce_max" in program) == (elsewhere != "cuda" and loss is not SIGMOID)


@pytest.mark.covering(1)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("names", cases.SOFTMAX_OPTION_SETS, ids=cases.name_of)
def test_options_and_their_combinations(loss, names, rng):
    shape, axis = ((6, 11), -1) if len(names) < 3 else ((2, 5, 4), 1)
    logits, labels = cases.make_logits(rng, shape), loss.make_labels(rng, shape, axis)
    check_softmax(loss, logits, labels, rng, axis, **cases.make_options(rng, names, loss, shape, labels, axis))


@pytest.mark.covering(1)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
@pytest.mark.parametrize("names", [(), ("where", "label_smoothing"), cases.SOFTMAX_OPTIONS], ids=cases.name_of)
def test_narrow_logits(loss, names, rng):
    shape = (5, 13)
    logits, labels = cases.make_logits(rng, shape, jnp.bfloat16), loss.make_labels(rng, shape, -1)
    check_softmax(loss, logits, labels, rng, **cases.make_options(rng, names, loss, shape, labels))


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
def test_labels_of_other_dtypes(dtype, rng):
    logits, labels = cases.make_logits(rng, (5, 300)), np.array([0, 1, 2, 126, 127]).astype(dtype)
    check_softmax(INTEGER, logits, labels, rng)


@pytest.mark.covering(2)
@pytest.mark.parametrize("names", [(), cases.SIGMOID_OPTIONS], ids=cases.name_of)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_sigmoid_loss(names, dtype, rng, elsewhere):
    if elsewhere == "cuda":
        pytest.skip("it has no branch of its own for a GPU: run as any other platform's")
    shape = (5, 7)
    logits, labels = cases.make_logits(rng, shape, dtype), SIGMOID.make_labels(rng, shape, -1)
    check_sigmoid(logits, labels, rng, **cases.make_options(rng, names, SIGMOID, shape, labels))


@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_hard_logits(loss, rng):
    """All of them at once, in rows of one length: classes at -inf take no part."""
    tables = [make(rng) for make in cases.HARD_LOGITS.values()]
    longest = max(table.shape[1] for table in tables)
    rows, labels = [], []
    for table in tables:
        filled = np.pad(table, [(0, 0), (0, longest - table.shape[1])], constant_values=-INF)
        for label in range(0, table.shape[1], 2):
            rows.append(filled)
            labels.append(np.full(len(table), label, np.int32))
    logits, labels = np.concatenate(rows), np.concatenate(labels)
    if loss is SOFT:
        labels = np.eye(longest, dtype=np.float32)[labels]
    values, gradient = value_and_gradient(jax.jit, loss, logits, labels)
    answer = loss.oracle(logits, labels)
    assert_within(values, answer.loss, 6)
    assert_within(gradient, answer.logits, 6)


@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_rows_without_a_loss_and_rows_that_are_masked(loss):
    """Of NaN and infinities; the true class alone at +inf, and at -inf; a label that is no class."""
    rows = [[NAN, 1, 2, 3, 4], [INF, INF, 0, 0, 0], [-INF] * C, [0, INF, 0, 0, -INF], [1, -INF, 2, 0, 0], LOGITS[0]]
    logits, labels = np.float32([*rows, *rows]), np.int32([1, 1, 1, 1, 1, 2] * 2)
    if loss is INTEGER:
        labels[[5, 11]] = C, -1
    labels, mask = targets(loss, labels), np.arange(12) < 6
    values, gradient = value_and_gradient(jax.jit, loss, logits, labels, mask, names=("mask",))
    answer = loss.oracle(logits, labels, mask=mask)
    assert_within(values, answer.loss, 6)
    np.testing.assert_array_equal(gradient[6:], 0)
    assert gradient[4, 1] == -1
    np.testing.assert_array_equal(np.isnan(gradient[:6]).any(1), np.isnan(values[:6]))


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", [hessians.weighted, hessians.through_scan], ids=lambda f: f.__name__)
@pytest.mark.parametrize("hard", ["random", "ties", "confident"])
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_hessian(way, hard, loss, rng):
    logits = hessians.HESSIAN_LOGITS[hard](rng)
    labels, w, expected = hessians.hessian_case(loss, logits, rng)
    assert_within(jax.jit(jax.jacfwd(jax.jacrev(way(loss, labels, w))))(logits), expected, 16)


def test_statistics_of_classes_that_do_not_hold_the_label(rng):
    logits = cases.make_logits(rng, (4, 6))
    stats = logit_stats(logits, np.int32([-1, 6, -100, 3]))
    np.testing.assert_array_equal(stats.label_mass, [0, 0, 0, 1])
    assert_within(stats.label_nll, np.append(np.zeros(3), INTEGER.oracle(logits[3:], np.int32([3])).loss.value), 8)


@pytest.mark.covering(1)
@pytest.mark.parametrize("names", [(), tuple(OPTIONS)], ids=lambda names: "+".join(names) or "plain")
@pytest.mark.parametrize("implementation", ["reference", Chunked(6, 7)], ids=str)
def test_linear_losses(implementation, names, rng):
    linear.check(rng, implementation, names)


def test_hessian_vector_product_of_a_linear_loss(rng, x64):
    linear.differentiate(rng, "hvp", False, Chunked(4, 5))


def test_blocks_of_a_linear_loss_that_are_others_on_a_gpu(rng, others_on_a_gpu):
    linear.check(rng, None, tuple(OPTIONS))
