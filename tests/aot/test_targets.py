"""Every loss and its gradients, compiled for accelerators by their own compilers: what they hold, and how often they pass over the logits.

Needs the extra `aot`, but none of the devices. The programs and their shapes are in `programs.py`.
"""

import concurrent.futures
import importlib.util
import json
import subprocess
import sys

import pytest

from tests.aot import programs
from tests.aot.plugins import PLUGINS
from tests.support.paths import ROOT

MIB = 2**20
BYTES = {"float32": 4, "bfloat16": 2, "f32": 4, "bf16": 2}
CLASSIFIER = 2048 * 128256
# At most: reads of the logits and of as many labels, then writes of arrays of that size, its results included.
FORWARD = {
    "integer": ({"0": 2}, 0),
    "integer, every option": ({"0": 2}, 0),
    "logit_stats": ({"0": 2}, 0),
    "keras sparse": ({"0": 2}, 0),
    "soft": ({"0": 2, "1": 1}, 0),
    "keras categorical": ({"0": 2, "1": 1}, 0),
    "keras binary": ({"0": 1, "1": 1}, 0),
    "sigmoid": ({"0": 1, "1": 1}, 1),
}
# The backward pass: one more read of each, one write. Those of binary labels are made in the same pass as the loss.
BACKWARD = {
    name: ({k: n + 1 for k, n in reads.items()}, 1) if name not in ("keras binary", "sigmoid") else (reads, 1)
    for name, (reads, _) in FORWARD.items()
}
DENSE = list(FORWARD)
LINEAR = ["linear", "linear sum", "linear sum, whole rows", "linear sum, tied", "linear_logit_stats"]
CELLS = {target: list(programs.cells_of(target, programs.EVERY)) for target in PLUGINS}


def over(targets):
    """A test of what is compiled for them, where their compiler is installed."""
    missing = {target for target in targets if importlib.util.find_spec(PLUGINS[target]) is None}
    skip = {target: pytest.mark.skip(reason=f"needs {PLUGINS[target]}: install '.[aot]'") for target in missing}
    return pytest.mark.parametrize("target", [pytest.param(t, marks=skip.get(t, ())) for t in targets])


over_targets = over(PLUGINS)
# Those for which other libraries' programs are compiled too.
over_others = over([target for target in PLUGINS if ("optax soft", "forward", "real", "bfloat16") in CELLS[target]])


