"""Time value and gradients of the linear losses, of three bare matmuls, of the naive composition and of other libraries, in one process.

python -m benchmarks.linear                                   # the shapes of README; writes benchmarks/results/linear.csv and linear.md
python -m benchmarks.linear 2048 512 32768 --dtype bfloat16 --repeats 9      # prints the times of one shape

Needs the extra `benchmarks`. tokamax, jax-cce and PyTorch are timed if they can be imported and their losses and gradients agree with jaxce's. A
program that takes more than 20 times as long as the matmuls is called less often. Every shape is written as soon as it is measured. If no
environment has all libraries, run the command in several environments, with `--add` from the second on. Every ratio is relative to the matmuls in the
same process.
"""

import argparse
from pathlib import Path

import jaxce
from benchmarks import markdown, measure, peers, problems, report
from benchmarks.machine import RESULTS, exit_when_cut, machine
from benchmarks.peers.fused import JAX_CCE, TOKAMAX, TOKAMAX_CHUNKED
from benchmarks.peers.in_jax import LOSSES, MATMULS, NAIVE, SUM
from benchmarks.peers.in_torch import LINEAR_CHUNKED, LINEAR_LOSS
from benchmarks.problems import GRADIENT
from examples import progress

NAMES = (MATMULS, SUM, LOSSES, NAIVE, TOKAMAX, TOKAMAX_CHUNKED, JAX_CCE, LINEAR_LOSS, LINEAR_CHUNKED)
SLOW = 20  # times the floor


def time_programs(problem, makes, repeats, about, write):
    """Write the row of each program, the floor first. If the run is cut, write the rows of the programs that have run."""
    timed = measure.all_prepared(progress.bar(list(makes), f"{problem.shape} {problem.dtype}", leave=False), problem)
    try:
        measure.in_turns(timed, rounds=repeats, slow=SLOW)
    finally:
        for x in timed:
            write(report.linear_row(about, problem, x, timed[0]))


def writer(path: Path | None, *, add: bool):
    """Return a function that prints a row and appends the row to a CSV. Without a path the function only prints."""
    if path and not (add and path.exists()):
        report.start(path, report.LinearRow)

    def write(row):
        progress.write(_line(row))
        if path:
            report.append(path, row)

    return write


def _line(row):
    begin = f"{row.shape} {row.dtype:9} {row.program:16}"
    if row.status != "done":
        return f"{begin} {row.status}"
    seconds = f"({float(row.least):.3f} to {float(row.most):.3f} s, {row.runs} runs)"
    memory = f"{float(row.temporary_mib):7,.0f} MiB of temporaries" if row.temporary_mib else ""
    return f"{begin} {float(row.times_the_floor or 'nan'):6.2f} x  {seconds}  {memory}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="*", type=int, help="tokens, features and classes")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--results", type=Path, help="the folder to write to; for one shape, nothing is written by default"
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the rows of linear.csv, for example of another environment"
    )
    options = parser.parse_args()
    if len(options.shape) not in (0, 3):
        parser.error("a shape is three numbers: tokens, features, classes")
    asked = [problems.of_shape(tuple(options.shape), options.dtype)] if options.shape else problems.linear()
    folder = options.results or (None if options.shape else RESULTS)
    exit_when_cut()
    path = folder and folder / "linear.csv"
    about = f"{machine('jax', 'jaxlib', 'tokamax', 'jax-cce', 'torch')}, jaxce {jaxce.__version__}"
    write = writer(path, add=options.add)
    print(f"{about}; times divided by the time of the three matmuls", flush=True)
    try:
        for problem in asked:
            makes = peers.programs(problem, GRADIENT, problem.arrays(), NAMES)
            time_programs(problem, makes, options.repeats, about, write)
    finally:
        if path:
            path.with_suffix(".md").write_text(markdown.linear(report.read(path, report.LinearRow)))
            print(path, path.with_suffix(".md"), sep="\n")


if __name__ == "__main__":
    main()
