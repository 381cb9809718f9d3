"""`python -m benchmarks.compare` with jaxce as both copies, and with a missing copy."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("tqdm", reason="needs the extra `benchmarks`")
pytest.importorskip("optax", reason="needs the extra `benchmarks`")

from benchmarks import compare

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.nightly
def test_copy_is_compared_line_by_line():
    options = ["--quick", "--seconds", "0.01", "--only", "256 x 10"]
    command = [sys.executable, "-m", "benchmarks.compare", "jaxce", *options]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + 4 and all(len(line) == len(compare.COLUMNS) for line in lines)
    for _, dtype, what, *ratios, temporaries, equations, _ in lines[2:]:
        assert dtype == "float32" and what in ("value", "value and gradient")
        assert all(0.01 < float(ratio.split(" ")[0]) < 100 for ratio in ratios)
        for both in (temporaries, equations):
            new, old = both.split(" / ")
            assert new == old


def test_equations_of_inner_functions_are_counted():
    def function(x):
        return jax.lax.cond(x > 0, lambda x: jnp.sin(jnp.cos(x)), lambda x: x, x) + 1

    assert compare.equations(jax.make_jaxpr(lambda x: jnp.sin(x) + 1)(1.0)) == 2
    one = compare.equations(jax.make_jaxpr(function)(1.0))
    assert compare.equations(jax.make_jaxpr(jax.jit(function))(1.0)) == one + 1


def test_package_is_loaded_from_its_folder_and_a_missing_one_raises(tmp_path):
    folder = tmp_path / "jaxce_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("from jaxce_of_a_test._number import number\n")
    (folder / "_number.py").write_text("number = 3\n")
    path = list(sys.path)
    try:
        assert compare.load("jaxce_of_a_test", tmp_path).number == 3
    finally:
        for name in [name for name in sys.modules if name.startswith("jaxce_of_a_test")]:
            del sys.modules[name]
    assert sys.path == path
    with pytest.raises(ModuleNotFoundError, match="no package jaxce_elsewhere"):
        compare.load("jaxce_elsewhere", tmp_path)
