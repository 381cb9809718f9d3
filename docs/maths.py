"""Converts the formulas of the site: from directives in docstrings to Markdown, and from Markdown to pictures, while the site is built.

A line `Guide: docs/pages/guides/distil.md` of a docstring becomes a link with the title of the page.

So a page shows formulas without a script and without files from another site. MkDocs calls the hook `on_page_content`. griffe, which reads the
docstrings, calls the extension `Docstrings`.
"""

import functools
import html
import re
from pathlib import Path
from typing import Any

import griffe
import quickjax

DIRECTIVE = re.compile(r"^\.\. math::(.*(?:\n +.*)*)", re.MULTILINE)
ROLE = re.compile(r":math:`([^`]+)`")
GUIDE = re.compile(r"^( *)Guide: (.+)$", re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def to_markdown(docstring: str) -> str:
    """Convert directives and roles of reStructuredText to `$$` and `$`, guides to links, and the heading "Example" to griffe's "Examples"."""
    docstring = DIRECTIVE.sub(lambda match: f"$$\n{' '.join(match[1].split())}\n$$", docstring)
    docstring = ROLE.sub(lambda match: f"${match[1]}$", docstring)
    docstring = GUIDE.sub(lambda match: f"\n{match[1]}Guide: {', '.join(map(link, match[2].split(', ')))}", docstring)
    return re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)


def link(guide: str) -> str:
    """Return a link to a page, from the pages of the reference in `docs/pages/api`."""
    title = Path(__file__).parents[1].joinpath(guide).read_text("utf-8").partition("# ")[2].partition("\n")[0]
    return f"[{title}](../{guide.removeprefix('docs/pages/')})"


class Docstrings(griffe.Extension):
    """Converts every docstring to Markdown, before griffe parses its sections."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


@functools.cache
def picture(formula: str, display: bool) -> str:
    """Return the formula as an SVG in the colour of the surrounding text. Screen readers read its TeX."""
    svg = quickjax.render(formula, display=display)
    return svg.replace("<svg ", f'<svg aria-label="{html.escape(formula)}" ', 1)


def on_page_content(content: str, **_: Any) -> str:
    """Return the HTML of a page with its formulas as pictures."""

    def replaced(match: re.Match[str]) -> str:
        display = match[1] == "div"
        return f'<{match[1]} class="formula">{picture(html.unescape(match[2]).strip(), display)}</{match[1]}>'

    return FORMULA.sub(replaced, content)
