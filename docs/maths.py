"""The mathematics of the site: from the docstrings' directives to Markdown, and from there to pictures, made while the site is built.

So a page needs no script and nothing from elsewhere to show a formula. As a hook of MkDocs this is `on_page_content`, as an extension of
griffe, which reads the docstrings, `Docstrings`.
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
    """Directives and roles of reStructuredText as `$$` and `$`; the heading of an example as griffe knows it."""
    docstring = DIRECTIVE.sub(lambda match: f"$$\n{' '.join(match[1].split())}\n$$", docstring)
    docstring = ROLE.sub(lambda match: f"${match[1]}$", docstring)
    return re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    """Every docstring as Markdown, before its sections are told apart."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


@functools.cache
def picture(formula: str, display: bool) -> str:
    """SVG in the colour of the text around it, read aloud as its TeX."""
    svg = quickjax.render(formula, display=display)
    return svg.replace("<svg ", f'<svg aria-label="{html.escape(formula)}" ', 1)


def on_page_content(content: str, **_: Any) -> str:
    """A page's HTML with its formulas as pictures."""

    def replaced(match: re.Match[str]) -> str:
        display = match[1] == "div"
        return f'<{match[1]} class="formula">{picture(html.unescape(match[2]).strip(), display)}</{match[1]}>'

    return FORMULA.sub(replaced, content)
