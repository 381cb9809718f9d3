"""Tables of invalid arguments: the arguments, the exception, and the message, which names the argument and shows the received value."""

import itertools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxce

INTEGER = jaxce.softmax_cross_entropy_with_integer_labels
SOFT = jaxce.softmax_cross_entropy
SIGMOID = jaxce.sigmoid_binary_cross_entropy
STATS = jaxce.logit_stats
SUM = jaxce.LossSum.of

Z = np.zeros((4, 5), np.float32)
Z3 = np.zeros((2, 3, 4), np.float32)
Y = np.zeros(4, np.int32)
Q = np.full((4, 5), 0.2, np.float32)
LOSSES = np.zeros(4, np.float32)


def f32(*shape):
    return np.zeros(shape, np.float32)


def i32(*shape):
    return np.zeros(shape, np.int32)


def booleans(*shape):
    return np.ones(shape, bool)


# fmt: off
# All arguments here are arrays, so that they can be traced: (function, arrays by name, exception, pattern).
SHAPES_AND_DTYPES = {
    # logits
    "integer logits": (INTEGER, {"logits": i32(4, 5), "labels": Y}, TypeError, "`logits` must be.*got int32.*order of the arguments is logits"),
    "labels of channels first": (INTEGER, {"logits": f32(4, 5, 6), "labels": i32(4, 6)}, ValueError, r"\(4, 5\); got \(4, 6\).*pass axis=1"),
    "boolean logits": (SOFT, {"logits": booleans(4, 5), "labels": Q}, TypeError, "`logits` must be floating point; got bool"),
    "complex logits": (SOFT, {"logits": Z + 1j, "labels": Q}, TypeError, "`logits` must be floating point; got complex64"),
    "scalar logits": (INTEGER, {"logits": f32(), "labels": Y}, ValueError, "`logits` must have a class axis; got a scalar.*use sigmoid_binary"),
    "no classes": (INTEGER, {"logits": f32(4, 0), "labels": Y}, ValueError, r"`logits` must have at least one class.*got shape \(4, 0\)"),
    "soft, no classes": (SOFT, {"logits": f32(4, 0), "labels": f32(4, 0)}, ValueError, r"at least one class.*got shape \(4, 0\)"),
    "sigmoid of integers": (SIGMOID, {"logits": i32(4), "labels": f32(4)}, TypeError, "`logits` must be floating point; got int32"),
    "statistics of integers": (STATS, {"logits": i32(4, 5), "labels": Y}, TypeError, "`logits` must be floating point; got int32"),
    # integer labels
    "float labels": (INTEGER, {"logits": Z, "labels": f32(4)}, TypeError, "`labels`.*got float32.*use softmax_cross_entropy"),
    "bfloat16 labels": (INTEGER, {"logits": Z, "labels": jnp.zeros(4, jnp.bfloat16)}, TypeError, "`labels` must be integers; got bfloat16"),
    "boolean labels": (INTEGER, {"logits": Z, "labels": booleans(4)}, TypeError, "`labels` must be integers; got bool"),
    "complex labels": (INTEGER, {"logits": Z, "labels": f32(4) + 1j}, TypeError, "`labels` must be integers; got complex64"),
    "probabilities as integer labels": (INTEGER, {"logits": Z, "labels": Q}, TypeError, "`labels` must be integers; got float32"),
    "labels with a last axis": (INTEGER, {"logits": Z, "labels": i32(4, 1)}, ValueError, r"got \(4, 1\)\. Reshape them: labels\.reshape\(\(4,\)\)"),
    "one-hot integers": (INTEGER, {"logits": Z, "labels": i32(4, 5)}, ValueError, r"got \(4, 5\)\. For one-hot labels use softmax_cross_entropy"),
    "too many labels": (INTEGER, {"logits": Z, "labels": i32(5)}, ValueError, r"`labels` must.*without axis 1, \(4,\); got \(5,\)"),
    "scalar label": (INTEGER, {"logits": Z, "labels": i32()}, ValueError, r"`labels` must have the shape.*\(4,\); got \(\)"),
    "one label for all": (INTEGER, {"logits": Z, "labels": i32(1)}, ValueError, r"\(4,\); got \(1,\)"),
    "labels of another order": (INTEGER, {"logits": Z3, "labels": i32(3, 2)}, ValueError, r"(?m)\(2, 3\); got \(3, 2\)\.$"),
    "labels of a few classes": (INTEGER, {"logits": Z, "labels": i32(4, 3)}, ValueError, r"\(4,\); got \(4, 3\)\..*`label_probabilities` too, to"),
    "flat labels": (INTEGER, {"logits": Z3, "labels": i32(6)}, ValueError, r"(?m)got \(6,\)\. Reshape them: labels\.reshape\(\(2, 3\)\)\.$"),
    "statistics, labels of another shape": (STATS, {"logits": Z, "labels": i32(3)}, ValueError, r"\(4,\); got \(3,\)"),
    "statistics, float labels": (STATS, {"logits": Z, "labels": f32(4)}, TypeError, "`labels` must be integers .*, or class prob.*got float32"),
    "statistics, labels of too high rank": (STATS, {"logits": Z, "labels": i32(4, 5, 1)}, ValueError, r"`labels` must.*got \(4, 5, 1\)"),
    # class probabilities
    "indices as probabilities": (SOFT, {"logits": Z, "labels": Y}, ValueError, r"`labels`.*got \(4,\)\. For class indices use .*integer_labels"),
    "one distribution for all": (SOFT, {"logits": Z, "labels": f32(1, 5)}, ValueError, r"\(4, 5\); got \(1, 5\)\. Broadcast them first"),
    "transposed probabilities": (SOFT, {"logits": Z, "labels": f32(5, 4)}, ValueError, r"(?m)\(4, 5\); got \(5, 4\)\.$"),
    "complex probabilities": (SOFT, {"logits": Z, "labels": Q + 1j}, TypeError, "`labels` must be real numbers; got complex64"),
    "statistics, one distribution for all": (STATS, {"logits": Z, "labels": f32(1, 5)}, ValueError, r"\(4, 5\); got \(1, 5\)"),
    # binary labels
    "column of logits, row of labels": (SIGMOID, {"logits": f32(4, 1), "labels": f32(4)}, ValueError, r"`labels`.*`logits`, \(4, 1\); got \(4,\)"),
    "row of logits, column of labels": (SIGMOID, {"logits": f32(4), "labels": f32(4, 1)}, ValueError, r"\(4,\); got \(4, 1\)"),
    "scalar binary label": (SIGMOID, {"logits": f32(4), "labels": f32()}, ValueError, r"\(4,\); got \(\)"),
    "complex binary labels": (SIGMOID, {"logits": f32(4), "labels": f32(4) + 1j}, TypeError, "`labels` must be real numbers; got complex64"),
    # where
    "float where": (INTEGER, {"logits": Z, "labels": Y, "where": f32(4, 5)}, TypeError, "`where` must be boolean; got float32"),
    "integer where": (SOFT, {"logits": Z, "labels": Q, "where": i32(4, 5)}, TypeError, r"`where` must be boolean; got int32.*where != 0"),
    "mask as where": (INTEGER, {"logits": Z, "labels": Y, "where": booleans(4)}, ValueError, r"`where`.*got \(4,\)\. To leave out examples.*`mask`"),
    "where of one row's rank": (SOFT, {"logits": Z, "labels": Q, "where": booleans(5)}, ValueError, r"`where` selects classes.*got \(5,\)"),
    "where of another shape": (INTEGER, {"logits": Z, "labels": Y, "where": booleans(4, 4)}, ValueError, r"`where` selects classes.*got \(4, 4\)"),
    "where of higher rank": (INTEGER, {"logits": Z, "labels": Y, "where": booleans(1, 4, 5)}, ValueError, r"`where`.*got \(1, 4, 5\)"),
    "scalar where": (INTEGER, {"logits": Z, "labels": Y, "where": booleans()}, ValueError, r"`where`.*got \(\)"),
    "statistics, mask as where": (STATS, {"logits": Z, "labels": Y, "where": booleans(4)}, ValueError, r"`where`.*pass `mask`"),
    # mask
    "float mask": (INTEGER, {"logits": Z, "labels": Y, "mask": f32(4)}, TypeError, r"`mask` must be boolean; got float32.*mask != 0"),
    "integer mask": (SOFT, {"logits": Z, "labels": Q, "mask": i32(4)}, TypeError, "`mask` must be boolean; got int32"),
    "where as mask": (INTEGER, {"logits": Z, "labels": Y, "mask": booleans(4, 5)}, ValueError, r"`mask`.*got \(4, 5\)\. To leave out.*`where`"),
    "soft, where as mask": (SOFT, {"logits": Z, "labels": Q, "mask": booleans(4, 5)}, ValueError, r"`mask`.*pass `where`"),
    "mask of another shape": (INTEGER, {"logits": Z, "labels": Y, "mask": booleans(5)}, ValueError, r"`mask` selects examples.*\(4,\); got \(5,\)"),
    "mask with a last axis": (INTEGER, {"logits": Z, "labels": Y, "mask": booleans(4, 1)}, ValueError, r"\(4, 1\)\. Reshape it: mask\.reshape\(\(4,"),
    "one mask for all": (INTEGER, {"logits": Z, "labels": Y, "mask": booleans(1)}, ValueError, r"\(4,\); got \(1,\)"),
    "scalar mask": (SOFT, {"logits": Z, "labels": Q, "mask": booleans()}, ValueError, r"`mask`.*got \(\)"),
    "sigmoid, mask of rows": (SIGMOID, {"logits": Z, "labels": Q, "mask": booleans(4)}, ValueError, r"`mask`.*\(4, 5\); got \(4,\)"),
    "mask of the transposed shape": (SIGMOID, {"logits": Z, "labels": Q, "mask": booleans(5, 4)}, ValueError, r"(?m)\(4, 5\); got \(5, 4\)\.$"),
    "sigmoid, float mask": (SIGMOID, {"logits": Z, "labels": Q, "mask": f32(4, 5)}, TypeError, "`mask` must be boolean; got float32"),
    # class_weights
    "weights of rows": (INTEGER, {"logits": Z, "labels": Y, "class_weights": f32(4)}, ValueError, r"shape \(5,\); got \(4,\)\. .*`weights`"),
    "two weights too few": (INTEGER, {"logits": Z, "labels": Y, "class_weights": f32(3)}, ValueError, r"`class_weights`.* 5 classes.*got \(3,\)\."),
    "one weight for all classes": (INTEGER, {"logits": Z, "labels": Y, "class_weights": f32(1)}, ValueError, r"`class_weights`.*got \(1,\)"),
    "a weight for each logit": (SOFT, {"logits": Z, "labels": Q, "class_weights": f32(4, 5)}, ValueError, r"`class_weights`.*got \(4, 5\)"),
    "scalar class weight": (INTEGER, {"logits": Z, "labels": Y, "class_weights": f32()}, ValueError, r"`class_weights`.*got \(\)"),
    "boolean class weights": (INTEGER, {"logits": Z, "labels": Y, "class_weights": booleans(5)}, TypeError, r"`class_weights`.*booleans\. Convert"),
    "complex class weights": (SOFT, {"logits": Z, "labels": Q, "class_weights": f32(5) + 1j}, TypeError, "`class_weights`.*got complex64"),
    "statistics, a weight too many": (STATS, {"logits": Z, "labels": Y, "class_weights": f32(6)}, ValueError, r"`class_weights`.*got \(6,\)"),
    # pos_weight
    "pos_weight of another length": (SIGMOID, {"logits": Z, "labels": Q, "pos_weight": f32(4)}, ValueError, r"`pos_weight`.*\(4, 5\); got \(4,\)"),
    "pos_weight of higher rank": (SIGMOID, {"logits": Z, "labels": Q, "pos_weight": f32(1, 4, 5)}, ValueError, r"`pos_weight`.*got \(1, 4, 5\)"),
    "boolean pos_weight": (SIGMOID, {"logits": Z, "labels": Q, "pos_weight": booleans()}, TypeError, "`pos_weight` must be numbers; got booleans"),
    # label_smoothing and z_loss as arrays
    "smoothing per row": (INTEGER, {"logits": Z, "labels": Y, "label_smoothing": f32(4)}, ValueError, r"`label_smoothing`.*got shape \(4,\)"),
    "sigmoid, smoothing per row": (SIGMOID, {"logits": Z, "labels": Q, "label_smoothing": f32(4, 1)}, ValueError, r"`label_smoothing`.*\(4, 1\)"),
    "integer array of smoothing": (SOFT, {"logits": Z, "labels": Q, "label_smoothing": i32()}, TypeError, "`label_smoothing`.*got int32"),
    "z_loss per row": (SOFT, {"logits": Z, "labels": Q, "z_loss": f32(4)}, ValueError, r"`z_loss` must be a scalar; got shape \(4,\)"),
    "complex z_loss": (INTEGER, {"logits": Z, "labels": Y, "z_loss": np.zeros((), np.complex64)}, TypeError, "`z_loss`.*got complex64"),
    # LossSum.of
    "integer losses": (SUM, {"losses": i32(4)}, TypeError, "`losses` must be floating point; got int32"),
    "weights of another shape": (SUM, {"losses": LOSSES, "weights": f32(4, 1)}, ValueError, r"`weights`.*losses, \(4,\); got \(4, 1\)"),
    "one weight for all losses": (SUM, {"losses": LOSSES, "weights": f32()}, ValueError, r"`weights`.*losses, \(4,\); got \(\)"),
    "boolean weights": (SUM, {"losses": LOSSES, "weights": booleans(4)}, TypeError, "`weights` must be numbers; got booleans"),
    "integer mask of losses": (SUM, {"losses": LOSSES, "mask": i32(4)}, TypeError, "`mask` must be boolean; got int32"),
    "mask of losses of another shape": (SUM, {"losses": LOSSES, "mask": booleans(3)}, ValueError, r"`mask`.*\(4,\); got \(3,\)"),
}

