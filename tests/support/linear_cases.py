"""Problems for a linear layer, their options, and the results of the oracle.

`hidden`, `classifier` and `bias` are small multiples of 1/8. So the logits are exact in float32 for any order of summation, and the tests measure
only the errors of the library after the logits.
"""

import numpy as np

from tests.support import oracle
from tests.support.oracle import EXTENDED, Quantity

TOKENS, FEATURES, CLASSES = 11, 4, 13
OPTIONS = {
    "bias": np.arange(CLASSES, dtype=np.float32) / 8 - 0.5,
    "mask": np.arange(TOKENS) % 3 != 1,
    "label_smoothing": np.float32(0.1),
    "class_weights": np.linspace(0.5, 2, CLASSES, dtype=np.float32),
    "z_loss": np.float32(0.01),
    "soft_cap": np.float32(3.0),
    "temperature": np.linspace(0.5, 2, TOKENS, dtype=np.float32),
}
DIFFERENTIABLE = ("bias", "label_smoothing", "class_weights", "z_loss", "soft_cap", "temperature")


def make(rng, tokens=TOKENS, features=FEATURES, classes=CLASSES, dtype=np.float32):
    hidden = (rng.integers(-8, 9, (tokens, features)) / 8).astype(dtype)
    classifier = (rng.integers(-8, 9, (features, classes)) / 4).astype(dtype)
    return hidden, classifier, rng.integers(0, classes, tokens).astype(np.int32)


def expected(hidden, classifier, labels, cotangent, *, bias=None, **options):
    """Return the losses, and the gradients of `sum(cotangent * losses)` by name, in extended precision.

    The labels are class indices, or class probabilities.
    """
    h, w = (np.asarray(x).astype(EXTENDED) for x in (hidden, classifier))
    raw = h @ w if bias is None else h @ w + np.asarray(bias).astype(EXTENDED)
    loss = oracle.integer_softmax if np.ndim(labels) == 1 else oracle.softmax
    answer = loss(raw, labels, cotangent=cotangent, **options)
    d, size = (np.asarray(x) for x in answer.logits)
    size = size + abs(d) * (1 + abs(raw))
    gradients = {
        "hidden": Quantity(d @ w.T, size @ abs(w).T),
        "classifier": Quantity(h.T @ d, abs(h).T @ size),
        "bias": Quantity(d.sum(0), size.sum(0)),
        **{name: getattr(answer, name) for name in ("labels", "label_smoothing", "class_weights", "z_loss")},
        **{name: getattr(answer, name) for name in ("soft_cap", "temperature")},
    }
    return answer.loss, gradients
