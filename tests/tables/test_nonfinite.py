"""Every cell of the non-finite table is correct, and finite or masked inputs do not trigger the checks of JAX for NaN and infinities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import covering, platform
from tests.support import nonfinite_cells as cells
from tests.support.changed import Changed, among_many_classes, mapped, repeated
from tests.support.ours import OURS
from tests.support.ways import eager

GROUPS = list(cells.groups(OURS))
FIRST_ORDER = ("value", "gradient", "jvp")
on_a_cpu = platform.on_a_cpu


@pytest.mark.covering(1, at_most=1)
@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize("way", [jax.jit, eager], ids=["jit", "eager"])
def test_every_cell_is_correct(way):
    quantities = cells.QUANTITIES if way is jax.jit else ("value", "gradient")
    number, failed = cells.failures(OURS, way=way, quantities=quantities)
    assert number >= 250 * len(quantities)
    assert not failed


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize(
    "quantities", [FIRST_ORDER, pytest.param(cells.QUANTITIES, marks=pytest.mark.nightly)], ids="+".join
)
def test_every_cell_is_correct_under_vmap(quantities):
    _, failed = cells.failures(Changed(mapped), quantities=quantities)
    assert not failed


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("functions", "least"),
    [(("sigmoid", "keras_sparse"), 30), pytest.param(tuple(cells.LOSSES), 250, marks=pytest.mark.nightly)],
    ids=["two functions", "every function"],
)
def test_every_cell_is_correct_in_a_large_array(functions, least, on_a_cpu):
    number, failed = cells.failures(Changed(repeated, functions), quantities=FIRST_ORDER)
    assert number >= least * len(FIRST_ORDER)
    assert not failed


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize(
    ("functions", "quantities", "least"),
    [
        (("integer", "soft"), FIRST_ORDER, 3 * 80),
        pytest.param(("integer", "soft", "loss_sum"), cells.QUANTITIES, 4 * 100, marks=pytest.mark.nightly),
    ],
    ids=["two functions", "every quantity of three functions"],
)
def test_every_cell_is_correct_among_many_classes(functions, quantities, least):
    number, failed = cells.failures(Changed(among_many_classes, functions), quantities=quantities)
    assert number >= least
    assert not failed


def forward_of_forward(losses, logits):
    """Compute the Hessian of each example by itself, because the tangent of a sum is NaN if one of its terms is NaN."""
    shape = logits.shape[1:]
    basis = jnp.eye(int(np.prod(shape)), dtype=logits.dtype).reshape(-1, 1, *shape)
    each = lambda z: losses(z).reshape(len(z), -1).sum(1)  # noqa: E731
    jvp = lambda f, v: lambda z: jax.jvp(f, (z,), (jnp.broadcast_to(v, z.shape),))[1]  # noqa: E731
    columns = jax.vmap(lambda v: jax.vmap(lambda w: jvp(jvp(each, v), w)(logits))(basis))(basis)
    return jnp.moveaxis(columns, 2, 0).reshape(logits.shape + shape)


def reverse_of_reverse(losses, logits):
    return cells.batched_hessian(lambda z: losses(z).sum(), logits, jax.grad, "reverse")


def reverse_of_forward(losses, logits):
    return cells.batched_hessian(lambda z: losses(z).sum(), logits, jax.jacfwd, "reverse")


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.covering(1)
@pytest.mark.parametrize(
    "nesting", [forward_of_forward, reverse_of_reverse, reverse_of_forward], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(
    "group",
    covering.quick(
        [(i,) for i in range(len(GROUPS))], [(i,) for i, (_, cases) in enumerate(GROUPS) if not cases[0].options]
    ),
    ids=lambda i: GROUPS[i][1][0].loss,
)
def test_every_hessian_is_the_same_in_every_order(group, nesting):
    """The tests of the cells use forward of reverse. This test uses the other three orders."""
    failed = []
    function, cases = GROUPS[group]
    got = jax.jit(lambda z, y, o: nesting(lambda z: function(z, y, **o), z))(*cells.batch(cases))
    for case, hessian in zip(cases, got, strict=True):
        expected = case.expected["hessian"]
        if nesting is forward_of_forward and np.isnan(case.expected["value"].value).any():
            expected = expected._replace(free=True)
        if not cells.agrees(hessian, expected, 8):
            failed.append(case[:3])
    assert not failed


@pytest.mark.usefixtures("fast_compilation")
def test_hessian_through_a_loop(on_a_cpu):
    """In jax <= 0.11.2, reverse mode through a loop ignores the rules of `jax.custom_jvp`."""
    entries = {"-inf", "+inf", "max", "-max", "subnormal"}
    for function, cases in GROUPS[:3]:
        kept = [c for c in cases if c.entry in entries and np.isfinite(c.expected["hessian"].value).all()]
        assert {c.entry for c in kept} == entries
        logits, labels, options = cells.batch(kept)
        total = lambda z, y, o, f=function: jnp.sum(jax.lax.map(lambda row: f(row[0], row[1], **row[2]), (z, y, o)))  # noqa: E731
        hessian = jax.jit(lambda z, y, o, f=total: cells.batched_hessian(lambda z: f(z, y, o), z, jax.grad, "reverse"))
        for case, got in zip(kept, hessian(logits, labels, options), strict=True):
            assert cells.agrees(got, case.expected["hessian"], 8), case[:3]


def clean_cases():
    """Yield, for each group, the cases with finite results, and with finite logits or a masked entry."""
    for function, cases in GROUPS:
        clean = [c for c in cases if all(np.isfinite(q.value.astype(np.float32)).all() for q in c.expected.values())]
        kept = [c for c in clean if np.isfinite(c.logits).all() or c.place.startswith("masked")]
        if kept:
            yield "-".join([kept[0].loss, *kept[0].options]), (function, kept)


CLEAN_CASES = dict(clean_cases())


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.covering(1, at_most=6)
@pytest.mark.parametrize("check", [jax.debug_nans, jax.debug_infs], ids=["nans", "infs"])
@pytest.mark.parametrize("way", [eager, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", CLEAN_CASES)
def test_clean_cases_do_not_trigger_the_checks_for_nan_and_infinity(name, way, check):
    function, cases = CLEAN_CASES[name]
    logits, labels, options = jax.tree.map(jnp.asarray, cells.batch(cases))

    def values_and_gradient(z, y, o):
        losses, vjp = jax.vjp(lambda z: function(z, y, **o), z)
        return losses, vjp(jnp.ones_like(losses))[0]

    with check(True):
        for f in (lambda z, y, o: function(z, y, **o), values_and_gradient):
            jax.block_until_ready(way(f)(logits, labels, options))
