"""Teaches a small language model to prefer real text to shuffled text, by DPO on pairs made from the standard library.

python examples/preferences.py                # trains the model on the standard library first, then by DPO

Both texts of a pair begin with the same words. The words that follow are real in one text; in the other, neighbours have changed places. The pairs
are packed: the words of all texts are in one row, and `LossSum.by_segment` adds up each text. jaxce stores no logits; for comparison the same loss is
computed over all logits.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import progress
from corpus import UNKNOWN, standard_library_with_words
from flax import nnx
from matplotlib import pyplot as plt
from pictures import OURS, draw_pair, save, set_style
from pretrain import pretrained
from transformer import LanguageModel

import jaxce

SIZES = {"layers": 1, "features": 64, "heads": 2, "sequence": 32, "dtype": "float32"}
PROMPT, WINDOW, PAIRS, HELD_OUT, LEARNING_RATE, BETA, SEED = 8, 2, 16, 256, 1e-3, 0.1, 0
CURVES_RTOL, GRADIENTS_RTOL, LEAST_ACCURACY = 1e-4, 1e-4, 0.9


def make_pairs(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `[2 * rows, sequence + 1]`: the real texts, and then the same texts with the words after the prompt shuffled in small windows."""
    words = rows[:, PROMPT:]
    windows = rng.permuted(words[:, : words.shape[1] // WINDOW * WINDOW].reshape(-1, WINDOW), axis=1)
    shuffled = rows.copy()
    shuffled[:, PROMPT : PROMPT + windows.size // len(rows)] = windows.reshape(len(rows), -1)
    return np.concatenate((rows, shuffled))


def states(graph, params, rows):
    """Return the hidden states that predict the words after the prompt, the classifier, and these words."""
    hidden, classifier = nnx.merge(graph, params)(rows[:, :-1])
    return hidden[:, PROMPT - 1 :], classifier, rows[:, PROMPT:]


def lazy_log_p(graph, params, rows):
    """Return the log-probability of each text. Its words are packed into one row."""
    hidden, classifier, words = states(graph, params, rows)
    texts = jnp.broadcast_to(jnp.arange(len(words))[:, None], words.shape)
    logits = jaxce.LinearLogits(hidden.reshape(-1, hidden.shape[-1]), classifier)
    losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, words.reshape(-1))
    return -jaxce.LossSum.by_segment(losses, texts.reshape(-1), len(words)).total


def naive_log_p(graph, params, rows):
    """Return the same from whole rows of logits."""
    hidden, classifier, words = states(graph, params, rows)
    log_p = jax.nn.log_softmax(hidden @ classifier)
    return jnp.take_along_axis(log_p, words[..., None], -1)[..., 0].sum(-1)


def dpo(log_p, reference):
    """Return the mean loss of the pairs, and how often the real text has the larger implied reward."""
    real, shuffled = jnp.split(BETA * (log_p - reference), 2)
    return -jax.nn.log_sigmoid(real - shuffled).mean(), jnp.mean(real > shuffled)


def loss_of_params(log_p_of, graph, params, rows, reference):
    return dpo(log_p_of(graph, params, rows), reference)


def memory_of(loss) -> int:
    """Return the bytes that the compiler allocates besides arguments and results."""
    use = loss.compile().memory_analysis()
    assert use is not None
    return use.temp_size_in_bytes


def train(graph, params, rows, held_out, steps: int) -> tuple[dict[str, list[float]], list[int]]:
    """Return the curves of a training by DPO, and the memory of both losses with their gradients."""
    rng, optimizer = np.random.default_rng(SEED), optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))
    log_p = jax.jit(partial(lazy_log_p, graph))
    gradients = [
        jax.jit(jax.value_and_grad(partial(loss_of_params, f, graph), has_aux=True)) for f in (lazy_log_p, naive_log_p)
    ]
    reference_params, test = params, make_pairs(held_out, rng)
    of_test = log_p(reference_params, test)

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state, curves, memory = optimizer.init(params), {"lazy": [], "naive": [], "apart": [], "accuracy": []}, []
    for _ in (bar := progress.bar(range(steps), "DPO", unit="step")):
        pairs = make_pairs(rows[rng.integers(len(rows), size=PAIRS)], rng)
        args = params, pairs, log_p(reference_params, pairs)
        memory = memory or [memory_of(gradient.lower(*args)) for gradient in gradients]
        ((value, _), gradient), ((other, _), other_gradient) = (f(*args) for f in gradients)
        apart = optax.tree.norm(jax.tree.map(jnp.subtract, gradient, other_gradient)) / optax.tree.norm(other_gradient)
        params, state = update(params, state, gradient)
        _, accuracy = dpo(log_p(params, test), of_test)
        for name, number in (("lazy", value), ("naive", other), ("apart", apart), ("accuracy", accuracy)):
            curves[name].append(float(number))
        bar.set_postfix(accuracy=f"{curves['accuracy'][-1]:.2f}")
    return curves, memory


def draw(curves: dict[str, list[float]]) -> str:
    set_style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    steps = np.arange(1, len(curves["lazy"]) + 1)
    left.plot(steps, curves["accuracy"], color=OURS)
    left.set(title="Held-out pairs that are ranked right", xlabel="step", ylim=(0, 1.02))
    draw_pair(right, curves["lazy"], curves["naive"], "DPO loss of the step")
    right.set(ylim=(0, None))
    return str(save(figure, "preferences"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few steps of a model that is trained less")
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    started, sizes = time.perf_counter(), argparse.Namespace(**SIZES)
    rows, words = standard_library_with_words(3, sizes.sequence, 100)
    print("A small transformer learns, by DPO, to prefer real text of Python's standard library to shuffled text.")
    print("The loss is computed twice: `lazy` by jaxce, which stores no logits, and `naive` from all logits.")
    full = np.random.default_rng(SEED).permutation(rows[(rows >= UNKNOWN).all(1)])
    held_out, seen = full[:HELD_OUT], full[HELD_OUT:]
    graph, params = pretrained(LanguageModel(len(words), sizes, nnx.Rngs(SEED)), seen, 20 if options.short else 100)
    curves, (lazy, naive) = train(graph, params, seen, held_out, 5 if options.short else 90)
    apart = np.max(np.abs(np.subtract(curves["lazy"], curves["naive"]))) / np.max(curves["naive"])
    print(f"{len(words):,} words; accuracy of the reward {curves['accuracy'][0]:.2f} -> {curves['accuracy'][-1]:.2f}")
    print(f"lazy and naive: losses {apart:.1e} apart, gradients {max(curves['apart']):.1e}")
    print(f"temporary memory of a step: {lazy / 2**20:,.0f} MiB, naive {naive / 2**20:,.0f} MiB")
    print(f"picture: {draw(curves)}   wall time: {time.perf_counter() - started:.1f} s")
    if not (apart <= CURVES_RTOL and max(curves["apart"]) <= GRADIENTS_RTOL):
        raise SystemExit("the two losses disagree")
    if not options.short and not curves["accuracy"][-1] >= LEAST_ACCURACY:
        raise SystemExit(f"the accuracy did not reach {LEAST_ACCURACY}")


if __name__ == "__main__":
    main()
