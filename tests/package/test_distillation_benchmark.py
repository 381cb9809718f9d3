"""`python -m benchmarks.distillation` in a tiny shape: its lines, and a program with another answer."""

import functools

import pytest

pytest.importorskip("tqdm", reason="needs the extra `benchmarks`")
pytest.importorskip("optax", reason="needs the extra `benchmarks`")

from benchmarks import distillation

TINY = distillation.Shapes(8, 4, 6, 12, ((4, 5),))
plain_kl = functools.partial(distillation.naive, distillation.kl_of_logits)
plain_js = functools.partial(distillation.naive, distillation.js_of_logits)


@pytest.mark.usefixtures("fast_compilation")
def test_lines_have_the_floor_first_and_a_wrong_program_has_no_time(monkeypatch):
    programs = {distillation.KL_SUM: plain_kl, "twice": lambda layers: 2 * plain_kl(layers)}
    monkeypatch.setattr(distillation, "GROUPS", (programs,))
    floor, ours, wrong = distillation.layer_lines(TINY, "float32", repeats=3)
    assert [floor[1], ours[1], wrong[1]] == [distillation.MATMULS, distillation.KL_SUM, "twice"]
    assert floor[2] == "1.00" and float(ours[2]) > 0 and wrong[2].startswith("another answer: ")
    assert (ours[3], ours[-1]) == ("1.1", "200") and floor[3] == floor[-1] == wrong[3] == ""


@pytest.mark.usefixtures("fast_compilation")
def test_plain_code_has_the_values_of_the_sums():
    layers = distillation.layers_of(TINY, "float32")
    assert float(distillation.by_hand(layers)) == pytest.approx(float(distillation.kl_sum(layers)), rel=1e-5)
    assert float(plain_js(layers)) == pytest.approx(float(distillation.js_sum(layers)), rel=1e-5)


@pytest.mark.usefixtures("fast_compilation")
def test_report_has_every_line(monkeypatch):
    first = dict(list(distillation.dense_programs().items())[:1])
    monkeypatch.setattr(distillation, "dense_programs", lambda: first)
    (line,) = distillation.dense_lines((4, 5), repeats=1)
    assert line[:4] == ["(4, 5)", "optax.losses.kl_divergence", "1.00", ""]
    layer, labels = ["float32", "a line", *[""] * 6], ["float32", "some labels", *[""] * 5]
    text = distillation.report([layer], [labels], [line], TINY, repeats=1)
    assert all(f"| {x[1]} |" in text for x in (line, layer, labels))
    assert "8 tokens; 4 features of the student, 6 of the teacher; 12 classes" in text
