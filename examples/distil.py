"""Distils a small language model from a larger one, three ways: without a teacher, with its hidden states, with its stored likeliest words.

python examples/distil.py            # trains a teacher and three students on the sources of the standard library (no download)
python examples/distil.py --short    # a few steps
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import progress
from corpus import IGNORED, OUTPUT, UNKNOWN, count_words, standard_library
from flax import nnx
from matplotlib import pyplot as plt
from pretrain import pretrained
from transformer import LanguageModel

import jaxce

SIZES = ("layers", "features", "heads", "sequence", "dtype")
TEACHER, STUDENT = (2, 128, 4, 64, "float32"), (1, 32, 2, 64, "float32")
FILES, LEAST_COUNT, BATCH, LEARNING_RATE, SEED = 80, 3, 16, 1e-2, 0
HELD_OUT, TOP, EVERY = 64, 16, 10


def model(sizes, vocabulary: int) -> LanguageModel:
    return LanguageModel(vocabulary, argparse.Namespace(**dict(zip(SIZES, sizes, strict=True))), nnx.Rngs(SEED))


def lazy_logits(graph, params, rows) -> jaxce.LinearLogits:
    """Return the logits of the next word at each place of the rows. They are never stored whole."""
    hidden, classifier = nnx.merge(graph, params)(jnp.maximum(rows[:, :-1], UNKNOWN))
    return jaxce.LinearLogits(hidden, classifier)


def alone(student, teacher, rows, stored):
    """The loss without a teacher: the next word is the label."""
    del teacher, stored
    return jaxce.softmax_cross_entropy_sum(student, rows[:, 1:], mask=rows[:, 1:] != IGNORED)


def with_hidden_states(student, teacher, rows, stored):
    """The divergence from the teacher, whose logits are made from its hidden states block by block."""
    del stored
    return jaxce.softmax_kl_divergence_sum(jax.lax.stop_gradient(teacher), student, mask=rows[:, 1:] != IGNORED)


def with_stored_words(student, teacher, rows, stored):
    """The cross-entropy against the words that the teacher found likeliest, which were stored before."""
    del teacher
    words, probabilities = stored
    mask = rows[:, 1:] != IGNORED
    return jaxce.softmax_cross_entropy_sum(student, words, label_probabilities=probabilities, mask=mask)


def naive(student, teacher, rows, stored):
    """The divergence with all logits of both stored, to compare the memory."""
    del stored
    log_q, log_p = (jax.nn.log_softmax(x.hidden @ x.classifier) for x in (teacher, student))
    losses = optax.losses.kl_divergence(log_p, jnp.exp(log_q))
    return jaxce.LossSum.of(losses, mask=rows[:, 1:] != IGNORED)


WAYS = {
    "student alone": alone,
    "teacher's hidden states": with_hidden_states,
    f"teacher's {TOP} likeliest words": with_stored_words,
}


def likeliest_words(graph, params, rows: np.ndarray):
    """Return the words that the teacher finds likeliest at each place, `[rows, sequence, TOP]`, and their probabilities."""

    @jax.jit
    def of_rows(params, rows):
        logits = lazy_logits(graph, params, rows)
        log_p = jax.nn.log_softmax(logits.hidden @ logits.classifier)
        log_p, words = jax.lax.top_k(log_p, TOP)
        return words, jnp.exp(log_p).astype(jnp.float16)

    parts = [of_rows(params, part) for part in np.array_split(rows, -(-len(rows) // BATCH))]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def make_step(loss, student, teacher, optimizer):
    """Return a step of training, not compiled."""

    def mean(params, teacher_params, rows, stored):
        of_teacher = lazy_logits(teacher[0], teacher_params, rows)
        return loss(lazy_logits(student, params, rows), of_teacher, rows, stored).mean()

    def step(params, state, batch):
        value, gradient = jax.value_and_grad(mean)(params, *batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def measure(student, teacher, rows):
    """Return a function of the student's parameters: the loss of the next word and the share of places where the teacher predicts the same word."""

    @jax.jit
    def of_params(params):
        mask = rows[:, 1:] != IGNORED
        stats = jaxce.logit_stats(lazy_logits(student, params, rows), rows[:, 1:], mask=mask)
        of_teacher = jaxce.logit_stats(lazy_logits(teacher[0], teacher[1], rows))
        agrees = stats.prediction == of_teacher.prediction
        return jaxce.LossSum.of(stats.nll, mask=mask).mean(), jnp.mean(agrees, where=mask)

    return of_params


