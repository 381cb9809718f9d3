"""The tests follow `tests/README.md`: the README lists every folder, no file imports a test file, and no file changes `sys.path`."""

import ast
import re

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
IS_TEST_FILE = re.compile(r"(tests\..*)?\btest_").match
FILES = sorted(path for path in TESTS.rglob("*.py") if path.parent != TESTS)


def imported_names(source):
    """Yield the full names of all imports of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_readme_has_a_line_for_every_folder():
    folders = set(re.findall(r"^\| `(\w+)/` \|", (TESTS / "README.md").read_text("utf-8"), re.MULTILINE))
    assert {path.relative_to(TESTS).parts[0] for path in FILES} - {"support"} == folders


def test_no_test_file_is_imported_and_no_path_is_changed():
    for path in FILES:
        source = path.read_text("utf-8")
        names = list(imported_names(source))
        assert not [name for name in names if IS_TEST_FILE(name)], path
        assert not re.search(r"^\s*sys\.path\b", source, re.MULTILINE), path
        if path.is_relative_to(TESTS / "support"):
            assert all(name.startswith("tests.support") for name in names if name.startswith("tests")), path


def test_import_of_a_test_file_is_detected():
    for source in (
        "import test_values",
        "from tests.losses import test_values",
        "def f():\n    from tests.losses.test_values import x",
    ):
        assert list(filter(IS_TEST_FILE, imported_names(source))), source
    assert not IS_TEST_FILE("jax.test_util.check_grads") and not IS_TEST_FILE("tests.support.latest_test")


def test_names_of_test_files_are_unique():
    """A name without its folder must identify a test file."""
    names = [path.name for path in FILES if path.name.startswith("test_")]
    assert len(names) == len(set(names))
