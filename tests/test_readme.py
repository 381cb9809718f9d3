"""README's Python blocks run, in order, in one namespace. A block with `>>>` prompts must also print what it shows."""

import doctest
import re
from pathlib import Path

import jax
import pytest

README = Path(__file__).parents[1] / "README.md"


def python_blocks(text):
    """The fenced blocks of Python, each with the number of its first line."""
    fences = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, fence.start(1)) + 1, fence[1]) for fence in fences]


def run_block(line, block, namespace):
    if block.startswith(">>> "):
        session = doctest.DocTestParser().get_doctest(block, namespace, "README.md", str(README), line - 1)
        report = []
        failures = doctest.DocTestRunner(verbose=False).run(session, out=report.append, clear_globs=False).failed
        namespace.update(session.globs)
        assert failures == 0, "".join(report)
    else:
        # The empty lines make a traceback name README's own line.
        exec(compile("\n" * (line - 1) + block, str(README), "exec"), namespace)


def test_python_blocks_of_readme():
    blocks = python_blocks(README.read_text(encoding="utf-8"))
    assert blocks
    namespace = {"__name__": "readme"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader's JAX is set
        for line, block in blocks:
            run_block(line, block, namespace)


def test_python_blocks_are_found_with_their_lines():
    text = "# Title\n\n```bash\nls\n```\n\n```python\na = 1\n\nb = a\n```\n```python\n>>> a\n1\n```\n"
    assert python_blocks(text) == [(8, "a = 1\n\nb = a\n"), (13, ">>> a\n1\n")]


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
