"""`examples/README.md` has each example with its command, and each picture of the gallery. The site shows the same text."""

import re
import struct

import pytest

from tests.support.paths import ROOT

EXAMPLES, GALLERY = ROOT / "examples", ROOT / "docs" / "pages" / "gallery"
TEXT = (EXAMPLES / "README.md").read_text("utf-8")
PROGRAMS = [path for path in EXAMPLES.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")]
PICTURES = sorted(GALLERY.glob("*.png"))


def size_of(picture):
    """Return width and height, which are the first numbers of a PNG."""
    return struct.unpack(">2I", picture.read_bytes()[16:24])


def test_every_example_has_a_link_and_a_command():
    names = {path.name for path in [*PROGRAMS, *EXAMPLES.glob("*.ipynb")]}
    assert set(re.findall(r"\]\((\w+\.(?:py|ipynb))\)", TEXT)) == names
    assert set(re.findall(r"examples/(\S+\.(?:py|ipynb))$", TEXT, re.MULTILINE)) == names


def test_every_picture_is_shown_and_every_link_has_a_target():
    shown = re.findall(r"!\[.+\]\(\.\./docs/pages/gallery/(\S+)\)", TEXT)
    assert sorted(shown) == [path.name for path in PICTURES]
    assert not [link for link in re.findall(r"\]\((\S+?)\)", TEXT) if not (EXAMPLES / link).exists()]


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_picture_is_small(path):
    width, height = size_of(path)
    assert path.stat().st_size < 80_000
    assert 800 <= width <= 900 and height <= 600
