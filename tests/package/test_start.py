"""The programs of `examples/start` are short, are narrow enough for a page, are all shown whole on the pages "Get started", and all run in CI."""

import re

import pytest

from tests.support.paths import ROOT

PROGRAMS = sorted((ROOT / "examples" / "start").glob("*.py"))
PAGES = sorted((ROOT / "docs" / "pages" / "start").glob("*.md"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_program_fits_on_a_page(path):
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 88  # at 1280 pixels, a page shows 88 columns


def test_every_program_is_shown_once():
    shown = [name for page in PAGES for name in re.findall(r'^--8<-- "(.*)"$', page.read_text("utf-8"), re.MULTILINE)]
    assert sorted(shown) == [path.relative_to(ROOT).as_posix() for path in PROGRAMS]


def test_every_program_runs_in_ci():
    (names,) = re.findall(r"for example in (.*); do\n.*examples/start", (ROOT / ".ci" / "run").read_text("utf-8"))
    assert sorted(names.split()) == [path.stem for path in PROGRAMS]
