"""What a benchmark ran on: the machine and the versions."""

import importlib.metadata
import os
import platform
from pathlib import Path

import jax


def machine(*packages: str) -> str:
    """The device, Python, and of these packages the versions of those that are installed."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        kind = f"{os.cpu_count()} CPU cores ({_cpu()})"
    return ", ".join([kind, f"Python {platform.python_version()}", *filter(None, map(_version, packages))])


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
