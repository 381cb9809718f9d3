"""The page "What can go wrong" has every message of the package, and no message that the package does not have."""

import ast
import re

import pytest

from tests.support.messages import inserted, is_in, matches, messages
from tests.support.paths import ROOT

SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted((ROOT / "jaxce").rglob("*.py"))
}
PAGE = (ROOT / "docs" / "pages" / "what_can_go_wrong.md").read_text("utf-8")


def shown_messages(page):
    """Return the messages of a page. A heading is the start of a message, and a bold paragraph below the heading is an end of this message."""
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        start, _, below = section.partition("\n")
        yield start
        yield from (f"{start} {end}" for end in re.findall(r"^\*\*(.+)\*\*$", below, re.MULTILINE))


ON_PAGE = list(shown_messages(PAGE))


def collected(function):
    return [
        pytest.param(found, id=f"{name}: {'...'.join(found)[:60]}")
        for name, source in SOURCES.items()
        for found in function(ast.parse(source))
    ]


MESSAGES, INSERTED = collected(messages), collected(inserted)
MESSAGE_TEXTS, INSERTED_TEXTS = ([param.values[0] for param in params] for params in (MESSAGES, INSERTED))


def test_the_messages_of_the_package_are_found():
    assert len(MESSAGES) > 90 and len(INSERTED) > 25 and len(ON_PAGE) > 100


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_on_the_page(message):
    assert any(matches(message, shown, INSERTED_TEXTS) for shown in ON_PAGE)


@pytest.mark.parametrize("text", INSERTED)
def test_text_that_is_inserted_into_messages_is_on_the_page(text):
    assert is_in(text, " ".join(PAGE.split()))


@pytest.mark.parametrize("shown", ON_PAGE)
def test_message_of_the_page_is_one_of_the_package(shown):
    """A heading alone may be the start of a message."""
    ends = [found for found in ON_PAGE if found.startswith(shown)]
    assert any(matches(message, found, INSERTED_TEXTS) for message in MESSAGE_TEXTS for found in ends)


SOURCE = '''
WAY = "Divide by the sum."


def check(name, value, of):
    """Check that it is small."""
    use = "f(x)" if of else "the loss f"
    hint = ""
    if value.size:
        hint = f" Reshape it: {name}.reshape({of})."
    if value.ndim:
        raise ValueError(f"`{name}` must have the shape "
                         f"{of}; got {value}. Use {use}.{hint}")
    if value:
        raise TypeError("`weights` must be numbers.")
    warnings.warn(f"slow: {name!r}.", RuntimeWarning)
    raise AttributeError(f"there is no {name} here.")


def call(value):
    return scalar("z_loss", value, lambda number: number >= 0, "finite and not negative")
'''
SHAPE = ("`", "` must have the shape ", "; got ", ". Use ", ".", "")


def test_messages_and_inserted_texts_of_a_source():
    tree = ast.parse(SOURCE)
    assert messages(tree) == [SHAPE, ("`weights` must be numbers.",), ("slow: ", ".")]
    assert inserted(tree) == sorted(
        [
            ("Divide by the sum.",),
            ("the loss f",),
            (" Reshape it: ", ".reshape(", ")."),
            ("finite and not negative",),
            ("there is no ", " here."),
        ]
    )


@pytest.mark.parametrize(
    ("shown", "is_shown"),
    [
        ("`mask` must have the shape ...; got ... Use ...", True),
        ("`...` must have the shape ...; got ... Use the loss f. Reshape it: mask.reshape(...).", True),
        ("`mask` must have the size ...; got ... Use ...", False),
        ("`mask` must have the shape ...; got ... Use the loss g.", False),
        ("The argument `mask` must have the shape ...; got ... Use ...", False),
        ("`mask` must have the shape ...; got ... Use ... And more.", False),
    ],
)
def test_message_matches_with_names_dots_or_inserted_texts_for_values(shown, is_shown):
    assert matches(SHAPE, shown, inserted(ast.parse(SOURCE))) == is_shown


def test_messages_of_a_page():
    page = (
        "### `a` must be b.\n\n**Pass c.**\n\nText.\n\n**Pass d.**\n\n### `e` must be f.\n\nText of **no** message.\n"
    )
    assert list(shown_messages(page)) == [
        "`a` must be b.",
        "`a` must be b. Pass c.",
        "`a` must be b. Pass d.",
        "`e` must be f.",
    ]


def test_inserted_text_is_in_a_page():
    text = (" Reshape it: ", ".reshape(", ").")
    assert is_in(text, 'It may end with "Reshape it: mask.reshape(...)."')
    assert not is_in(text, "Reshape it: mask.")
