"""`python -m benchmarks`: its results, its report of a peer that is wrong or fails, and the results of an interrupted run."""

import importlib
import time

import numpy as np
import pytest

for name in ("matplotlib", "tqdm", "optax"):
    pytest.importorskip(name, reason="needs the extra `benchmarks`")
main, curves, in_jax, in_torch, measure, problems, report = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("__main__", "curves", "peers.in_jax", "peers.in_torch", "measure", "problems", "report")
)

TINY = [
    problems.Problem(kind, 16, 12, "float32", targets={problems.GRADIENT: 1.05})
    for kind in (problems.INTEGER, problems.SIGMOID)
]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(problems, "dense", lambda quick: TINY)
    monkeypatch.setattr(main, "_import_milliseconds", lambda times: 12.0)
    monkeypatch.setattr(problems, "VOCABULARIES", (64, 128, 256))
    monkeypatch.setattr(main, "SAMPLE_SECONDS", 1e-4)


def test_run_writes_tables_and_plots(tmp_path, tiny):
    main.run(tmp_path, quick=True)
    paths = main.write_report(tmp_path)
    assert [path.name for path in paths] == ["cpu.md", "cpu-time.png", "cpu-memory.png", "cpu-error.png"]
    assert all(path.stat().st_size > 1000 for path in paths)
    rows = report.read(tmp_path / "cpu.csv", report.DenseRow)
    done = {(row.loss, row.what, row.program): row for row in rows if row.status == "done"}
    for problem in TINY:
        for what in (problems.VALUE, problems.GRADIENT):
            for program in (in_jax.OURS, in_jax.OPTAX, in_jax.COPY):
                row = done[problem.kind, what, program]
                assert 0 < float(row.lower_quartile) <= float(row.median) <= float(row.upper_quartile)
    text = paths[0].read_text()
    ours, optax = (done[problems.INTEGER, problems.GRADIENT, name] for name in (in_jax.OURS, in_jax.OPTAX))
    assert f"**{float(ours.median) / float(optax.median):.2f} (" in text and "| 1.05 |" in text
    assert "12 ms (target 60)" in text and "jaxce, linear sum | 256 classes" in text


def test_interrupted_run_keeps_its_results(tmp_path, tiny, monkeypatch):
    def cut(timed, **_):
        timed[1].wall, timed[1].cpu = [1.0], [1.0]
        raise SystemExit(143)

    monkeypatch.setattr(measure, "in_turns", cut)
    with pytest.raises(SystemExit):
        main.run(tmp_path, quick=True)
    rows = {row.program: row.status for row in report.read(tmp_path / "cpu.csv", report.DenseRow)}
    assert rows[in_jax.OURS] == "done" and rows[in_jax.OPTAX] == "cut before it was timed"
    assert (tmp_path / "cpu.md") in main.write_report(tmp_path)


def program_with_result(answer):
    """Return a constructor of a program with this result."""
    return lambda: measure.Program(lambda: None, answer=lambda _: answer)


def fails():
    raise RuntimeError("no such kernel")


def fails_to_compile():
    raise ValueError("no such option\nat all")


def is_absent():
    raise ModuleNotFoundError("no such library")


def test_wrong_or_failing_peer_is_listed_and_not_timed(tmp_path):
    ones, path = np.ones((8, 12)), tmp_path / "cpu.csv"
    makes = {
        "ours": program_with_result((1.0, {"logits": ones})),
        "fails to compile": fails_to_compile,
        "off": program_with_result((1.1, {"logits": ones})),
        "off in its gradient": program_with_result((1.0, {"logits": 0 * ones})),
        "fails": lambda: measure.Program(fails, answer=lambda _: (1.0, {})),
        "absent": is_absent,
    }
    report.start(path, report.DenseRow)
    main.time_programs(TINY[0], problems.GRADIENT, makes.items(), path, seconds=0.01)
    rows = {row.program: row.status for row in report.read(path, report.DenseRow)}
    assert rows.pop("ours") == "done"
    assert rows == {
        "fails to compile": "ValueError: no such option",
        "off": "another answer: loss 1.100000 for 1.000000",
        "off in its gradient": "another answer: its gradient by logits is 1 of ours off",
        "fails": "RuntimeError: no such kernel",
    }


def test_programs_take_turns_back_and_forth():
    calls = []
    programs = [measure.Program(lambda name=name: calls.append(name)) for name in "AB"]
    timed = [measure.Timed("", program) for program in programs]
    measure.in_turns([*timed, measure.Timed("not made")], rounds=4, before=lambda: calls.append("."))
    assert "".join(calls) == ".A.B.B.A.A.B.B.A"
    assert all(len(x.wall) == len(x.cpu) == 4 for x in timed)


def test_sample_makes_calls_for_its_duration_and_waits_once():
    calls, waits = [], []
    timed = measure.Timed("", measure.Program(lambda: calls.append(time.sleep(1e-3)), wait=waits.append))
    measure.in_turns([timed], rounds=3, sample_seconds=0.01, queued=True)
    calls_per_sample = (len(calls) - 2) // 3
    assert 2 <= calls_per_sample <= 10 and len(waits) == 2 + 3
    assert all(1e-3 <= seconds < 1 for seconds in timed.wall)


def test_run_stops_after_its_time():
    timed = measure.Timed("", measure.Program(lambda: time.sleep(1e-3)))
    measure.in_turns([timed], rounds=1000, fewest=3, seconds=0.0)
    assert len(timed.wall) == 3
    assert [x.status for x in measure.all_prepared([("", is_absent)], TINY[0], end=0.0)] == [measure.OUT_OF_TIME]


@pytest.mark.parametrize("name", ["cpu.csv", "linear.csv", "nvidia-h200.csv"])
def test_published_rows_can_be_read(name):
    kind = {"cpu.csv": report.DenseRow, "linear.csv": report.LinearRow}.get(name, report.DeviceRow)
    rows = report.read(main.RESULTS / name, kind)
    programs = {getattr(row, "program", None) or row.who for row in rows}
    offered = (in_torch.names, in_jax.names)
    several = (problems.Problem(kind, 1, 1, "bfloat16") for kind in (problems.INTEGER, problems.LAYER, problems.LINEAR))
    known = {name for problem in several for names in offered for name in names(problem, problems.GRADIENT)}
    assert rows and programs <= known


def test_error_curves_show_small_errors_for_jaxce_and_large_ones_for_optax():
    worst = {}
    for point in curves.errors():
        worst[point.who, point.curve] = max(worst.get((point.who, point.curve), 0), float(point.y))
    for curve in (curves.VALUE_ERROR, curves.GRADIENT_ERROR):
        assert worst["jaxce", curve] < 4 * 2**-23 + 74 * 2**-24 and worst["optax", curve] > 0.9


def test_memory_of_the_linear_sum_does_not_grow_with_the_logits():
    memory = {point.who: float(point.y) for point in curves.memory(2**16)}
    logits = curves.TOKENS * 2**16 * 4 / 2**20
    assert memory["matmul, then optax"] >= logits >= 3 * memory["jaxce, linear sum"]