# Python values, known before tracing: (arguments, exception, pattern).
VALUES = {
    "axis beyond the last": ({"axis": 2}, ValueError, r"`axis` must be an axis of `logits`, from -2 to 1; got 2 for shape \(4, 5\)"),
    "axis before the first": ({"axis": -3}, ValueError, "`axis` must be an axis of `logits`.*got -3"),
    "boolean axis": ({"axis": True}, TypeError, "`axis` must be an integer; got True"),
    "float axis": ({"axis": 1.0}, TypeError, "`axis` must be an integer or a tuple.*got 1.0"),
    "axis in words": ({"axis": "last"}, TypeError, "`axis` must be a Python integer.*got 'last'"),
    "no axis": ({"axis": None}, TypeError, "`axis` must be an integer or a tuple.*got None"),
    "a list of axes": ({"axis": [0, 1]}, TypeError, r"`axis` must be an integer or a tuple.*got \[0, 1\]"),
    "smoothing above 1": ({"label_smoothing": 1.1}, ValueError, "`label_smoothing` must be from 0 to 1; got 1.1"),
    "smoothing below 0": ({"label_smoothing": -0.1}, ValueError, "`label_smoothing` must be from 0 to 1; got -0.1"),
    "smoothing just above 1": ({"label_smoothing": np.float32(1.0000001)}, ValueError, "`label_smoothing` must be from 0 to 1; got 1.0000001"),
    "NaN smoothing": ({"label_smoothing": float("nan")}, ValueError, "`label_smoothing` must be from 0 to 1; got nan"),
    "infinite smoothing": ({"label_smoothing": float("inf")}, ValueError, "`label_smoothing` must be from 0 to 1; got inf"),
    "boolean smoothing": ({"label_smoothing": True}, TypeError, "`label_smoothing` must be a number; got True"),
    "smoothing in words": ({"label_smoothing": "0.1"}, TypeError, "`label_smoothing` must be a number; got '0.1'"),
    "no smoothing": ({"label_smoothing": None}, TypeError, "`label_smoothing` must be a number; got None"),
    "list of smoothing": ({"label_smoothing": [0.1]}, TypeError, r"`label_smoothing` must be a number; got \[0.1\]"),
    "complex smoothing": ({"label_smoothing": 0.1j}, TypeError, "`label_smoothing` must be a number; got 0.1j"),
    "negative z_loss": ({"z_loss": -1e-4}, ValueError, "`z_loss` must be finite and not negative; got -0.0001"),
    "NaN z_loss": ({"z_loss": float("nan")}, ValueError, "`z_loss` must be finite.*got nan"),
    "infinite z_loss": ({"z_loss": float("inf")}, ValueError, "`z_loss` must be finite.*got inf"),
    "boolean z_loss": ({"z_loss": False}, TypeError, "`z_loss` must be a number; got False"),
    "no z_loss": ({"z_loss": None}, TypeError, "`z_loss` must be a number; got None"),
    "list of weights": ({"class_weights": [1.0] * 5}, TypeError, "`class_weights` must be an array; got list.*jnp.asarray"),
    "weights in words": ({"class_weights": "balanced"}, TypeError, "class_weights"),
    "list as mask": ({"mask": [True] * 4}, TypeError, "`mask` must be an array; got list"),
    "tuple as where": ({"where": (True,) * 5}, TypeError, "`where` must be an array; got tuple"),
    "dictionary as mask": ({"mask": {"a": 1.0}}, TypeError, "`mask` must be an array; got dict"),
    "list of logits": ({"logits": [[1.0, 2.0]]}, TypeError, "`logits` must be an array; got list"),
    "no logits": ({"logits": None}, TypeError, "`logits` must be an array; got NoneType"),
    "list of labels": ({"labels": [0] * 4}, TypeError, "`labels` must be an array; got list"),
    "no labels": ({"labels": None}, TypeError, r"(?m)`labels` must be an array; got NoneType\. It cannot be left out here\.$"),
    "number as logits": ({"logits": 1.0}, ValueError, "`logits` must have a class axis; got a scalar"),
}
# fmt: on


