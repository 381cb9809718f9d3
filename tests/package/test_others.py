"""The cases of `benchmarks/others`: jaxce is correct in each case, and a library with wrong results is detected in each case."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.others import dense, linear
from benchmarks.peers import libraries

pytestmark = pytest.mark.usefixtures("fast_compilation")

OURS = next(libraries.installed())
*_, LINEAR = next(linear.libraries())


def zeros(logits, labels, **_):
    """Return losses of 0, which are wrong in every case except those in `ANSWERED_BY_ZERO`."""
    del labels
    return 0 * jnp.sum(jnp.exp(logits), -1)


WRONG = libraries.Library("wrong", "", dict.fromkeys(OURS.losses, zeros), OURS.with_gradient)
ANSWERED_BY_ZERO = {"sigmoid loss of logit +inf, label 1", "the mean where every label is ignored"}


def by_question(cases):
    return [pytest.param(case, id=case.question) for case in cases]


@pytest.mark.parametrize("case", by_question(dense.CASES))
def test_dense_answer_is_correct(case):
    assert case.ask(OURS)[1] is True


@pytest.mark.parametrize("case", by_question(linear.CASES))
def test_linear_answer_is_correct(case):
    assert case.ask(LINEAR)[1] is True


@pytest.mark.parametrize("case", by_question(case for case in dense.CASES if case.question not in ANSWERED_BY_ZERO))
def test_wrong_dense_answer_is_detected(case):
    answer = case.ask(WRONG)
    assert answer is None or answer[1] is False


@pytest.mark.parametrize("case", by_question(linear.CASES))
def test_wrong_linear_answer_is_detected(case):
    assert (
        case.ask(
            lambda hidden, classifier, labels: LINEAR(hidden, classifier, np.abs(labels) % 2048) + 1e-3 * hidden.sum()
        )[1]
        is False
    )
