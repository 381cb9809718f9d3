"""The communication between eight accelerators and the memory on each, from the compiled programs. Needs the extra `aot`, but no devices."""

import functools
import importlib.util
import json
import subprocess
import sys

import pytest

from tests.aot.communicate import CLASSES, FEATURES, FULLY_SHARDED, PROGRAMS, ROWS
from tests.aot.plugins import PLUGINS
from tests.support.paths import ROOT


def over(rows):
    missing = {target for target, *_ in rows if importlib.util.find_spec(PLUGINS[target]) is None}
    skip = pytest.mark.skip(reason="needs its compiler: install '.[aot]'")
    marked = [pytest.param(*row, marks=skip if row[0] in missing else ()) for row in rows]
    return pytest.mark.parametrize(("target", "name", "mode"), marked)


DEVICE_SHAPE = ROWS // 2, CLASSES // 4  # on a mesh of 2 x 4


@functools.cache
def programs(target):
    """Return (name, mode) -> (temporary bytes, arrays sent).

    The programs are compiled in another process, because its environment configures the compilers.
    """
    command = [sys.executable, "-m", "tests.aot.communicate", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {(name, mode): (temporary, sent) for _, name, mode, temporary, sent in lines}


@over(PROGRAMS)
def test_value_and_gradients_send_five_numbers_per_row_and_the_gradients_of_a_linear_layer(target, mode, name):
    rows, classes = DEVICE_SHAPE
    _, sent = programs(target)[name, mode]
    assert {operation for operation, _, _ in sent} == {"all-reduce"}
    sizes = [size for _, _, size in sent]
    gradient_sizes = [rows * FEATURES, FEATURES * classes] if name.startswith("linear") else []
    assert sorted(size for size in sizes if size > 5 * rows) == sorted(gradient_sizes)
    # If `shard_map` does not track what varies over devices, JAX sums one cotangent per row.
    allowed = 5 + (mode == "shard_map unchecked")
    assert sum(size for size in sizes if 2 < size <= 5 * rows) <= allowed * rows


@over([row for row in PROGRAMS if row[1].startswith("linear")])
def test_only_blocks_of_logits_are_stored_except_by_a_tpu_in_auto_mode(target, mode, name):
    """The limit excludes both gradients. In Auto mode only XLA knows the layout, and XLA for TPU does not ask what a device does."""
    rows, classes = DEVICE_SHAPE
    temporary, _ = programs(target)[name, mode]
    logits, accumulator = rows * classes * 4, FEATURES * (rows + classes) * 4
    whole = mode == "auto" and target == "v5e"
    # A block also has hidden states.
    assert temporary - accumulator <= (logits * 2 if whole else logits / 8 * 1.02)


@over([row for row in FULLY_SHARDED if row[2] != "explicit"])
def test_fully_sharded_classifier_is_gathered_once_and_its_gradient_scattered_once(target, mode, name):
    """As in Explicit mode, within 1.1. Gathers and scatters have the sizes of whole columns, so none of them is of a block."""
    temporary, sent = programs(target)[name, mode]
    explicit_temporary, explicit_sent = programs(target)[name, "explicit"]
    columns, own = FEATURES * CLASSES // 4, FEATURES * CLASSES // 8
    sizes = sorted(size for _, _, size in sent if size >= min(own, ROWS // 2 * FEATURES))
    assert sizes == sorted([columns, own, ROWS // 2 * FEATURES])
    assert temporary <= 1.1 * explicit_temporary
    assert sum(size for *_, size in sent) <= 1.1 * sum(size for *_, size in explicit_sent)
