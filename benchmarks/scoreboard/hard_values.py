"""The non-finite matrix and the label rule, asked of each library: the cells are those that the tests check for jaxce.

A library is asked only what it offers: without `where` and `mask`, and PyTorch for values and gradients alone.
"""

import types

import label_cells
import nonfinite_cells
import numpy as np
from ours import OURS

from benchmarks.scoreboard.libraries import Library


def nonfinite(library: Library, *, own_options: bool) -> tuple[int, int]:
    """(cells, cells that hold). With `own_options` also those that need jaxce's options and other faces."""
    if own_options:
        return nonfinite_cells.evaluate(OURS)
    asked = types.SimpleNamespace(**{kind: library.losses[kind] for kind in ("integer", "soft", "sigmoid")})
    if library.name != "PyTorch":
        return nonfinite_cells.evaluate(asked)

    def answers(function, logits, labels, quantities):
        values, gradient = library.with_gradient(function, logits, labels)
        return {"value": values, "gradient": gradient}

    asked.answers = answers
    return nonfinite_cells.evaluate(asked, quantities=("value", "gradient"))


def labels(library: Library) -> tuple[int, int]:
    """(cells, cells that hold). Of PyTorch, which is not transformed, the eager ones, where an error raised for a bad label holds too."""
    loss = library.losses["integer"]
    if library.name != "PyTorch":
        return label_cells.evaluate(loss)

    def answers(function, logits, labels):
        try:
            return library.with_gradient(function, logits, labels.astype(np.int64))
        except (IndexError, RuntimeError):
            rule = label_cells.rule(logits, labels)
            return tuple(rule[quantity] for quantity in label_cells.QUANTITIES)

    return label_cells.evaluate(loss, ways={"eager": label_cells.WAYS["eager"]}, answers=answers)
