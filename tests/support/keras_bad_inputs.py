"""Invalid arguments for the functions of `jaxce.keras`: the same mistakes for each function, with the argument names of its module."""

import numpy as np

from jaxce.keras import backend, losses
from tests.support.bad_inputs import BadCall, booleans, f32, i32

P = np.full((4, 5), 0.2, np.float32)
INDICES = i32(4)
FACES = {"losses": (losses, ("y_true", "y_pred")), "backend": (backend, ("target", "output"))}

# The options of each function. A `share` is the `alpha` of the binary focal loss, which is from 0 to 1.
OPTIONS = {
    ("losses", "categorical_crossentropy"): {"from_logits", "label_smoothing", "axis"},
    ("losses", "sparse_categorical_crossentropy"): {"from_logits", "axis", "ignore_class"},
    ("losses", "binary_crossentropy"): {"from_logits", "label_smoothing", "axis"},
    ("losses", "categorical_focal_crossentropy"): {"from_logits", "label_smoothing", "axis", "gamma", "alpha"},
    ("losses", "binary_focal_crossentropy"): {"from_logits", "label_smoothing", "axis", "gamma", "share", "balancing"},
    ("losses", "categorical_generalized_cross_entropy"): {"q"},
    ("losses", "kl_divergence"): set(),
    ("backend", "categorical_crossentropy"): {"from_logits", "axis"},
    ("backend", "sparse_categorical_crossentropy"): {"from_logits", "axis", "ignore_class"},
    ("backend", "binary_crossentropy"): {"from_logits"},
}
FULL_NAMES = {"share": "alpha", "balancing": "apply_class_balancing"}

