"""`python -m benchmarks.linear` in a tiny shape: what it writes, and what it does with one that is wrong, slow, missing or cut."""

import contextlib
import importlib
import os
import subprocess
import sys
import time

import pytest

from tests.support.paths import ROOT

optax, _ = (pytest.importorskip(name, reason="needs the extra `benchmarks`") for name in ("optax", "tqdm"))
linear, programs, report = (
    importlib.import_module(f"benchmarks.linear.{name}") for name in ("__main__", "programs", "report")
)

SHAPE = (48, 8, 130)
OWN = ["three matmuls", "sum", "losses", "naive"]


def run(folder, *options):
    command = [sys.executable, "-m", "benchmarks.linear", *map(str, SHAPE), "--repeats", "3", "--results", str(folder)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return report.read(folder / "linear.csv"), (folder / "linear.md").read_text()


def test_own_programs_are_timed_and_others_are_or_it_is_said_why_not(tmp_path):
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
        ratio = float(row.median) / float(by_name["three matmuls"].median)
        assert float(row.times_the_floor) == pytest.approx(ratio, rel=1e-3)
        assert row.program == "three matmuls" or float(row.loss) == pytest.approx(float(by_name["sum"].loss), rel=1e-5)
    assert rows[0].machine in text


def wrong(factor_of_value, factor_of_gradient):
    """A peer that is right but for these."""

    def make(problem):
        program = programs.in_jax(
            "wrong",
            lambda h, w, y: optax.softmax_cross_entropy_with_integer_labels(h @ w, y).mean(),
            *(problem.hidden, problem.classifier, problem.labels),
        )

        def answer(found):
            value, of_hidden, of_classifier = program.answer(found)
            return value * factor_of_value, of_hidden, of_classifier * factor_of_gradient

        return programs.Program("wrong", program.run, answer, None)

    return make


def with_own_run(run):
    def make(problem):
        right = wrong(1, 1)(problem)
        found = right.run()
        return programs.Program("", lambda: run() or found, right.answer, None)

    return make


def measured(folder, others, repeats=2):
    path = folder / "linear.csv"
    with contextlib.suppress(KeyboardInterrupt):
        linear.measure(SHAPE, "float32", repeats, list(others.items()), report.Writer("here", path))
    return {row.program: row for row in report.read(path)}


def raising(problem):
    raise NotImplementedError("not for this shape\nat all")


def test_one_that_answers_otherwise_or_fails_is_named_and_not_timed(tmp_path):
    others = {
        "right": wrong(1, 1),
        "loss": wrong(1.001, 1),
        "gradient": wrong(1, 1.01),
        "NaN": wrong(float("nan"), 1),
        "raises": raising,
        "absent": "left out: ModuleNotFoundError",
    }
    rows = measured(tmp_path, others)
    assert rows["right"].status == "done" and rows["right"].runs == "2"
    assert rows["loss"].status.startswith("another answer: loss ")
    assert rows["gradient"].status == "another answer: its gradient by classifier is 0.01 of ours off"
    assert rows["NaN"].status.startswith("another answer: loss nan for ")
    assert rows["raises"].status == "NotImplementedError: not for this shape"
    assert rows["absent"].status == "left out: ModuleNotFoundError"
    assert not any(rows[name].median for name in others if name != "right")


def test_a_slow_one_is_run_less_often(tmp_path):
    rows = measured(tmp_path, {"slow": with_own_run(lambda: time.sleep(0.3))}, repeats=10)
    assert rows["slow"].runs == "2" and rows["sum"].runs == "10"


def test_a_run_that_is_cut_leaves_what_it_has(tmp_path):
    calls = []

    def cut():
        calls.append(None)
        if len(calls) > 2:  # once to compare, once in the first round
            raise KeyboardInterrupt

    rows = measured(tmp_path, {"cut": with_own_run(cut)}, repeats=5)
    assert rows["cut"].runs == "1" and rows["sum"].runs == "2"


def test_rows_of_another_environment_are_kept_if_asked(tmp_path):
    path = tmp_path / "linear.csv"
    for machine, add in (("first", False), ("second", False), ("third, with a comma", True)):
        report.Writer(machine, path, add=add).add(report.Row(machine, "(1, 2, 3)", "float32", "sum", "cut"))
    rows = report.read(path)
    assert [row.machine for row in rows] == ["second", "third, with a comma"]
    assert all(f"## {row.machine}" in report.markdown(rows) for row in rows)
