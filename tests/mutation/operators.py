"""Small changes of the syntax tree of a program. Some test must fail for each of them.

The operators do not refer to lines of the code, so they cover new code automatically.
"""

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

_SWAPPED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_OTHER_CALL = {"max": "min", "maximum": "minimum", "minimum": "maximum", "sum": "max", "exp": "expm1", "log1p": "log"}


class Change(NamedTuple):
    """A changed source, with the line and the text of the change."""

    line: int
    was: str
    now: str
    source: str


def changes(source: str) -> Iterator[Change]:
    """Yield every change of the source, in the order of `ast.walk`."""
    tree = ast.parse(source)
    skipped = {id(node) for top in ast.walk(tree) for part in _not_code(top) for node in ast.walk(part)}
    nodes = list(ast.walk(tree))
    for number, node in enumerate(nodes):
        if id(node) in skipped:
            continue
        for change in _of_node(node):
            changed = copy.deepcopy(tree)
            at = list(ast.walk(changed))[number]
            change(at)
            if ast.dump(changed) != ast.dump(tree):
                yield Change(node.lineno, ast.unparse(node), ast.unparse(at), ast.unparse(changed))


def _not_code(node):
    """Yield the parts of a node that are not changed: annotations, messages, imports and decorators."""
    if isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom)):
        yield node
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield from node.decorator_list
    for name in ("annotation", "returns"):
        if getattr(node, name, None) is not None:
            yield getattr(node, name)
    if isinstance(node, ast.JoinedStr):
        yield node


def _of_node(node):
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPPED:
        yield lambda at: at.ops.__setitem__(0, _SWAPPED[type(at.ops[0])]())
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in _SWAPPED:
        yield lambda at: setattr(at, "op", _SWAPPED[type(at.op)]())
    if isinstance(node, ast.UnaryOp):
        yield lambda at: setattr(at, "op", ast.UAdd())
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield lambda at: setattr(at, "value", not at.value if isinstance(at.value, bool) else at.value + 1)
    if isinstance(node, ast.IfExp):
        yield lambda at: setattr(at, "test", ast.Constant(True))
        yield lambda at: setattr(at, "test", ast.Constant(False))
    if isinstance(node, ast.If):
        yield lambda at: setattr(at, "test", ast.Constant(False))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "where" and len(node.args) == 3:
            yield lambda at: at.args.__setitem__(0, ast.Constant(True))
            yield lambda at: at.args.__setitem__(0, ast.Constant(False))
        if node.func.attr in _OTHER_CALL:
            yield lambda at: setattr(at.func, "attr", _OTHER_CALL[at.func.attr])
        if node.func.attr in ("_replace", "stop_gradient"):
            yield lambda at: at.keywords.clear() if at.keywords else None
