"""The losses of a linear layer for every layout of its arrays on an explicit mesh: correct in every dtype, and split like the labels."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from tests.support import covering, linear_cases, sharded
from tests.support.closeness import assert_within
from tests.support.oracle import Quantity
from tests.support.paths import ROOT

TOKENS, FEATURES, CLASSES = 16, 4, 24


@pytest.mark.parametrize("only", [("5", "13"), *covering.nightly_values(())], ids=["two", "all"])
def test_every_layout_and_dtype_of_an_explicit_mesh(only):
    """Run the layouts in another process, because a bug of the compiler may abort the process."""
    command = [sys.executable, "-W", "error", "-m", "tests.support.layouts", *only]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[-1] == "done", f"it ended in {lines[-1:]}: {done.stderr[-3000:]}"


BOTH = P(("data", "model"))
# The specs of hidden, the classifier and the labels.
SPECS = {
    "tokens over the axis of the classes too": (BOTH, P(None, "model"), BOTH),
    "labels over another axis than hidden": (P("data"), P(), P("model")),
    "labels over fewer axes than hidden": (BOTH, P(), P("data")),
    "labels over more axes than hidden": (P("data"), P(None, "model"), BOTH),
    "labels alone": (P(), P(), BOTH),
    "hidden and classes alone": (P("data"), P(None, "model"), P()),
}


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize("specs", SPECS.values(), ids=SPECS)
def test_losses_and_statistics_are_split_like_labels(specs):
    mesh = sharded.mesh_of((2, 4), "explicit")
    arrays = linear_cases.make(np.random.default_rng(0), TOKENS, FEATURES, CLASSES)
    masked = np.arange(TOKENS) % 3 != 1
    hidden, classifier, labels, mask = (
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip((*arrays, masked), (*specs, specs[2]), strict=True)
    )

    def total(hidden, classifier):
        losses = jaxce.linear_softmax_cross_entropy(hidden, classifier, labels, mask=mask, z_loss=0.01)
        stats = jaxce.linear_logit_stats(hidden, classifier, labels)
        for rows in (losses, *jax.tree.leaves(stats)):
            assert jax.typeof(rows).sharding.spec == jax.typeof(labels).sharding.spec
        both = jaxce.LossSum.of(losses, mask=mask) + jaxce.LossSum.of(stats.nll + 0.01 * stats.log_z**2, mask=mask)
        return both.total, both.weight

    (value, weight), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, classifier)
    want, want_gradients = linear_cases.expected(*arrays, np.full(TOKENS, 2), mask=masked, z_loss=0.01)
    assert float(weight) == 2 * masked.sum()
    assert_within(value, Quantity(2 * want.value.sum(), 2 * want.scale.sum()), 8)
    for name, gradient in zip(("hidden", "classifier"), gradients, strict=True):
        assert_within(gradient, want_gradients[name], 8)
