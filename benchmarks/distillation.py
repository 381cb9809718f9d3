"""Time and memory of distillation: divergences of two linear layers, value and gradients of the student, and divergences of dense logits.

python -m benchmarks.distillation                             # writes benchmarks/results/distillation.md; 20 minutes on two cores
python -m benchmarks.distillation --dtype float32 --tokens 1024 --repeats 3       # takes a tenth of the time
python -m benchmarks.distillation --quick                     # prints the lines of small shapes

Each program is compared with jaxce's answer before it is timed. Times are medians of interleaved calls, divided by the median time of the floor: the
five bare matmuls, or optax. Other work on the machine changes the CPU-seconds less than the times.
"""

import argparse
import functools
import os
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxce
from benchmarks import measure, problems
from benchmarks.machine import RESULTS, machine, table
from benchmarks.measure import Timed
from examples import progress
from jaxce import LinearLogits


class Shapes(NamedTuple):
    """The sizes of the two layers, and the shapes of the dense logits."""

    tokens: int
    features: int
    teacher_features: int
    classes: int
    dense: tuple[tuple[int, int], ...]


class Layers(NamedTuple):
    """The student's layer and the teacher's. `again` is a copy of `hidden`, so that XLA does not merge two equal matmuls of the floor."""

    hidden: jax.Array
    classifier: jax.Array
    teacher_hidden: jax.Array
    teacher_classifier: jax.Array
    again: jax.Array


FULL = Shapes(4096, 768, 1024, 50257, ((8192, 1000), (1024, 50257)))
QUICK = Shapes(96, 16, 24, 600, ((64, 100),))
BLOCK = 256  # tokens of a block that is written by hand
MATMULS = "five bare matmuls"
KL_SUM, JS_SUM = "softmax_kl_divergence_sum", "softmax_js_divergence_sum"
TIME_TARGET, MIB_TARGET, DENSE_TARGET, LABELS_TARGET = 1.1, 200, 0.8, 1.15


def matmuls(layers: Layers):
    """Compute both logits, the student's logits once more, and the two matmuls of the gradients. The logits serve as the cotangent."""
    logits = layers.hidden @ layers.classifier
    teacher_logits = layers.teacher_hidden @ layers.teacher_classifier
    cotangent = layers.again @ layers.classifier
    return logits, teacher_logits, cotangent @ layers.classifier.T, layers.hidden.T @ cotangent


def lazy_logits(layers: Layers):
    return LinearLogits(layers.teacher_hidden, layers.teacher_classifier), LinearLogits(
        layers.hidden, layers.classifier
    )


def kl_sum(layers: Layers):
    return jaxce.softmax_kl_divergence_sum(*lazy_logits(layers)).mean()


def js_sum(layers: Layers):
    return jaxce.softmax_js_divergence_sum(*lazy_logits(layers)).mean()


def kl_per_token(layers: Layers):
    return jaxce.softmax_kl_divergence(*lazy_logits(layers)).mean()


def logits_of(hidden, classifier):
    return jnp.matmul(hidden, classifier, preferred_element_type=jnp.float32)


def kl_of_logits(teacher_logits, logits):
    """Return the divergences, as a user writes them."""
    log_q, log_p = jax.nn.log_softmax(teacher_logits), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1)


def js_of_logits(teacher_logits, logits):
    q, p = jax.nn.softmax(teacher_logits), jax.nn.softmax(logits)
    log_m = jnp.log((q + p) / 2)
    return jnp.sum(q * (jnp.log(q) - log_m) + p * (jnp.log(p) - log_m), -1) / 2


def naive(of_logits, layers: Layers):
    teacher_logits = logits_of(layers.teacher_hidden, layers.teacher_classifier)
    return of_logits(teacher_logits, logits_of(layers.hidden, layers.classifier)).mean()


def by_hand(layers: Layers):
    """Map over checkpointed blocks of tokens, as a user writes it."""

    @jax.checkpoint
    def of_block(rows):
        teacher_hidden, hidden = rows
        teacher_logits = logits_of(teacher_hidden, layers.teacher_classifier)
        return kl_of_logits(teacher_logits, logits_of(hidden, layers.classifier))

    block = min(BLOCK, layers.hidden.shape[0])
    rows = [x.reshape(-1, block, x.shape[-1]) for x in (layers.teacher_hidden, layers.hidden)]
    return jax.lax.map(of_block, tuple(rows)).mean()


# The first program of a group is the one that the others are compared with.
GROUPS = (
    {
        KL_SUM: kl_sum,
        "softmax_kl_divergence, one per token": kl_per_token,
        f"KL, lax.map over checkpointed blocks of {BLOCK}": by_hand,
        "KL, naive: all logits": functools.partial(naive, kl_of_logits),
    },
    {JS_SUM: js_sum},  # the test compares the value with that of all logits
)


