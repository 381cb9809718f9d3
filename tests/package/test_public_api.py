"""Every public name and signature, written out: a change of the public API must also change this file."""

import dataclasses
import importlib.metadata
import importlib.resources
import inspect
import pydoc
import re
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import pytest

import jaxce

SIGNATURES = {
    "softmax_cross_entropy": "(logits, labels, *, axis=-1, where=None, mask=None, label_smoothing=0.0, class_weights=None, z_loss=0.0, "
    "soft_cap=None, temperature=None, axis_name=None)",
    "softmax_cross_entropy_with_integer_labels": "(logits, labels, *, axis=-1, where=None, mask=None, label_smoothing=0.0, class_weights=None, "
    "z_loss=0.0, label_probabilities=None, soft_cap=None, temperature=None, axis_name=None)",
    "softmax_cross_entropy_sum": "(logits, labels, *, axis=-1, where=None, mask=None, weights=None, label_smoothing=0.0, class_weights=None, "
    "z_loss=0.0, label_probabilities=None, soft_cap=None, temperature=None, axis_name=None)",
    "loss_sum": "(logits, labels, loss, per_row=(), *, axis=-1, where=None, mask=None, weights=None, has_aux=False, class_weights=None, "
    "label_probabilities=None, soft_cap=None, temperature=None, axis_name=None)",
    "softmax_kl_divergence": "(target_logits, logits, *, axis=-1, where=None, mask=None, temperature=None, axis_name=None)",
    "softmax_kl_divergence_sum": "(target_logits, logits, *, axis=-1, where=None, mask=None, weights=None, temperature=None, axis_name=None)",
    "softmax_js_divergence": "(target_logits, logits, *, weight=0.5, axis=-1, where=None, mask=None, temperature=None, axis_name=None)",
    "softmax_js_divergence_sum": "(target_logits, logits, *, weight=0.5, axis=-1, where=None, mask=None, weights=None, temperature=None, "
    "axis_name=None)",
    "sigmoid_binary_cross_entropy": "(logits, labels, *, mask=None, label_smoothing=0.0, pos_weight=None)",
    "sigmoid_binary_cross_entropy_sum": "(logits, labels, *, mask=None, weights=None, label_smoothing=0.0, pos_weight=None)",
    "logit_stats": "(logits, labels=None, *, axis=-1, where=None, mask=None, class_weights=None, label_probabilities=None, soft_cap=None, "
    "temperature=None, axis_name=None)",
    "LinearLogits": "(hidden, classifier, *, bias=None, soft_cap=None, split=None, implementation=None)",
    "linear_logit_stats": "(hidden, classifier, labels=None, *, bias=None, mask=None, class_weights=None, "
    "soft_cap=None, temperature=None, "
    "axis_name=None, split=None, implementation=None)",
    "linear_softmax_cross_entropy": "(hidden, classifier, labels, *, bias=None, mask=None, label_smoothing=0.0, class_weights=None, "
    "z_loss=0.0, soft_cap=None, temperature=None, axis_name=None, split=None, implementation=None)",
    "linear_softmax_cross_entropy_sum": "(hidden, classifier, labels, *, bias=None, mask=None, weights=None, label_smoothing=0.0, "
    "class_weights=None, z_loss=0.0, soft_cap=None, temperature=None, axis_name=None, split=None, implementation=None)",
    "Chunked": "(block_tokens=None, block_classes=None)",
    "Split": "(tokens=None, classes=None, features=None, mesh=None)",
    "LogitStats": "(max_logit, sum_exp_rest, label_nll, label_mass, uniform_nll, weight_sum, num_classes, top_label_mass, spread, "
    "expected_nll, top_nll, prediction, size, integer_labels)",
    "LogitStats.merge": "(a, b)",
    "LossSum": "(total, weight, total_remainder=0.0, weight_remainder=0.0)",
    "LossSum.zero": "(dtype=<class 'jax.numpy.float32'>)",
    "LossSum.of": "(losses, weights=None, mask=None)",
    "LossSum.by_segment": "(losses, segment_ids, num_segments, weights=None, mask=None)",
    "LossSum.mean": "(self)",
    "LossSum.psum": "(self, axis_name)",
}
PROPERTIES = {
    "LogitStats": {"nll", "smooth_nll", "log_z", "log_norm", "entropy", "confidence", "correct"},
    "LossSum": set(),
}
METHODS = {"LogitStats": {"merge"}, "LossSum": {"zero", "of", "by_segment", "mean", "psum"}}

KERAS_MODULES = {name: getattr(jaxce.keras, name) for name in jaxce.keras.__all__}
EVERY_FUNCTION = {
    **{name: getattr(jaxce, name) for name in jaxce.__all__},
    **{f"{c}.{name}": getattr(getattr(jaxce, c), name) for c, names in METHODS.items() for name in sorted(names)},
    **{f"keras.{m}.{name}": getattr(module, name) for m, module in KERAS_MODULES.items() for name in module.__all__},
}
MAX_SIGNATURE = 500


def find(name):
    found = jaxce
    for part in name.split("."):
        found = getattr(found, part)
    return found


