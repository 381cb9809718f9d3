"""Every mutant fits the code as it stands, and a few of them meet the tests; `run_mutants.py` tries them all."""

import pytest

from tests.mutation.mutants import MUTANTS
from tests.mutation.run_mutants import PACKAGE, SUITE, TESTS, judge, mutated


def name_of(mutant):
    return f"{mutant.module}: {mutant.name}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=name_of)
def test_mutant_fits_the_code_and_compiles(mutant):
    path = PACKAGE / f"{mutant.module}.py"
    compile(mutated(mutant, path.read_text()), path, "exec")


@pytest.mark.parametrize("name", sorted({name for m in MUTANTS for name in m.tests} | set(SUITE)))
def test_the_tests_that_mutants_meet_exist(name):
    file, _, test = name.partition("::")
    assert f"def {test or 'test_'}" in next(TESTS.glob(f"*/test_{file}.py")).read_text()


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name", ["label -1 is the last class", "merge counts the first block twice", "z-loss has no gradient"]
)
def test_mutant_is_refused(name):
    (mutant,) = (m for m in MUTANTS if m.name == name)
    verdict = judge(mutant, own_tests_only=True)
    assert verdict.outcome == "killed", verdict.by


def test_there_are_enough_mutants_and_no_two_are_the_same():
    assert len(MUTANTS) >= 60
    assert len({name_of(m) for m in MUTANTS}) == len({(m.module, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)


def test_a_mutant_that_no_longer_fits_is_an_error():
    with pytest.raises(LookupError, match=r"'label C is inside': found 0 times, not once"):
        mutated(next(m for m in MUTANTS if m.name == "label C is inside"), "another = source")
