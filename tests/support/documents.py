"""The paths of the README and of the pages with Python blocks, and their blocks."""

import re

from tests.support.paths import ROOT

README = ROOT / "README.md"
DOCUMENTS = [
    path
    for path in (README, *sorted((ROOT / "docs" / "pages").rglob("*.md")))
    if "```python" in path.read_text("utf-8")
]


def python_blocks(text):
    """Return the fenced blocks of Python, each with the number of its first line."""
    fences = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, fence.start(1)) + 1, fence[1]) for fence in fences]


def is_session(block):
    return block.startswith(">>> ")


def as_module(text):
    """Return all blocks of a document as one module. Each line keeps its line number. Of a session, only the input is kept."""
    lines = []
    for first, block in python_blocks(text):
        lines += [""] * (first - 1 - len(lines))
        for line in block.splitlines():
            is_output = is_session(block) and not line.startswith((">>> ", "... "))
            lines.append("" if is_output else line[4:] if is_session(block) else line)
    return "\n".join(lines) + "\n"
