"""Teaches a small language model to use more keywords, by GRPO. The reward is computed from the sampled words: the share of Python's keywords.

python examples/policy_gradient.py            # trains the model on the standard library first, then by GRPO

Each step samples words for some prompts, in groups. The loss is a formula over the log-probability and the entropy of each word. jaxce computes it
without storing the logits; the same formula over all logits is computed at every step for comparison.
"""

import argparse
import keyword
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
from pictures import OURS, QUIET, draw_pair, save, set_style
from pretrain import pretrained
from transformer import LanguageModel

import jaxce

SIZES = {"layers": 1, "features": 64, "heads": 2, "sequence": 32, "dtype": "float32"}
PROMPT, PROMPTS, GROUP, UPDATES, LEARNING_RATE, SEED = 16, 8, 8, 2, 5e-4, 0
CLIP, KL_WEIGHT, ENTROPY_WEIGHT = 0.2, 0.02, 1e-3
CURVES_RTOL, GRADIENTS_RTOL, LEAST_RISE = 1e-4, 1e-4, 0.1


def grpo(stats, advantage, old, reference):
    """Return the loss of one word and its metrics. `old` and `reference` are its log-probabilities under two other policies."""
    log_p = -stats.nll
    ratio, apart = jnp.exp(log_p - old), reference - log_p
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    kl = jnp.expm1(apart) - apart
    metrics = {"entropy": stats.entropy, "kl": kl, "clipped": jnp.abs(ratio - 1) > CLIP}
    return KL_WEIGHT * kl - ENTROPY_WEIGHT * stats.entropy - gain, metrics


def fused(hidden, classifier, words, *per_word):
    """Return the mean loss and the mean metrics. No array of logits is stored."""
    logits = jaxce.LinearLogits(hidden, classifier)
    loss, metrics = jaxce.loss_sum(logits, words, grpo, per_word, has_aux=True)
    return loss.mean(), {name: metric.mean() for name, metric in metrics.items()}


def naive(hidden, classifier, words, advantage, old, reference):
    """Return the same from whole rows of logits, by the textbook formulas."""
    log_p_of_words = jax.nn.log_softmax(hidden @ classifier)
    log_p = jnp.take_along_axis(log_p_of_words, words[..., None], -1)[..., 0]
    entropy = -jnp.sum(jnp.exp(log_p_of_words) * log_p_of_words, -1)
    ratio, kl = jnp.exp(log_p - old), jnp.exp(reference - log_p) - (reference - log_p) - 1
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    metrics = {"entropy": entropy.mean(), "kl": kl.mean(), "clipped": jnp.mean(jnp.abs(ratio - 1) > CLIP)}
    return jnp.mean(KL_WEIGHT * kl - ENTROPY_WEIGHT * entropy - gain), metrics


def states(graph, params, rows):
    """Return the hidden states that predict the sampled words, and the classifier."""
    hidden, classifier = nnx.merge(graph, params)(rows[:, :-1])
    return hidden[:, PROMPT - 1 :], classifier


@partial(jax.jit, static_argnums=0)
def sample(graph, params, prompts, key):
    """Return the prompts followed by sampled words, `[samples, sequence]`, one word after the other."""
    rows = jnp.pad(prompts, ((0, 0), (0, SIZES["sequence"] - PROMPT)))

    def add_word(place, rows):
        hidden, classifier = nnx.merge(graph, params)(rows)
        logits = hidden[:, place - 1] @ classifier
        logits = logits.at[:, UNKNOWN].set(-jnp.inf)  # not a word
        return rows.at[:, place].set(jax.random.categorical(jax.random.fold_in(key, place), logits))

    return jax.lax.fori_loop(PROMPT, rows.shape[1], add_word, rows)


@partial(jax.jit, static_argnums=0)
def log_probabilities(graph, params, rows):
    hidden, classifier = states(graph, params, rows)
    return -jaxce.logit_stats(jaxce.LinearLogits(hidden, classifier), rows[:, PROMPT:]).nll


def advantages_of(rewards):
    """Return the advantage of each sample: its reward compared with the others of its group."""
    groups = rewards.reshape(PROMPTS, GROUP)
    return ((groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-4)).reshape(-1)


def loss_of_params(loss, graph, params, rows, *per_word):
    hidden, classifier = states(graph, params, rows)
    return loss(hidden, classifier, rows[:, PROMPT:], *per_word)


def memory_of(loss, words: int, vocabulary: int) -> int:
    """Return the bytes that the compiler allocates for the loss and its gradients, besides arguments and results."""
    of = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    per_word = (of((words,)),) * 3
    args = of((words, 64)), of((64, vocabulary)), jax.ShapeDtypeStruct((words,), jnp.int32), *per_word
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(*args).compile()
    use = compiled.memory_analysis()
    assert use is not None
    return use.temp_size_in_bytes