# The divergences of two softmaxes: (arguments, exception, pattern). `KL` and `JS` have the arguments in common.
KL, JS = jaxce.softmax_kl_divergence, jaxce.softmax_js_divergence
KL_SUM, JS_SUM = jaxce.softmax_kl_divergence_sum, jaxce.softmax_js_divergence_sum
LAYER = jaxce.LinearLogits(f32(4, 3), f32(3, 5))
# fmt: off
PAIRS = {
    "another number of classes": ({"target_logits": f32(4, 6)}, ValueError, r"`target_logits` must have the shape of `logits`.*got \(4, 6\)"),
    "one target for all": ({"target_logits": f32(1, 5)}, ValueError, r"`target_logits` must have the shape.*got \(1, 5\)"),
    "a layer of other tokens": ({"target_logits": jaxce.LinearLogits(f32(3, 2), f32(2, 5))}, ValueError, r"`target_logits`.*got \(3, 5\)"),
    "integer target": ({"target_logits": i32(4, 5)}, TypeError, "`target_logits` must be floating point; got int32"),
    "target probabilities of booleans": ({"target_logits": booleans(4, 5)}, TypeError, "`target_logits` must be floating point; got bool"),
    "complex student": ({"logits": Z + 1j}, TypeError, "`logits` must be floating point; got complex64"),
    "scalar target": ({"target_logits": f32(), "logits": f32()}, ValueError, "`target_logits` must have a class axis; got a scalar"),
    "list of targets": ({"target_logits": [[0.0]]}, TypeError, "`target_logits` must be an array; got list"),
    "no student": ({"logits": None}, TypeError, "`logits` must be an array; got NoneType"),
    "divergence without classes": ({"target_logits": f32(4, 0), "logits": f32(4, 0)}, ValueError, r"at least one class.*got shape \(4, 0\)"),
    "divergence, axis beyond the last": ({"axis": 2}, ValueError, r"`axis` must be an axis of `logits`.*got 2"),
    "divergence, axis in words": ({"axis": "last"}, TypeError, "`axis` must be a Python integer.*got 'last'"),
    "first axis of a layer": ({"target_logits": LAYER, "axis": 0}, ValueError, "`axis` must be the last axis of a LinearLogits, 1 or -1; got 0"),
    "divergence, mask as where": ({"where": booleans(4)}, ValueError, r"`where`.*got \(4,\)\. To leave out examples.*`mask`"),
    "divergence, float where": ({"where": f32(4, 5)}, TypeError, "`where` must be boolean; got float32"),
    "where by row of a layer": ({"logits": LAYER, "where": booleans(4, 5)}, ValueError, r"`where` must be the same for all rows.*got \(4, 5\)"),
    "divergence, where as mask": ({"mask": booleans(4, 5)}, ValueError, r"`mask`.*got \(4, 5\)\. To leave out.*`where`"),
    "divergence, integer mask": ({"mask": i32(4)}, TypeError, r"`mask` must be boolean; got int32.*mask != 0"),
    "temperature of another shape": ({"temperature": f32(5)}, ValueError, r"`temperature` must be a scalar or .*\(4,\); got \(5,\)"),
    "temperature of sequences": (
        {"target_logits": Z3, "logits": Z3, "temperature": f32(2)},
        ValueError,
        r"got \(2,\)\. Broadcast it first: jnp\.broadcast_to\(temperature\[:, None\], \(2, 3\)\)\.$",
    ),
    "temperature by class": ({"temperature": f32(4, 5)}, ValueError, r"`temperature`.*got \(4, 5\)"),
    "temperature of 0": ({"temperature": 0.0}, ValueError, "`temperature` must be positive and finite; got 0.0.*argmax of the logits"),
    "temperature of integers": ({"temperature": i32(4)}, TypeError, "`temperature` must be floating point; got int32"),
}
PAIRS_OF_JS = {
    "weight of 0": ({"weight": 0.0}, ValueError, "`weight` must be between 0 and 1, both excluded; got 0.0.*use softmax_kl_divergence"),
    "weight of 1": ({"weight": 1}, ValueError, "`weight` must be between 0 and 1, both excluded; got 1.0"),
    "weight in words": ({"weight": "0.5"}, TypeError, "`weight` must be a number; got '0.5'"),
    "no weight": ({"weight": None}, TypeError, "`weight` must be a number; got None"),
    "weight by row": ({"weight": f32(4)}, ValueError, r"`weight` must be a scalar; got shape \(4,\)"),
}
PAIRS_OF_SUMS = {
    "weights by class": ({"weights": f32(4, 5)}, ValueError, r"`weights`.*\(4,\); got \(4, 5\)"),
    "divergence, boolean weights": ({"weights": booleans(4)}, TypeError, "`weights` must be numbers; got booleans"),
}
# fmt: on


