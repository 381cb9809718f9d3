"""Put one mutant at a time into a copy of the package, and check that a test fails: `python -m tests.mutation.run_mutants`.

The mutants are the bugs in `shipped` and a random selection of the changes in `operators`. Exits with 1 if a shipped bug or more than 5 % of
the changes survive.
"""

import argparse
import concurrent.futures
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jaxce
from tests.mutation.operators import changes
from tests.mutation.shipped import SHIPPED

PACKAGE = pathlib.Path(jaxce.__file__).parent
TESTS = pathlib.Path(__file__).parents[1]
LEAST_KILLED = 0.95
# The modules to change, each with the tests to try first.
MODULES = {
    "_core/definition": [
        "losses/test_values.py",
        "losses/test_softmax.py",
        "losses/test_stats.py",
        "losses/test_entropy.py",
        "losses/test_accuracy.py",
        "derivatives/test_rule.py",
    ],
    "_core/sigmoid": ["losses/test_sigmoid.py", "losses/test_masks.py", "derivatives/test_rule.py"],
    "_core/merge": ["losses/test_stats.py", "losses/test_entropy.py", "meshes/test_axis_name.py"],
    "_core/integer_labels": ["forms", "losses/test_values.py"],
    "_core/labels": ["losses/test_values.py", "meshes/test_axis_name.py"],
    "_core/shaping": ["losses/test_softmax.py", "linear/test_linear_logits.py"],
    "_core/__init__": ["losses/test_masks.py", "losses/test_values.py", "derivatives/test_rule.py"],
    "_core/divergence": ["losses/test_divergences.py"],
    "_core/near_zero": ["losses/test_divergences.py"],
    "_core/pairs": ["losses/test_divergences.py", "linear/test_divergences_of_layers.py"],
    "_core/top_labels": ["losses/test_top_labels.py"],
    "_logit_stats": ["losses/test_stats.py", "losses/test_entropy.py", "losses/test_values.py"],
    "_dense": ["losses/test_values.py", "meshes/test_axis_name.py"],
    "_formula": ["losses/test_row_losses.py"],
    "_blocks/inputs": ["losses/test_row_losses.py"],
    "_checks/formulas": ["losses/test_row_losses.py"],
    "_cross_entropy": ["losses/test_softmax.py", "losses/test_masks.py", "meshes/test_axis_name.py"],
    "_sigmoid": ["losses/test_sigmoid.py", "losses/test_masks.py"],
    "_loss_sum": ["losses/test_loss_sum.py"],
    "_jax/rules": ["derivatives/test_rule.py", "derivatives/test_transforms.py"],
    "_checks/__init__": ["tables/test_checks.py", "losses/test_softmax.py"],
    "_checks/top_labels": ["losses/test_top_labels.py"],
    "_checks/pairs": ["losses/test_divergences.py"],
    "_checks/rows": ["linear/test_linear_logits.py", "tables/test_checks.py"],
    "_checks/scalars": ["tables/test_checks.py", "linear/test_linear.py"],
}
# The tests for a mutant that survives the tests of its module.
SUITE = ["losses", "tables", "derivatives", "linear", "meshes/test_axis_name.py", "package/test_public_api.py"]


class Mutant(NamedTuple):
    """A module of the package with a mistake in it."""

    name: str
    module: str
    source: str


class Verdict(NamedTuple):
    mutant: Mutant
    outcome: str  # killed, survived or broken
    by: str
    seconds: float


def path_of(module):
    return PACKAGE / f"{module}.py"


def shipped():
    """Yield the bugs that other libraries shipped, as mutants."""
    for bug in SHIPPED:
        source = path_of(bug.module).read_text()
        if source.count(bug.right) != 1:
            raise LookupError(
                f"{bug.name!r}: found {source.count(bug.right)} times in {bug.module}, not once: {bug.right}"
            )
        yield Mutant(bug.name, bug.module, source.replace(bug.right, bug.wrong))


def changed(module):
    """Yield every change of a module, as a mutant."""
    for change in changes(path_of(module).read_text()):
        was, now = (re.sub(r"\s+", " ", text)[:70] for text in (change.was, change.now))
        yield Mutant(f"line {change.line}: {was} -> {now}", module, change.source)


def judge(mutant, *, own_tests_only=False):
    """Return the verdict of the tests on a mutant. With None, the package is not changed."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        skipped = shutil.ignore_patterns("__pycache__", "golden", "mutation")
        shutil.copytree(PACKAGE, root / "jaxce", ignore=skipped)
        shutil.copytree(TESTS, root / "tests", ignore=skipped)
        stages = [SUITE]
        if mutant is not None:
            (root / "jaxce" / f"{mutant.module}.py").write_text(mutant.source)
            stages = [MODULES[mutant.module]] if own_tests_only else [MODULES[mutant.module], SUITE]
        outcome, by = "survived", ""
        for names in stages:
            outcome, by = _outcome(root, names)
            if outcome != "survived":
                break
    return Verdict(mutant, outcome, by, time.monotonic() - start)


def _outcome(root, names):
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
    command += ["--ignore=tests/tables/test_golden.py", *(f"tests/{name}" for name in names)]
    # This test fails if pytest imports another copy of the package. Every mutant would survive then.
    (root / "tests" / "test_.py").write_text(
        f"import jaxce\n\n\ndef test_the_copy_is_imported():\n    assert jaxce.__file__.startswith({str(root)!r})\n"
    )
    done = subprocess.run([*command, "tests/test_.py"], cwd=root, env=environment, capture_output=True, text=True)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0:
        return "survived", ""
    if failed and failed[0] != "tests/test_.py::test_the_copy_is_imported":
        return "killed", failed[0]
    # If a change breaks the import, pytest fails before any test runs.
    return ("killed", "import") if "conftest" in done.stderr else ("broken", (done.stdout + done.stderr)[-2000:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="mutants whose module or name contains one of these")
    parser.add_argument("--number", type=int, default=60, help="how many changes to try; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    everything = [mutant for module in MODULES for mutant in changed(module)]
    bugs = list(shipped())
    if arguments.words:
        bugs, everything = (
            [m for m in some if any(word in f"{m.module}: {m.name}" for word in arguments.words)]
            for some in (bugs, everything)
        )
    random.Random(arguments.seed).shuffle(everything)
    chosen = everything[: arguments.number]
    print(f"{len(bugs)} bugs that others shipped, {len(chosen)} of {len(everything)} changes", flush=True)
    killed = {}
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for verdict in pool.map(judge, [*bugs, *chosen]):
            mutant = verdict.mutant
            killed[mutant] = verdict.outcome == "killed"
            print(
                f"{verdict.outcome:8} {verdict.seconds:4.0f} s  {mutant.module}: {mutant.name}  {verdict.by}",
                flush=True,
            )
    print(f"{sum(killed.values())} of {len(killed)} killed")
    killed_changes = [killed[mutant] for mutant in chosen]
    return int(not all(killed[bug] for bug in bugs) or sum(killed_changes) < LEAST_KILLED * len(killed_changes))


if __name__ == "__main__":
    sys.exit(main())