# fmt: off
# Predictions that no function accepts: (value, exception, message after the name).
PREDICTIONS = {
    "integers": (i32(4, 5), TypeError, "must be floating point; got int32"),
    "booleans": (booleans(4, 5), TypeError, "must be floating point; got bool"),
    "complex numbers": (P + 1j, TypeError, "must be real numbers; got complex64"),
    "nothing": (None, TypeError, "must be an array; got NoneType"),
    "words": ("half", TypeError, "must be an array or nested lists of numbers"),
    "a dictionary": ({"a": 1.0}, TypeError, "must be an array; got dict"),
    "ragged lists": ([[0.5, 0.5], [1.0]], TypeError, "must be an array or nested lists of numbers"),
}
LABELS = {
    "complex numbers": (P + 1j, TypeError, "must be real numbers; got complex64"),
    "nothing": (None, TypeError, "must be an array; got NoneType"),
    "words": ("cat", TypeError, "must be an array or nested lists of numbers"),
    "ragged lists": ([[1, 0], [1]], TypeError, "must be an array or nested lists of numbers"),
}
# Labels of a wrong shape: (value, message after the name).
PROBABILITY_SHAPES = {
    "fewer rows": (f32(3, 5), r"must have the shape of `%s`, \(4, 5\); got \(3, 5\)"),
    "one row for all": (f32(1, 5), r"must have the shape of `%s`, \(4, 5\); got \(1, 5\)"),
    "a column": (f32(4, 1), r"must have the shape of `%s`, \(4, 5\); got \(4, 1\)"),
    "indices": (INDICES, r"must have the shape of `%s`, \(4, 5\); got \(4,\)"),
    "flat": (f32(20), r"must have the shape of `%s`, \(4, 5\); got \(20,\)\. Reshape them: jnp\.reshape"),
}
INDEX_SHAPES = {
    "fewer rows": (i32(3), r"must have the shape of `%s` without axis 1, \(4,\); got \(3,\)"),
    "one for all": (i32(1), r"must have the shape of `%s` without axis 1, \(4,\); got \(1,\)"),
    "one-hot": (i32(4, 5), r"must have the shape of `%s` without axis 1, .*got \(4, 5\)\. For one-hot labels (use categorical|take their argmax)"),
    "another last axis": (i32(4, 2), r"must have the shape of `%s` without axis 1, \(4,\); got \(4, 2\)"),
}
# Options: (values, exception, message).
VALUES = {
    "axis beyond the last": ({"axis": 2}, ValueError, "`axis` must be an axis of .*, from -2 to 1; got 2"),
    "axis before the first": ({"axis": -3}, ValueError, "`axis` must be an axis of .*got -3"),
    "float axis": ({"axis": 1.0}, TypeError, "`axis` must be a Python integer.*got 1.0"),
    "boolean axis": ({"axis": True}, TypeError, "`axis` must be an integer; got True"),
    "no axis": ({"axis": None}, TypeError, "`axis` must be a Python integer.*got None"),
    "from_logits in words": ({"from_logits": "yes"}, TypeError, "`from_logits` must be True or False.*got 'yes'"),
    "no from_logits": ({"from_logits": None}, TypeError, "`from_logits` must be True or False.*got None"),
    "two of from_logits": ({"from_logits": 2}, TypeError, "`from_logits` must be True or False.*got 2"),
    "traced from_logits": ({"from_logits": booleans()}, TypeError, "`from_logits` must be True or False, not traced; got a traced value"),
    "smoothing above 1": ({"label_smoothing": 1.1}, ValueError, "`label_smoothing` must be from 0 to 1; got 1.1"),
    "smoothing below 0": ({"label_smoothing": -0.1}, ValueError, "`label_smoothing` must be from 0 to 1; got -0.1"),
    "NaN smoothing": ({"label_smoothing": float("nan")}, ValueError, "`label_smoothing` must be from 0 to 1; got nan"),
    "boolean smoothing": ({"label_smoothing": True}, TypeError, "`label_smoothing` must be a number; got True"),
    "smoothing per row": ({"label_smoothing": f32(4)}, ValueError, r"`label_smoothing` must be a scalar; got shape \(4,\)"),
    "float ignore_class": ({"ignore_class": 1.5}, TypeError, "`ignore_class` must be a Python integer.*got 1.5"),
    "boolean ignore_class": ({"ignore_class": True}, TypeError, "`ignore_class` must be an integer; got True"),
    "words as ignore_class": ({"ignore_class": "pad"}, TypeError, "`ignore_class` must be a Python integer.*got 'pad'"),
    "negative gamma": ({"gamma": -1.0}, ValueError, "`gamma` must be finite and not negative; got -1.0"),
    "infinite gamma": ({"gamma": float("inf")}, ValueError, "`gamma` must be finite and not negative; got inf"),
    "gamma in words": ({"gamma": "two"}, TypeError, "`gamma` must be a number; got 'two'"),
    "gamma per row": ({"gamma": f32(4)}, ValueError, r"`gamma` must be a scalar; got shape \(4,\)"),
    "negative alpha": ({"alpha": -1.0}, ValueError, "`alpha` must be finite and not negative; got -1.0"),
    "alpha in words": ({"alpha": "half"}, TypeError, "`alpha` must be an array or nested lists of numbers"),
    "no alpha": ({"alpha": None}, TypeError, "`alpha` must be a number; got None"),
    "boolean alpha": ({"alpha": booleans(5)}, TypeError, "`alpha` must be numbers; got booleans"),
    "alpha of other classes": ({"alpha": f32(4)}, ValueError, r"`alpha` must have one number for each of the 5 classes.*got \(4,\)"),
    "alpha per example": ({"alpha": f32(4, 5)}, ValueError, r"`alpha` must have one number for each of the 5 classes.*got \(4, 5\)"),
    "alpha above 1": ({"share": 1.5}, ValueError, "`alpha` must be from 0 to 1; got 1.5"),
    "alpha per class": ({"share": f32(5)}, ValueError, r"`alpha` must be a scalar; got shape \(5,\)"),
    "balancing in words": ({"balancing": "yes"}, TypeError, "`apply_class_balancing` must be True or False.*got 'yes'"),
    "q of 0": ({"q": 0.0}, ValueError, "`q` must be above 0 and at most 1; got 0.0"),
    "q above 1": ({"q": 1.5}, ValueError, "`q` must be above 0 and at most 1; got 1.5"),
    "no q": ({"q": None}, TypeError, "`q` must be a number; got None"),
    "traced ignore_class": ({"ignore_class": i32()}, TypeError, "`ignore_class` must be a Python integer, not traced"),
}
# fmt: on


def calls():
    """Return all calls by name."""
    return {f"{face}.{name}, {case}": call for (face, name) in OPTIONS for case, call in _calls_of(face, name)}


def _calls_of(face, name):
    module, (labels, predictions) = FACES[face]
    function, sparse = getattr(module, name), name.startswith("sparse") or "q" in OPTIONS[face, name]
    required = {"q": 0.5} if "q" in OPTIONS[face, name] else {}

    def call(error, message, **values):
        values = {FULL_NAMES.get(option, option): value for option, value in values.items()}
        arguments = {labels: INDICES if sparse else P, predictions: P, **required, **values}
        return BadCall(function, arguments, error, message, (labels, predictions))

    for case, (value, error, message) in PREDICTIONS.items():
        yield f"predictions: {case}", call(error, f"`{predictions}` {message}", **{predictions: value})
    for case, (value, error, message) in LABELS.items():
        yield f"labels: {case}", call(error, f"`{labels}` {message}", **{labels: value})
    for case, (value, message) in (INDEX_SHAPES if sparse else PROBABILITY_SHAPES).items():
        yield f"labels: {case}", call(ValueError, f"`{labels}` {message % predictions}", **{labels: value})
    for case, (values, error, message) in VALUES.items():
        if set(values) <= OPTIONS[face, name]:
            yield case, call(error, message, **values)
