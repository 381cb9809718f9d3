"""The five rules of the layout hold, modules and functions are small, closures nest once, and only a few modules raise errors.

1. The definition imports only jnp and the axis helpers.
2. Forms import the definition and their shared modules. They do not import each other.
3. One module uses code of JAX that depends on the platform.
4. One module creates primitives.
5. Imports point in one direction.

Each rule is a function of the sources. Each rule must fail on the invented violations in this file.
"""

import ast
import graphlib
import pathlib
import sys

import pytest

import jaxce

PACKAGE = pathlib.Path(jaxce.__file__).parent
DEFINITION = {"_core.definition", "_core.sigmoid"}
FORMS = {"_core.cpu", "_core.cpu_sums", "_core.gpu"}
SHARED_BY_FORMS = {"_core.integer_labels"}
# The parts that each part of the package may import; it may also import their imports. The empty name is `jaxce/__init__.py`.
ARROWS = {
    "": ["keras", "short forms", "_keras_hook"],
    "keras": ["losses", "_keras_hook"],
    "short forms": ["losses"],
    "losses": ["formulas", "_pairs", "_loss_sum"],
    "formulas": ["_stats", "_formula"],
    "_formula": ["_dense", "_lazy", "_linear_logits", "_logit_stats", "_loss_sum"],
    "_pairs": ["_lazy_pairs", "_linear_logits", "_loss_sum"],
    "_lazy_pairs": ["_blocks"],
    "_loss_sum": ["_core"],
    "_stats": ["_dense", "_lazy", "_linear_logits", "_logit_stats"],
    "_logit_stats": ["_core"],
    "_dense": ["_core"],
    "_lazy": ["_blocks"],
    "_linear_logits": ["_blocks"],
    "_blocks": ["_core"],
    "_core": ["_checks"],
    "_checks": ["_jax"],
    "_jax": ["_types"],
    "_types": [],
    "_keras_hook": [],
}
PARTS = {
    "_softmax": "losses",
    "_divergence": "losses",
    "_sigmoid": "losses",
    "_row_loss": "losses",
    "_cross_entropy": "formulas",
    "_linear": "short forms",
}
MAY_RAISE = {"_checks", "_blocks.choice", "_blocks.plans", "_keras_hook", "keras"}
LAZY_KERAS = {
    "import typing as _typing",
    "from jaxce import _keras_hook",
    "if _typing.TYPE_CHECKING:\n    from jaxce import keras as keras\nelse:\n    __getattr__ = _keras_hook.attribute_of_package\n"
    "    __dir__ = _keras_hook.names_of_package",
    "_keras_hook.install()",
}
MAX_LINES, MAX_LINES_OF_A_FUNCTION = 250, 60


def modules():
    """Return the sources of all modules by their dotted names inside the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


MODULES = frozenset(modules())


def imports(source):
    """Yield every module that the source imports at any level. A name imported from a package counts as a module if it is one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.removeprefix("jaxce.") in MODULES or node.module in ("jaxce", "jax")
                yield full if is_module else node.module


def own_imports(source):
    """Return the modules of the package that the source imports, by their names inside the package."""
    return [name.partition(".")[2] for name in imports(source) if name.partition(".")[0] == "jaxce"]


def part_of(module):
    name = module.partition(".")[0]
    return PARTS.get(name, name)


def is_inside(module, packages):
    return any(module == package or module.startswith(package + ".") for package in packages)


def below(part):
    """Return the parts that a part may import: those below it."""
    return set().union(*({lower} | below(lower) for lower in ARROWS[part]))


def impure_definition(sources):
    allowed = {"jax.numpy", "typing", "jaxce._jax.axes", "jaxce._types"}
    for module in DEFINITION & sources.keys():
        for imported in imports(sources[module]):
            if imported not in allowed:
                yield f"{module} imports {imported}"


def platform_of(module):
    """Return `cpu` for `_core.cpu_sums`."""
    return module.rpartition(".")[2].partition("_")[0]


def entangled_forms(sources):
    for module, source in sources.items():
        same_platform = {form for form in FORMS if platform_of(form) == platform_of(module)}
        allowed = DEFINITION | SHARED_BY_FORMS | same_platform if module in FORMS else DEFINITION
        for imported in own_imports(source):
            if module in FORMS | SHARED_BY_FORMS and part_of(imported) == "_core" and imported not in allowed:
                yield f"{module} imports {imported}"
            # JAX differentiates the definition. A form has no derivative rule.
            if module in FORMS | SHARED_BY_FORMS and imported in ("_jax.rules", "_jax.primitives"):
                yield f"{module} imports {imported}"
            if imported in FORMS and part_of(module) != "_core":
                yield f"{module} imports {imported}"


def choices_of_platform(sources):
    """Return the uses of `lax.platform_dependent`, under any name, if there is more than one."""
    found = []
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            names = [getattr(node, key, None) for key in ("attr", "id", "name")]
            if "platform_dependent" in names:
                found.append(f"{module}:{getattr(node, 'lineno', '')} chooses by platform")
    return found if len(found) > 1 else []


