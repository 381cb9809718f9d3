"""The table of non-finite and extreme logits, with the expected result of each cell.

A cell is `(loss, entry, place, quantity)`: the entry is a logit, and the place is its position in a row. `failures` checks any library that has
some of the functions in `LOSSES`.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.nonfinite_rules import (
    INF,
    NAN,
    OTHER_EXAMPLES,
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


# The places of an entry: (its class, the classes that `where` keeps, whether `mask` keeps the row).
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

# The function of a library -> the losses that it computes: name -> (label distribution, places).
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


def make_case(function, loss, q, entry, place, place_spec):
    index, where, mask = place_spec
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
        logits, labels = np.stack([OTHER_EXAMPLES[0], logits, OTHER_EXAMPLES[1]]), np.full(3, TRUE, np.int32)
        options = {n: np.stack([np.ones_like(v), v, np.ones_like(v)]) for n, v in options.items()}
    else:
        answer = softmax_rule(logits, q, where, mask, function.startswith("keras"))
        expected = with_jvp(*answer, elementwise=False)
    return Case(loss, entry, place, logits, labels, options, expected)


def make_calls(function):
    """Return the cases of a function of the library, as one list per call. The cases of one call have the same options."""
    with np.errstate(all="ignore"):
        cases = [
            make_case(function, loss, q, entry, place, place_spec)
            for loss, (q, places) in LOSSES[function].items()
            for (place, place_spec), entry in itertools.product(places.items(), ROW_ENTRIES)
        ]
    key = lambda case: sorted(case.options)  # noqa: E731 - used twice, here
    return [list(group) for _, group in itertools.groupby(sorted(cases, key=key), key)]


def answers(function, logits, labels, quantities=QUANTITIES, **options):
    """Compute the `quantities` of `function(logits, labels, **options)` with JAX, for a batch of cases along the first axis."""
    tangent = jnp.broadcast_to(TANGENT, logits.shape)
    losses = lambda z: function(z, labels, **options)  # noqa: E731 - the function of all four quantities
    value, jvp = jax.jvp(losses, (logits,), (tangent,))
    gradient = jax.grad(lambda z: losses(z).sum())
    found = {"value": value, "gradient": gradient(logits), "jvp": jvp}
    if "hessian" in quantities:
        found["hessian"] = batched_hessian(lambda z: losses(z).sum(), logits, jax.grad)
    return found


def batched_hessian(total, logits, inner, outer="forward"):
    """Compute the Hessian of each case in a batch, one column for all cases at a time. `inner` returns the gradient function."""
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
    """Whether every entry has its expected value, within `ulps` of float32 relative to the scale."""
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
    """Stack the cases of one call: return logits, labels and options."""
    options = {name: np.stack([c.options[name] for c in cases]) for name in cases[0].options}
    return np.stack([c.logits for c in cases]), np.stack([c.labels for c in cases]), options


def groups(library):
    """Yield (function, cases of one call) for each loss and each set of options that the library has. The default of `library.options` is none."""
    for name in LOSSES:
        function = getattr(library, name, None)
        for cases in make_calls(name) if function else ():
            if set(cases[0].options) <= set(getattr(library, "options", ())):
                yield function, cases


def failures(library, *, way=jax.jit, quantities=QUANTITIES, ulps=8):
    """Return the number of cells, and the list of the wrong ones.

    Args:
      library: Has some of the functions in `LOSSES`; each is called as `function(logits, labels, **options)` and returns losses. `options` holds
        the supported options: "where", "mask" or both. If JAX cannot differentiate the functions, `library.answers` replaces `answers`.
      way: A transform of the evaluated function of `(logits, labels, options)`. Not used if the library has its own `answers`.
      quantities: Some of `QUANTITIES`.
      ulps: The allowed error of a finite quantity.
    """
    total, failed = 0, []
    compute = getattr(library, "answers", answers)
    for function, cases in groups(library):
        logits, labels, options = batch(cases)
        run = lambda z, y, o, function=function: compute(function, z, y, quantities, **o)  # noqa: E731 - `way` accepts only arrays
        got = (way(run) if compute is answers else run)(logits, labels, options)
        for i, case in enumerate(cases):
            for quantity in quantities:
                total += 1
                if not agrees(got[quantity][i], case.expected[quantity], ulps):
                    failed.append((case.loss, case.entry, case.place, quantity))
    return total, failed


def evaluate(library, **settings):
    """Return the number of cells, and the number of correct ones."""
    cells, failed = failures(library, **settings)
    return cells, cells - len(failed)
