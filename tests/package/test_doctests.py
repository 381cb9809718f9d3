"""The examples in the docstrings of the package. Each docstring is one test."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxce

NAMES = {"jax": jax, "jnp": jnp, "np": np, "optax": optax}
MODULES = [jaxce, *(importlib.import_module(found.name) for found in pkgutil.walk_packages(jaxce.__path__, "jaxce."))]


def examples_of(module):
    docstrings = doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=NAMES)
    return [docstring for docstring in docstrings if docstring.examples]


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize("docstring", [pytest.param(d, id=d.name) for m in MODULES for d in examples_of(m)])
def test_examples_in_docstring(docstring):
    report = []
    failures = doctest.DocTestRunner(verbose=False).run(docstring, out=report.append).failed
    assert failures == 0, "".join(report)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_prompt_of_module_is_run(module):
    prompts = sum(line.lstrip().startswith(">>> ") for line in inspect.getsource(module).splitlines())
    assert prompts == sum(len(docstring.examples) for docstring in examples_of(module))


def test_package_has_examples():
    assert any(examples_of(module) for module in MODULES)
