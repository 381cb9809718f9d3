"""Puts one mutant at a time into a copy of the package and sees whether the tests refuse it: `python -m tests.mutation.run_mutants`.

Exits with 1 if fewer than 95 % are refused, if one no longer fits the code, or if one breaks the import.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jaxce
from tests.mutation.mutants import MUTANTS, Mutant

PACKAGE = pathlib.Path(jaxce.__file__).parent
TESTS = pathlib.Path(__file__).parents[1]
LEAST_KILLED = 0.95
# The tests that a mutant meets once its own have let it pass: all that are about the losses, the quick ones first.
SUITE = ("values", "masks", "checks", "softmax", "sigmoid", "stats", "loss_sum", "accuracy", "rule", "hessians")
SUITE += ("transforms", "sharding", "public_api", "fuzz")


class Verdict(NamedTuple):
    mutant: Mutant
    outcome: str  # killed, survived or broken
    by: str
    seconds: float


def mutated(mutant, source):
    """The source with the mutant in it."""
    if source.count(mutant.old) != 1:
        raise LookupError(
            f"{mutant.module}, {mutant.name!r}: found {source.count(mutant.old)} times, not once: {mutant.old}"
        )
    return source.replace(mutant.old, mutant.new)


def judge(mutant, *, own_tests_only=False):
    """The verdict of the tests on a mutant, or on the package as it is for None."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        skipped = shutil.ignore_patterns("__pycache__", "golden", "mutation")
        shutil.copytree(PACKAGE, root / "jaxce", ignore=skipped)
        shutil.copytree(TESTS, root / "tests", ignore=skipped)
        stages = [SUITE]
        if mutant is not None:
            target = root / "jaxce" / f"{mutant.module}.py"
            target.write_text(mutated(mutant, target.read_text()))
            stages = [mutant.tests] if own_tests_only else [mutant.tests, SUITE]
        outcome, by = "survived", ""
        for names in stages:
            outcome, by = _outcome(root, names)
            if outcome != "survived":
                break
    return Verdict(mutant, outcome, by, time.monotonic() - start)


def _node(name):
    """`file` or `file::test`, as pytest wants it."""
    file, _, test = name.partition("::")
    (path,) = TESTS.glob(f"*/test_{file}.py")
    return path.relative_to(TESTS.parent).as_posix() + (f"::{test}" if test else "")


def _outcome(root, names):
    chosen = [_node(name) for name in names]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "JAXCE_FUZZ_EXAMPLES": "2000"}
    command = [sys.executable, "-W", "error", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", *chosen]
    # Without a look at where it comes from, a copy that is not imported would let every mutant pass.
    (root / "tests" / "test_.py").write_text(
        f"import jaxce\n\n\ndef test_the_copy_is_imported():\n    assert jaxce.__file__.startswith({str(root)!r})\n"
    )
    done = subprocess.run([*command, "tests/test_.py"], cwd=root, env=environment, capture_output=True, text=True)
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0:
        return "survived", ""
    if done.returncode == 1 and failed and failed[0] != "tests/test_.py::test_the_copy_is_imported":
        return "killed", failed[0]
    return "broken", (done.stdout + done.stderr)[-2000:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="mutants whose name contains one of these; all by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if not arguments.names or any(n in m.name for n in arguments.names)]
    as_it_is = judge(None)
    if as_it_is.outcome != "survived":
        print(f"the package as it is fails {as_it_is.by}")
        return 1
    verdicts = []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for verdict in pool.map(judge, chosen):
            verdicts.append(verdict)
            mutant = verdict.mutant
            print(
                f"{verdict.outcome:8} {verdict.seconds:4.0f} s  {mutant.module}: {mutant.name}  {verdict.by}",
                flush=True,
            )
    killed = sum(v.outcome == "killed" for v in verdicts)
    broken = any(v.outcome == "broken" for v in verdicts)
    print(f"{killed} of {len(verdicts)} killed")
    return 1 if broken or killed < LEAST_KILLED * len(verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
