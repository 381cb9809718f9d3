"""The non-finite matrix: an awkward entry, a place for it, a loss, a quantity; each cell with what the rules say of it.

A cell is `(loss, entry, place, quantity)`. They may be asked of any library that offers some of the functions named in `LOSSES`: see
`failures`.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.nonfinite_rules import (
    AROUND,
    INF,
    NAN,
    QUANTITIES,
    TANGENT,
    C,
    Expected,
    mean_rule,
    sigmoid_rule,
    softmax_rule,
    with_jvp,
)

LARGEST = float(np.finfo(np.float32).max)
ENTRIES = {"-inf": -INF, "+inf": INF, "NaN": NAN, "max": LARGEST, "-max": -LARGEST, "subnormal": 1e-40}
ROW_ENTRIES = {**ENTRIES, "row of -inf": -INF}

TRUE, OTHER, IMPOSSIBLE = 1, 0, 3
ROW = np.float32([0.5, -1, 2, 0.25, 1])
ONE_HOT = np.eye(C, dtype=np.float32)[TRUE]
PROBABILITIES = np.float32([0.25, 0.5, 0.25, 0, 0])


class Case(NamedTuple):
    loss: str
    entry: str
    place: str
    logits: np.ndarray
    labels: np.ndarray
    options: dict[str, np.ndarray]
    expected: dict[str, Expected]


# Which places there are for an entry: (its class, the classes that `where` keeps, whether `mask` keeps the row).
ALL = np.ones(C, bool)
OPTIONAL_PLACES = {
    "masked class": (IMPOSSIBLE, ~np.eye(C, dtype=bool)[IMPOSSIBLE], True),
    "masked true class": (TRUE, ~np.eye(C, dtype=bool)[TRUE], True),
    "masked row": (TRUE, ALL, False),
}
PLACES = {"true class": (TRUE, ALL, True), "elsewhere": (OTHER, ALL, True)}
SOFT_PLACES = {**PLACES, "zero soft label": (IMPOSSIBLE, ALL, True)}
# For a sigmoid: the label of the entry, and whether `mask` keeps it.
BINARY_LABELS = np.float32([1, 0, 0.25, 1, 0])
BINARY_PLACES = {"true class": (0, ALL, ALL), "elsewhere": (1, ALL, ALL), "soft label": (2, ALL, ALL)}
MASKED_ENTRY = {"masked entry": (0, ALL, ~np.eye(C, dtype=bool)[0]), "masked row": (0, ALL, ~ALL)}

# The function of a library -> the losses it is asked for: name -> (label distribution, places).
LOSSES = {
    "integer": {"integer": (ONE_HOT, {**PLACES, **OPTIONAL_PLACES})},
    "soft": {
        "one-hot": (ONE_HOT, {**PLACES, **OPTIONAL_PLACES}),
        "soft": (PROBABILITIES, {**SOFT_PLACES, **OPTIONAL_PLACES}),
    },
    "sigmoid": {"sigmoid": (BINARY_LABELS, {**BINARY_PLACES, **MASKED_ENTRY})},
    "loss_sum": {"LossSum": (ONE_HOT, {**PLACES, **OPTIONAL_PLACES})},
    "keras_sparse": {"Keras sparse": (ONE_HOT, {**PLACES, "masked row": OPTIONAL_PLACES["masked row"]})},
    "keras_categorical": {"Keras categorical": (PROBABILITIES, SOFT_PLACES), "Keras one-hot": (ONE_HOT, PLACES)},
    "keras_binary": {"Keras binary": (BINARY_LABELS, BINARY_PLACES)},
}


def case_of(function, loss, q, entry, place, where_and_how):
    index, where, mask = where_and_how
    logits = ROW.copy()
    logits[index] = ROW_ENTRIES[entry]
    if entry == "row of -inf":
        logits[:] = -INF
    labels = np.int32(TRUE) if function in ("integer", "loss_sum", "keras_sparse") else q
    options = {} if where.all() else {"where": where}
    if not np.all(mask):
        options["mask"] = np.asarray(mask)
    if function in ("sigmoid", "keras_binary"):
        expected = with_jvp(*sigmoid_rule(logits, q, mask, function == "keras_binary"), elementwise=True)
    elif function == "loss_sum":
        expected = with_jvp(*mean_rule(logits, q, where, mask), elementwise=False)
        logits, labels = np.stack([AROUND[0], logits, AROUND[1]]), np.full(3, TRUE, np.int32)
        options = {n: np.stack([np.ones_like(v), v, np.ones_like(v)]) for n, v in options.items()}
    else:
        answer = softmax_rule(logits, q, where, mask, function.startswith("keras"))
        expected = with_jvp(*answer, elementwise=False)
    return Case(loss, entry, place, logits, labels, options, expected)


def cases_of(function):
    """The cases of a function of the library, those with the same options together, as they go into one call."""
    with np.errstate(all="ignore"):
        cases = [
            case_of(function, loss, q, entry, place, where_and_how)
            for loss, (q, places) in LOSSES[function].items()
            for (place, where_and_how), entry in itertools.product(places.items(), ROW_ENTRIES)
        ]
    key = lambda case: sorted(case.options)  # noqa: E731 - used twice, here
    return [list(group) for _, group in itertools.groupby(sorted(cases, key=key), key)]


def answers(function, logits, labels, quantities=QUANTITIES, **options):
    """`quantities` of `function(logits, labels, **options)` for a batch of cases in the first axis, by JAX."""
    tangent = jnp.broadcast_to(TANGENT, logits.shape)
    losses = lambda z: function(z, labels, **options)  # noqa: E731 - the one function that all four are of
    value, jvp = jax.jvp(losses, (logits,), (tangent,))
    gradient = jax.grad(lambda z: losses(z).sum())
    found = {"value": value, "gradient": gradient(logits), "jvp": jvp}
    if "hessian" in quantities:
        found["hessian"] = batched_hessian(lambda z: losses(z).sum(), logits, jax.grad)
    return found


def batched_hessian(total, logits, inner, outer="forward"):
    """The Hessian of each case in a batch, one column for all cases at a time. `inner` makes the gradient."""
    shape = logits.shape[1:]
    basis = jnp.eye(int(np.prod(shape)), dtype=logits.dtype).reshape(-1, 1, *shape)
    gradient = inner(total)

    def column(direction):
        direction = jnp.broadcast_to(direction, logits.shape)
        if outer == "forward":
            return jax.jvp(gradient, (logits,), (direction,))[1]
        return jax.vjp(gradient, logits)[1](direction)[0]

    columns = jax.vmap(column)(basis)
    return jnp.moveaxis(columns, 0, -1).reshape(logits.shape + shape)


def agrees(actual, expected, ulps):
    """Whether every entry is what it should be, within `ulps` of float32 of what it is a sum of."""
    value, scale, actual = (np.asarray(x).astype(np.longdouble) for x in (expected.value, expected.scale, actual))
    if actual.shape != value.shape:
        return False
    with np.errstate(all="ignore"):
        rounded = value.astype(np.float32)
        bound = ulps * (float(np.finfo(np.float32).eps) * np.maximum(scale, abs(value)) + np.finfo(np.float32).tiny)
        near = np.isfinite(rounded) & np.isfinite(actual) & (abs(actual - value) <= bound)
    same = near | (actual == rounded) | (np.isnan(actual) & np.isnan(value))
    return bool(np.all(same | (expected.free & (np.isnan(actual) | (actual == 0)))))


def batch(cases):
    """(logits, labels, options) of cases that go into one call."""
    options = {name: np.stack([c.options[name] for c in cases]) for name in cases[0].options}
    return np.stack([c.logits for c in cases]), np.stack([c.labels for c in cases]), options


def groups(library):
    """(function, cases of one call) for the losses that the library has, and the options: `library.options`, none by default."""
    for name in LOSSES:
        function = getattr(library, name, None)
        for cases in cases_of(name) if function else ():
            if set(cases[0].options) <= set(getattr(library, "options", ())):
                yield function, cases


def failures(library, *, way=jax.jit, quantities=QUANTITIES, ulps=8):
    """(the number of cells, those that do not hold).

    Args:
      library: Has some of the functions in `LOSSES`, as `function(logits, labels, **options)` giving losses; `options`, the names of those
        that it takes, of "where" and "mask"; and, unless JAX differentiates its functions, `answers` in place of the one here.
      way: What is done to the function of `(logits, labels, options)` that is evaluated, where JAX evaluates it.
      quantities: Which of `QUANTITIES`.
      ulps: How exact a finite quantity has to be.
    """
    total, failed = 0, []
    ask = getattr(library, "answers", answers)
    for function, cases in groups(library):
        logits, labels, options = batch(cases)
        run = lambda z, y, o, function=function: ask(function, z, y, quantities, **o)  # noqa: E731 - so that `way` takes arrays alone
        got = (way(run) if ask is answers else run)(logits, labels, options)
        for i, case in enumerate(cases):
            for quantity in quantities:
                total += 1
                if not agrees(got[quantity][i], case.expected[quantity], ulps):
                    failed.append((case.loss, case.entry, case.place, quantity))
    return total, failed


def evaluate(library, **settings):
    """(the number of cells, how many of them hold)."""
    cells, failed = failures(library, **settings)
    return cells, cells - len(failed)
