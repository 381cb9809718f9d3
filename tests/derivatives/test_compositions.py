"""Every composition of JAX's transformations gives what it gives for the plain formulas, in every dtype."""

import itertools
import re

import jax
import numpy as np
import pytest

from tests.support import compositions, compositions_around, covering
from tests.support.ours import OURS

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

DTYPES = ("float64", "float32", "bfloat16", "float16")


def quick():
    """Each composition in a dtype, taken in turn; second and third order in float64 or bfloat16, for which there is the most code of its own."""
    is_of_higher_order = re.compile(r"hvp|hessian|third|jac\w*_of_jac|grad_of_(vmap_of_grad|descent|fori_loop)").search
    turns, of_higher_order = itertools.cycle(DTYPES), itertools.cycle(("float64", "bfloat16"))
    return [(name, next(of_higher_order if is_of_higher_order(name) else turns)) for name in TABLE]


def losses(z, y):
    binary = OURS.sigmoid(z, y["binary"]).sum(-1)
    return OURS.integer(z, y["index"]) + 2 * OURS.soft(z, y["probability"]) + 3 * binary


def composed(name, problem):
    if name in EAGER:
        return TABLE[name](problem)
    return jax.jit(lambda arrays: TABLE[name](problem._replace(**arrays)))({n: getattr(problem, n) for n in "zyvw"})


def test_the_table_is_as_long_as_promised():
    assert len(TABLE) >= 60
    assert set(TABLE) >= EAGER


def both(name, dtype):
    """The leaves of what the losses give in this dtype, and of what the plain formulas give for the same numbers in float64."""
    problem = compositions.problem(losses, dtype)
    actual = composed(name, problem)
    expected = composed(name, compositions.widened(problem)._replace(f=compositions.plain))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    assert all(a.shape == e.shape for a, e in pairs)
    return pairs


@pytest.mark.parametrize(("name", "dtype"), covering.quick([*itertools.product(TABLE, DTYPES)], quick()))
def test_composition_is_that_of_the_plain_formulas(name, dtype, x64):
    """In float64 to its last digits; else up to rounding the results, and what they are made of, to that dtype."""
    eps = 8 * float(np.finfo(np.float32).eps if dtype == "float32" else jax.numpy.finfo(dtype).eps)
    for a, e in both(name, dtype):
        if dtype == "float64":
            np.testing.assert_allclose(a, e, rtol=1e-11, atol=1e-12)
        else:
            a, e = (np.asarray(x, np.float64) for x in (a, e))
            np.testing.assert_allclose(a, e, rtol=0, atol=eps * np.max(abs(e), initial=0))
