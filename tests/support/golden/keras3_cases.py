"""The cases of the corpus of Keras 3: inputs and options of the focal losses, the generalized cross-entropy and the KL divergence.

A case is a dictionary. `parameters` are what the quick tier covers in pairs. `quirks` are the reasons why jaxce may differ from Keras. A second
problem, `wide`, has the same exact answer if Keras's definition is used with the class axis last and in a wider dtype.
"""

import itertools

import jax.numpy as jnp
import numpy as np

from tests.support import covering

DTYPES = ("float32", "float64", "float16", "bfloat16")
GAMMAS, SMOOTHINGS = (0.0, 0.5, 2.0, 5.0), (0.0, 0.1)
BINARY, CATEGORICAL = "binary_focal_crossentropy", "categorical_focal_crossentropy"
GENERALIZED, DIVERGENCE = "categorical_generalized_cross_entropy", "kl_divergence"
OBJECTS = {
    "KLDivergence": {},
    "BinaryFocalCrossentropy": {"apply_class_balancing": True, "label_smoothing": 0.1},
    "CategoricalFocalCrossentropy": {"alpha": [0.2, 0.3, 0.5], "gamma": 1.5},
    "CategoricalGeneralizedCrossEntropy": {"q": 0.7},
}
REDUCTIONS = ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none", None)
# Shape and class axis of the kinds of arrays that are not named otherwise.
SHAPES = {
    "rank 1": ((5,), -1),
    "rank 3, axis 1": ((2, 3, 4), 1),
    "rank 3, axis -2": ((2, 4, 4), -2),
    "rank 4, axis 0": ((3, 2, 1, 2), 0),
    "no rows": ((0, 3), -1),
    "one class": ((3, 1), -1),
}
KINDS = ("rows", "corners", "logits", "logits, rank 3, axis 1", "large logits", "infinite logits", *SHAPES)


def cotangent(shape):
    """Return the weights of the losses in the sum whose gradient is recorded. They are exact in every dtype."""
    n = int(np.prod(shape, dtype=np.int64))
    return (0.25 + 0.125 * ((5 * np.arange(n) + 3) % 13)).reshape(shape)


def cases():
    """Return all cases by name."""
    rows = itertools.chain(_focal(BINARY), _focal(CATEGORICAL), _divergences(), _generalized(), _mistakes(), _objects())
    named = {}
    for case in rows:
        values = ", ".join(f"{k}={v}" for k, v in case["parameters"].items())
        named[f"{case['function']}: {values}"] = case
    return named


def _rng(*key):
    return np.random.default_rng(list(repr(key).encode()))


def _case(function, y_true, y_pred, args, dtype, quirks=(), **parameters):
    """Return a case whose labels and predictions have the dtype. Labels of integers keep theirs."""
    y_pred = np.asarray(y_pred).astype(jnp.dtype(dtype))
    y_true = np.asarray(y_true)
    if y_true.dtype.kind == "f":
        y_true = y_true.astype(jnp.dtype(dtype))
    case = {"function": function, "args": args, "y_true": y_true, "y_pred": y_pred, "quirks": list(quirks)}
    return {**case, "parameters": {**parameters, "dtype": dtype}}


def _probabilities(rng, shape, axis):
    p = np.exp(rng.normal(size=shape))
    return p / p.sum(axis, keepdims=True)


def _labels(function, rng, shape, axis):
    """Return labels: some of 0 and 1, some soft. The class axis of class probabilities is the last."""
    if function == BINARY:
        return rng.choice([0.0, 1.0, 0.25], shape)
    hot = np.eye(shape[axis])[rng.integers(0, shape[axis], np.delete(shape, axis))]
    soft = np.moveaxis(_probabilities(rng, shape, axis), axis, -1)
    return np.where(rng.uniform(size=(*soft.shape[:-1], 1)) < 0.6, hot, soft)


