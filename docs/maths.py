"""Converts the formulas of the site: from directives in docstrings to Markdown, and from Markdown to pictures, while the site is built.

So a page shows formulas without a script and without files from another site. MkDocs calls the hook `on_page_content`. griffe, which reads the
docstrings, calls the extension `Docstrings`.
"""

import functools
import html
import re
from typing import Any

import griffe
import quickjax

DIRECTIVE = re.compile(r"^\.\. math::(.*(?:\n +.*)*)", re.MULTILINE)
ROLE = re.compile(r":math:`([^`]+)`")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def to_markdown(docstring: str) -> str:
    """Convert directives and roles of reStructuredText to `$$` and `$`, and the heading "Example" to griffe's "Examples"."""
    docstring = DIRECTIVE.sub(lambda match: f"$$\n{' '.join(match[1].split())}\n$$", docstring)
    docstring = ROLE.sub(lambda match: f"${match[1]}$", docstring)
    return re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)


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
