"""Every mutant differs from the package and compiles. The nightly tier tests the shipped bugs; `run_mutants.py` tests more mutants."""

import pytest

from tests.mutation import operators
from tests.mutation.run_mutants import MODULES, SUITE, TESTS, changed, judge, path_of, shipped

SOURCE = '''
def clip(x: int = 1):
    """Return 0 below 0."""
    if x.ndim > 2:
        raise ValueError(f"{x.ndim} > 2")
    return jnp.where(x < 0, 0.0, -x + 1)
'''


def test_operators_change_code_and_nothing_else():
    found = [(c.line, c.was, c.now) for c in operators.changes(SOURCE)]
    assert (6, "x < 0", "x <= 0") in found
    assert (6, "-x + 1", "-x - 1") in found
    assert (6, "jnp.where(x < 0, 0.0, -x + 1)", "jnp.where(True, 0.0, -x + 1)") in found
    assert (2, "1", "2") in found
    assert not any(line == 5 for line, *_ in found)
    assert all("x: int=1" in c.source or c.was == "1" for c in operators.changes(SOURCE))
    assert all("Return 0 below 0." in c.source and "> 2'" in c.source for c in operators.changes(SOURCE))


@pytest.mark.nightly
@pytest.mark.parametrize("module", MODULES)
def test_every_change_differs_and_compiles(module):
    original = path_of(module).read_text()
    sources = {mutant.source for mutant in changed(module)}
    assert sources and original not in sources
    for source in sources:
        compile(source, module, "exec")


def test_shipped_bugs_apply_and_compile():
    for mutant in shipped():
        compile(mutant.source, mutant.module, "exec")


def test_test_files_for_mutants_exist():
    for name in {*SUITE, *(name for names in MODULES.values() for name in names)}:
        assert (TESTS / name).exists()


@pytest.mark.nightly
@pytest.mark.parametrize("mutant", list(shipped()), ids=lambda mutant: mutant.name)
def test_some_test_fails_for_a_shipped_bug(mutant):
    verdict = judge(mutant, own_tests_only=True)
    assert verdict.outcome == "killed", verdict.by
