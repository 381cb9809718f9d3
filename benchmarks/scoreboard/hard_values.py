"""Count how each library does on the non-finite matrix, the label rule and bad input: the cells and calls that the tests check for jaxce.

A library is asked only what it offers: without `where` and `mask`, and PyTorch for values and gradients alone.
"""

import types

import numpy as np

from benchmarks.peers.libraries import Library
from tests.support import bad_inputs, keras_bad_inputs, label_cells, nonfinite_cells
from tests.support.ours import OURS

# How exact a finite quantity among the non-finite ones has to be. The accuracy of other libraries has lines of its own.
OUR_ULPS, THEIR_ULPS = 8, 1000


def nonfinite(library: Library, *, own_options: bool) -> tuple[int, int]:
    """(cells, cells that hold). With `own_options` also those that need jaxce's options and other faces."""
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


def bad_input(library: Library, *, own_options: bool) -> tuple[int, int]:
    """(calls, calls refused). Of jaxce's own options with the message promised; otherwise any exception will do, while tracing if it traces."""
    if own_options:
        return bad_inputs.evaluate({**bad_inputs.dense_calls(), **keras_bad_inputs.calls()})
    asked = types.SimpleNamespace(**{kind: library.losses[kind] for kind in ("integer", "soft", "sigmoid")})
    return bad_inputs.evaluate_library(asked, traces=library.name != "PyTorch")
