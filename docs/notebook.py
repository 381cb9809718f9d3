"""Executes examples/walk_through_stats.ipynb, and compares its outputs with the saved ones, which GitHub shows.

pip install -e '.[examples,notebook]'
python docs/notebook.py           # fails if a cell fails, or if a saved output is another one
python docs/notebook.py --save    # saves the outputs
"""

import argparse
import copy
import math
import re
import sys
from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[1] / "examples" / "walk_through_stats.ipynb"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
TOLERANCE = 1e-2  # versions of scikit-learn stop the training at slightly different parameters


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a copy with new outputs, without warnings and times, which depend on the machine."""
    result = copy.deepcopy(notebook)
    nbclient.NotebookClient(result, record_timing=False, coalesce_streams=True).execute()
    result.metadata = notebook.metadata
    for cell in code_cells(result):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return result


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell: nbformat.NotebookNode) -> str:
    """Return what the cell prints, and the types of its pictures."""
    return "".join(output["text"] if "text" in output else " ".join(sorted(output["data"])) for output in cell.outputs)


def differs(saved: str, new: str) -> bool:
    """Return whether words differ, or numbers by more than the tolerance."""
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (saved, new)]
    if NUMBER.sub("0", saved).split() != NUMBER.sub("0", new).split():
        return True
    return not all(math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in zip(*numbers, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="save the outputs in the notebook")
    options = parser.parse_args()
    saved = nbformat.read(NOTEBOOK, as_version=4)
    new = executed(saved)
    if options.save:
        nbformat.write(new, NOTEBOOK)
        return
    pairs = zip(code_cells(saved), code_cells(new), strict=True)
    wrong = [cell.source for cell, other in pairs if differs(text_of(cell), text_of(other))]
    for source in wrong:
        print(f"{source}\n\nThe saved output of this cell is another one.\n")
    print(f"{NOTEBOOK.name}: {len(code_cells(new))} cells, {len(wrong)} with other saved outputs")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