class BadCall(NamedTuple):
    """A call of a function with one invalid argument."""

    function: Any
    arguments: dict[str, Any]
    error: type[Exception]
    message: str
    first: tuple[str, ...] = (
        "target_logits",
        "logits",
        "labels",
        "losses",
    )  # the arguments that are passed by position

    def __call__(self, function=None):
        arguments = dict(self.arguments)
        positional = [arguments.pop(name) for name in self.first if name in arguments]
        return (function or self.function)(*positional, **arguments)

    def traced(self, function=None):
        """Make the call under tracing. Arrays of numbers or booleans are traced arguments; other values are not traced."""
        arrays = {
            n: v
            for n, v in self.arguments.items()
            if isinstance(v, (np.ndarray, jax.Array)) and v.dtype.kind in "biufcV"
        }
        rest = {n: v for n, v in self.arguments.items() if n not in arrays}
        return jax.eval_shape(lambda arrays: self._replace(arguments={**arrays, **rest})(function), arrays)


def dense_calls():
    """Return all calls of the losses, the statistics and the sum, by name."""
    calls = {name: BadCall(*case) for name, case in SHAPES_AND_DTYPES.items()}
    functions = {"integer": (INTEGER, Y), "soft": (SOFT, Q), "sigmoid": (SIGMOID, Q), "statistics": (STATS, Y)}
    for (name, (function, labels)), (case, (values, error, message)) in itertools.product(
        functions.items(), VALUES.items()
    ):
        is_valid = (name, case) == ("statistics", "no labels")  # for the statistics, labels are optional
        if name in ("integer", "soft") or (set(values) <= KNOWN[name] and case != "number as logits" and not is_valid):
            calls[f"{name}, {case}"] = BadCall(function, {"logits": Z, "labels": labels, **values}, error, message)
    return calls