def _arrays(function, kind, rng):
    """Return labels, predictions and the class axis."""
    if kind == "corners" and function == BINARY:
        p = [0, 1, 0.5, 0.25, 2**-10, 1 - 2**-7, np.float32(1e-7), 1 - 2.0**-23]
        return np.repeat([[0.0], [1.0], [0.25]], 8, 1), np.repeat([p], 3, 0), -1
    if kind == "corners":
        p = [[0, 1, 0], [1, 0, 0], [0.5, 0.5, 0], [2, 1, 1], [1e-7, 0.5, 0.5], [0, 0, 0], [3e-8, 0.2, 0.3], [0, 4, 0]]
        y = [[0, 1, 0], [0, 1, 0], [0.5, 0.25, 0.25], [0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0.2, 0.3, 0.5]]
        return np.array(y, float), np.array(p, float), -1
    if kind == "large logits":
        z = [[1e3, -1e3, 0], [-1e3, 1e3, 0], [20, 0, -20], [0, 1e3, 1e3], [40, 41, 0], [-30, -31, -90]]
        y = [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0.5, 0.25, 0.25], [1, 0, 0]]
        return np.array(y, float), np.array(z, float), -1
    if kind == "infinite logits":
        i = np.inf
        z = [[i, 0, 1], [-i, 0, 1], [0, -i, 1], [-i, -i, -i], [np.nan, 0, 1], [0, -i, 1]]
        return np.eye(3)[[0, 0, 0, 0, 0, 1]], np.array(z, float), -1
    shape, axis = {**SHAPES, "logits, rank 3, axis 1": SHAPES["rank 3, axis 1"]}.get(kind, ((4, 3), -1))
    labels = _labels(function, rng, shape, axis)
    if function == CATEGORICAL:
        labels = np.moveaxis(labels, -1, axis)
    if "logits" in kind:
        return labels, 2 * rng.normal(size=shape), axis
    if function == BINARY:
        return labels, rng.uniform(0.01, 0.99, shape), axis
    return labels, rng.uniform(0.5, 2) * _probabilities(rng, shape, axis), axis


def _focal(function):
    """Yield cases in which all pairs of parameters occur, most of them twice."""
    weights = ("none", 0.0, 0.25, 1.0) if function == BINARY else (0.0, 0.25, 1.0, "per class")
    names = ("kind", "dtype", "gamma", "smoothing", "alpha")
    grid = [dict(zip(names, v, strict=True)) for v in itertools.product(KINDS, DTYPES, GAMMAS, SMOOTHINGS, weights)]
    chosen = [rows[i] for rows in (grid, grid[::-1]) for i in covering.selection(rows, 2)]
    for parameters in chosen:
        kind, dtype, gamma, smoothing, alpha = parameters.values()
        y_true, y_pred, axis = _arrays(function, kind, _rng(function, kind, dtype, gamma))
        args = {"gamma": gamma, "from_logits": "logits" in kind, "label_smoothing": smoothing, "axis": axis}
        per_class = alpha == "per class"
        if function == BINARY:
            args |= {"apply_class_balancing": alpha != "none", **({} if alpha == "none" else {"alpha": alpha})}
        else:
            args["alpha"] = [0.5, 1.5, 0.25, 1.0, 2.0][: y_pred.shape[axis]] if per_class else alpha
        quirks = ["clipped_logits"] * (kind in ("large logits", "infinite logits"))
        quirks += ["half"] * (dtype in ("float16", "bfloat16"))
        quirks += ["mean_in_float32"] * (function == BINARY and dtype == "float64")
        if function == CATEGORICAL and axis != -1:
            quirks += ["smoothing_axis"] * (smoothing > 0) + ["alpha_axis"] * per_class
        yield _case(function, y_true, y_pred, args, quirks=quirks, **parameters)


def _divergences():
    kinds = ("rows", "corners", "rank 1", "rank 3, axis 1", "no rows", "one class")
    for kind, dtype in itertools.product(kinds, DTYPES):
        y_true, y_pred, axis = _arrays(CATEGORICAL, kind, _rng(kind, dtype))
        y_true, y_pred = np.moveaxis(y_true, axis, -1), np.moveaxis(y_pred, axis, -1)
        yield _case(DIVERGENCE, y_true, y_pred, {}, kind=kind, dtype=dtype, quirks=["half"] * (dtype[-2:] == "16"))
    hot = np.eye(3, dtype=np.int32)
    yield _case(DIVERGENCE, hot, np.full((3, 3), 0.2), {}, kind="integer labels", dtype="float32")


