"""Time and memory of a policy loss of a linear layer: GRPO with its distance to a reference and an entropy, value and gradients, in one process.

python -m benchmarks.policy                                   # writes benchmarks/results/policy.md; half an hour on two cores
python -m benchmarks.policy 2048 512 32768 --dtype bfloat16   # prints the lines of one shape

Each program is compared with jaxce's answer before it is timed. Times are medians of interleaved calls, divided by the time of the cross-entropy sum.
"""

import argparse
import functools
import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

import jaxce
from benchmarks import measure, problems
from benchmarks.machine import RESULTS, machine, table
from examples import progress

SHAPES = ((4096, 768, 50257), (2048, 4096, 128256))
BLOCK = 256  # tokens of a block that is written by hand
FLOOR = "softmax_cross_entropy_sum"


def grpo(log_p, entropy, advantage, old):
    """Return the loss of each token. The policy that sampled is the reference too."""
    ratio, apart = jnp.exp(log_p - old), old - log_p
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    return 0.04 * (jnp.expm1(apart) - apart) - 0.01 * entropy - gain


def grpo_of_stats(stats, advantage, old):
    return grpo(-stats.nll, stats.entropy, advantage, old)


def cross_entropy(hidden, classifier, labels, *_):
    return jaxce.softmax_cross_entropy_sum(jaxce.LinearLogits(hidden, classifier), labels).mean()


def fused(hidden, classifier, labels, *per_row):
    return jaxce.loss_sum(jaxce.LinearLogits(hidden, classifier), labels, grpo_of_stats, per_row).mean()


def per_token(hidden, classifier, labels, *per_row):
    return grpo_of_stats(jaxce.logit_stats(jaxce.LinearLogits(hidden, classifier), labels), *per_row).mean()


def of_logits(logits, labels, *per_row):
    log_p = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
    return grpo(jnp.take_along_axis(log_p, labels[:, None], -1)[:, 0], entropy, *per_row)


def logits_of(hidden, classifier):
    return jnp.matmul(hidden, classifier, preferred_element_type=jnp.float32)


def naive(hidden, classifier, labels, *per_row):
    return of_logits(logits_of(hidden, classifier), labels, *per_row).mean()


def by_hand(hidden, classifier, labels, *per_row):
    """Map over checkpointed blocks of tokens, as a user writes it."""

    @jax.checkpoint
    def of_block(rows):
        hidden, labels, *per_row = rows
        return of_logits(logits_of(hidden, classifier), labels, *per_row)

    blocks = [x.reshape(-1, BLOCK, *x.shape[1:]) for x in (hidden, labels, *per_row)]
    return jax.lax.map(of_block, tuple(blocks)).mean()


PROGRAMS = {
    FLOOR: cross_entropy,
    "loss_sum": fused,
    "logit_stats, one loss per token": per_token,
    f"lax.map over checkpointed blocks of {BLOCK}": by_hand,
    "naive: all logits": naive,
}


def answer(found):
    value, gradients = found
    return float(value), {
        n: np.asarray(g, np.float32) for n, g in zip(("hidden", "classifier"), gradients, strict=True)
    }


def lines_of(problem, repeats):
    hidden, classifier, labels = problem.arrays()
    advantage, shift = (jax.random.normal(jax.random.key(i), labels.shape) for i in (1, 2))
    old = jax.jit(lambda *x: -jaxce.linear_logit_stats(*x).nll)(hidden, classifier, labels) + 0.1 * shift
    arrays = hidden, classifier, labels, advantage, old

    def make(name):
        function = jax.value_and_grad(PROGRAMS[name], (0, 1))
        return measure.compiled(function, arrays, None if name == FLOOR else answer)

    makes = ((name, functools.partial(make, name)) for name in PROGRAMS)
    timed = measure.all_prepared(progress.bar(makes, f"{problem.shape} {problem.dtype}", total=len(PROGRAMS)), problem)
    measure.in_turns(timed, rounds=repeats)
    floor = timed[0]
    for x in timed:
        if x.program is None:
            yield [str(problem.shape), problem.dtype, x.name, x.status, "", ""]
            continue
        times = statistics.median(x.wall), statistics.median(x.wall) / statistics.median(floor.wall)
        memory, of_floor = x.program.temporaries or 0, floor.program.temporaries or 1
        text = f"{memory / 2**20:,.0f}"
        yield [str(problem.shape), problem.dtype, x.name, f"{times[1]:.2f}", text, f"{memory / of_floor:.2f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="*", type=int, help="tokens, features and classes")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    shapes = (tuple(options.shape),) if options.shape else SHAPES
    dtypes = [options.dtype] if options.dtype else ["float32", "bfloat16"]
    header = ["(tokens, features, classes)", "dtype", "", "time / cross-entropy", "temporaries, MiB", "/ cross-entropy"]
    about = f"{machine('jax', 'jaxlib')}, jaxce {jaxce.__version__}. Value and gradients of GRPO with an entropy."
    lines = []
    for shape, dtype in itertools.product(shapes, dtypes):
        lines += lines_of(problems.of_shape(shape, dtype), options.repeats)
        text = f"{about} Medians of {options.repeats} interleaved calls.\n\n{table(header, lines)}\n"
        print(text, flush=True)
        if not options.shape:  # as soon as a shape is measured
            (RESULTS / "policy.md").write_text(f"# A policy loss of a linear layer\n\n{text}")


if __name__ == "__main__":
    main()
