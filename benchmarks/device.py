"""Measure numerics, time and memory of the losses on the accelerator of this machine, in less than eight minutes.

python -m benchmarks.device                  # numerics, times, memory; writes benchmarks/results/<device>.csv, .md and -*.png
python -m benchmarks.device --tiny           # tiny shapes, to test the command, on a CPU too
python -m benchmarks.device --report results/h100.csv    # writes the markdown and plots of a run that was cut

Needs the extra `benchmarks`. torch, liger-kernel and cut-cross-entropy are measured on the same arrays if they can be imported. Every problem is
written as soon as it is measured. The exit code is 1 if a number on the device is wrong.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave device memory for PyTorch

import jax

from benchmarks import markdown, measure, numerics, peers, plots, problems, report
from benchmarks.machine import RESULTS, exit_when_cut, machine
from benchmarks.peers.in_jax import (
    AUTO,
    COPY,
    ENTROPY,
    KL_SUM,
    LOSSES,
    MATMULS,
    NAIVE,
    OPTAX,
    OPTAX_WIDE,
    OURS,
    SUM,
    SUM_2048,
    TOP_LABELS,
)
from benchmarks.peers.in_torch import CCE, COMPILED_WIDE, EAGER_WIDE, LIGER, release
from examples import progress

NAMES = (
    *(COPY, OURS, OPTAX, OPTAX_WIDE, MATMULS, SUM, SUM_2048, LOSSES, NAIVE),
    *(ENTROPY, TOP_LABELS, KL_SUM, AUTO),
    *(EAGER_WIDE, COMPILED_WIDE, LIGER, CCE),
)
SECONDS = 440.0
# The share of the seconds that the numerics may take.
NUMERICS_SHARE = 0.25
# A sample is as many calls as fit in SAMPLE_SECONDS. A program gets SAMPLES samples, or fewer once PROGRAM_SECONDS are over.
SAMPLE_SECONDS, SAMPLES, FEWEST_SAMPLES, PROGRAM_SECONDS = 0.05, 7, 3, 2.0


def check_numerics(path, end, *, tiny):
    """Run the checks until `end`, and return whether all of them hold."""
    holds = True
    for check in progress.bar(numerics.checks(tiny=tiny), "numerics", unit=" checks", mininterval=1):
        holds &= check.holds
        about = report.NUMERICS, check.subject, "", check.dtype, str(check.shape), check.quantity
        status = "done" if check.holds else "wrong"
        report.append(path, report.DeviceRow(*about, status=status, ulps=f"{check.ulps:.3g}"))
        if time.monotonic() > end:
            about = report.NUMERICS, "the checks after these", "", "", "", ""
            report.append(path, report.DeviceRow(*about, status=measure.OUT_OF_TIME))
            break
    return holds


def time_losses(path, end, *, tiny):
    """Time the installed programs of every problem, the most informative problems first."""
    for problem, what in (bar := progress.bar(list(problems.of_models(tiny=tiny)), "times", mininterval=1)):
        bar.set_postfix_str(f"{problem.model}, {problem.kind}, {problem.dtype}")
        _time_programs(path, problem, what, end)
        release()


def _time_programs(path, problem, what, end):
    arrays = problem.arrays() if time.monotonic() < end else ()
    # The losses are reported, not compared, because devices multiply float32 with reduced precision, differently in each library.
    prepared = measure.all_prepared(peers.programs(problem, what, arrays, NAMES), problem, compare=False, end=end)
    timed = [x for x in prepared if x.installed]
    try:
        measure.in_turns(
            timed,
            rounds=SAMPLES,
            fewest=FEWEST_SAMPLES,
            seconds=PROGRAM_SECONDS * len(timed),
            sample_seconds=SAMPLE_SECONDS,
            queued=True,
        )
    finally:
        for x in timed:
            report.append(path, report.device_row(problem, what, x))


def machine_of(path):
    """Return the path of the file, next to a CSV, that names the device and the versions."""
    return path.with_name(f"{path.stem}-machine.txt")


def write_report(path):
    """Write the markdown and the plots next to a CSV."""
    rows, title = report.read(path, report.DeviceRow), path.stem
    path.with_suffix(".md").write_text(markdown.device(title, machine_of(path).read_text().strip(), rows))
    return [path.with_suffix(".md"), *plots.device(title, rows, path.with_suffix(""))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="start nothing new after this many seconds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    parser.add_argument("--report", type=Path, help="measure nothing, write the markdown and plots of this CSV")
    options = parser.parse_args()
    if options.report:
        print(*write_report(options.report), sep="\n")
        return
    exit_when_cut()
    device = jax.devices()[0]
    name = re.sub(r"[^a-z0-9]+", "-", device.device_kind.lower()).strip("-") + ("-tiny" if options.tiny else "")
    path = options.results / f"{name}.csv"
    begin = time.monotonic()
    report.start(path, report.DeviceRow)
    versions = machine("jax", "jaxlib", "optax", "torch", "triton", "liger-kernel", "cut-cross-entropy", "jaxce")
    machine_of(path).write_text(versions + "\n")
    print(f"{versions}; writing {path}", flush=True)
    try:
        holds = check_numerics(path, begin + NUMERICS_SHARE * options.seconds, tiny=options.tiny)
        time_losses(path, begin + options.seconds, tiny=options.tiny)
    finally:
        print(*write_report(path), sep="\n")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
