"""Checks the built site: links have targets, nothing is loaded from other sites, formulas are pictures, code fits, the search has every page.

mkdocs build --strict -f docs/mkdocs.yml && python docs/check_site.py
"""

import json
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

SITE = Path(__file__).parent / "site"
CODE_COLUMNS = 120  # what a window of 1280 px shows; style.css sets the font
NOT_RENDERED = (".. math::", ":math:", 'class="arithmatex"', "$$")


class Page(HTMLParser):
    """The links, the loaded files, the anchors and the number of formulas of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.formulas = 0
        self.code: list[str] = []
        self.is_code = False
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.formulas += given.get("class") == "formula"
        if tag == "pre":
            self.is_code = True
            self.code.append("")
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe") and "src" in given:
            self.loads.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loads.append(given["href"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre":
            self.is_code = False

    def handle_data(self, data: str) -> None:
        if self.is_code:
            self.code[-1] += data


def is_elsewhere(address: str) -> bool:
    return bool(urlsplit(address).scheme or urlsplit(address).netloc)


def problems(pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        name = path.relative_to(SITE)
        yield from (f"{name} loads {address}" for address in page.loads if is_elsewhere(address))
        yield from (f"{name} shows {sign}" for sign in NOT_RENDERED if sign in path.read_text("utf-8"))
        lines = (line for block in page.code for line in block.splitlines())
        yield from (f"{name} cuts off code: {line}" for line in lines if len(line) > CODE_COLUMNS)
        for address in page.links + page.loads:
            if is_elsewhere(address):
                continue
            to, anchor = urldefrag(address)
            target = (path.parent / unquote(to)).resolve() if to else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{name} leads to {address}, which is not there"
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                yield f"{name} leads to {address}, whose anchor is not there"


def pages_without_search(pages: dict[Path, Page]) -> Iterator[str]:
    index = json.loads((SITE / "search" / "search_index.json").read_text("utf-8"))
    found = {urldefrag(entry["location"]).url or "index.html" for entry in index["docs"]}
    names = (path.relative_to(SITE).as_posix() for path in pages)
    yield from (f"the search does not find {name}" for name in names if name not in found)


def main() -> None:
    # Skip 404.html, whose links assume the root of a server.
    pages = {path: Page(path) for path in sorted(SITE.rglob("*.html")) if path.name != "404.html"}
    found = [*problems(pages), *pages_without_search(pages)]
    links, formulas = sum(len(page.links) for page in pages.values()), sum(page.formulas for page in pages.values())
    print(*found, f"{len(pages)} pages, {links} links, {formulas} formulas, {len(found)} problems", sep="\n")
    if found or not formulas:
        sys.exit(1)


if __name__ == "__main__":
    main()
