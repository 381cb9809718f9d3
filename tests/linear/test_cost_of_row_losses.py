"""`loss_sum` of a linear layer costs the matmuls and the memory of the cross-entropy. A statistic that nobody reads costs nothing."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

import jaxce
from jaxce import Chunked, LinearLogits
from jaxce._core import cpu_sums, definition
from tests.support import device_work
from tests.support.row_losses import policy_loss_and_metrics
from tests.support.versions import on_small_memory

TOKENS, FEATURES, CLASSES = 512, 64, 3000
F32 = functools.partial(jax.ShapeDtypeStruct, dtype="float32")
ARGUMENTS = F32((TOKENS, FEATURES)), F32((FEATURES, CLASSES)), jax.ShapeDtypeStruct((TOKENS,), "int32"), F32((TOKENS,))


def policy(implementation, hidden, classifier, labels, advantages):
    logits = LinearLogits(hidden, classifier, implementation=implementation)
    loss = functools.partial(policy_loss_and_metrics, clip=0.2, beta=0.1)
    result, metrics = jaxce.loss_sum(logits, labels, loss, (advantages, advantages), has_aux=True)
    return result.mean(), metrics


def cross_entropy(implementation, hidden, classifier, labels, _):
    logits = LinearLogits(hidden, classifier, implementation=implementation)
    return jaxce.softmax_cross_entropy_sum(logits, labels).mean(), ()


def compiled(function):
    return jax.jit(function).lower(*ARGUMENTS).compile()


def matmuls(program):
    return device_work.figures(program).products / (TOKENS * FEATURES * CLASSES)


@pytest.mark.covering(1, at_most=1)
@on_small_memory
@pytest.mark.parametrize(
    ("implementation", "number"), [(Chunked(64), 3), (Chunked(64, 1000), 4), (None, 3)], ids=["rows", "parts", "none"]
)
def test_a_policy_loss_costs_as_many_matmuls_and_as_much_memory_as_the_cross_entropy(implementation, number):
    programs = [
        compiled(jax.value_and_grad(functools.partial(f, implementation), (0, 1), has_aux=True))
        for f in (policy, cross_entropy)
    ]
    assert [round(matmuls(program), 3) for program in programs] == [number, number]
    of_policy, of_cross_entropy = (program.memory_analysis().temp_size_in_bytes for program in programs)
    # A gradient and a block of logits, if a block has whole rows.
    logits = 64 * CLASSES if implementation else CLASSES * 512
    assert of_policy <= 1.1 * of_cross_entropy <= 1.1 * 4 * (FEATURES * CLASSES + 4 * logits + 8 * TOKENS * FEATURES)


@pytest.mark.parametrize("implementation", [Chunked(64), None], ids=["rows", "none"])
def test_the_value_alone_costs_one_matmul(implementation):
    assert round(matmuls(compiled(functools.partial(policy, implementation))), 3) == 1


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("argument", [0, 1, 3], ids=["hidden", "classifier", "advantages"])
def test_a_gradient_that_is_not_wanted_costs_no_matmul(argument):
    program = compiled(jax.grad(functools.partial(policy, Chunked(64)), argument, has_aux=True))
    assert round(matmuls(program), 3) == (1 if argument == 3 else 2)


def per_token(hidden, classifier, labels, _):
    return jaxce.linear_softmax_cross_entropy(hidden, classifier, labels, z_loss=0.01).sum(), ()


def dense(hidden, classifier, labels, _):
    return jaxce.softmax_cross_entropy_with_integer_labels(hidden @ classifier, labels, label_smoothing=0.1).sum(), ()


def short(hidden, _, labels, __):
    return jaxce.softmax_cross_entropy_with_integer_labels(hidden[:100], labels[:100], z_loss=0.1).sum(), ()


READERS = {
    "sum": functools.partial(cross_entropy, None),
    "sum in parts": functools.partial(cross_entropy, Chunked(64, 1000)),
    "per token": per_token,
    "dense, form": dense,
    "dense, definition": short,
}


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("name", READERS)
def test_programs_that_do_not_read_the_statistics_of_the_softmax_are_the_same_without_them(name, monkeypatch):
    """Compile each loss with its gradients, then again with constants for spread and prediction, and compare the instructions."""

    def instructions():
        jax.clear_caches()
        text = compiled(jax.value_and_grad(READERS[name], has_aux=True)).as_text()
        return sorted(re.findall(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\S+ [a-z][\w\-]*)\(", text, re.MULTILINE))

    def zeros(values, axis):
        return jnp.sum(jnp.zeros(values.shape, jnp.int32), axis)

    with_all = instructions()
    monkeypatch.setattr(definition, "gap_times_exp", jnp.zeros_like)
    monkeypatch.setattr(definition, "first_true", zeros)
    monkeypatch.setattr(cpu_sums, "first_true", zeros)
    monkeypatch.setattr(cpu_sums, "gap_times_exp", lambda _, gap, __: gap * 0)
    without = instructions()
    jax.clear_caches()
    assert with_all == without and len(without) > 20


def test_the_comparison_sees_a_statistic_that_is_read(monkeypatch):
    def entropy():
        jax.clear_caches()
        program = compiled(lambda h, w, *_: jaxce.logit_stats(h @ w).entropy)
        return program.cost_analysis()["flops"]

    with_it = entropy()
    monkeypatch.setattr(definition, "gap_times_exp", jnp.zeros_like)
    monkeypatch.setattr(cpu_sums, "gap_times_exp", lambda _, gap, __: gap * 0)
    without = entropy()
    jax.clear_caches()
    assert without < with_it
