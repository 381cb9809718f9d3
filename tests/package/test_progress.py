"""`examples/progress.py`: a bar in a terminal; a line now and then, with a line end, in a file or a pipe. No other file calls tqdm."""

import importlib
import itertools
import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from tests.support.paths import ROOT

pytest.importorskip("tqdm", reason="needs the extra `examples` or `benchmarks`")
progress = importlib.import_module("examples.progress")

STEPS = 200


def run(bar):
    """Change the bar twice in each step, as a training does."""
    for step in (shown := bar(range(STEPS), "training")):
        shown.set_postfix(loss=step)


def is_for_a_file(text):
    """Return whether the output has few lines, each of them whole, and ends with the last step."""
    return "\r" not in text and text.endswith("\n") and text.count("\n") <= 4 and f"{STEPS}/{STEPS}" in text


def test_short_run_into_a_file_writes_one_line(capfd):
    run(progress.bar)
    text = capfd.readouterr().err
    assert is_for_a_file(text) and text.count("\n") == 1 and f"loss={STEPS - 1}" in text


def test_plain_tqdm_is_detected(capfd):
    run(progress.tqdm)
    assert not is_for_a_file(capfd.readouterr().err)


def test_long_run_into_a_file_writes_a_line_when_it_is_due(capfd, monkeypatch):
    clock = itertools.count()  # one second for each look at the clock
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    run(progress.bar)
    seconds = next(clock)
    lines = capfd.readouterr().err.splitlines()
    assert 3 < len(lines) <= seconds / progress.SECONDS + 1
    losses = [int(re.search(r"loss=(\d+)", line)[1]) for line in lines]
    assert losses == sorted(losses) and losses[-1] == STEPS - 1


@pytest.mark.parametrize("options", [{"leave": False}, {"leave": None}])
def test_bars_inside_each_other_write_whole_lines(capfd, options):
    for _ in progress.bar(range(2), "outer", **options):
        for _ in progress.bar(range(3), "inner", **options):
            pass
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["inner", "inner", "outer"]
    assert all(re.search(r"100%.*(2/2|3/3) \[", line) for line in lines)


def test_failure_in_a_step_writes_the_steps_done(capfd):
    with pytest.raises(ZeroDivisionError):
        [1 / (1 - step) for step in progress.bar(range(3), "training")]
    assert "1/3" in capfd.readouterr().err


def test_bar_in_a_terminal_is_drawn_in_place():
    """The standard error of the program is a terminal of its own."""
    program = "from examples import progress\nfor _ in progress.bar(range(3), 'training'): pass"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert shown.count("\r") > shown.count("\n") and "3/3" in shown


def test_no_other_file_calls_tqdm():
    files = [*(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert [path.name for path in files if "import tqdm" in path.read_text("utf-8")] == ["progress.py"]