def makers_of_primitives(sources):
    """Yield imports of JAX internals, and every module after the first that imports `jax.extend` or `jax.interpreters`."""
    found = []
    for module, source in sources.items():
        named = set(imports(source))
        if any(is_inside(name, ("jax._src", "jaxlib")) for name in named):
            yield f"{module} imports internals of JAX"
        if any(is_inside(name, ("jax.extend", "jax.interpreters")) for name in named):
            found.append(module)
    yield from (f"{module} imports jax.extend or jax.interpreters" for module in found[1:])


def imports_that_point_up(sources):
    graph = {}
    for module, source in sources.items():
        own = part_of(module)
        if own not in ARROWS:
            yield f"{module} is not a known part of the package"
            continue
        graph[module] = set(own_imports(source)) - {module}
        for imported in graph[module]:
            other = part_of(imported)
            if other not in ARROWS or imported == "":
                yield f"{module} imports jaxce.{imported}, which is not a known part of the package"
            elif other != own and other not in below(own):
                yield f"{module} imports {imported}, which is not below it"
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"imports in a circle: {error.args[1]}"


def imports_of_others(sources):
    for module, source in sources.items():
        for imported in imports(source):
            if imported.partition(".")[0] not in {"jaxce", "jax", "numpy", *sys.stdlib_module_names}:
                yield f"{module} imports {imported}"


def raising(sources):
    for module, source in sources.items():
        if not is_inside(module, MAY_RAISE):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, (ast.Raise, ast.Assert)):
                    yield f"{module}:{node.lineno} raises"


def nested_closures(sources):
    """Functions inside of functions inside of functions."""
    for module, source in sources.items():
        for outer in ast.walk(ast.parse(source)):
            if isinstance(outer, ast.FunctionDef):
                inner = [node for node in ast.walk(outer) if isinstance(node, ast.FunctionDef) and node is not outer]
                for node in inner:
                    for deep in ast.walk(node):
                        if isinstance(deep, ast.FunctionDef) and deep is not node:
                            yield f"{module}.{outer.name}.{node.name} has the closure {deep.name}"


def long_modules(sources):
    for module, source in sources.items():
        if len(source.splitlines()) > MAX_LINES:
            yield f"{module} has {len(source.splitlines())} lines"


def long_functions(sources):
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node):
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
                if lines > MAX_LINES_OF_A_FUNCTION:
                    yield f"{module}.{node.name} has {lines} lines"


def more_than_exports(sources):
    for node in ast.parse(sources[""]).body if "" in sources else []:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        about = isinstance(node, ast.Assign) and node.targets[0].id in ("__version__", "__all__")
        export = isinstance(node, ast.ImportFrom) and all(a.asname == a.name for a in node.names)
        # `jaxce.keras` is imported at its first use.
        lazy = ast.unparse(node) in LAZY_KERAS
        if not (docstring or about or export or lazy):
            yield f"line {node.lineno} is more than an export"


def undocumented(sources):
    return [module for module, source in sources.items() if not ast.get_docstring(ast.parse(source))]


