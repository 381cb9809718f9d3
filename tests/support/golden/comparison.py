"""Compare `jaxce.keras` with one recorded case: the evaluation, the references, and the tolerance."""

import contextlib
import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxce.keras

FOLDER = pathlib.Path(__file__).parent / "corpus"
INDEX = json.loads((FOLDER / "index.json").read_text())
CASES = INDEX["cases"]

# The intended differences from the primary reference: quirk -> the system that jaxce follows instead. The reasons are in README.md.
INTENDED = {
    "labels_not_sum_1": "keras3-jax",
    "ls_num_classes_axis1": "tf2.21",
    "ls_rank1_error": "keras3-jax",
    "logits_negative_axis_error": "keras3-jax",
    "target_dtype_error": "keras3-jax",
    "axis_modulo": "keras3-jax",
    "broadcast": "keras3-jax",
    "label_flatten": "keras3-torch",
    "label_out_of_range": "tf2.21-xla",
    "label_cast_to_pred_dtype": "tf2.21",
    "nonfinite": "any",
}

# rtol and atol. atol is relative to the size of the terms of the sum that gives an element.
TOLERANCE = {"float32": 1e-6, "float64": 1e-14, "float16": 1e-3}

ORDER = {
    "losses.categorical_crossentropy": ("from_logits", "label_smoothing"),
    "losses.binary_crossentropy": ("from_logits", "label_smoothing"),
    "losses.sparse_categorical_crossentropy": ("from_logits", "axis"),
    "backend.categorical_crossentropy": ("from_logits", "axis"),
    "backend.sparse_categorical_crossentropy": ("from_logits", "axis"),
    "backend.binary_crossentropy": ("from_logits",),
}
# The exceptions for a caller's mistake. Any other exception fails the test.
MISTAKES = (TypeError, ValueError)
DEFAULT = {"from_logits": False, "label_smoothing": 0, "axis": -1}


@dataclasses.dataclass(frozen=True)
class Answer:
    """A loss with its gradient, or the exception that was raised."""

    loss: np.ndarray | None = None
    grad: np.ndarray | None = None
    exception: str | None = None


