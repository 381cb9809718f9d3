"""`examples/walk_through_stats.ipynb` has the outputs of one run, which GitHub shows. `docs/notebook.py` executes it and compares the outputs."""

import importlib
import json

import pytest

from tests.support.paths import ROOT

PATH = ROOT / "examples" / "walk_through_stats.ipynb"
CELLS = [cell for cell in json.loads(PATH.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
OUTPUTS = [output for cell in CELLS for output in cell["outputs"]]


def test_cells_were_executed_once_in_order():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))


def test_outputs_are_numbers_and_one_picture():
    assert {output.get("name") for output in OUTPUTS} == {"stdout", None}  # no warnings
    assert [sorted(output["data"]) for output in OUTPUTS if "data" in output] == [["image/png", "text/plain"]]
    assert sum(len(output["text"]) for output in OUTPUTS if "text" in output) > 10
    assert PATH.stat().st_size < 100_000


def test_outputs_have_no_path_of_a_machine():
    assert not [output for output in OUTPUTS if "/home/" in str(output) or "/tmp/" in str(output)]


@pytest.mark.parametrize(
    ("saved", "new", "expected"),
    [
        ("loss  0.2010\n", "loss 0.2011\n", False),
        ("loss  0.2010\n", "loss  0.2210\n", True),
        ("kept: 13 arrays", "kept: 14 arrays", True),
        ("loss  0.2010\n", "entropy  0.2010\n", True),
        ("loss  0.2010\n", "loss  nan\n", True),
        ("loss  0.2010\n", "", True),
        ("loss  0.2010\n", "loss  -0.2010\n", True),
    ],
)
def test_another_output_is_detected(saved, new, expected):
    pytest.importorskip("nbclient", reason="needs the extra `notebook`")
    assert importlib.import_module("docs.notebook").differs(saved, new) is expected