def divergence_calls():
    """Return all calls of the divergences, by name."""
    tables = {"KL": (KL, PAIRS), "JS": (JS, PAIRS | PAIRS_OF_JS)}
    tables |= {"KL sum": (KL_SUM, PAIRS | PAIRS_OF_SUMS), "JS sum": (JS_SUM, PAIRS | PAIRS_OF_JS | PAIRS_OF_SUMS)}
    return {
        f"{name}, {case}": BadCall(function, {"target_logits": Z, "logits": Z, **values}, error, message)
        for name, (function, table) in tables.items()
        for case, (values, error, message) in table.items()
    }


# The arguments of the functions that do not have all options.
KNOWN = {
    "sigmoid": {"logits", "labels", "mask", "label_smoothing"},
    "statistics": {"logits", "labels", "axis", "where", "mask", "class_weights"},
}


def refusal_fault(call):
    """Make a call under tracing. Return None if it raises the expected exception and message, else a description of the fault."""
    try:
        call.traced()
    except call.error as error:
        return None if re.search(call.message, str(error)) else f"another message: {error}"
    except Exception as error:  # any exception except the expected one
        return f"another exception: {error!r}"
    return "no exception"


def evaluate(calls):
    """Return the number of calls, and the number of those that raise the expected exception and message under tracing."""
    return len(calls), sum(refusal_fault(call) is None for call in calls.values())


def portable_calls():
    """Yield (name, kind of loss, call) for the calls that are invalid in every library: those with only logits and labels."""
    kinds = {INTEGER: "integer", SOFT: "soft", SIGMOID: "sigmoid"}
    for name, call in dense_calls().items():
        if call.function in kinds and set(call.arguments) == {"logits", "labels"} and name != "one-hot integers":
            yield name, kinds[call.function], call


def evaluate_library(library, *, traces=True):
    """Return the number of calls, and the number of those that raise any exception.

    The library has some of the functions `integer`, `soft` and `sigmoid` of `(logits, labels)`. If it cannot trace, the calls are made directly.
    """
    number = refused = 0
    for _, kind, call in portable_calls():
        function = getattr(library, kind, None)
        if function is None:
            continue
        number += 1
        try:
            call.traced(function) if traces else call(function)
        except Exception:  # any exception counts
            refused += 1
    return number, refused
