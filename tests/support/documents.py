"""README and the pages with Python blocks: where they are, and their blocks."""

import re

from tests.support.paths import ROOT

README = ROOT / "README.md"
DOCUMENTS = [
    path
    for path in (README, *sorted((ROOT / "docs" / "pages").rglob("*.md")))
    if "```python" in path.read_text("utf-8")
]


def python_blocks(text):
    """The fenced blocks of Python, each with the number of its first line."""
    fences = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, fence.start(1)) + 1, fence[1]) for fence in fences]


def is_session(block):
    return block.startswith(">>> ")


def as_module(text):
    """All blocks of a document as one module, each line at its own number. A session gives its input alone."""
    lines = []
    for first, block in python_blocks(text):
        lines += [""] * (first - 1 - len(lines))
        for line in block.splitlines():
            shown = is_session(block) and not line.startswith((">>> ", "... "))
            lines.append("" if shown else line[4:] if is_session(block) else line)
    return "\n".join(lines) + "\n"
