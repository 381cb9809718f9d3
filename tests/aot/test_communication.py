"""What the losses send between eight accelerators, and hold on each, by their compilers' own programs. Needs the extra `aot`, no devices."""

import functools
import importlib.util
import json
import subprocess
import sys

import pytest

from tests.aot.communicate import CLASSES, FEATURES, PROGRAMS, ROWS
from tests.aot.plugins import PLUGINS
from tests.support.paths import ROOT


def over(rows):
    missing = {target for target, *_ in rows if importlib.util.find_spec(PLUGINS[target]) is None}
    skip = pytest.mark.skip(reason="needs its compiler: install '.[aot]'")
    marked = [pytest.param(*row, marks=skip if row[0] in missing else ()) for row in rows]
    return pytest.mark.parametrize(("target", "name", "mode"), marked)


OF_DEVICE = ROWS // 2, CLASSES // 4  # on a mesh of 2 x 4


@functools.cache
def programs(target):
    """(name, mode) -> (temporary bytes, what is sent); in a process of its own, as the compilers are set up by its environment."""
    command = [sys.executable, "-m", "tests.aot.communicate", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {(name, mode): (temporary, sent) for _, name, mode, temporary, sent in lines}


@over(PROGRAMS)
def test_value_and_gradients_send_five_numbers_per_row_and_the_gradients_of_a_linear_layer(target, mode, name):
    rows, classes = OF_DEVICE
    _, sent = programs(target)[name, mode]
    assert {operation for operation, _, _ in sent} == {"all-reduce"}
    sizes = [size for _, _, size in sent]
    of_gradients = [rows * FEATURES, FEATURES * classes] if name.startswith("linear") else []
    assert sorted(size for size in sizes if size > 5 * rows) == sorted(of_gradients)
    # Where `shard_map` does not keep track of what varies, JAX sums one cotangent of each row.
    allowed = 5 + (mode == "shard_map unchecked")
    assert sum(size for size in sizes if 2 < size <= 5 * rows) <= allowed * rows


@over([row for row in PROGRAMS if row[1].startswith("linear")])
def test_logits_are_held_in_blocks_where_it_is_known_which_device_has_which(target, mode, name):
    """Beside the gradient of the classifier; in Auto mode XLA alone knows, so all of a device's logits are held."""
    rows, classes = OF_DEVICE
    temporary, _ = programs(target)[name, mode]
    logits, accumulator = rows * classes * 4, FEATURES * classes * 4
    assert temporary - accumulator <= (logits * 2 if mode == "auto" else logits / 8)
