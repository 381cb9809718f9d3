"""`python -m benchmarks.distillation` in a tiny shape: its lines, and a program with another answer."""

import functools

import pytest

pytest.importorskip("tqdm", reason="needs the extra `benchmarks`")
pytest.importorskip("optax", reason="needs the extra `benchmarks`")

from benchmarks import distillation

TINY = distillation.Shapes(8, 4, 6, 12, ((4, 5),))


@pytest.mark.usefixtures("fast_compilation")
def test_lines_have_the_floor_first_and_a_wrong_program_has_no_time(monkeypatch):
    plain = functools.partial(distillation.naive, distillation.kl_of_logits)
    programs = {distillation.KL_SUM: plain, "twice": lambda layers: 2 * plain(layers)}
    monkeypatch.setattr(distillation, "GROUPS", (programs,))
    floor, ours, wrong = distillation.layer_lines(TINY, "float32", repeats=3)
    assert [floor[1], ours[1], wrong[1]] == [distillation.MATMULS, distillation.KL_SUM, "twice"]
    assert floor[2] == "1.00" and float(ours[2]) > 0 and wrong[2].startswith("another answer: ")
    assert ours[4::2] == ["1.1", "200"] and floor[4::2] == wrong[4::2] == ["", ""]


@pytest.mark.usefixtures("fast_compilation")
def test_report_has_every_line():
    dense = list(distillation.dense_lines((4, 5), repeats=3))
    assert dense[0][2] == "1.00" and float(dense[-1][2]) > 0 and dense[-1][3] == "0.8"
    text = distillation.report([["float32", "a line", *[""] * 5]], dense, TINY, repeats=3)
    assert all(f"| {line[1]} |" in text for line in dense) and "| a line |" in text
    assert "8 tokens; 4 features of the student, 6 of the teacher; 12 classes" in text