def compile_all(target):
    """The figures of all programs; in a process of its own, as the compilers are set up by its environment."""
    command = [sys.executable, "-m", "tests.aot.measure", target, "--of-tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1000)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def compiled(request):
    """The figures of a target; those of all targets that are asked for are made two at a time."""
    asked = dict.fromkeys(i.callspec.params["target"] for i in request.session.items if "target" in i.fixturenames)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = {target: pool.submit(compile_all, target) for target in asked}
        yield lambda target: futures[target].result()


@pytest.fixture
def rows(target, compiled):
    return compiled(target)


def of(rows, loss, what=None, shape=None, dtype=None):
    """Those that are asked for; some are compiled for other targets than this one."""
    asked = {"loss": loss, "what": what, "shape": shape, "dtype": dtype}
    found = [row for row in rows if all(v is None or row[k] == v for k, v in asked.items())]
    errors = [row["error"] for row in found if "error" in row]
    assert not errors
    return found


def name(row):
    return ", ".join(row[k] for k in ("target", "loss", "what", "shape", "dtype"))


def too_many_passes(row):
    """What goes beyond the table of a loss; of other libraries' that of ours."""
    loss = row["loss"].removeprefix("optax ")
    reads, writes = (FORWARD if row["what"] == "forward" else BACKWARD)[loss]
    found = {k: n for k, n in row["reads"].items() if n > reads.get(k, 0)}
    return found | ({"writes": row["writes"]} if row["writes"] > writes else {})


def wide_copies(row):
    """Arrays as large as bfloat16 logits that are wider than those, and not the losses themselves."""
    results = ["f32"] if row["loss"] == "sigmoid" and row["what"] == "forward" else []
    return [dtype for dtype in row["made"] if dtype not in ("bf16", "s8", "u8", "pred")][len(results) :]


@over_targets
@pytest.mark.parametrize("loss", DENSE + LINEAR)
def test_it_compiles(target, rows, loss):
    cells = [(row["loss"], row["what"], row["shape"], row["dtype"]) for row in of(rows, loss)]
    assert cells == [cell for cell in CELLS[target] if cell[0] == loss] and len(cells) >= 2


def test_every_program_is_compiled_for_a_gpu_and_a_tpu():
    every = {(name, *cell) for name, loss in programs.LOSSES.items() for cell in loss.cells()}
    assert every <= set(CELLS["h100"]) and every <= set().union(*(CELLS[target] for target in programs.TPUS))


@over_others
def test_a_program_that_does_not_compile_is_seen(rows):
    with pytest.raises(AssertionError, match="absent"):
        of(rows, "what no compiler knows")


@over_targets
def test_dense_integer_loss_holds_at_most_16_mib(rows):
    for row in of(rows, "integer"):
        assert row["temporary_bytes"] <= 16 * MIB, name(row)


@over_targets
@pytest.mark.parametrize("loss", DENSE)
def test_dense_losses_hold_a_32nd_of_their_logits(rows, loss):
    for row in of(rows, loss):
        if row["shape"] != "small":
            assert row["temporary_bytes"] <= row["logits"] * 2 / 32, name(row)


@over_others
def test_optax_holds_the_logits_in_float32(rows):
    (row,) = of(rows, "optax integer", "value and gradients", "real")
    assert row["temporary_bytes"] >= row["logits"] * 4


@over_targets
@pytest.mark.parametrize("loss", DENSE)
def test_dense_losses_read_twice_and_their_gradients_read_and_write_once_more(rows, loss):
    for row in of(rows, loss):
        if row["shape"] != "small":
            assert too_many_passes(row) == {}, name(row)


@over_targets
@pytest.mark.parametrize("loss", ["integer", "keras sparse"])
def test_a_gpu_reads_long_rows_once_for_the_value(target, rows, loss):
    if target != "h100":
        return  # the others take one reading for the maximum, one for the sum
    for row in of(rows, loss):
        if row["shape"] != "small":
            assert row["reads"] == ({"0": 1} if row["what"] == "forward" else {"0": 2}), name(row)


@over_others
def test_optax_passes_more_often(rows):
    (row,) = of(rows, "optax integer", "value and gradients", "real")
    assert {"writes"} <= too_many_passes(row).keys()
    (row,) = of(rows, "optax soft", "forward", "real")
    assert too_many_passes(row).keys() == {"0"}


@over_targets
@pytest.mark.parametrize("loss", DENSE)
def test_no_float32_copy_of_bfloat16_logits(rows, loss):
    for row in of(rows, loss, dtype="bfloat16"):
        if row["shape"] != "small":
            assert wide_copies(row) == [], name(row)


@over_others
def test_the_copy_of_optax_is_seen(rows):
    (row,) = of(rows, "optax integer", "value and gradients", "real")
    assert wide_copies(row) == ["f32"]


@over_targets
@pytest.mark.parametrize("loss", DENSE)
def test_the_bytes_that_a_tpu_compiler_counts_are_those_of_the_passes(target, rows, loss):
    if target == "h100":
        return  # its compiler counts none
    for row in of(rows, loss, shape="real"):
        read = sum(row["reads"].values()) * BYTES[row["dtype"]]
        written = sum(BYTES[dtype] for dtype in row["made"])
        assert row["accessed_bytes"] == pytest.approx(row["logits"] * (read + written), rel=0.03), name(row)


@over_targets
@pytest.mark.parametrize("loss", LINEAR)
def test_linear_losses_hold_a_twentieth_of_the_logits_beside_the_gradient_of_the_classifier(rows, loss):
    for row in of(rows, loss, shape="real"):
        assert row["temporary_bytes"] <= CLASSIFIER * 4 + row["logits"] * 4 / 20, name(row)
        assert row["largest"] <= CLASSIFIER, name(row)  # nothing the size of the logits, in any dtype


@over_targets
@pytest.mark.parametrize("loss", LINEAR)
def test_a_gpu_multiplies_a_narrow_layer_as_it_is(target, rows, loss):
    """Slopes too, which are twice as fast then."""
    if target != "h100":
        return  # the others multiply float32 in bfloat16 as well
    for row in of(rows, loss, "value and gradients", "real"):
        assert row["multiplied"] == [row["dtype"].replace("bfloat16", "bf16").replace("float32", "f32")], name(row)


@over_others
def test_all_logits_at_once_are_seen(rows):
    (row,) = of(rows, "matmul, then optax integer", "value and gradients", "real")
    assert row["largest"] >= row["logits"]
    assert row["temporary_bytes"] > 2 * CLASSIFIER * 4 + row["logits"] * 4 / 20
