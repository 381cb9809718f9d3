"""Every cell of the label table is correct."""

import jax
import pytest

from tests.support import label_cells as cells
from tests.support.ours import OURS

pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize(
    ("labels", "ways"),
    [
        ([("int32", cells.C), ("int8", cells.MANY)], list(cells.WAYS)),
        (list(cells.LABELS), ["jit"]),
        pytest.param(list(cells.LABELS), list(cells.WAYS), marks=pytest.mark.nightly),
    ],
    ids=["every way", "every label", "every way and label"],
)
def test_every_label_has_its_loss_or_nan(labels, ways):
    chosen = {key: cells.LABELS[key] for key in labels}
    number, failed = cells.failures(OURS.integer, labels=chosen, ways={way: cells.WAYS[way] for way in ways})
    assert number == 2 * len(ways) * sum(map(len, chosen.values()))
    assert not failed


def test_keras_has_the_same_rule():
    _, failed = cells.failures(OURS.keras_sparse, ways={"jit": cells.WAYS["jit"]})
    assert not failed


def test_table_detects_labels_that_wrap_clamp_or_are_ignored():
    def indexed(z, y):
        return -jax.nn.log_softmax(z)[y] if z.ndim == 1 else jax.vmap(indexed)(z, y)

    def matched(z, y):
        return -(jax.nn.log_softmax(z) * jax.nn.one_hot(y, z.shape[-1])).sum(-1)

    for function in (indexed, matched):
        _, failed = cells.failures(function, ways={"jit": cells.WAYS["jit"]})
        assert {label for label, *_ in failed} >= {-1, -100, cells.C, cells.INT_MIN, cells.INT_MAX}
