"""Count the cells of the non-finite matrix, the cells of the label rule and the bad calls in which each library is right.

The tests check the same cells and calls for jaxce. The other libraries are tested only on the functions that they offer: without `where` and `mask`,
and PyTorch only for values and gradients.
"""

import types

import numpy as np

from benchmarks.peers.libraries import Library
from tests.support import bad_inputs, keras_bad_inputs, label_cells, nonfinite_cells
from tests.support.ours import OURS

# The allowed error of a finite quantity in the non-finite matrix. The accuracy of the other libraries is measured in other lines.
OUR_ULPS, THEIR_ULPS = 8, 1000


def nonfinite(library: Library, *, own_options: bool) -> tuple[int, int]:
    """Return (cells, cells that hold). `own_options` includes the cells that need jaxce's options, `LossSum` or `jaxce.keras`."""
    if own_options:
        return nonfinite_cells.evaluate(OURS)
    asked = types.SimpleNamespace(**{kind: library.losses[kind] for kind in ("integer", "soft", "sigmoid")})
    if library.name != "PyTorch":
        return nonfinite_cells.evaluate(asked, ulps=OUR_ULPS if library.name == "jaxce" else THEIR_ULPS)

    def answers(function, logits, labels, quantities):
        values, gradient = library.with_gradient(function, logits, labels)
        return {"value": values, "gradient": gradient}

    asked.answers = answers
    return nonfinite_cells.evaluate(asked, quantities=("value", "gradient"), ulps=THEIR_ULPS)


def labels(library: Library) -> tuple[int, int]:
    """Return (cells, cells that hold). PyTorch is tested only eagerly, and a cell holds too if PyTorch raises for the bad label."""
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


def bad_input(library: Library, *, own_options: bool) -> tuple[int, int]:
    """Return (calls, refused calls). With `own_options`, the error must have the documented message. Otherwise any exception counts, but it must be
    raised while tracing if the library traces.
    """
    if own_options:
        return bad_inputs.evaluate({**bad_inputs.dense_calls(), **keras_bad_inputs.calls()})
    asked = types.SimpleNamespace(**{kind: library.losses[kind] for kind in ("integer", "soft", "sigmoid")})
    return bad_inputs.evaluate_library(asked, traces=library.name != "PyTorch")
