"""Imports only go down, modules are small, and a caller's mistake is refused in few places. It fails on made-up violations too."""

import ast
import pathlib
import sys

import pytest

import jaxce

PACKAGE = pathlib.Path(jaxce.__file__).parent
FLOORS = {
    "_types": 0,
    "_keras_hook": 0,
    "_checks": 1,
    "_linear_checks": 1,
    "_result_checks": 1,
    "_sharded_checks": 1,
    "_axes": 1,
    "_rule": 1,
    "_infinities": 1,
    "_transpose": 1,
    "_sharded": 2,
    "_online": 2,
    "_reading": 2,
    "_reductions": 2,
    "_slopes": 2,
    "_dense": 2,
    "_stats": 2,
    "_softmax": 3,
    "_sigmoid": 3,
    "_loss_sum": 3,
    "_kernels": 3,
    "_dispatch": 4,
    "_linear_mesh": 5,
    "_linear_losses": 5,
    "_linear": 5,
    "keras": 6,
    "": 7,
}
# Within a floor, or within a package, what may import what.
SAME_FLOOR = {
    ("_transpose", "_rule"),
    ("_checks", "_axes"),
    ("_linear_checks", "_checks"),
    ("_result_checks", "_checks"),
    ("_sharded_checks", "_axes"),
    ("_dense", "_sharded"),
    ("_dense", "_reading"),
    ("_dense", "_reductions"),
    ("_dense", "_slopes"),
    ("_slopes", "_reading"),
    ("_slopes", "_reductions"),
    ("_reductions", "_reading"),
    ("_reductions", "_online"),
    ("_online", "_reading"),
    ("_stats", "_online"),
    ("_stats", "_sharded"),
    ("_stats", "_dense"),
    ("_linear_losses", "_linear_mesh"),
    ("_linear", "_linear_losses"),
}
MAY_RAISE = {"_checks", "_linear_checks", "_result_checks", "_sharded_checks", "_dispatch", "_keras_hook", "keras"}
MAY_IMPORT = {"jax", "numpy", *sys.stdlib_module_names}
LAZY_KERAS = {
    "import typing as _typing",
    "from jaxce import _keras_hook",
    "if _typing.TYPE_CHECKING:\n    from jaxce import keras as keras\nelse:\n    __getattr__ = _keras_hook.attribute_of_package\n"
    "    __dir__ = _keras_hook.names_of_package",
    "_keras_hook.install()",
}
MAX_LINES, MAX_LINES_OF_A_KERNEL = 250, 450


def modules(package=PACKAGE):
    """{dotted name inside the package: source}; the roof is the empty name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def floor_name(module):
    return module.split(".")[0]


def imports(source):
    """Every module that the source imports, wherever it does so; `from jaxce import x` counts as `jaxce.x`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "jaxce":
                yield from (f"jaxce.{alias.name}" for alias in node.names)
            else:
                yield node.module


def violations_of_floors(sources):
    for module, source in sources.items():
        own = floor_name(module)
        if own not in FLOORS:
            yield f"{module} has no floor"
            continue
        for imported in imports(source):
            top, _, rest = imported.partition(".")
            if top != "jaxce":
                if top not in MAY_IMPORT:
                    yield f"{module} imports {imported}"
                continue
            other = floor_name(rest)
            if other not in FLOORS:
                yield f"{module} imports {imported}, which is no module"
            elif other != own and FLOORS[other] >= FLOORS[own] and (own, other) not in SAME_FLOOR:
                yield f"{module} imports {imported}, which is not below it"


def violations_of_raising(sources):
    for module, source in sources.items():
        if floor_name(module) in MAY_RAISE:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Raise, ast.Assert)):
                yield f"{module}:{node.lineno} raises"


def violations_of_size(sources):
    for module, source in sources.items():
        limit = MAX_LINES_OF_A_KERNEL if module.startswith("_kernels.pallas_") else MAX_LINES
        if len(source.splitlines()) > limit:
            yield f"{module} has {len(source.splitlines())} lines"


def violations_of_the_roof(sources):
    for node in ast.parse(sources[""]).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        about = isinstance(node, ast.Assign) and node.targets[0].id in ("__version__", "__all__")
        export = isinstance(node, ast.ImportFrom) and all(a.asname == a.name for a in node.names)
        # `jaxce.keras` is imported when it is first used.
        lazy = ast.unparse(node) in LAZY_KERAS
        if not (docstring or about or export or lazy):
            yield f"line {node.lineno} is more than an export"


def undocumented(sources):
    return [module for module, source in sources.items() if not ast.get_docstring(ast.parse(source))]


@pytest.mark.parametrize(
    "rule",
    [violations_of_floors, violations_of_raising, violations_of_size, violations_of_the_roof, undocumented],
    ids=lambda f: f.__name__,
)
def test_package_keeps_the_rule(rule):
    assert list(rule(modules())) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_types", "from jaxce._stats import LogitStats"),
        ("_axes", "from jaxce._checks import axis"),
        ("_dense", "from jaxce._stats import LogitStats"),
        ("_stats", "from jaxce._softmax import cross_entropy"),
        ("_stats", "import jaxce._softmax"),
        ("_stats", "from jaxce import _softmax"),
        ("_stats", "from jaxce import softmax_cross_entropy"),
        ("_softmax", "from jaxce._sigmoid import sigmoid_binary_cross_entropy"),
        ("_softmax", "def f():\n    from jaxce._linear import linear_logit_stats"),
        ("_kernels.chunked", "from jaxce._dispatch import choose"),
        ("_linear", "from jaxce.keras import losses"),
        ("_stats", "import scipy"),
        ("_stats", "from optax.losses import x"),
        ("_utils", ""),
    ],
)
def test_a_made_up_import_breaks_the_floors(module, source):
    assert list(violations_of_floors({module: source}))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_checks", "from jaxce._axes import row_shape"),
        ("_softmax", "from jaxce import _checks as checks\nimport functools\nimport jax.numpy as jnp"),
        (
            "keras.losses",
            "from jaxce.keras import _reduction\nfrom jaxce.keras.backend import x\nfrom jaxce._softmax import cross_entropy",
        ),
        ("_kernels.chunked", "from jaxce._kernels import reference"),
    ],
)
def test_imports_that_go_down_or_stay_within_a_package_are_fine(module, source):
    assert not list(violations_of_floors({module: source}))


def test_made_up_violations_of_the_other_rules_are_found():
    assert list(violations_of_raising({"_stats": "def f(x):\n    if x:\n        raise ValueError"}))
    assert list(violations_of_raising({"_stats": "def f(x):\n    assert x"}))
    assert not list(violations_of_raising({"_checks": "raise ValueError"}))
    assert list(violations_of_size({"_stats": "\n" * 251}))
    assert not list(violations_of_size({"_stats": "\n" * 250, "_kernels.pallas_gpu": "\n" * 450}))
    assert list(violations_of_the_roof({"": "from jaxce._stats import LogitStats"}))
    assert list(violations_of_the_roof({"": "x = 1"}))
    assert list(violations_of_the_roof({"": "import typing"}))
    assert not list(violations_of_the_roof({"": "from jaxce import _keras_hook\n_keras_hook.install()"}))
    assert undocumented({"_stats": "x = 1"}) == ["_stats"]


def test_every_module_is_seen():
    assert {
        "",
        "_types",
        "_checks",
        "_axes",
        "_rule",
        "_stats",
        "_softmax",
        "_sigmoid",
        "_loss_sum",
    } <= modules().keys()
