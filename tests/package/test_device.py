"""`python -m benchmarks.device` on this machine, in tiny shapes: it writes every number, and an interrupted run keeps its results."""

import csv
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

for name in ("matplotlib", "tqdm"):
    pytest.importorskip(name, reason="needs the extra `benchmarks`")

PLOTS = {f"{kind}-{what}" for kind in ("dense", "linear") for what in ("forward", "value-and-gradients")}


def run(folder, *options):
    """Run the benchmark. Return the exit code, the rows of the CSV, the markdown, the sizes of the plots by name, and stderr."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.device", "--tiny", "--results", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500)
    (path,) = folder.glob("*.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    plots = {p.stem.removeprefix(path.stem + "-"): p.stat().st_size for p in folder.glob("*.png")}
    return done.returncode, rows, path.with_suffix(".md").read_text(), plots, done.stderr


def rows_of(rows, part):
    return [row for row in rows if row["part"] == part]


@pytest.mark.nightly
def test_everything_is_measured(tmp_path):
    code, rows, text, plots, errors = run(tmp_path)
    assert code == 0, errors[-2000:]
    assert {row["status"] for row in rows_of(rows, "numerics")} == {"done"}
    assert {row["dtype"] for row in rows_of(rows, "numerics")} == {"float32", "bfloat16"}
    own = [
        row for row in rows_of(rows, "timing") if row["who"].startswith(("jaxce", "optax", "matmul", "a copy", "bare"))
    ]
    assert {row["status"] for row in own} == {"done"}
    assert {(row["kind"], row["what"].replace(" ", "-")) for row in own} == {tuple(p.split("-", 1)) for p in PLOTS}
    assert all(float(row["least"]) <= float(row["milliseconds"]) <= float(row["most"]) for row in own)
    # All other programs compute the same loss. The tolerance allows a final rounding to bfloat16.
    others = ("entropy", "64 labels", "KL sum")
    assert all(sum(name in row["who"] for row in own) == 2 for name in (*others, "Auto mesh"))  # one for each dtype
    for row in own:
        if row["loss"] and not any(name in row["who"] for name in others):
            (ours,) = (
                float(r["loss"])
                for r in own
                if r["who"] in ("jaxce", "jaxce sum")
                and all(r[k] == row[k] for k in ("subject", "kind", "dtype", "what"))
            )
            assert float(row["loss"]) == pytest.approx(ours, rel=2**-8)
    assert plots.keys() == PLOTS and min(plots.values()) > 10_000
    for row in own:
        assert f"| {row['who']} |" in text


def test_run_without_time_keeps_its_results(tmp_path):
    code, rows, text, plots, errors = run(tmp_path, "--seconds", "0")
    assert code == 0, errors[-2000:]
    assert [row["status"] for row in rows_of(rows, "numerics")] == ["done", "out of time"]
    assert {row["status"] for row in rows_of(rows, "timing")} == {"out of time"}
    assert "There was no time for the rest of the checks." in text and not plots
    assert text.count("There was no time for") == 1 + len(PLOTS)
