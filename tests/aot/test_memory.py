"""What the linear losses hold on accelerators, by their compilers' own figures. Needs the extra `aot`, but none of the devices."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
PLUGINS = {"v5e": "libtpu", "h100": "jax_cuda12_plugin"}
TARGETS = [
    pytest.param(
        target,
        marks=pytest.mark.skipif(importlib.util.find_spec(plugin) is None, reason=f"needs {plugin}: install '.[aot]'"),
    )
    for target, plugin in PLUGINS.items()
]
TOKENS, FEATURES, CLASSES = 8192, 2048, 128256
ACCUMULATOR = FEATURES * CLASSES * 4  # the classifier's gradient in float32
LOGITS = TOKENS * CLASSES * 4


@functools.cache
def temporary_bytes(target):
    """By implementation; in a process of its own, as the compilers are set up by its environment."""
    path = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(HERE / "measure.py"), target]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])[target]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("implementation", ["default", "whole rows"])
def test_sum_holds_a_twentieth_of_the_logits_beside_the_gradient_of_the_classifier(target, implementation):
    assert temporary_bytes(target)[implementation] - ACCUMULATOR <= LOGITS / 20


@pytest.mark.parametrize("target", TARGETS)
def test_all_logits_at_once_do_not(target):
    assert temporary_bytes(target)["reference"] >= LOGITS / 2
