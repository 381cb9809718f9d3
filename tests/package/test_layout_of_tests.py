"""The tests keep to `tests/README.md`: each lies in a folder named there, no file imports a test file, nothing changes `sys.path`."""

import ast
import re

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
IS_OF_TESTS = re.compile(r"(tests\..*)?\btest_").match
FILES = sorted(path for path in TESTS.rglob("*.py") if path.parent != TESTS)


def imported(source):
    """The full names of all that a file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_every_folder_has_its_line():
    folders = set(re.findall(r"^\| `(\w+)/` \|", (TESTS / "README.md").read_text("utf-8"), re.MULTILINE))
    assert {path.relative_to(TESTS).parts[0] for path in FILES} - {"support"} == folders


def test_no_test_file_is_imported_and_no_path_is_changed():
    for path in FILES:
        source = path.read_text("utf-8")
        names = list(imported(source))
        assert not [name for name in names if IS_OF_TESTS(name)], path
        assert not re.search(r"^\s*sys\.path\b", source, re.MULTILINE), path
        if path.is_relative_to(TESTS / "support"):
            assert all(name.startswith("tests.support") for name in names if name.startswith("tests")), path


def test_an_import_of_a_test_file_is_seen():
    for source in (
        "import test_values",
        "from tests.losses import test_values",
        "def f():\n    from tests.losses.test_values import x",
    ):
        assert list(filter(IS_OF_TESTS, imported(source))), source
    assert not IS_OF_TESTS("jax.test_util.check_grads") and not IS_OF_TESTS("tests.support.latest_test")


def test_no_two_test_files_have_one_name():
    """Mutants name them without their folder."""
    names = [path.name for path in FILES if path.name.startswith("test_")]
    assert len(names) == len(set(names))
