"""`jaxce.keras` against the recorded answers of TensorFlow 1.15 and 2.2, case by case: value, gradient, shape, dtype, exceptions."""

import dataclasses

import numpy as np
import pytest

from tests.support import covering
from tests.support.golden import comparison

pytestmark = pytest.mark.usefixtures("made_quickly")

# Every case inside of one jit, and every twelfth as a user calls it outside of any; JAXCE_EVERY_COMBINATION=1 calls the others so too.
CALLS = [(name, True) for name in comparison.CASES]
CALLS += [(name, False) for name in list(comparison.CASES)[:: 1 if covering.EVERY_COMBINATION else 12]]


def _reasons(name, got):
    references = comparison.references_to_meet(name)
    assert references, "no reference answered this case"
    return {x: comparison.difference(name, got, comparison.recorded(name, x))[0] for x in references}


@pytest.mark.parametrize(("name", "jit"), CALLS, ids=[f"{name}-{'jit' if jit else 'eager'}" for name, jit in CALLS])
def test_meets_the_recorded_answer(name, jit):
    got = comparison.evaluate(name, jit=jit)
    reasons = _reasons(name, got)
    assert None in reasons.values(), reasons
    documented = comparison.CASES[name].get("documented")
    if documented:
        np.testing.assert_allclose(got.loss, documented["values"], rtol=0, atol=documented["atol"])


def test_the_comparison_sees_a_wrong_loss_gradient_shape_dtype_and_a_missing_exception():
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


def test_every_intended_difference_is_one():
    """Each exception in the table is needed: some case with that quirk does not meet its primary reference."""
    for quirk in comparison.INTENDED:
        cases = [n for n, case in comparison.CASES.items() if quirk in case.get("quirks", ())]
        primary = {n: comparison.INDEX["primary"][comparison.CASES[n]["function"]] for n in cases}
        differs = (
            comparison.difference(n, comparison.evaluate(n, jit=False), comparison.recorded(n, primary[n]))[0]
            for n in cases
            if primary[n] in comparison.CASES[n]["results"]
        )
        assert any(why is not None for why in differs), quirk
