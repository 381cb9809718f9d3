"""The accuracy part of the scoreboard in a small size for CI: every kind of label, random and adversarial rows, against 50 digits."""

import collections
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.peers import libraries
from benchmarks.scoreboard import accuracy, divergences, in_use
from tests.support import covering

OURS = next(libraries.installed())
BY_KIND = collections.defaultdict(list)
for _case in accuracy.cases(np.float32, quick=True):
    BY_KIND[_case.kind].append(_case)


# tests/losses/test_accuracy.py tests the losses without options in the quick tier.
NIGHTLY_KINDS = ("integer", "soft", "sigmoid")


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize(
    "kind", [*(kind for kind in BY_KIND if kind not in NIGHTLY_KINDS), *covering.nightly_values(*NIGHTLY_KINDS)]
)
def test_float32_meets_the_target(kind):
    for case in BY_KIND[kind]:
        answer = OURS.with_gradient(OURS.losses[kind], *case.arguments)
        value_error, gradient_error = accuracy.worst_errors(accuracy.exact(case), *answer)
        assert value_error <= accuracy.VALUE_TARGET and gradient_error <= accuracy.GRADIENT_TARGET, case.name


@pytest.mark.nightly
@pytest.mark.parametrize("kind", BY_KIND)
def test_float64_meets_the_target(kind, x64):
    for case in accuracy.cases(np.float64, quick=True, seed=1):
        if case.kind == kind and "1000 classes" not in case.name:
            answer = OURS.with_gradient(OURS.losses[kind], *case.arguments)
            assert answer[0].dtype == np.float64
            value_error, gradient_error = accuracy.worst_errors(accuracy.exact(case), *answer)
            assert value_error <= accuracy.VALUE_TARGET and gradient_error <= accuracy.GRADIENT_TARGET, case.name


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["integer", "soft", "sigmoid"])
def test_values_of_narrow_logits_equal_those_of_the_same_logits_in_float32(kind, dtype):
    for case in BY_KIND[kind]:
        if "1000 classes" in case.name:
            continue
        narrow = np.asarray(case.logits, dtype)
        values, gradient = OURS.with_gradient(OURS.losses[kind], narrow, case.labels)
        assert values.dtype == np.float32 and gradient.dtype == dtype
        rounded = accuracy.Case(case.name, kind, narrow.astype(np.float32), case.labels)
        truth = accuracy.exact(rounded)
        value_error, _ = accuracy.worst_errors(truth, values, np.zeros_like(gradient, np.float32))
        assert value_error <= accuracy.VALUE_TARGET, case.name


@pytest.mark.nightly
@pytest.mark.parametrize("kind", in_use.KINDS)
def test_second_derivatives_are_correct_in_every_dtype(kind, x64):
    asked, right = in_use.second_derivatives(OURS, (kind,))
    assert asked == right == 2 * 4 * 4


def test_second_derivative_of_0_is_counted_as_wrong(x64):
    lost = dataclasses.replace(OURS, second_derivatives=(lambda _, logits, *rest: 0 * logits,))
    assert in_use.second_derivatives(lost, ("soft",)) == (8, 0)


def test_long_means_are_accurate_and_plain_sums_are_not():
    assert in_use.long_mean(*OURS.long_mean) <= 1e-6
    plain = (lambda s, total, weight: (s[0] + total, s[1] + weight), (jnp.zeros(()),) * 2, lambda s: s[0] / s[1])
    assert in_use.long_mean(*plain) > 1e-4


def test_error_measure_detects_an_error_and_ignores_unavoidable_ones():
    case = accuracy.Case("one row", "integer", np.float32([[0.0, 20.0, -1.0]]), np.int32([1]))
    truth = accuracy.exact(case)
    values, gradient = OURS.with_gradient(OURS.losses["integer"], *case.arguments)
    assert max(accuracy.worst_errors(truth, values, gradient)) <= 2
    value_error, gradient_error = accuracy.worst_errors(
        truth, values * np.float32(1 + 2e-6), gradient * np.float32(1 - 3e-6)
    )
    assert value_error > 4 and gradient_error > 6
    lost = accuracy.worst_errors(truth, np.float32([0]), np.float32([[0, 0, 0]]))
    assert min(lost) > 1e6


def test_divergence_is_exact_at_every_size_and_a_plain_one_is_not():
    rows = divergences.by_function(divergences.rows(sizes=(1e-14, 1e-6, 10.0)))
    for row in rows["jaxce"]:
        assert float(row.value_error) <= 8 * 2**-23 and float(row.gradient_error) <= 16 * 2**-23
    assert divergences.not_positive(rows["jaxce"]) == (0, 0)
    assert max(float(row.value_error) for row in rows["optax kl_divergence"]) > 1
    assert sum(divergences.not_positive(rows["optax kl_divergence"])) > 0
    text = divergences.markdown("here", [row for mine in rows.values() for row in mine])
    assert "| jaxce | 0 | 0 |" in text
