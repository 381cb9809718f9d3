"""The Python blocks of the README and of the pages run in order, in one namespace per document. Blocks with `>>>` print the shown output."""

import doctest
import re

import jax
import pytest

import jaxce
from tests.support import covering
from tests.support.documents import DOCUMENTS, README, as_module, is_session, python_blocks
from tests.support.paths import ROOT


def run_block(line, block, namespace, path=README):
    if is_session(block):
        session = doctest.DocTestParser().get_doctest(block, namespace, path.name, str(path), line - 1)
        report = []
        failures = doctest.DocTestRunner(verbose=False).run(session, out=report.append, clear_globs=False).failed
        namespace.update(session.globs)
        assert failures == 0, "".join(report)
    else:
        # With the empty lines, a traceback shows the line number in the document.
        exec(compile("\n" * (line - 1) + block, str(path), "exec"), namespace)


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize(
    "path",
    [README, *covering.nightly_values(*(path for path in DOCUMENTS if path != README))],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_python_blocks(path):
    namespace = {"__name__": path.stem}
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):  # the defaults of JAX, as for a reader
        for line, block in python_blocks(path.read_text(encoding="utf-8")):
            run_block(line, block, namespace, path)


def test_readme_and_guides_are_among_the_documents():
    assert {README, ROOT / "docs" / "pages" / "guides" / "accumulation.md"} <= set(DOCUMENTS)


def test_reference_has_every_public_name():
    pages = (ROOT / "docs" / "pages" / "api").glob("*.md")
    shown = {
        name for page in pages for name in re.findall(r"^::: jaxce\.(\w+)$", page.read_text("utf-8"), re.MULTILINE)
    }
    assert shown == {name for name, value in vars(jaxce).items() if not name.startswith("_") and callable(value)}


def test_python_blocks_are_found_with_their_lines():
    text = "# Title\n\n```bash\nls\n```\n\n```python\na = 1\n\nb = a\n```\n```python\n>>> a\n1\n```\n"
    assert python_blocks(text) == [(8, "a = 1\n\nb = a\n"), (13, ">>> a\n1\n")]


def test_blocks_become_a_module_with_the_lines_of_the_document():
    text = "# Title\n\n```python\na = 1\n```\n\n```python\n>>> for b in [a]:\n...     print(b)\n1\n>>> a\n1\n```\n"
    assert as_module(text).splitlines() == [
        "",
        "",
        "",
        "a = 1",
        "",
        "",
        "",
        "for b in [a]:",
        "    print(b)",
        "",
        "a",
        "",
    ]


def test_wrong_output_in_session_fails():
    namespace = {}
    run_block(1, ">>> a = 1\n>>> a\n1\n", namespace)
    assert namespace["a"] == 1
    with pytest.raises(AssertionError, match=r'README.md", line 5, in (.*\n)+ *Expected:\n +2\n *Got:\n +1'):
        run_block(5, ">>> a\n2\n", namespace)


def test_error_in_block_names_line_of_readme():
    with pytest.raises(ZeroDivisionError) as error:
        run_block(7, "a = 1\n1 / 0\n", {})
    assert error.traceback[-1].lineno + 1 == 8