# Rule -> sources that violate the rule.
BROKEN = {
    impure_definition: [
        {"_core.definition": "from jax import lax"},
        {"_core.definition": "import jax"},
        {"_core.definition": "from jaxce._core import cpu"},
        {"_core.definition": "from jaxce._jax.rules import choose"},
        {"_core.sigmoid": "from jaxce._jax import mesh"},
        {"_core.sigmoid": "def f():\n    import numpy"},
    ],
    entangled_forms: [
        {"_core.cpu": "from jaxce._core import definition, gpu"},
        {"_core.gpu": "from jaxce._core.cpu import statistics"},
        {"_core.gpu": "import jaxce._core.cpu"},
        {"_core.gpu": "from jaxce._core.cpu_sums import total"},
        {"_core.gpu": "from jaxce._core import statistics"},
        {"_core.integer_labels": "from jaxce._core.gpu import suits"},
        {"_core.cpu": "from jaxce._jax.rules import with_rule"},
        {"_blocks.chunked": "from jaxce._core import cpu"},
        {"_softmax": "from jaxce._core.gpu import max_and_rest"},
    ],
    choices_of_platform: [
        {"_stats": "lax.platform_dependent(x)\njax.lax.platform_dependent(y)"},
        {"_stats": "lax.platform_dependent(x)", "_softmax": "from jax.lax import platform_dependent as by"},
    ],
    makers_of_primitives: [
        {"_jax.primitives": "import jax.extend", "_core": "from jax.interpreters import ad"},
        {"_jax.primitives": "from jax import interpreters", "_core": "from jax.extend.core import Primitive"},
        {"_jax.primitives": "from jax._src import core"},
    ],
    imports_that_point_up: [
        {"_types": "from jaxce._stats import LogitStats"},
        {"_jax.axes": "from jaxce._checks import class_axis"},
        {"_jax.rules": "from jaxce._core import definition"},
        {"_core": "from jaxce._stats import LogitStats"},
        {"_core": "from jaxce._blocks import loops"},
        {"_core.merge": "from jaxce._blocks.sizes import Blocks"},
        {"_stats": "from jaxce._softmax import cross_entropy"},
        {"_stats": "import jaxce._softmax"},
        {"_stats": "from jaxce import _softmax"},
        {"_stats": "from jaxce import softmax_cross_entropy"},
        {"_stats": "import jaxce"},
        {"_blocks.chunked": "from jaxce._stats import LogitStats"},
        {"_blocks.chunked": "from jaxce._linear import linear_logit_stats"},
        {"_blocks.loops": "from jaxce import _lazy"},
        {"_softmax": "def f():\n    from jaxce._linear import linear_logit_stats"},
        {"_linear": "from jaxce.keras import losses"},
        {"_linear": "from jaxce._keras_hook import install"},
        {"_utils": ""},
        {"_softmax": "from jaxce import _sigmoid", "_sigmoid": "from jaxce import _softmax"},
        {"_blocks.sizes": "from jaxce._blocks import loops", "_blocks.loops": "from jaxce._blocks import sizes"},
    ],
    imports_of_others: [
        {"_stats": "import scipy"},
        {"_stats": "from optax.losses import x"},
        {"keras": "import keras"},
    ],
    raising: [
        {"_stats": "def f(x):\n    if x:\n        raise ValueError"},
        {"_stats": "def f(x):\n    assert x"},
        {"_blocks.chunked": "raise ValueError"},
        {"_checks_of_mine": "raise ValueError"},
    ],
    nested_closures: [{"_stats": "def f():\n    def g():\n        def h():\n            return 1"}],
    long_modules: [{"_stats": "\n" * 251}],
    long_functions: [{"_stats": "def f():\n" + "    x = 1\n" * 60}],
    more_than_exports: [
        {"": "from jaxce._stats import LogitStats"},
        {"": "x = 1"},
        {"": "import typing"},
    ],
    undocumented: [{"_stats": "x = 1"}],
}
# Rule -> sources that follow the rule.
KEPT = {
    impure_definition: [
        {
            "_core.definition": "import jax.numpy as jnp\nfrom jaxce._jax.axes import per_row\nfrom jaxce._types import Array"
        }
    ],
    entangled_forms: [
        {
            "_core.cpu": "from jax import lax\nfrom jaxce._core import cpu_sums, definition, sigmoid\nfrom jaxce._jax.axes import is_known"
        },
        {"_core.gpu": "from jaxce._core.integer_labels import gradient", "_core": "from jaxce._core import cpu, gpu"},
    ],
    choices_of_platform: [{"_stats": '"""It is not `lax.platform_dependent`."""', "_jax": "lax.platform_dependent(x)"}],
    makers_of_primitives: [{"_jax.primitives": "import jax.extend\nfrom jax.interpreters import ad"}],
    imports_that_point_up: [
        {"_checks": "from jaxce._jax.axes import row_shape"},
        {"_softmax": "from jaxce import _checks as checks\nimport functools\nimport jax.numpy as jnp"},
        {"keras.losses": "from jaxce.keras import _reduction\nfrom jaxce._softmax import cross_entropy"},
        {"_blocks.chunked": "from jaxce._blocks import reference\nfrom jaxce._core import statistics"},
        {"_linear": "from jaxce._stats import LogitStats\nfrom jaxce._blocks import choice"},
    ],
    raising: [{"_checks": "raise ValueError", "_checks.linear": "assert x", "_blocks.choice": "raise TypeError"}],
    long_modules: [{"_stats": "\n" * 250}],
    long_functions: [{"_stats": 'def f():\n    """One\n    two."""\n' + "    x = 1\n" * 59}],
    more_than_exports: [{"": "from jaxce import _keras_hook\n_keras_hook.install()"}],
}


@pytest.mark.parametrize("rule", BROKEN, ids=lambda f: f.__name__)
def test_package_follows_the_rule(rule):
    assert list(rule(modules())) == []


def cases(table):
    return [
        pytest.param(rule, sources, id=f"{rule.__name__}-{i}")
        for rule in table
        for i, sources in enumerate(table[rule])
    ]


@pytest.mark.parametrize(("rule", "sources"), cases(BROKEN))
def test_invented_violation_is_detected(rule, sources):
    assert list(rule(sources))


@pytest.mark.parametrize(("rule", "sources"), cases(KEPT))
def test_allowed_source_is_accepted(rule, sources):
    assert not list(rule(sources))


def test_every_module_named_by_a_rule_exists():
    """A rule about a missing module would always pass."""
    named = {*DEFINITION, *FORMS, *SHARED_BY_FORMS, *MAY_RAISE, *PARTS}
    named |= {part for part in ARROWS if part not in PARTS.values()}
    assert named <= MODULES
    assert any(is_inside(name, ["jax.extend"]) for name in imports(modules()["_jax.primitives"]))