def layers_of(shapes: Shapes, dtype: str) -> Layers:
    """Return a student that has learnt something from the teacher: half of its logits' variance is the teacher's."""
    keys = jax.random.split(jax.random.key(0), 4)

    def normal(key, shape, size=1.0):
        return size * jax.random.normal(key, shape)

    hidden = normal(keys[0], (shapes.tokens, shapes.features))
    classifier = normal(keys[1], (shapes.features, shapes.classes), shapes.features**-0.5)
    others = shapes.teacher_features - shapes.features
    teacher_hidden = jnp.concatenate((hidden, normal(keys[2], (shapes.tokens, others))), 1)
    teacher_classifier = jnp.concatenate(
        (classifier, normal(keys[3], (others, shapes.classes), shapes.features**-0.5)), 0
    )
    arrays = hidden, classifier, teacher_hidden, teacher_classifier, hidden
    return Layers(*(jnp.array(x, dtype, copy=True) for x in arrays))


def student_gradients(function, hidden, classifier, *others):
    """Return the value and the gradients with respect to the student's layer."""
    return jax.value_and_grad(lambda *student: function(Layers(*student, *others)), (0, 1))(hidden, classifier)


def answer(found):
    value, gradients = found
    names = ("hidden", "classifier") if len(gradients) == 2 else ("logits",)
    return float(value), {name: np.asarray(g, np.float32) for name, g in zip(names, gradients, strict=True)}


def timed_group(programs, arrays, problem, about: str) -> list[Timed]:
    """Compile the programs and compare their answers with that of the first."""
    makes = [(name, functools.partial(measure.compiled, f, arrays, answer)) for name, f in programs.items()]
    return measure.all_prepared(progress.bar(makes, about, leave=False), problem)


def layer_lines(shapes: Shapes, dtype: str, repeats: int):
    """Yield the lines of the divergences of two layers, the floor first."""
    problem = problems.of_shape((shapes.tokens, shapes.features, shapes.classes), dtype)
    layers = layers_of(shapes, dtype)
    floor = Timed(MATMULS, measure.compiled(lambda *arrays: matmuls(Layers(*arrays)), layers))
    timed = [floor]
    for group in GROUPS:
        programs = {name: functools.partial(student_gradients, f) for name, f in group.items()}
        timed += timed_group(programs, layers, problem, f"{shapes[:4]} {dtype}")
    jax.block_until_ready(floor.program.start())  # the first call allocates memory
    measure.in_turns(timed, rounds=repeats)
    for x in timed:
        time_target, mib_target = (f"{TIME_TARGET}", f"{MIB_TARGET}") if x.name == KL_SUM else ("", "")
        ratio, cpu, seconds = ratios_and_seconds(x, floor)
        yield [dtype, x.name, ratio, time_target, cpu, seconds, temporaries(x), mib_target]


LAYER_HEADER = [
    *(
        "dtype",
        "",
        "time / five matmuls",
        "target",
        "CPU-seconds / five matmuls",
        "seconds",
        "temporaries, MiB",
        "target",
    )
]


def dense_programs():
    def mean_of(divergence):
        return lambda teacher_logits, logits: divergence(teacher_logits, logits).mean()

    functions = {
        "optax.losses.kl_divergence": lambda y, z: optax.losses.kl_divergence(jax.nn.log_softmax(z), jax.nn.softmax(y)),
        "optax.losses.kl_divergence_with_log_targets": lambda y, z: optax.losses.kl_divergence_with_log_targets(
            jax.nn.log_softmax(z), jax.nn.log_softmax(y)
        ),
        "jaxce.softmax_kl_divergence": jaxce.softmax_kl_divergence,
    }
    return {name: jax.value_and_grad(mean_of(f), (1,)) for name, f in functions.items()}


def dense_lines(shape: tuple[int, int], repeats: int):
    """Yield the lines of the divergences of dense float32 logits, optax first."""
    teacher_logits, noise = (3 * jax.random.normal(jax.random.key(i), shape) for i in (0, 1))
    arrays = jax.block_until_ready((teacher_logits, teacher_logits + noise / 6))
    problem = problems.Problem(problems.INTEGER, *shape, "float32")
    timed = timed_group(dense_programs(), arrays, problem, str(shape))
    measure.in_turns(timed, rounds=repeats, sample_seconds=0.01)
    for x in timed:
        target = f"{DENSE_TARGET}" if x.name.startswith("jaxce") else ""
        ratio, cpu, seconds = ratios_and_seconds(x, timed[0])
        yield [str(shape), x.name, ratio, target, cpu, f"{float(seconds) * 1e3:.3g}" if seconds else "", temporaries(x)]