def bare_signature(function):
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    assert bare_signature(find(name)) == SIGNATURES[name]


def test_nothing_else_is_public():
    public = {name for name in vars(jaxce) if not name.startswith("_")} - {"keras"}
    assert public == {name for name in SIGNATURES if "." not in name}


def test_star_import_gives_the_public_names_without_keras():
    namespace = {"keras": "that of the caller"}
    exec("from jaxce import *", namespace)
    assert namespace.pop("keras") == "that of the caller"
    assert namespace.keys() - {"__builtins__"} == {name for name in SIGNATURES if "." not in name}


def test_names_of_the_package_are_listed_with_keras_before_its_first_use():
    code = "import sys, jaxce; print(*dir(jaxce)); print('jaxce.keras' in sys.modules)"
    listed, imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {name for name in listed.split() if not name.startswith("_")} == {*jaxce.__all__, "keras"}
    assert imported == "False"


def test_help_of_the_package_shows_each_function_and_class():
    text = pydoc.plain(pydoc.render_doc(jaxce))
    for name in jaxce.__all__:
        assert f"    {name}(" in text or f"class {name}(" in text


@pytest.mark.parametrize("name", EVERY_FUNCTION)
def test_signature_in_help_is_short(name):
    signature = str(inspect.signature(EVERY_FUNCTION[name]))
    assert len(signature) <= MAX_SIGNATURE
    assert "Union" not in signature
    shown = pydoc.plain(pydoc.render_doc(EVERY_FUNCTION[name]))
    # Python 3.13 breaks long lines, and starts those of a class with a bar.
    assert re.sub(r"[\s|]", "", signature) in re.sub(r"[\s|]", "", shown)


def described(docstring, section):
    """Return the names that a section of a docstring describes."""
    text = re.search(rf"^{section}:\n((?:  .*\n|\n)*)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    return re.findall(r"^  (\w+): ", text[1], re.MULTILINE) if text else []


@pytest.mark.parametrize("name", [name for name in EVERY_FUNCTION if "." not in name or name.startswith("keras")])
def test_docstring_describes_each_parameter(name):
    """A class whose instances have the parameters as attributes describes the attributes."""
    function = EVERY_FUNCTION[name]
    found = described(function.__doc__, "Attributes") or described(function.__doc__, "Args")
    assert found == list(inspect.signature(function).parameters)


def test_names_that_a_docstring_describes():
    assert described(
        "One.\n\n    Args:\n      a: One.\n        c: two.\n      b: Three.\n\n    Returns:\n      d: x.", "Args"
    ) == ["a", "b"]
    assert described("One.", "Args") == []


@pytest.mark.parametrize("name", EVERY_FUNCTION)
def test_annotations_can_be_evaluated(name):
    function = EVERY_FUNCTION[name]
    function = function.__init__ if isinstance(function, type) else function
    assert typing.get_type_hints(function).keys() >= {p for p in inspect.signature(function).parameters if p != "self"}


@pytest.mark.parametrize("name", ["LogitStats", "LossSum"])
def test_members(name):
    public = {n: m for n, m in vars(find(name)).items() if not n.startswith("_")}
    fields = {f.name for f in dataclasses.fields(find(name))}
    assert {n for n, m in public.items() if isinstance(m, property)} == PROPERTIES[name]
    assert public.keys() - fields - PROPERTIES[name] == METHODS[name]


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_public_name_is_documented_and_annotated(name):
    found = find(name)
    assert inspect.getdoc(found)
    if inspect.isfunction(found):
        parameters = list(inspect.signature(found).parameters.values())
        assert all(p.annotation is not inspect.Parameter.empty for p in parameters if p.name != "self")
        assert inspect.signature(found).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", [n for n in SIGNATURES if n.islower()])
def test_documentation_has_its_sections_in_order(name):
    doc = inspect.getdoc(find(name))
    sections = ["Args:", "Returns:", "Raises:", "Numerics:", "Example:", "References:"]
    positions = [doc.find(f"\n{section}\n") for section in sections]
    assert -1 not in positions and positions == sorted(positions)
    assert ".. math::" in doc[: positions[0]]


@pytest.mark.parametrize("name", ["LogitStats", "LossSum"])
def test_results_are_frozen_pytrees(name):
    example = (
        jaxce.LossSum.of(jnp.ones(3))
        if name == "LossSum"
        else jaxce.logit_stats(jnp.ones((2, 3)), jnp.zeros(2, jnp.int32))
    )
    field = dataclasses.fields(example)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(example, field, 0)
    mapped = jax.tree.map(lambda x: x, example)
    assert isinstance(mapped, find(name))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(mapped))


def test_package_has_the_marker_of_typed_packages():
    assert importlib.resources.files("jaxce").joinpath("py.typed").is_file()


def test_version_equals_that_of_the_distribution():
    parts = jaxce.__version__.split(".")
    assert len(parts) == 3 and all(part.isdigit() for part in parts)
    try:
        installed = importlib.metadata.version("jaxce")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("jaxce is not installed here")
    assert installed == jaxce.__version__
