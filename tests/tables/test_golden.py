"""`jaxce.keras` against the recorded results of TensorFlow 1.15 and 2.2, case by case: value, gradient, shape, dtype, exceptions."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.support import covering
from tests.support.golden import comparison

pytestmark = pytest.mark.usefixtures("fast_compilation")


def _parameters(name):
    """Return the parameters of a case. The quick tier covers every pair of them that occurs in a case."""
    case, (y_true, y_pred) = comparison.CASES[name], comparison.inputs(name)
    options = {option: str(case["args"].get(option)) for option in comparison.DEFAULT}
    arrays = {"y_true": (y_true.dtype.name, y_true.ndim), "y_pred": (y_pred.dtype.name, y_pred.ndim)}
    return {"function": case["function"], **options, **arrays, "empty": tuple(n == 0 for n in y_pred.shape)}


NAMES = list(comparison.CASES)
PAIRS = {NAMES[i] for i in covering.selection([_parameters(name) for name in NAMES], 2)}


def programs():
    """Yield lists of cases. The cases of a list are computed by one program."""
    key = lambda name: (comparison.CASES[name]["function"], comparison.CASES[name]["y_pred_dtype"], name not in PAIRS)  # noqa: E731
    for (function, dtype, nightly), names in itertools.groupby(sorted(NAMES, key=key), key):
        some, marks = list(names), pytest.mark.nightly if nightly else ()
        for i in range(0, len(some), 20):
            tier = "nightly" if nightly else "quick"
            yield pytest.param(some[i : i + 20], id=f"{function}-{dtype}-{tier}-{i // 20}", marks=marks)


def _reasons(name, got):
    references = comparison.references_to_meet(name)
    assert references, "no reference answered this case"
    return {x: comparison.difference(name, got, comparison.recorded(name, x))[0] for x in references}


def _mismatch(name, got):
    """Return why the result agrees with no reference, or not with the documented numbers; None if it agrees."""
    reasons = _reasons(name, got)
    if None not in reasons.values():
        return reasons
    documented = comparison.CASES[name].get("documented")
    if documented and not np.allclose(got.loss, documented["values"], rtol=0, atol=documented["atol"]):
        return f"{got.loss}, documented as {documented['values']}"
    return None


@pytest.mark.covering(1, at_most=6)
@pytest.mark.parametrize("names", list(programs()))
def test_jitted_calls_agree_with_the_recorded_results(names):
    answers = comparison.evaluate_in_one_program(names)
    failures = {name: reason for name in names if (reason := _mismatch(name, answers[name]))}
    assert not failures


@pytest.mark.parametrize("name", covering.quick([(name,) for name in NAMES], [(name,) for name in NAMES[::48]]))
def test_call_outside_jit_agrees_with_the_recorded_result(name):
    assert _mismatch(name, comparison.evaluate(name, jit=False)) is None


def test_comparison_detects_a_wrong_loss_gradient_shape_dtype_and_exception():
    name = "lcce-probs-hard-rank2"
    right = comparison.evaluate(name, jit=False)
    wrong = [
        dataclasses.replace(right, loss=right.loss * np.float32(1 + 1e-4)),
        dataclasses.replace(right, grad=right.grad + np.float32(1e-4)),
        dataclasses.replace(right, loss=right.loss[None]),
        dataclasses.replace(right, loss=right.loss.astype(np.float16)),
        dataclasses.replace(right, loss=right.loss * np.nan),
        comparison.Answer(exception="ValueError: no"),
    ]
    assert None in _reasons(name, right).values()
    assert all(None not in _reasons(name, answer).values() for answer in wrong)
    raising = "lcce-probs-mismatch-batch"
    assert None not in _reasons(raising, right).values()


@pytest.mark.nightly
def test_every_intended_difference_is_needed():
    """For each quirk in the table, jaxce differs from the primary reference in some case."""
    for quirk in comparison.INTENDED:
        cases = [n for n, case in comparison.CASES.items() if quirk in case.get("quirks", ())]
        primary = {n: comparison.INDEX["primary"][comparison.CASES[n]["function"]] for n in cases}
        differs = (
            comparison.difference(n, comparison.evaluate(n, jit=False), comparison.recorded(n, primary[n]))[0]
            for n in cases
            if primary[n] in comparison.CASES[n]["results"]
        )
        assert any(reason is not None for reason in differs), quirk