DENSE_HEADER = ["logits", "", "time / optax", "target", "CPU-seconds / optax", "milliseconds", "temporaries, MiB"]


def label_lines(shapes: Shapes, dtype: str, repeats: int, top: int = 64):
    """Yield the lines of the cross-entropy sum with the teacher's `top` classes as labels, and with integer labels."""
    layers = layers_of(shapes, dtype)
    teacher_logits = logits_of(layers.teacher_hidden, layers.teacher_classifier)
    largest, labels = jax.lax.top_k(teacher_logits, top)
    arrays = layers.hidden, layers.classifier, labels, jax.nn.softmax(largest)

    def of_integer_labels(hidden, classifier, labels, _):
        return jaxce.softmax_cross_entropy_sum(LinearLogits(hidden, classifier), labels[:, 0]).mean()

    def of_top_labels(hidden, classifier, labels, probabilities):
        logits = LinearLogits(hidden, classifier)
        return jaxce.softmax_cross_entropy_sum(logits, labels, label_probabilities=probabilities).mean()

    functions = {"integer labels": of_integer_labels, f"the teacher's {top} most probable classes": of_top_labels}
    timed = [Timed(name, measure.compiled(jax.value_and_grad(f, (0, 1)), arrays)) for name, f in functions.items()]
    measure.in_turns(timed, rounds=repeats)
    for x in timed:
        target = "" if x is timed[0] else f"{LABELS_TARGET}"
        ratio, cpu, seconds = ratios_and_seconds(x, timed[0])
        yield [dtype, x.name, ratio, target, cpu, seconds, temporaries(x)]


LABEL_HEADER = [
    "dtype",
    "labels",
    "time / integer labels",
    "target",
    "CPU-seconds / integer labels",
    "seconds",
    "temporaries, MiB",
]


def ratios_and_seconds(timed: Timed, floor: Timed) -> tuple[str, str, str]:
    """Return time and CPU-seconds divided by those of the floor, and the time; for a program that was not timed, the reason."""
    if timed.program is None:
        return timed.status, "", ""
    (wall, cpu), (floor_wall, floor_cpu) = (map(statistics.median, (x.wall, x.cpu)) for x in (timed, floor))
    return f"{wall / floor_wall:.2f}", f"{cpu / floor_cpu:.2f}", f"{wall:.3g}"


def temporaries(timed: Timed) -> str:
    held = timed.program and timed.program.temporaries
    return "" if held is None else f"{held / 2**20:,.0f}"


def report(layer_rows, label_rows, dense_rows, shapes: Shapes, repeats: int) -> str:
    about = f"{machine('jax', 'jaxlib', 'optax')}, jaxce {jaxce.__version__}. Medians of {repeats} interleaved calls."
    about += f" The load average of the machine was {os.getloadavg()[1]:.1f}."
    of_layers = (
        f"{shapes.tokens} tokens; {shapes.features} features of the student, {shapes.teacher_features} of the teacher; {shapes.classes} classes. "
        "Value and gradients with respect to the student's hidden states and classifier; the teacher is constant. The floor is both logits, the "
        "student's logits once more, and the two matmuls of the gradients, of all tokens at once. The compiler reports the temporaries; results do "
        "not count."
    )
    of_dense = (
        "Value and gradient of the mean divergence with respect to the student's logits, float32. The probabilities or logarithms that optax takes "
        "are computed in the same program."
    )
    of_labels = (
        "Value and gradients of `softmax_cross_entropy_sum` of the student's layer. The labels are the teacher's most probable classes with their "
        "probabilities (`label_probabilities`), or the most probable class alone."
    )
    parts = ["# Distillation", about, "## Divergences of two linear layers", of_layers, table(LAYER_HEADER, layer_rows)]
    parts += ["## Labels of a few classes", of_labels, table(LABEL_HEADER, label_rows)]
    parts += ["## Divergences of dense logits", of_dense, table(DENSE_HEADER, dense_rows)] if dense_rows else []
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes; writes nothing")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, help=f"the number of tokens of the layers, {FULL.tokens} by default")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    shapes = QUICK if options.quick else FULL
    if options.tokens:
        shapes = shapes._replace(tokens=options.tokens)
    dense_rows = [row for shape in shapes.dense for row in dense_lines(shape, 3 * options.repeats)]
    layer_rows, label_rows, text = [], [], ""
    for dtype in [options.dtype] if options.dtype else ["float32", "bfloat16"]:
        layer_rows += layer_lines(shapes, dtype, options.repeats)
        label_rows += label_lines(shapes, dtype, options.repeats)
        text = report(layer_rows, label_rows, dense_rows, shapes, options.repeats)
        if not options.quick:  # as soon as a dtype is measured
            (RESULTS / "distillation.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