def temporaries(compiled: jax.stages.Compiled) -> float:
    """Return the memory that a compiled program needs besides its arguments and results, in MiB."""
    use = compiled.memory_analysis()
    assert use is not None
    return use.temp_size_in_bytes / 2**20


def train(name: str, loss, teacher, rows, stored, evaluate, steps: int, vocabulary: int):
    """Return the curve of the held-out loss, and print the agreement with the teacher and the memory of a step."""
    student, params = nnx.split(model(STUDENT, vocabulary))
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, 1 + steps // 20, steps))
    state, batches = optimizer.init(params), np.random.default_rng(SEED).integers(len(rows), size=(steps, BATCH))

    def batch_at(at):
        return teacher[1], rows[at], tuple(x[at] for x in stored)

    def compiled(loss):
        step = jax.jit(make_step(loss, student, teacher, optimizer))
        return step.lower(params, state, batch_at(batches[0])).compile()

    step, curve = compiled(loss), []
    for i, at in enumerate(bar := progress.bar(batches, name)):
        params, state, value = step(params, state, batch_at(at))
        if i % EVERY == EVERY - 1 or i == steps - 1:
            curve.append((i + 1, *map(float, evaluate(params))))
            bar.set_postfix(loss=f"{float(value):.3f}", held_out=f"{curve[-1][1]:.3f}")
    print(f"{name}: held-out loss {curve[-1][1]:.3f}, agrees with the teacher at {curve[-1][2]:.1%} of the words")
    whole = f"; with all logits stored {temporaries(compiled(naive)):,.0f} MiB" if loss is with_hidden_states else ""
    print(f"  temporaries of a step: {temporaries(step):,.0f} MiB{whole}")
    return np.array(curve)


def draw(curves: dict[str, np.ndarray], of_teacher: float) -> None:
    plt.switch_backend("agg")
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for (name, curve), color in zip(curves.items(), ("#737373", "#2171b5", "#d94801"), strict=True):
        for axes, column in zip(panels, (1, 2), strict=True):
            axes.plot(curve[:, 0], curve[:, column], label=name, color=color)
    panels[0].axhline(of_teacher, color="black", linewidth=0.8, linestyle=":", label="teacher")
    panels[0].set(title="Held-out cross-entropy of the next word", xlabel="step", ylabel="nats")
    panels[1].set(title="Words that the teacher predicts too", xlabel="step", ylim=(0, 1))
    panels[0].legend(frameon=False)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(OUTPUT / "distil.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few steps on fewer words")
    parser.add_argument("--steps", type=int, default=60, help="steps of each student")
    options = parser.parse_args()
    started = time.perf_counter()
    files, teacher_steps, steps = (8, 8, 4) if options.short else (FILES, 80, options.steps)
    rows = standard_library(LEAST_COUNT, TEACHER[3], files)
    vocabulary = int(rows.max()) + 1
    held_out, rows = np.split(np.random.default_rng(SEED).permutation(rows), [HELD_OUT])
    print("A small transformer learns the words of Python's standard library, without and with a larger teacher.")
    print(f"{count_words(rows):,} words, {vocabulary:,} different ones; {STUDENT[1]} features, teacher {TEACHER[1]}")
    teacher = pretrained(model(TEACHER, vocabulary), rows, teacher_steps)
    of_teacher, _ = map(float, measure(teacher[0], teacher, held_out)(teacher[1]))
    stored = likeliest_words(*teacher, rows)
    print(
        f"teacher: held-out loss {of_teacher:.3f}; its {TOP} likeliest words have {stored[1].astype(np.float32).sum(-1).mean():.0%} of the mass"
    )
    evaluate = measure(nnx.split(model(STUDENT, vocabulary))[0], teacher, held_out)
    of_students = teacher, rows, stored, evaluate, steps, vocabulary
    curves = {name: train(name, loss, *of_students) for name, loss in WAYS.items()}
    draw(curves, of_teacher)
    agreement = [curve[-1, 2] for curve in curves.values()]
    if not options.short and max(agreement[1:]) <= agreement[0]:
        raise SystemExit("the teacher did not help")
    print(f"picture: {OUTPUT / 'distil.png'}   wall time: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
