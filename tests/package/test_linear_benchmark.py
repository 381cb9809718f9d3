"""`python -m benchmarks.linear` in a tiny shape: its results, and programs that are wrong, slow, missing or interrupted."""

import contextlib
import dataclasses
import importlib
import os
import subprocess
import sys
import time

import pytest

from tests.support.paths import ROOT

for name in ("matplotlib", "tqdm", "optax"):
    pytest.importorskip(name, reason="needs the extra `benchmarks`")
linear, markdown, peers, in_jax, problems, report = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("linear", "markdown", "peers", "peers.in_jax", "problems", "report")
)

SHAPE = (48, 8, 130)
PROBLEM = problems.of_shape(SHAPE, "float32")
OWN = [in_jax.MATMULS, in_jax.SUM, in_jax.LOSSES, in_jax.NAIVE]


def run(folder, *options):
    command = [sys.executable, "-m", "benchmarks.linear", *map(str, SHAPE), "--repeats", "3", "--results", str(folder)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return report.read(folder / "linear.csv", report.LinearRow), (folder / "linear.md").read_text()


def test_own_programs_are_timed_and_each_other_is_timed_or_has_a_reason(tmp_path):
    rows, text = run(tmp_path)
    by_name = {row.program: row for row in rows}
    assert all(by_name[name].status == "done" for name in OWN)
    assert {row.program.split(",")[0].split(" ")[0] for row in rows} >= {"tokamax", "jax-cce", "torch"}
    for row in rows:
        assert (str(SHAPE), "float32") == (row.shape, row.dtype)
        assert f"| {row.program} | {row.status if row.status != 'done' else ''}" in text
        if row.status != "done":
            assert row.status.startswith(("left out: ", "another answer: "))
            continue
        assert 0 < float(row.least) <= float(row.median) <= float(row.most) and int(row.runs) in (1, 3)
        ratio = float(row.median) / float(by_name[in_jax.MATMULS].median)
        assert float(row.times_the_floor) == pytest.approx(ratio, rel=1e-3)
        assert row.program == in_jax.MATMULS or float(row.loss) == pytest.approx(
            float(by_name[in_jax.SUM].loss), rel=1e-5
        )
    assert rows[0].machine in text


def wrong(factor_of_value, factor_of_gradient):
    """Return a constructor of a peer whose value and classifier gradient are multiplied by these factors."""

    def make():
        arrays = PROBLEM.arrays()
        program = in_jax.program(in_jax.NAIVE, PROBLEM, problems.GRADIENT, arrays)

        def answer(found):
            value, gradients = program.answer(found)
            by_classifier = {"classifier": gradients["classifier"] * factor_of_gradient}
            return value * factor_of_value, gradients | by_classifier

        return dataclasses.replace(program, answer=answer)

    return make


def with_run(run):
    def make():
        right = wrong(1, 1)()
        found = right.start()
        return dataclasses.replace(right, start=lambda: run() or found)

    return make


def measure(folder, others, repeats=2):
    path = folder / "linear.csv"
    makes = [*peers.programs(PROBLEM, problems.GRADIENT, PROBLEM.arrays(), OWN), *others.items()]
    with contextlib.suppress(KeyboardInterrupt):
        linear.time_programs(PROBLEM, makes, repeats, "here", linear.writer(path, add=False))
    return {row.program: row for row in report.read(path, report.LinearRow)}


def raising():
    raise NotImplementedError("not for this shape\nat all")


def absent():
    raise ModuleNotFoundError("no such library")


def test_wrong_or_failing_program_is_listed_and_not_timed(tmp_path):
    others = {
        "right": wrong(1, 1),
        "loss": wrong(1.001, 1),
        "gradient": wrong(1, 1.01),
        "NaN": wrong(float("nan"), 1),
        "raises": raising,
        "absent": absent,
    }
    rows = measure(tmp_path, others)
    assert rows["right"].status == "done" and rows["right"].runs == "2"
    assert rows["loss"].status.startswith("another answer: loss ")
    assert rows["gradient"].status == "another answer: its gradient by classifier is 0.01 of ours off"
    assert rows["NaN"].status.startswith("another answer: loss nan for ")
    assert rows["raises"].status == "NotImplementedError: not for this shape"
    assert rows["absent"].status == "left out: ModuleNotFoundError: no such library"
    assert not any(rows[name].median for name in others if name != "right")


def test_slow_program_is_run_less_often(tmp_path):
    rows = measure(tmp_path, {"slow": with_run(lambda: time.sleep(0.3))}, repeats=10)
    assert rows["slow"].runs == "2" and rows[in_jax.SUM].runs == "10"


def test_interrupted_run_keeps_its_results(tmp_path):
    calls = []

    def cut():
        calls.append(None)
        # The first call is for the comparison, the second for the first round. The second round starts with the last program.
        if len(calls) > 2:
            raise KeyboardInterrupt

    rows = measure(tmp_path, {"cut": with_run(cut)}, repeats=5)
    assert rows["cut"].runs == "1" and rows[in_jax.SUM].runs == "1"


def test_rows_of_another_environment_are_kept_with_add(tmp_path):
    path = tmp_path / "linear.csv"
    for machine, add in (("first", False), ("second", False), ("third, with a comma", True)):
        linear.writer(path, add=add)(report.LinearRow(machine, "(1, 2, 3)", "float32", in_jax.SUM, "cut"))
    rows = report.read(path, report.LinearRow)
    assert [row.machine for row in rows] == ["second", "third, with a comma"]
    assert all(f"## {row.machine}" in markdown.linear(rows) for row in rows)
