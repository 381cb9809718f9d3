"""Type checkers know the public functions and classes, accept the documents and the examples, and report wrong options."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.support.documents import DOCUMENTS, README, as_module
from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
# The comment of a line is the kind of its error. A line without a comment has no error.
CODE = """
from typing import assert_type

import jax
import jax.numpy as jnp

import jaxce
from jaxce.keras.losses import CategoricalCrossentropy, SparseCategoricalCrossentropy

loss = SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1, reduction="sum")
assert_type(loss, SparseCategoricalCrossentropy)
assert_type(SparseCategoricalCrossentropy.from_config(loss.get_config()), SparseCategoricalCrossentropy)
assert_type(loss([1], [[0.0, 1.0]]), jax.Array)
assert_type(jaxce.keras.losses.binary_crossentropy([[1]], [[0.5]]), jax.Array)
jaxce.keras.losses.CategoricalCrossentropy(reduction="avg")  # reportArgumentType
CategoricalCrossentropy(from_logits="yes")  # reportArgumentType
CategoricalCrossentropy(ignore_class=-1)  # reportCallIssue
loss.ignore  # reportAttributeAccessIssue
jaxce.softmax_crossentropy  # reportAttributeAccessIssue
losses = jaxce.softmax_cross_entropy(jnp.ones((2, 3)), jnp.ones((2, 3)))
assert_type(losses, jax.Array)
parts = [jaxce.LossSum.of(losses), jaxce.LossSum.of(losses)]
assert_type(sum(parts, start=jaxce.LossSum.zero()).mean(), jax.Array)
jaxce.softmax_cross_entropy(losses, losses, implementation=None)  # reportCallIssue
"""


def findings(folder, **rules):
    """Run pyright on a folder. Return its findings as (file, line counted from 0, rule, message), and the number of files."""
    # Use the pyright of this environment. Another one would not find the packages that the examples import.
    pyright = shutil.which("pyright", path=pathlib.Path(sys.executable).parent)
    if pyright is None:
        pytest.skip("pyright is not installed in this environment")
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)], **rules}))
    command = [pyright, "--pythonpath", sys.executable, "--outputjson", "--project", str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    answer = json.loads(answer.stdout)
    found = [
        (pathlib.Path(each["file"]).name, each["range"]["start"]["line"], each["rule"], each["message"])
        for each in answer["generalDiagnostics"]
    ]
    return found, answer["summary"]["filesAnalyzed"]


def test_pyright_knows_the_losses(tmp_path):
    (tmp_path / "code.py").write_text(CODE)
    found, _ = findings(tmp_path, reportUnusedExpression=False)
    lines = enumerate(CODE.splitlines())
    assert {(line, rule) for _, line, rule, _ in found} == {
        (number, line.partition("  # ")[2]) for number, line in lines if "  # " in line
    }


def test_pyright_accepts_the_documents_and_the_examples(tmp_path):
    for path in DOCUMENTS:
        (tmp_path / f"{path.stem}.py").write_text(as_module(path.read_text("utf-8")))
    assert (tmp_path / f"{README.stem}.py").exists()
    # Copy the examples, because pyright reads no files outside its project.
    shutil.copytree(
        EXAMPLES, tmp_path / "examples", ignore=lambda _, names: {n for n in names if not n.endswith(".py")}
    )
    found, files = findings(tmp_path, typeCheckingMode="standard")
    assert found == []
    assert files == len(DOCUMENTS) + len(list(EXAMPLES.glob("*.py")))
