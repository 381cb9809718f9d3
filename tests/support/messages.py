"""The messages of exceptions and warnings in a source, and the texts that the source inserts into them.

A text is a tuple of its constant parts. Between two parts there is a value.
"""

import ast
import re

ERRORS = {"ValueError", "TypeError"}
# Functions that insert their string arguments into a message, and the positions of these arguments.
INSERTING = {"scalar": (3, 4), "number": (3,), "_number": (0, 3)}


def parts(node):
    """Return the constant parts of a string or an f-string. The first and the last may be empty. None for another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (node.value,)
    if not isinstance(node, ast.JoinedStr):
        return None
    found = [""]
    for value in node.values:
        if isinstance(value, ast.Constant):
            found[-1] += value.value
        else:
            found.append("")
    return tuple(found)


def messages(tree):
    """Return the message of each `ValueError`, `TypeError` and warning that the source raises."""
    return [found for node in ast.walk(tree) if (found := parts(_message(node)))]


def inserted(tree):
    """Return the texts that a source may insert into its messages.

    They are the strings that it assigns to a name of a message, the strings that it passes to functions that insert them, and all sentences.
    """
    names = {name for node in ast.walk(tree) for name in _inserted_names(_message(node))}
    found = [text for node in ast.walk(tree) for text in (*_assigned(node, names), *_passed(node))]
    whole = [_message(node) for node in ast.walk(tree)]
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    skipped = {*map(id, whole), *inner, *(id(docstring) for docstring in _docstrings(tree))}
    found += [text for node in ast.walk(tree) if id(node) not in skipped and _is_sentence(text := parts(node))]
    return sorted(set(found))


def matches(message, shown, inserted=()):
    """Return whether a text shows a message: each value as a name, as `...`, as one of the inserted texts, or not at all."""
    value = "|".join([r"\w+", r"\.\.\.", *(_joined(text, r"(?:\w+|\.\.\.)") for text in inserted)])
    return re.fullmatch(_joined(message, f"(?:{value})?"), shown) is not None


def is_in(text, page):
    """Return whether a page has all parts of an inserted text in order, near to each other."""
    return re.search(_joined(text, ".{0,40}?").strip(), page) is not None


def _joined(text, value):
    """Return a pattern for a text. A full stop after a value may be missing, because the value may be shown as `...`."""
    first, *rest = [re.escape(" ".join(f"|{part}|".split())[1:-1]).replace(r"\ ", " ") for part in text]
    return value.join([first, *(re.sub(r"^\\\.", r"\\.?", part) for part in rest)])


def _message(node):
    """Return the expression of the message of a `raise` or of a call of `warnings.warn`."""
    raised = node.exc if isinstance(node, ast.Raise) else None
    if isinstance(raised, ast.Call) and _name(raised.func) in ERRORS and raised.args:
        return raised.args[0]
    if isinstance(node, ast.Call) and _name(node.func) == "warn" and node.args:
        return node.args[0]
    return None


def _inserted_names(message):
    for value in message.values if isinstance(message, ast.JoinedStr) else ():
        if isinstance(value, ast.FormattedValue) and isinstance(value.value, ast.Name):
            yield value.value.id


def _assigned(node, names):
    """Yield the strings of more than one word that are assigned to one of the names."""
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in names:
        expression = node.value
        for value in (expression, getattr(expression, "body", None), getattr(expression, "orelse", None)):
            text = parts(value)
            if text and len("".join(text).split()) > 1:
                yield text


def _passed(node):
    if isinstance(node, ast.Call):
        for position, argument in enumerate(node.args):
            if position in INSERTING.get(_name(node.func), ()) and parts(argument):
                yield parts(argument)


def _docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            yield node.body[0].value


def _is_sentence(text):
    return text is not None and text[-1].endswith(".") and len(" ".join(text).split()) > 2


def _name(function):
    return getattr(function, "attr", getattr(function, "id", ""))
