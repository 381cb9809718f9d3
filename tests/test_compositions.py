"""Every composition of JAX's transformations gives what it gives for the plain formulas, in float64."""

import compositions
import compositions_around
import jax
import numpy as np
import pytest
from ours import OURS

pytestmark = pytest.mark.usefixtures("made_quickly")

TABLE = compositions_around.TABLE
# The others run inside one more jit, which is quicker.
EAGER = {
    "eager",
    "jit",
    "grad",
    "value_and_grad",
    "vjp",
    "jvp",
    "linearize",
    "vmap_both",
    "vmap_of_grad",
    "grad_of_vmap",
}
EAGER |= {
    "compiled_ahead_of_time",
    "gradient_compiled_ahead_of_time",
    "jit_with_donated_logits",
    "hvp_forward_over_reverse",
}
EAGER |= {"disable_jit", "leak_checking", "eval_shape", "grad_of_checkpoint", "scan", "grad_of_shard_map", "shard_map"}
EAGER |= {name for name in TABLE if "export" in name or "checkify" in name}


def losses(z, y):
    binary = OURS.sigmoid(z, y["binary"]).sum(-1)
    return OURS.integer(z, y["index"]) + 2 * OURS.soft(z, y["probability"]) + 3 * binary


def composed(name, f):
    problem = compositions.problem(f)
    if name in EAGER:
        return TABLE[name](problem)
    return jax.jit(lambda arrays: TABLE[name](problem._replace(**arrays)))({n: getattr(problem, n) for n in "zyvw"})


def test_the_table_is_as_long_as_promised():
    assert len(TABLE) >= 60
    assert set(TABLE) >= EAGER


@pytest.mark.parametrize("name", TABLE)
def test_composition_is_that_of_the_plain_formulas(name, x64):
    actual, expected = (composed(name, f) for f in (losses, compositions.plain))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=1e-11, atol=1e-12)