def _generalized():
    kinds = ("rows", "float labels", "rank 1", "rank 3", "one class", "column", "zero", "not a class", "no rows")
    kinds = (*kinds, "not finite")
    for kind, dtype, q in itertools.product(kinds, DTYPES, (0.1, 0.5, 0.9)):
        rng = _rng(kind, dtype, q)
        shape = {"rank 1": (5,), "rank 3": (2, 3, 4), "one class": (3, 1), "no rows": (0, 3)}.get(kind, (4, 3))
        y_pred = rng.uniform(0.5, 1) * _probabilities(rng, shape, -1)
        y_true = rng.integers(0, shape[-1], shape[:-1], np.int32)
        if kind == "float labels":
            y_true = y_true + 0.5
        elif kind == "column":
            y_true = y_true[:, None]
        elif kind == "zero":
            y_true = np.int32([1, 0, 2, 2])
            y_pred = np.array([[0, 1, 0], [0, 1, 0], [0.5, 0.5, 0], [0.1, 0.2, 0.7]])
        elif kind == "not a class":
            y_true = np.int32([-1, 3, 0, 2**30])
        elif kind == "not finite":
            y_true, y_pred[0, 0], y_pred[1, 2], y_pred[2] = np.int32([0, 0, 1, 0]), np.nan, np.inf, -0.25
        quirks = {"column": ["column_labels"], "zero": ["zero_probability"], "not a class": ["label_out_of_range"]}
        quirks = [*quirks.get(kind, ()), *["half"] * (dtype[-2:] == "16")]
        yield _case(GENERALIZED, y_true, y_pred, {"q": q}, kind=kind, dtype=dtype, gamma=q, quirks=quirks)


def _mistakes():
    """Yield calls with arrays or options that do not fit. jaxce raises; Keras broadcasts some of them."""
    p, row = np.full((4, 3), 0.25), np.full((1, 3), 0.25)
    for function in (BINARY, CATEGORICAL, DIVERGENCE):
        for kind, y in {"column": p[:, :1], "one row": row, "fewer rows": p[:2], "vector": p[:, 0]}.items():
            yield _case(function, y, p, {}, "float32", ["broadcast"], kind=f"mistake: {kind}")
        yield _case(function, np.ones(()), np.full((), 0.5), {}, "float32", kind="mistake: scalar")
    for function in (BINARY, CATEGORICAL):
        yield _case(function, p, p, {"axis": 2}, "float32", kind="mistake: axis")
    yield _case(CATEGORICAL, p, p, {"alpha": [1.0, 2.0]}, "float32", kind="mistake: alpha")
    yield _case(GENERALIZED, p, p, {"q": 0.5}, "float32", ["broadcast"], kind="mistake: one-hot")
    yield _case(GENERALIZED, np.zeros(3, np.int32), p, {"q": 0.5}, "float32", ["broadcast"], kind="mistake: fewer rows")


def _objects():
    vector = [0.5, 0.0, 2.0, 1.0]
    weights = {"no weights": None, "scalar": 0.5, "vector": vector, "column": [[w] for w in vector]}
    grid = itertools.product(OBJECTS, REDUCTIONS, weights, (False, True))
    grid = [dict(zip(("name", "reduction", "weights", "masked"), values, strict=True)) for values in grid]
    for i in covering.selection(grid, 3):
        name, reduction, weight, masked = grid[i].values()
        rng = _rng(name)
        function = BINARY if name.startswith("Binary") else CATEGORICAL
        y_true, y_pred = _labels(function, rng, (4, 3), -1), _probabilities(rng, (4, 3), -1)
        if name.endswith("Entropy"):
            y_true = rng.integers(0, 3, 4, np.int32)
        args = {**OBJECTS[name], "reduction": reduction}
        case = _case(name, y_true, y_pred, args, "float32", kind="object", **grid[i])
        case["sample_weight"] = weights[weight]
        case["mask"] = [True, False, True, True] if masked else None
        yield case
