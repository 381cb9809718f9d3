"""The divergences of linear layers, and of a layer and dense logits: values and every gradient, in every dtype and by every implementation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import Chunked, LinearLogits
from tests.support import covering, divergences
from tests.support.divergences import DENSE, FUNCTIONS
from tests.support.row_losses import assert_near

pytestmark = pytest.mark.usefixtures("fast_compilation")

# The largest error, as a part of the largest number.
ERROR = {"bfloat16": 1e-2, "float16": 1e-3, "float32": 6e-6, "float64": 1e-13}
WAYS = {
    "both lazy": (None, None),
    "both in blocks": (Chunked(4), Chunked(4)),
    "smaller blocks count": (Chunked(8), Chunked(3)),
    "reference": ("reference", "chunked"),
    "target dense": (DENSE, Chunked(4)),
    "target lazy": (Chunked(5), DENSE),
}
DTYPES = ["float32", "float64", "bfloat16", "float16", "bfloat16 and float32", "float32 and float64"]
CASES = itertools.product(WAYS, [(11,), (3, 5), (0,), (2, 2, 3)], DTYPES, FUNCTIONS)
QUICK = [
    ("both lazy", (11,), "float32 and float64", "kl sum"),
    ("target lazy", (3, 5), "bfloat16 and float32", "js sum"),
]


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize(("way", "rows", "dtypes", "name"), covering.quick(CASES, QUICK), ids=str)
def test_value_and_every_gradient(way, rows, dtypes, name, rng, x64):
    pair = [jnp.dtype(dtype) for dtype in (dtypes.split(" and ") * 2)[:2]]
    ways = list(WAYS[way])
    for i in range(2):
        if ways[i] == DENSE:  # the product in a narrower dtype than that of the result would round the logits
            pair[i] = jnp.dtype(np.float64 if np.float64 in pair else np.float32)
    problem = divergences.make(rng, rows, pair)
    value, found = divergences.gradients(lambda x: divergences.total(name, x, ways), problem)
    want_value, wanted = divergences.gradients(
        lambda x: divergences.plain_total(name, x), divergences.as_float64(problem)
    )
    assert value.dtype == (np.float64 if np.float64 in pair else np.float32)
    assert_near(value, want_value, ERROR[value.dtype.name])
    for field, gradient in found.items():
        assert gradient.dtype == getattr(problem, field).dtype
        if field == "weight" and name.startswith("kl"):
            continue
        assert_near(gradient, wanted[field], max(ERROR[gradient.dtype.name], ERROR[value.dtype.name]))
        if gradient.shape == rows:
            assert (np.asarray(gradient)[~problem.mask] == 0).all()


MODES = {
    "jvp": lambda f, x, t: jax.jvp(f, (x,), (t,))[1],
    "jvp of grad": lambda f, x, t: jax.jvp(jax.grad(f), (x,), (t,))[1],
    "grad of grad": lambda f, x, t: jax.grad(lambda x: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.grad(f)(x), t))))(
        x
    ),
    "third": lambda f, x, t: jax.jvp(lambda x: jax.jvp(jax.grad(f), (x,), (t,))[1], (x,), (t,))[1],
}


ORDERS = itertools.product(["both in blocks", "target lazy"], MODES, FUNCTIONS)


@pytest.mark.parametrize(
    ("way", "mode", "name"),
    covering.quick(ORDERS, [("both in blocks", "jvp of grad", "kl sum")]),
)
def test_derivatives_of_every_mode_and_order(way, mode, name, rng, x64):
    problem = divergences.as_float64(divergences.make(rng, (6,)))
    by_name, replaced = divergences.split(problem)
    tangents = {n: jnp.asarray(np.where(np.isnan(x), 0, 0.3)) for n, x in by_name.items()}

    def derivative(function, *ways):
        return jax.jit(lambda x, t: MODES[mode](lambda x: function(name, replaced(x), *ways), x, t))(by_name, tangents)

    found, wanted = derivative(divergences.total, WAYS[way]), derivative(divergences.plain_total)
    if isinstance(found, dict) and name.startswith("kl"):
        found, wanted = ({n: x for n, x in y.items() if n != "weight"} for y in (found, wanted))
    assert_near(found, wanted, 1e-11)


LOOPS = {
    "scan": lambda f, rows: jax.lax.scan(lambda s, row: (s + f(row), None), jnp.zeros(()), rows)[0],
    "checkpoint": lambda f, rows: sum(jax.checkpoint(f)(jax.tree.map(lambda r, i=i: r[i], rows)) for i in range(3)),
    "map of checkpoint": lambda f, rows: jnp.sum(jax.lax.map(jax.checkpoint(f), rows)),
    "vmap": lambda f, rows: jnp.sum(jax.vmap(f)(rows)),
}
OF_ROWS = ("target_hidden", "hidden", "temperature", "weights", "mask")


@pytest.mark.parametrize(
    ("way", "name", "loop"),
    covering.quick(
        itertools.product(["both in blocks", "target dense"], FUNCTIONS, LOOPS),
        [("target dense", "kl sum", "scan")],
    ),
)
def test_loops(way, name, loop, rng, x64):
    problem = divergences.as_float64(divergences.make(rng, (3, 5)))
    by_name, replaced = divergences.split(problem)

    def looped(x):
        whole = replaced(x)
        rows = {field: jnp.asarray(getattr(whole, field)) for field in OF_ROWS}
        return LOOPS[loop](lambda row: divergences.total(name, whole._replace(**row), WAYS[way]), rows)

    found = jax.jit(jax.value_and_grad(looped))(by_name)
    wanted = jax.jit(jax.value_and_grad(lambda x: divergences.plain_total(name, replaced(x))))(by_name)
    for gradients in (found[1], wanted[1]):
        gradients.pop("weight")
    assert_near(found, wanted, 1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_blocks_of_classes_are_refused(name, rng):
    layer = LinearLogits(np.ones((4, 3), np.float32), np.ones((3, 5), np.float32), implementation=Chunked(2, 3))
    dense = np.zeros((4, 5), np.float32)
    for pair in ((layer, dense), (dense, layer), (layer, layer)):
        with pytest.raises(
            ValueError, match=r"`block_classes` is not for .* Leave it out: Chunked\(block_tokens=\.\.\.\)"
        ):
            FUNCTIONS[name](*pair)


def test_blocks_of_masked_tokens_with_nan_have_gradient_0(rng):
    problem = divergences.make(rng, (12,))
    mask = np.arange(12) >= 8
    problem = problem._replace(
        mask=mask,
        temperature=np.ones(12, np.float32),
        weights=np.ones(12, np.float32),
        hidden=np.where(mask[:, None], problem.hidden, np.nan).astype(np.float32),
    )
    _, found = divergences.gradients(lambda x: divergences.total("kl sum", x, (Chunked(4), Chunked(4))), problem)
    assert all(np.isfinite(x).all() for x in found.values())
    assert (np.asarray(found["hidden"])[:8] == 0).all() and (np.asarray(found["hidden"])[8:] != 0).any()