def train(graph, params, rows, is_keyword, steps: int) -> dict[str, list[float]]:
    """Return the curves of a training by GRPO: the loss by both formulas, the distance of their gradients, the rewards and the metrics."""
    reference_params, optimizer = params, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))

    @jax.jit
    def update(params, state, rows, *per_word):
        of_params = [jax.value_and_grad(partial(loss_of_params, loss, graph), has_aux=True) for loss in (fused, naive)]
        ((value, metrics), gradient), ((other, _), other_gradient) = (f(params, rows, *per_word) for f in of_params)
        apart = optax.tree.norm(jax.tree.map(jnp.subtract, gradient, other_gradient)) / optax.tree.norm(other_gradient)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, metrics | {"fused": value, "naive": other, "apart": apart}

    rng, state = np.random.default_rng(SEED), optimizer.init(params)
    curves: dict[str, list[float]] = {}
    for step in (bar := progress.bar(range(steps), "GRPO", unit="step")):
        prompts = np.repeat(rows[rng.integers(len(rows), size=PROMPTS), :PROMPT], GROUP, 0)
        samples = sample(graph, params, prompts, jax.random.key(step))
        rewards = is_keyword[np.asarray(samples[:, PROMPT:])].mean(-1)
        advantages = np.broadcast_to(advantages_of(rewards)[:, None], (len(samples), samples.shape[1] - PROMPT))
        per_word = (
            jnp.asarray(advantages, jnp.float32),
            log_probabilities(graph, params, samples),
            log_probabilities(graph, reference_params, samples),
        )
        metrics = {}
        for _ in range(UPDATES):
            params, state, metrics = update(params, state, samples, *per_word)
        for name, value in (metrics | {"reward": rewards.mean()}).items():
            curves.setdefault(name, []).append(float(value))
        bar.set_postfix(reward=f"{curves['reward'][-1]:.2f}")
    return curves


def draw(curves: dict[str, list[float]]) -> str:
    set_style()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    steps = np.arange(1, len(curves["reward"]) + 1)
    left.plot(steps, curves["reward"], color=OURS)
    left.set(title="Reward: share of keywords", xlabel="step", ylim=(0, None))
    draw_pair(middle, curves["fused"], curves["naive"], "Loss of the last update")
    right.plot(steps, curves["entropy"], color=OURS, label="entropy")
    right.plot(steps, curves["kl"], color=QUIET, label="distance from the reference")
    right.set(title="Policy, nats per word", xlabel="step", ylim=(0, 1.4 * max(curves["entropy"])))
    right.legend(loc="upper right")
    return str(save(figure, "policy_gradient"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few steps of a model that is trained less")
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    started, sizes = time.perf_counter(), argparse.Namespace(**SIZES)
    rows, words = standard_library_with_words(3, sizes.sequence, 100)
    print("A small transformer, trained on Python's standard library, learns to write more keywords, by GRPO.")
    print("The loss is computed twice: `fused` by jaxce, which stores no logits, and `naive` by the textbook formulas.")
    is_keyword = np.array([word in keyword.kwlist for word in words])
    model = LanguageModel(len(words), sizes, nnx.Rngs(SEED))
    graph, params = pretrained(model, rows, 20 if options.short else 150)
    curves = train(graph, params, rows[(rows > UNKNOWN).all(1)], is_keyword, 5 if options.short else 40)
    few = max(1, len(curves["reward"]) // 10)
    first, last = (float(np.mean(part)) for part in (curves["reward"][:few], curves["reward"][-few:]))
    print(f"{len(words):,} words; reward {first:.3f} -> {last:.3f}; entropy {curves['entropy'][-1]:.2f} nats per word")
    losses_apart = np.max(np.abs(np.subtract(curves["fused"], curves["naive"]))) / np.max(np.abs(curves["naive"]))
    print(f"fused and naive: losses {losses_apart:.1e} apart, gradients {max(curves['apart']):.1e}")
    for vocabulary in (len(words), 128_256):
        of_fused, of_naive = (memory_of(loss, 1024, vocabulary) / 2**20 for loss in (fused, naive))
        print(f"temporary memory for 1,024 of {vocabulary:,} words: {of_fused:,.0f} MiB, naive {of_naive:,.0f} MiB")
    print(f"picture: {draw(curves)}   wall time: {time.perf_counter() - started:.1f} s")
    if not (losses_apart <= CURVES_RTOL and max(curves["apart"]) <= GRADIENTS_RTOL):
        raise SystemExit("the two formulas disagree")
    if not options.short and not last >= first + LEAST_RISE:
        raise SystemExit(f"the reward did not rise by {LEAST_RISE}")


if __name__ == "__main__":
    main()
