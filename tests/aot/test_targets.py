"""Every loss and its gradients, compiled for accelerators: limits on their memory and on their passes over the logits.

Needs the extra `aot`, but no devices. The programs and their shapes are in `programs.py`.
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
CLASSIFIER, HIDDEN = 2048 * 128256, 8192 * 2048
# The limits of a forward pass: reads of the logits ("0") and of dense labels ("1"), then writes of arrays of this size, including the results.
FORWARD = {
    "integer": ({"0": 2}, 0),
    "integer, every option": ({"0": 2}, 0),
    "logit_stats": ({"0": 2}, 0),
    "nll and entropy": ({"0": 2}, 0),
    "keras sparse": ({"0": 2}, 0),
    "soft": ({"0": 2, "1": 1}, 0),
    "keras categorical": ({"0": 2, "1": 1}, 0),
    "keras binary": ({"0": 1, "1": 1}, 0),
    "sigmoid": ({"0": 1, "1": 1}, 1),
}
# The limits with the backward pass: one more read of each, and one write. The gradients of binary losses need no more reads than the loss.
BACKWARD = {
    name: ({k: n + 1 for k, n in reads.items()}, 1) if name not in ("keras binary", "sigmoid") else (reads, 1)
    for name, (reads, _) in FORWARD.items()
}
DENSE = list(FORWARD)
LINEAR = [
    "linear",
    "linear sum",
    "linear sum, whole rows",
    "linear sum, tied",
    "policy sum",
    "kl sum",
    "linear_logit_stats",
]
CELLS = {target: list(programs.cells_of(target)) for target in PLUGINS}


def over(targets):
    """Parametrise a test over targets. A target is skipped if its compiler is not installed."""
    missing = {target for target in targets if importlib.util.find_spec(PLUGINS[target]) is None}
    skip = {target: pytest.mark.skip(reason=f"needs {PLUGINS[target]}: install '.[aot]'") for target in missing}
    return pytest.mark.parametrize("target", [pytest.param(t, marks=skip.get(t, ())) for t in targets])


over_targets = over(PLUGINS)
# The targets for which the programs of other libraries are compiled too.
over_others = over([target for target in PLUGINS if ("optax soft", "forward", "real", "bfloat16") in CELLS[target]])


def compile_all(target):
    """Return the figures of all programs. They are compiled in another process, because its environment configures the compilers."""
    command = [sys.executable, "-m", "tests.aot.measure", target, "--for-tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1000)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def compiled(request):
    """Return the figures of a target. The programs of two targets are compiled at the same time."""
    asked = dict.fromkeys(i.callspec.params["target"] for i in request.session.items if "target" in i.fixturenames)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = {target: pool.submit(compile_all, target) for target in asked}
        yield lambda target: futures[target].result()


@pytest.fixture
def rows(target, compiled):
    return compiled(target)


def select(rows, loss, what=None, shape=None, dtype=None):
    """Return the matching rows. There may be none, because some programs are compiled only for other targets."""
    asked = {"loss": loss, "what": what, "shape": shape, "dtype": dtype}
    found = [row for row in rows if all(v is None or row[k] == v for k, v in asked.items())]
    errors = [row["error"] for row in found if "error" in row]
    assert not errors
    return found


def name(row):
    return ", ".join(row[k] for k in ("target", "loss", "what", "shape", "dtype"))


def too_many_passes(row):
    """Return the reads and writes beyond the limits. A loss of another library has the limits of our loss."""
    loss = row["loss"].removeprefix("optax ")
    reads, writes = (FORWARD if row["what"] == "forward" else BACKWARD)[loss]
    found = {k: n for k, n in row["reads"].items() if n > reads.get(k, 0)}
    return found | ({"writes": row["writes"]} if row["writes"] > writes else {})


def wide_copies(row):
    """Return the dtypes of arrays as large as the logits that are wider than bfloat16, without the losses of the sigmoid."""
    results = ["f32"] if row["loss"] == "sigmoid" and row["what"] == "forward" else []
    return [dtype for dtype in row["made"] if dtype not in ("bf16", "s8", "u8", "pred")][len(results) :]


@over_targets
@pytest.mark.parametrize("loss", DENSE + LINEAR)
def test_every_program_compiles(target, rows, loss):
    cells = [(row["loss"], row["what"], row["shape"], row["dtype"]) for row in select(rows, loss)]
    assert cells == [cell for cell in CELLS[target] if cell[0] == loss] and len(cells) >= 2


@over_others
def test_program_that_does_not_compile_is_detected(rows):
    with pytest.raises(AssertionError, match="absent"):
        select(rows, "unknown custom call")


@over_targets
def test_dense_integer_loss_stores_at_most_16_mib(rows):
    for row in select(rows, "integer"):
        assert row["temporary_bytes"] <= 16 * MIB, name(row)


@over_targets
@pytest.mark.parametrize("loss", DENSE)
def test_dense_losses_store_at_most_a_32nd_of_their_logits(rows, loss):
    for row in select(rows, loss):
        if row["shape"] != "small":
            assert row["temporary_bytes"] <= row["logits"] * 2 / 32, name(row)


@over_others
def test_optax_stores_the_logits_in_float32(rows):
    (row,) = select(rows, "optax integer", "value and gradients", "real")
    assert row["temporary_bytes"] >= row["logits"] * 4


@over_targets
@pytest.mark.parametrize("loss", DENSE)
def test_dense_losses_read_twice_and_their_gradients_read_and_write_once_more(rows, loss):
    for row in select(rows, loss):
        if row["shape"] != "small":
            assert too_many_passes(row) == {}, name(row)


@over_targets
@pytest.mark.parametrize("loss", ["integer", "keras sparse"])
def test_a_gpu_reads_long_rows_once_for_the_value(target, rows, loss):
    if target != "h100":
        return  # the other targets read the logits once for the maximum and once for the sum
    for row in select(rows, loss):
        if row["shape"] != "small":
            assert row["reads"] == ({"0": 1} if row["what"] == "forward" else {"0": 2}), name(row)


@over_others
def test_optax_passes_more_often(rows):
    (row,) = select(rows, "optax integer", "value and gradients", "real")
    assert {"writes"} <= too_many_passes(row).keys()
    (row,) = select(rows, "optax soft", "forward", "real")
    assert too_many_passes(row).keys() == {"0"}


@over_targets
@pytest.mark.parametrize("loss", DENSE)
def test_no_float32_copy_of_bfloat16_logits(rows, loss):
    for row in select(rows, loss, dtype="bfloat16"):
        if row["shape"] != "small":
            assert wide_copies(row) == [], name(row)


@over_others
def test_float32_copy_of_optax_is_detected(rows):
    (row,) = select(rows, "optax integer", "value and gradients", "real")
    assert wide_copies(row) == ["f32"]


@over_targets
@pytest.mark.parametrize("loss", DENSE)
def test_bytes_counted_by_a_tpu_compiler_equal_those_of_the_passes(target, rows, loss):
    if target == "h100":
        return  # this compiler does not count bytes
    for row in select(rows, loss, shape="real"):
        read = sum(row["reads"].values()) * BYTES[row["dtype"]]
        written = sum(BYTES[dtype] for dtype in row["made"])
        assert row["accessed_bytes"] == pytest.approx(row["logits"] * (read + written), rel=0.03), name(row)


@over_targets
@pytest.mark.parametrize("loss", [loss for loss in LINEAR if loss != "kl sum"])
def test_linear_losses_store_a_part_of_the_logits_and_the_gradients(target, rows, loss):
    """At most a twentieth of the logits. The sums on a GPU store an eighth, because larger blocks are faster there, and a block of hidden states."""
    is_sum_on_gpu = target == "h100" and "sum" in loss
    for row in select(rows, loss, shape="real"):
        part = HIDDEN * 4 + row["logits"] * 4 / 8 * 1.02 if is_sum_on_gpu else row["logits"] * 4 / 20
        assert row["temporary_bytes"] <= CLASSIFIER * 4 + part, name(row)
        assert row["largest"] <= CLASSIFIER, name(row)  # no array as large as the logits, in any dtype


@over_targets
def test_divergence_of_two_layers_stores_at_most_an_eighth_of_the_logits_and_the_classifier_gradient(rows):
    """A block has the logits of both layers and their exponentials."""
    for row in select(rows, "kl sum", shape="real"):
        assert row["temporary_bytes"] <= CLASSIFIER * 4 + row["logits"] * 4 / 8, name(row)
        assert row["largest"] <= CLASSIFIER, name(row)


@over_targets
@pytest.mark.parametrize("loss", LINEAR)
def test_gpu_multiplies_a_narrow_layer_in_its_dtype(target, rows, loss):
    """The gradients with respect to the logits are narrow too, which makes their matmuls twice as fast."""
    if target != "h100":
        return  # the other targets also multiply float32 operands in bfloat16
    for row in select(rows, loss, "value and gradients", "real"):
        assert row["multiplied"] == [row["dtype"].replace("bfloat16", "bf16").replace("float32", "f32")], name(row)


@over_others
def test_stored_logits_are_detected(rows):
    (row,) = select(rows, "matmul, then optax integer", "value and gradients", "real")
    assert row["largest"] >= row["logits"]
    assert row["temporary_bytes"] > 2 * CLASSIFIER * 4 + row["logits"] * 4 / 20
