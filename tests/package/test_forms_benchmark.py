"""`python -m benchmarks.forms`: each form is compared with plain code that computes the same loss."""

import dataclasses

import pytest

pytest.importorskip("tqdm", reason="needs the extra `benchmarks`")
pytest.importorskip("optax", reason="needs the extra `benchmarks`")

from benchmarks import forms


def small(problem):
    """The problem with few rows. Its logits are still so many that the forms are used."""
    return dataclasses.replace(problem, rows=66)


@pytest.mark.nightly
@pytest.mark.parametrize("form", forms.FORMS, ids=lambda form: form.name)
def test_plain_code_has_the_same_loss(form):
    for what in form.what:
        cells = forms.compare((form, small(form.problems[0]), what), seconds=0.01)
        assert len(cells) == len(forms.COLUMNS) and 0.01 < float(cells[-2]) < 100


def test_another_loss_is_refused():
    (form,) = (form for form in forms.FORMS if form.name == "sigmoid losses")
    wrong = dataclasses.replace(form, plain=lambda arguments: 2 * forms.plain_sigmoid(arguments))
    with pytest.raises(ValueError, match="the plain code has the loss"):
        forms.compare((wrong, small(form.problems[0]), forms.VALUE), seconds=0.01)
