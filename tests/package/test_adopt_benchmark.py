"""`python -m benchmarks.adopt` in a tiny shape: its steps agree, and a step with another answer shows."""

import functools

import jax
import numpy as np
import pytest

pytest.importorskip("optax", reason="needs the extra `benchmarks`")

from benchmarks import adopt, adopt_steps

TINY = adopt.Sizes(4, 6, 8, 2, 1, 44, 48)


@pytest.fixture(autouse=True)
def defaults_of_jax():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as for a user
        yield


def plain_mean(hidden, embedding, labels, mask, *, soft_cap=None, z_loss=0.0):
    """Compute the mean loss in float64."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(embedding, np.float64).T
    logits = logits if soft_cap is None else soft_cap * np.tanh(logits / soft_cap)
    log_z = np.logaddexp.reduce(logits, -1)
    nll = log_z - np.take_along_axis(logits, np.asarray(labels)[..., None], -1)[..., 0]
    return (nll + z_loss * log_z**2)[mask].mean()


def hidden_states(model, tokens):
    return jax.vmap(functools.partial(model.hidden, heads=TINY.heads))(tokens)


@pytest.mark.nightly
@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize("make", [adopt.flax_program, adopt.vmap_program, adopt.mesh_program])
def test_every_step_has_the_loss_and_the_gradients_of_the_step_before(make):
    if make is adopt.flax_program:
        pytest.importorskip("flax", reason="needs the extra `examples`")
    rows = adopt.lines(make(TINY), repeats=1)
    assert [row[0] for row in rows[:2]] == [adopt_steps.BEFORE, adopt_steps.DENSE]
    assert any(row[0].startswith(adopt_steps.LAZY) for row in rows)
    assert rows[0][2:4] == ["1.00", "1.00"] and [float(gap) for gap in rows[0][5:]] == [0, 0]
    assert all(float(gap) < 2e-6 for row in rows for gap in row[5:])
    assert all(f"| {row[0]} |" in adopt.report([("a title", rows)], TINY, 1) for row in rows)


@pytest.mark.nightly
@pytest.mark.usefixtures("fast_compilation")
def test_steps_before_have_the_losses_of_numpy():
    _, steps, (model, batch) = adopt.vmap_program(TINY)
    hidden = hidden_states(model, batch.tokens)
    loss = plain_mean(hidden, model.embedding, batch.labels, np.ones_like(batch.mask))
    assert float(steps[adopt_steps.BEFORE](model, batch)[0]) == pytest.approx(loss, rel=1e-5)

    _, steps, (model, batches) = adopt.mesh_program(TINY)
    hidden, embedding, labels, mask = map(
        np.asarray, (jax.vmap(hidden_states, (None, 0))(model, batches.tokens), model.embedding, *batches[1:])
    )
    loss = plain_mean(hidden, embedding, labels, mask, soft_cap=adopt_steps.SOFT_CAP, z_loss=adopt_steps.Z_LOSS)
    assert float(jax.jit(steps[adopt_steps.BEFORE])(model, batches)[0]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.nightly
@pytest.mark.usefixtures("fast_compilation")
def test_metrics_of_a_formula_are_those_of_the_logits():
    pytest.importorskip("flax", reason="needs the extra `examples`")
    _, steps, arrays = adopt.flax_program(TINY)
    before, *after = [{name: float(x) for name, x in jax.jit(step)(*arrays)[2].items()} for step in steps.values()]
    assert before.keys() == {"nll", "accuracy"} and len(after) == 2
    assert all(metrics == pytest.approx(before, rel=1e-5) for metrics in after)


def test_a_step_with_another_answer_shows():
    def step(scale, x):
        return scale * x.sum(), scale * x, {}

    steps = {"before": functools.partial(step, 1), "wrong": functools.partial(step, 2)}
    before, wrong = adopt.lines(adopt.Program("a title", steps, (np.arange(1.0, 4, dtype=np.float32),)), repeats=1)
    assert [float(gap) for gap in before[5:]] == [0, 0] and [float(gap) for gap in wrong[5:]] == [1, 1]


def test_without_flax_its_program_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(adopt.importlib.util, "find_spec", lambda name: None)
    assert len(list(adopt.programs(TINY))) == 2
    assert capsys.readouterr().out == "flax is not installed: its program is left out\n"
