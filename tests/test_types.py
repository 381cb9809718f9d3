"""Type checkers know the classes of `jaxce.keras`, and find wrong options."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

import jaxce

ROOT = pathlib.Path(jaxce.__file__).parents[1]
# A line with a comment is an error of that kind; every other line is right.
CODE = """
from typing import assert_type

import jax

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
"""


def test_pyright_knows_the_losses(tmp_path):
    pyright = shutil.which("pyright", path=pathlib.Path(sys.executable).parent) or shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed")
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({"extraPaths": [str(ROOT)], "reportUnusedExpression": False})
    )
    command = [pyright, "--pythonpath", sys.executable, "--outputjson", "--project", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    found = {(each["range"]["start"]["line"], each["rule"]) for each in json.loads(answer.stdout)["generalDiagnostics"]}
    lines = enumerate(CODE.splitlines())
    assert found == {(number, line.partition("  # ")[2]) for number, line in lines if "  # " in line}
