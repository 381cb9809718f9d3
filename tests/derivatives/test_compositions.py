"""Every composition of JAX transforms gives the same result for the losses and for the plain formulas, in every dtype."""

import functools
import itertools
import re

import jax
import numpy as np
import pytest

from tests.support import compositions, compositions_around, covering
from tests.support.ours import OURS

pytestmark = pytest.mark.usefixtures("fast_compilation")

TABLE = compositions_around.TABLE
# The other compositions run inside one more jit, which is faster.
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
    """Return each composition with one dtype, taken in turn.

    Compositions of second and third order take float64 or bfloat16, the dtypes with the most special code.
    """
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


def test_table_has_at_least_60_compositions():
    assert len(TABLE) >= 60
    assert set(TABLE) >= EAGER | FIRST.keys() | SAME.keys()


# Compositions that compute the same function: the result of the plain formulas is computed only for the first.
SAME = {
    "eager": """jit jit_of_jit compiled_ahead_of_time vmap_both scan scan_reversed_and_unrolled cond map map_in_batches shard_map
        shard_map_unchecked export export_with_symbolic_rows checkify_floats closure_convert""",
    "grad": """jit_of_grad grad_of_jit gradient_compiled_ahead_of_time jit_with_donated_logits grad_of_vmap grad_of_scan grad_of_cond
        grad_of_map_in_batches grad_of_checkpoint grad_of_checkpoint_with_everything_saveable grad_of_checkpoint_with_nothing_saveable
        grad_of_checkpoint_with_dots_saveable grad_of_checkpoint_with_names grad_of_scan_of_checkpoint grad_of_shard_map
        grad_of_shard_map_unchecked grad_of_export checkify_floats_of_grad checkify_index_of_grad grad_of_custom_vjp stopped_gradient""",
    "value_and_grad": "disable_jit",
    "vjp": "jit_of_vjp linear_transpose",
    "vmap_of_grad": "export_of_grad_with_symbolic_rows shard_map_of_grad shard_map_of_grad_unchecked",
    "jvp": "jvp_of_jit",
    "linearize": "jit_of_jvp jit_of_linearize",
    "jacfwd": "jacrev",
    "hessian": "jacfwd_of_jacfwd jacrev_of_jacfwd jacrev_of_jacrev",
    "hvp_forward_over_reverse": """hvp_reverse_over_forward hvp_reverse_over_reverse hvp_linearized hvp_of_scan hvp_of_scan_in_reverse
        hvp_of_cond hvp_of_checkpoint hvp_of_checkpoint_in_reverse hvp_of_shard_map hvp_of_shard_map_unchecked""",
    "third_forward_forward_reverse": "third_reverse_thrice third_reverse_forward_reverse",
    "grad_of_descent_in_a_scan": "grad_of_fori_loop",
    "grad_of_mean_in_shard_map": "grad_of_mean_in_shard_map_unchecked",
}
FIRST = {name: first for first, names in SAME.items() for name in names.split()}


@functools.cache
def plain_results(name, dtype):
    """Compute the composition with the plain formulas in float64, for arrays rounded to this dtype."""
    plain = compositions.widened(compositions.problem(losses, dtype))._replace(f=compositions.plain)
    if name in ("leak_checking", "eval_shape"):
        return TABLE[name](plain)
    return jax.jit(lambda arrays: TABLE[name](plain._replace(**arrays)))({n: getattr(plain, n) for n in "zyvw"})


def result_pairs(name, dtype):
    """Return pairs of leaves: the result of the losses in this dtype, and that of the plain formulas for the same numbers in float64."""
    actual = composed(name, compositions.problem(losses, dtype))
    expected = plain_results(FIRST.get(name, name), dtype)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    assert all(a.shape == e.shape for a, e in pairs)
    return pairs


@pytest.mark.covering(1, at_most=24)
@pytest.mark.parametrize(("name", "dtype"), covering.quick([*itertools.product(TABLE, DTYPES)], quick()))
def test_composition_is_that_of_the_plain_formulas(name, dtype, x64):
    """In float64, all but the last digits agree. In other dtypes, the allowed error is the rounding of the results and of their terms."""
    eps = 8 * float(np.finfo(np.float32).eps if dtype == "float32" else jax.numpy.finfo(dtype).eps)
    for a, e in result_pairs(name, dtype):
        if dtype == "float64":
            np.testing.assert_allclose(a, e, rtol=1e-11, atol=1e-12)
        else:
            a, e = (np.asarray(x, np.float64) for x in (a, e))
            np.testing.assert_allclose(a, e, rtol=0, atol=eps * np.max(abs(e), initial=0))
