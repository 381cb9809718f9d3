"""`python -m benchmarks`: what it writes, what it says of a peer that is wrong or fails, and what is left of a run that is cut."""

import importlib

import numpy as np
import pytest

for name in ("matplotlib", "tqdm", "optax"):
    pytest.importorskip(name, reason="needs the extra `benchmarks`")
main, curves, in_jax, problems, report, timing = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("__main__", "cpu.curves", "cpu.in_jax", "cpu.problems", "cpu.report", "cpu.timing")
)

TINY = [
    problems.Problem(loss, 16, 12, "float32", {problems.GRADIENT: 1.05})
    for loss in (problems.INTEGER, problems.SIGMOID)
]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(main, "problems", lambda quick: TINY)
    monkeypatch.setattr(main, "_import_milliseconds", lambda times: 12.0)
    monkeypatch.setattr(curves, "VOCABULARIES", (64, 128, 256))
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-4)


def test_a_run_leaves_figures_tables_and_pictures(tmp_path, tiny):
    main.run(tmp_path, quick=True)
    made = main.write_report(tmp_path)
    assert [path.name for path in made] == ["cpu.md", "cpu-time.png", "cpu-memory.png", "cpu-error.png"]
    assert all(path.stat().st_size > 1000 for path in made)
    rows = main.records.read(tmp_path / "cpu.csv", timing.Row)
    done = {(row.loss, row.what, row.program): row for row in rows if row.status == "done"}
    for problem in TINY:
        for what in (problems.VALUE, problems.GRADIENT):
            for program in (in_jax.OURS, in_jax.OPTAX, in_jax.COPY):
                row = done[problem.loss, what, program]
                assert 0 < float(row.lower_quartile) <= float(row.median) <= float(row.upper_quartile)
    text = made[0].read_text()
    ours, optax = (done[problems.INTEGER, problems.GRADIENT, name] for name in (in_jax.OURS, in_jax.OPTAX))
    assert f"**{float(ours.median) / float(optax.median):.2f} (" in text and "| 1.05 |" in text
    assert "12 ms (target 60)" in text and "jaxce, linear sum | 256 classes" in text


def test_a_run_that_is_cut_leaves_what_it_has(tmp_path, tiny, monkeypatch):
    def cut(problem, what, **_):
        yield timing.Row(
            problem.loss,
            problem.shape,
            problem.dtype,
            what,
            in_jax.OPTAX,
            median="1",
            cpu_median="1",
            temporary_mib="0",
        )
        raise SystemExit(143)

    monkeypatch.setattr(timing, "rows", cut)
    with pytest.raises(SystemExit):
        main.run(tmp_path, quick=True)
    assert len(main.records.read(tmp_path / "cpu.csv", timing.Row)) == 1
    assert (tmp_path / "cpu.md") in main.write_report(tmp_path)


def test_a_peer_that_is_wrong_or_fails_is_named_and_not_timed(monkeypatch):
    problem, logits = TINY[0], TINY[0].arrays()[0]

    def fails():
        raise RuntimeError("no such kernel")

    def fails_to_compile():
        raise ValueError("no such option")

    def made(name, run, answer):
        return name, lambda: in_jax.Program(name, run, answer)

    def programs(*_):
        yield made("ours", lambda: None, lambda _: (1.0, np.ones((8, 12))))
        yield "fails to compile", fails_to_compile
        yield made("off", lambda: None, lambda _: (1.1, np.ones((8, 12))))
        yield made("off in its gradient", lambda: None, lambda _: (1.0, np.zeros((8, 12))))
        yield made("fails", fails, lambda _: (1.0, None))

    monkeypatch.setattr(in_jax, "programs", programs)
    monkeypatch.setattr(timing.in_torch, "programs", lambda *_: iter(()))
    rows = {row.program: row.status for row in timing.rows(problem, problems.GRADIENT, seconds=0.01)}
    assert rows["ours"] == "done" and logits.shape == (16, 12)
    assert rows["off"].startswith("another loss: 1.1 for 1")
    assert rows["off in its gradient"].startswith("another gradient")
    assert rows["fails to compile"] == "ValueError: no such option"
    assert rows["fails"] == "RuntimeError: no such kernel"


def test_error_curves_tell_who_keeps_the_digits():
    worst = {}
    for point in curves.errors():
        worst[point.who, point.curve] = max(worst.get((point.who, point.curve), 0), float(point.y))
    for curve in (curves.VALUE_ERROR, curves.GRADIENT_ERROR):
        assert worst["jaxce", curve] < 4 * 2**-23 + 74 * 2**-24 and worst["optax", curve] > 0.9


def test_memory_of_the_linear_sum_does_not_grow_with_the_logits():
    held = {point.who: float(point.y) for point in curves.memory(2**16)}
    logits = curves.TOKENS * 2**16 * 4 / 2**20
    assert held["matmul, then optax"] >= logits >= 3 * held["jaxce, linear sum"]