@functools.cache
def _archive(stem: str, function: str):
    return np.load(FOLDER / f"{stem}.{function}.npz")


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return `y_true` and `y_pred`."""
    archive = _archive("inputs", CASES[name]["function"])
    return archive[name + "/y_true"], archive[name + "/y_pred"]


def recorded(name: str, reference: str) -> Answer:
    """Return the recorded result of a reference."""
    result, archive = CASES[name]["results"][reference], None
    if "exception" in result:
        return Answer(exception=": ".join(result["exception"]))
    archive = _archive(reference, CASES[name]["function"])
    return Answer(archive[result["loss"]], archive[result["grad"]] if "grad" in result else None)


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    n = int(np.prod(shape, dtype=np.int64))
    return (0.25 + 0.125 * ((5 * np.arange(n) + 3) % 13)).reshape(shape)


def evaluate(name: str, *, jit: bool) -> Answer:
    """Return the result of jaxce. Eagerly, the loss gets all arguments by position and the gradient gets the options by keyword.

    Inside jit, one call by keyword computes both.
    """
    return evaluate_in_one_program([name])[name] if jit else _evaluate_eagerly(name)


def evaluate_in_one_program(names: list[str]) -> dict[str, Answer]:
    """Return the results of several cases from one jitted function, because one program per case takes far longer to compile.

    The dtype of `y_pred` is float64 in all of the cases or in none.
    """
    exceptions = {}

    def answers(arrays):
        found = {}
        for name, (y_true, y_pred) in arrays.items():
            try:
                found[name] = _loss_and_gradient(name, y_true, y_pred)
            except MISTAKES as error:
                exceptions[name] = error
        return found

    with _x64_if_float64(names[0]):
        arrays = {name: jax.tree.map(jnp.asarray, tuple(map(_narrow_without_x64, inputs(name)))) for name in names}
        found = jax.jit(answers)(arrays)
        return {
            n: _exception_answer(exceptions[n]) if n in exceptions else Answer(*map(_to_numpy, found[n])) for n in names
        }


def _evaluate_eagerly(name):
    function, options = _function_and_options(name)
    with _x64_if_float64(name):
        y_true, y_pred = (jnp.asarray(_narrow_without_x64(x)) for x in inputs(name))
        try:
            _, grad = _loss_and_gradient(name, y_true, y_pred)
            return Answer(*map(_to_numpy, (function(y_true, y_pred, *options.values()), grad)))
        except MISTAKES as error:
            return _exception_answer(error)


def _function_and_options(name):
    """Return the function, and its options in positional order."""
    case = CASES[name]
    module, function = case["function"].split(".")
    options = {option: case["args"].get(option, DEFAULT[option]) for option in ORDER[case["function"]]}
    return getattr(getattr(jaxce.keras, module), function), options


def _loss_and_gradient(name, y_true, y_pred):
    function, options = _function_and_options(name)
    if not jnp.issubdtype(y_pred.dtype, jnp.floating):
        return function(y_true, y_pred, *options.values()), None

    def total_and_loss(p):
        loss = function(y_true, p, **options)
        return jnp.sum(loss * jnp.asarray(cotangent(loss.shape), loss.dtype)), loss

    grad, loss = jax.grad(total_and_loss, has_aux=True)(y_pred)
    return loss, grad


def _x64_if_float64(name):
    return jax.enable_x64(True) if CASES[name]["y_pred_dtype"] == "float64" else contextlib.nullcontext()


def _to_numpy(array):
    return None if array is None else np.asarray(array)


def _exception_answer(error):
    return Answer(exception=f"{type(error).__name__}: {error}")


def references_to_meet(name: str) -> list[str]:
    """Return the references; jaxce must agree with one of them. They are the primary one and its alternatives, or that of an intended difference."""
    case = CASES[name]
    primary = INDEX["primary"][case["function"]]
    choices = [primary] + [f"{primary}-floatx" if x.endswith("-floatx") else x for x in case.get("alternatives", ())]
    for quirk in case.get("quirks", ()):
        if quirk in INTENDED:
            other = list(case["results"]) if INTENDED[quirk] == "any" else [INTENDED[quirk]]
            choices = other if any(x in case["results"] for x in other) else choices
    return [x for x in choices if x in case["results"]]


def difference(name: str, got: Answer, want: Answer) -> tuple[str | None, float, float]:
    """Return how `got` differs from `want` (None if they agree), and the largest errors of the loss and the gradient.

    The errors are relative to the size of the terms.
    """
    if want.exception is not None or got.exception is not None:
        same = (want.exception is None) == (got.exception is None)
        return None if same else f"{got.exception or 'a value'}, expected {want.exception or 'a value'}", 0.0, 0.0
    case = CASES[name]
    assert got.loss is not None and want.loss is not None
    tolerance = TOLERANCE.get(case["y_pred_dtype"], TOLERANCE["float32"])
    loss_size, grad_size = _term_sizes(name, want.loss.shape)
    why, loss_error = _compare(got.loss, want.loss, loss_size, tolerance)
    grad_error = 0.0
    if why is None and want.grad is not None and not case.get("loss_only"):
        assert got.grad is not None
        why, grad_error = _compare(got.grad, want.grad, grad_size, tolerance)
        why = why and f"gradient: {why}"
    return why, loss_error, grad_error


def _narrow_without_x64(array):
    """Convert 64-bit arrays to 32 bits if x64 is disabled. JAX does the same conversion, but with a warning."""
    narrow = {"float64": "float32", "int64": "int32", "uint64": "uint32"}
    return array if jax.config.jax_enable_x64 else array.astype(narrow.get(array.dtype.name, array.dtype))


def _compare(got, want, size, tolerance):
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{got.shape}, expected {want.dtype}{want.shape}", 0.0
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return f"{got}, expected {want}", 0.0
    got, want, size = (np.asarray(x, np.float64)[finite] for x in (got, want, np.broadcast_to(size, want.shape)))
    if want.size == 0:
        return None, 0.0
    error = np.abs(got - want) / (np.abs(want) + np.maximum(1, np.nan_to_num(size, nan=1, posinf=1, neginf=1)))
    return (None, float(error.max())) if error.max() <= tolerance else (f"{got}, expected {want}", float(error.max()))


def _term_sizes(name, loss_shape):
    """Return, for each element of the loss and of the gradient, the sum of its absolute terms. Rounding errors are relative to this sum.

    If an element is a small difference of large terms, two orders of evaluation differ by the rounding errors of these terms.
    """
    case, (y, p) = CASES[name], inputs(name)
    args = {**DEFAULT, **case["args"]}
    y, p = np.asarray(y, np.float64), np.asarray(p, np.float64)
    cot, s, axis, eps = cotangent(loss_shape), float(args["label_smoothing"]), args["axis"], 1e-7
    if p.size == 0 or y.size == 0:
        return 1.0, 1.0
    with np.errstate(all="ignore"):
        if "binary" in case["function"]:
            mean = case["function"].startswith("losses")
            y = y * (1 - s) + s / 2
            cot = cot[..., None] / p.shape[-1] if mean else cot
            q, inside = np.clip(p, eps, 1 - eps), (p >= eps) & (p <= 1 - eps)
            if args["from_logits"]:
                terms, grad = 4 * np.abs(p * y * (1 - y)), cot * (1 + np.abs(y) + 0 * p)
            else:
                terms = np.abs(y * np.log(q)) + np.abs((1 - y) * np.log(1 - q))
                grad = cot * (np.abs(y) / q + np.abs(1 - y) / (1 - q)) * inside
            return terms.mean(-1) if mean else terms, grad
        p, cot = np.moveaxis(p, axis, -1), cot[..., None]
        if "sparse" in case["function"]:
            q, inside = np.clip(p, eps, 1 - eps), (p >= eps) & (p <= 1 - eps)
            hot = np.eye(p.shape[-1])[y.astype(np.int64).reshape(loss_shape) % p.shape[-1]]
            grad = (
                cot * np.ones(p.shape)
                if args["from_logits"]
                else cot / q * (hot + q / q.sum(-1, keepdims=True)) * inside
            )
            return np.ones(loss_shape), np.moveaxis(grad, -1, axis)
        y = np.moveaxis(np.abs(y), axis, -1) * (1 - s) + s / p.shape[-1]
        if args["from_logits"]:
            log_p = p - p.max(-1, keepdims=True)
            log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
            grad = cot * (y + np.maximum(y.sum(-1, keepdims=True), 1) + 0 * p)
        else:
            total = p.sum(-1, keepdims=True)
            q, inside = np.clip(p / total, eps, 1 - eps), (p / total >= eps) & (p / total <= 1 - eps)
            log_p, grad = np.log(q), cot * (y / q * inside + (y * inside).sum(-1, keepdims=True)) / np.abs(total)
        return (y * np.abs(log_p)).sum(-1), np.moveaxis(grad, -1, axis)
