"""Everything there is to know of the losses on the accelerator of this machine, in one command of less than eight minutes.

python -m benchmarks.device                  # numerics, times, memory; writes benchmarks/results/<device>.csv, .md and -*.png
python -m benchmarks.device --tiny           # tiny shapes: does it run, on a CPU too
python -m benchmarks.device --report results/h100.csv    # the markdown and plots of a run that was cut

Needs the extra `benchmarks`. What else it finds (torch, liger-kernel, cut-cross-entropy) it measures on the same arrays. Every figure is
written as soon as it is there. The exit code is 1 if a number on the device is wrong.
"""

import argparse
import os
import re
import signal
import sys
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room beside JAX

import jax
from tqdm import tqdm

from benchmarks.accelerator import in_jax, in_torch, numerics, report
from benchmarks.accelerator.clock import Budget
from benchmarks.accelerator.problems import problems
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"
SECONDS = 440.0
# Of the budget, at most; the rest is for times.
NUMERICS_SHARE = 0.25


def check_numerics(writer, budget, *, tiny):
    """Whether everything that was checked holds."""
    end, holds = budget.left() * (1 - NUMERICS_SHARE), True
    for check in tqdm(numerics.checks(tiny=tiny), desc="numerics", unit=" checks", mininterval=1):
        holds &= check.holds
        writer.add(
            report.Row(
                report.NUMERICS,
                check.subject,
                "",
                check.dtype,
                str(check.shape),
                check.quantity,
                status="done" if check.holds else "wrong",
                ulps=f"{check.ulps:.3g}",
            )
        )
        if budget.left() < end:
            writer.add(report.Row(report.NUMERICS, "the checks after these", "", "", "", "", status=report.OUT_OF_TIME))
            break
    return holds


def time_losses(writer, budget, *, tiny):
    """Every program of every problem, in the order of what tells most."""
    todo = list(problems(tiny=tiny))
    modules = (in_jax, in_torch)
    progress = tqdm(total=sum(len(m.names(p, what)) for p, what in todo for m in modules), desc="times", mininterval=1)
    for problem, what in todo:
        arrays = None
        for module in modules:
            for name in module.names(problem, what):
                progress.set_postfix_str(f"{problem.model}, {problem.kind}, {problem.dtype}, {name}")
                if budget.left() < 0:
                    figures = {"status": report.OUT_OF_TIME}
                else:
                    arrays = arrays or problem.arrays()
                    figures = _figures(module, problem, name, what, arrays)
                writer.add(_row(problem, name, what, figures))
                progress.update()
        in_torch.release()
    progress.close()


def _figures(module, problem, name, what, arrays):
    try:
        timing, held, value = module.measured(problem, name, what, arrays)
    except Exception as error:  # whatever stops one program must not stop the others
        return {"status": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return {
        "milliseconds": f"{timing.median * 1e3:.6g}",
        "least": f"{timing.least * 1e3:.6g}",
        "most": f"{timing.most * 1e3:.6g}",
        "first_seconds": f"{timing.first:.3g}",
        "held_mib": "" if held is None else f"{held / 2**20:.6g}",
        "loss": "" if value is None else f"{value:.5f}",
    }


def _row(problem, name, what, figures):
    shape = (
        (problem.tokens, problem.classes)
        if problem.kind == "dense"
        else (problem.tokens, problem.features, problem.classes)
    )
    logits = f"{problem.logits_bytes / 2**20:.6g}"
    return report.Row(
        report.TIMING, problem.model, problem.kind, problem.dtype, str(shape), what, name, logits_mib=logits, **figures
    )


def machine_of(path):
    """The file beside a CSV that says what was measured on, and with which versions."""
    return path.with_name(f"{path.stem}-machine.txt")


def write_report(path):
    """The markdown and the plots beside a CSV."""
    rows, title = report.read(path), path.stem
    path.with_suffix(".md").write_text(report.markdown(title, machine_of(path).read_text().strip(), rows))
    return [path.with_suffix(".md"), *report.plot(title, rows, path.with_suffix(""))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="start nothing new after so many")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    parser.add_argument("--report", type=Path, help="a CSV whose markdown and plots to write, measuring nothing")
    options = parser.parse_args()
    if options.report:
        print(*write_report(options.report), sep="\n")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # one that is cut still reports what it has
    device = jax.devices()[0]
    name = re.sub(r"[^a-z0-9]+", "-", device.device_kind.lower()).strip("-") + ("-tiny" if options.tiny else "")
    path = options.results / f"{name}.csv"
    budget, writer = Budget(options.seconds), report.Writer(path)
    versions = machine("jax", "jaxlib", "optax", "torch", "triton", "liger-kernel", "cut-cross-entropy", "jaxce")
    machine_of(path).write_text(versions + "\n")
    print(f"{versions}; writing {path}", flush=True)
    try:
        holds = check_numerics(writer, budget, tiny=options.tiny)
        time_losses(writer, budget, tiny=options.tiny)
    finally:
        print(*write_report(path), sep="\n")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
