"""The focal losses, the generalized cross-entropy and the KL divergence against recorded answers of Keras 3: value, gradients, shape, dtype."""

import itertools

import numpy as np
import pytest

from tests.support import covering
from tests.support.golden import keras3_comparison as comparison

pytestmark = pytest.mark.usefixtures("fast_compilation")

NAMES = list(comparison.CASES)


def _parameters(name):
    """Return the parameters of a case. The quick tier covers every pair of them for each function."""
    case = comparison.CASES[name]
    return {f"{case['function']} {key}": value for key, value in case["parameters"].items()}


PAIRS = {NAMES[i] for i in covering.selection([_parameters(name) for name in NAMES], 2)}
SINGLE = {NAMES[i] for i in covering.selection([_parameters(name) for name in NAMES], 1)}


def programs():
    """Yield lists of cases. The cases of a list are computed by one program."""
    key = lambda name: (comparison.CASES[name]["function"], comparison.is_float64(name), name not in SINGLE)  # noqa: E731
    for (function, is_float64, nightly), names in itertools.groupby(sorted(NAMES, key=key), key):
        some, marks = list(names), pytest.mark.nightly if nightly else ()
        for i in range(0, len(some), 20):
            kind = f"{'float64' if is_float64 else 'others'}-{'nightly' if nightly else 'quick'}-{i // 20}"
            yield pytest.param(some[i : i + 20], id=f"{function}-{kind}", marks=marks)


def _faults(names, answers):
    """Return why answers differ from those to meet, by case."""
    found = {}
    for name in names:
        try:
            comparison.assert_met(name, answers[name], comparison.to_meet(name))
        except AssertionError as error:
            found[name] = str(error)
    return found


@pytest.mark.covering(1, at_most=6)
@pytest.mark.parametrize("names", list(programs()))
def test_jitted_calls_agree_with_the_recorded_answers(names):
    assert _faults(names, comparison.evaluate(names, jit=True)) == {}


@pytest.mark.parametrize("name", covering.quick([(name,) for name in NAMES], [(name,) for name in NAMES[::90]]))
def test_call_outside_jit_agrees_with_the_recorded_answer(name):
    assert _faults([name], comparison.evaluate([name], jit=False)) == {}


def test_corpus_has_at_least_200_cases_with_finite_gradients():
    finite = [
        name
        for name in NAMES
        if (gradient := comparison.recorded(name, comparison.OWN).grad_pred) is not None
        and gradient.size
        and np.isfinite(gradient.astype(float)).all()
    ]
    assert len(finite) >= 200


def test_comparison_detects_a_wrong_loss_gradient_shape_dtype_and_exception():
    name = "categorical_focal_crossentropy: kind=rows, gamma=2.0, smoothing=0.0, alpha=0.25, dtype=float32"
    right, want = comparison.evaluate([name], jit=False)[name], comparison.to_meet(name)
    comparison.assert_met(name, right, want)
    wrong = [
        right._replace(loss=right.loss * np.float32(1 + 1e-4)),
        right._replace(grad_pred=right.grad_pred + np.float32(1e-4)),
        right._replace(grad_true=right.grad_true + np.float32(1e-4)),
        right._replace(grad_true=None),
        right._replace(loss=right.loss[None]),
        right._replace(loss=right.loss.astype(np.float16)),
        right._replace(loss=right.loss * np.nan),
        comparison.Answer(exception="ValueError"),
    ]
    for answer in wrong:
        with pytest.raises(AssertionError):
            comparison.assert_met(name, answer, want)


@pytest.mark.nightly
@pytest.mark.parametrize("quirk", comparison.INTENDED)
def test_intended_difference_is_needed(quirk):
    """In some case of the quirk, jaxce does not meet the answer that Keras gave to the case itself."""
    for name in (name for name in NAMES if quirk in comparison.CASES[name]["quirks"]):
        try:
            answer = comparison.evaluate([name], jit=False)[name]
            comparison.assert_met(name, answer, comparison.recorded(name, comparison.OWN))
        except AssertionError:
            return
    raise AssertionError(f"{quirk} is not needed")
