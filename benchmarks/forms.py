"""Compare each form for a CPU with the plain code that it replaces: is the form worth its lines?

python -m benchmarks.forms                 # about five minutes; writes benchmarks/results/forms.md
python -m benchmarks.forms --only round    # prints the lines that contain one of these words

A form stays if one of its lines takes 15 % less time with it, or half of the temporaries. Both programs of a line are the same loss. One has the
plain code in place of the form. Calls alternate in one process. A ratio of times is a ratio of medians, plain code divided by form: above 1, the
form is faster. Needs the extra `benchmarks`. The forms for a GPU are compared ahead of time in `tests/aot`.
"""

import argparse
import dataclasses
import os
import unittest.mock
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from benchmarks.machine import RESULTS, machine, table
from benchmarks.measure import Timed, compiled, in_turns
from benchmarks.peers import in_jax
from benchmarks.problems import BF16, F32, GRADIENT, INTEGER, LINEAR, SIGMOID, SMOOTHED, SOFT, VALUE, Problem, of_shape
from examples import progress
from jaxce._blocks import loops
from jaxce._core import cpu, cpu_sums, definition, sigmoid

COLUMNS = ("form", "problem", "dtype", "what", "time, plain / form", "temporaries, plain / form, MiB")
ROUNDS, FEWEST_ROUNDS = 400, 5


@dataclasses.dataclass(frozen=True)
class Form:
    """A form, where it is defined, the plain code that takes its place, and the problems that use it."""

    name: str
    module: Any
    attribute: str
    plain: Callable[..., Any]
    problems: tuple[Problem, ...]
    what: tuple[str, ...] = (VALUE, GRADIENT)


def plain_statistics(logits, where, labels, class_weights, *, axis):
    return definition.statistics(cpu_sums.read(logits, where), labels, class_weights, axis=axis)


def plain_gradient(cotangents, logits, where, labels, class_weights, stats, *, axis):
    z = cpu_sums.read(logits, where)
    return definition.logits_vjp(cotangents, z, labels, class_weights, stats, axis=axis).astype(logits.dtype)


def plain_sigmoid(arguments):
    return sigmoid.losses(*sigmoid.logits_and_weights(arguments))


def plain_sigmoid_gradient(loss_ct, arguments):
    x, yes, no = sigmoid.logits_and_weights(arguments)
    return (loss_ct * sigmoid.derivative(x, yes, no)).astype(arguments.logits.dtype)


def plain_matmul(total, a, b, start):
    return loops.add_at(total, loops.dot(a, b, 1, 0), start)


def in_dtypes(*problems):
    """Return the problems in float32 and in bfloat16."""
    return tuple(Problem(*problem, dtype) for problem in problems for dtype in (F32, BF16))


SHORT, MEDIUM, LONG = (16384, 500), (8192, 1000), (2048, 32768)
FORMS = (
    Form(
        "statistics",
        cpu,
        "statistics",
        plain_statistics,
        in_dtypes((INTEGER, *SHORT), (INTEGER, *MEDIUM), (INTEGER, *LONG), (SOFT, *MEDIUM), (SMOOTHED, *MEDIUM)),
    ),
    Form("rows in parts", cpu_sums, "number_of_parts", lambda *_: 1, in_dtypes((INTEGER, *MEDIUM), (INTEGER, *LONG))),
    Form(
        "gradient",
        cpu,
        "logits_vjp",
        plain_gradient,
        in_dtypes((INTEGER, *MEDIUM), (INTEGER, *LONG), (SOFT, *MEDIUM), (SMOOTHED, *MEDIUM)),
        (GRADIENT,),
    ),
    Form(
        "comparison of labels",
        cpu,
        "is_label",
        definition.is_label,
        in_dtypes((INTEGER, 4096, 1000), (INTEGER, *MEDIUM), (INTEGER, *LONG), (INTEGER, 512, 131072)),
        (GRADIENT,),
    ),
    Form(
        "rounding to bfloat16",
        cpu,
        "rounded",
        lambda values, dtype: values.astype(dtype),
        tuple(Problem(kind, *MEDIUM, BF16) for kind in (INTEGER, SOFT, SIGMOID)),
        (GRADIENT,),
    ),
    Form("sigmoid losses", cpu, "sigmoid_losses", plain_sigmoid, in_dtypes((SIGMOID, *MEDIUM)), (VALUE,)),
    Form("sigmoid gradient", cpu, "sigmoid_vjp", plain_sigmoid_gradient, in_dtypes((SIGMOID, *MEDIUM)), (GRADIENT,)),
    Form(
        "matmul in parts",
        loops,
        "add_matmul",
        plain_matmul,
        (of_shape((2048, 512, 32768), F32), of_shape((1024, 2048, 128256), F32)),
        (GRADIENT,),
    ),
)


def lines():
    """Yield a form, a problem, and value or gradient."""
    return [(form, problem, what) for form in FORMS for problem in form.problems for what in form.what]


def words(line) -> list[str]:
    """Return the first cells of a line."""
    form, problem, what = line
    return [form.name, f"{problem.kind} {' x '.join(map(str, problem.shape))}", problem.dtype, what]


def compare(line, seconds: float) -> list[str]:
    """Return the cells of a line."""
    form, problem, what = line
    arrays = problem.arrays()
    loss = in_jax.own(problem)[in_jax.SUM if problem.kind == LINEAR else in_jax.OURS]

    def program():
        jax.clear_caches()  # a trace that is cached would keep the code of the other program
        return compiled(in_jax.with_gradient(problem, what, loss), arrays)

    with unittest.mock.patch.object(form.module, form.attribute, form.plain):
        plain = program()
    programs = [plain, program()]
    timed = [Timed("", x) for x in programs]
    in_turns(timed, rounds=ROUNDS, fewest=FEWEST_ROUNDS, seconds=seconds)
    losses = [float(jax.tree.leaves(x.wait(x.start()))[0]) for x in programs]
    if not abs(losses[0] - losses[1]) <= problem.near[0] * abs(losses[1]):
        raise ValueError(f"{form.name}: the plain code has the loss {losses[0]:.8g}, the form {losses[1]:.8g}")
    ratio = np.median(timed[0].wall[1:]) / np.median(timed[1].wall[1:])
    return [*words(line), f"{ratio:.2f}", " / ".join(f"{x.temporaries / 2**20:,.1f}" for x in programs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only lines that contain one of these words")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of calls for each line")
    options = parser.parse_args()
    todo = [line for line in lines() if any(word in " ".join(words(line)) for word in options.only or [""])]
    rows = [compare(line, options.seconds) for line in progress.bar(todo, leave=False)]
    text = f"{machine('jax', 'jaxlib')}\n\n{table(COLUMNS, rows)}\n"
    print(text)
    if not options.only:
        (RESULTS / "forms.md").write_text(text)


if __name__ == "__main__":
    main()
