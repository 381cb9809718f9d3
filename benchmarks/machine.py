"""Code that all commands share: the machine and the versions, the folder of results, a markdown table, and the end of a run that is cut."""

import importlib.metadata
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

RESULTS = Path(__file__).parent / "results"


def machine(*packages: str) -> str:
    """Return the device, the version of Python, and the versions of the packages that are installed."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        kind = f"{os.cpu_count()} CPU cores ({_cpu()})"
    return ", ".join([kind, f"Python {platform.python_version()}", *filter(None, map(_version, packages))])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def exit_when_cut() -> None:
    """Make SIGTERM raise SystemExit, so that a run that is cut still reports its results."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _version(package):
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
