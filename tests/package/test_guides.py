"""Each public docstring names its guide, and each guide links the entries of the functions that it uses."""

import importlib
import inspect
import re

import pytest

import jaxce
from tests.support.documents import python_blocks
from tests.support.paths import ROOT

GUIDES = sorted((ROOT / "docs" / "pages" / "guides").glob("*.md"))
DOCUMENTED = {
    **{name: getattr(jaxce, name) for name in jaxce.__all__},
    **{name: importlib.import_module(name) for name in ("jaxce", "jaxce.keras", "jaxce.keras.losses")},
    **{name: importlib.import_module(name) for name in ("jaxce.keras.backend", "jaxce.keras.metrics")},
}


def guides_of(docstring):
    """Return the paths in the last line of a docstring."""
    last = inspect.cleandoc(docstring).splitlines()[-1]
    found = re.fullmatch(r" *Guide: (.+)", last)
    return found[1].split(", ") if found else []


def links_to(text):
    """Return the names of jaxce to whose entries in the reference a text links."""
    return set(re.findall(r"\]\(\.\./api/\w+\.md#jaxce\.(\w+)", text))


def used_in(text):
    """Return the public names of jaxce in the Python blocks of a text."""
    code = "\n".join(block for _, block in python_blocks(text))
    return set(re.findall(r"\bjaxce\.(\w+)", code)) & set(jaxce.__all__)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_names_its_guide(name):
    guides = guides_of(DOCUMENTED[name].__doc__)
    assert guides
    assert all(guide.startswith("docs/pages/") and (ROOT / guide).is_file() for guide in guides)


@pytest.mark.parametrize("name", jaxce.__all__)
def test_guide_is_about_the_name(name):
    for guide in guides_of(DOCUMENTED[name].__doc__):
        assert re.search(rf"\b{name}\b", (ROOT / guide).read_text("utf-8")), guide


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_guide_links_the_entries_of_the_names_that_it_uses(path):
    text = path.read_text("utf-8")
    assert used_in(text) - links_to(text) == set()


def test_guides_use_names():
    assert sum(bool(used_in(path.read_text("utf-8"))) for path in GUIDES) > 5


def test_guides_of_a_docstring():
    assert guides_of("One.\n\n    References:\n      Two.\n      Guide: docs/a.md, docs/b.md\n    ") == [
        "docs/a.md",
        "docs/b.md",
    ]
    assert guides_of("One.\n\n    Guide: docs/a.md\n\n    Two.\n") == []


def test_names_and_links_of_a_guide():
    text = "See [`LossSum.of`](../api/statistics.md#jaxce.LossSum.of).\n\n```python\njaxce.Split(jaxce.LossSum.zero())\n```\n"
    assert used_in(text) == {"Split", "LossSum"}
    assert links_to(text) == {"LossSum"}
