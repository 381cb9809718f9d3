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
}
DIFFERENTIABLE = ("bias", "label_smoothing", "class_weights", "z_loss", "soft_cap")


def make(rng, tokens=TOKENS, features=FEATURES, classes=CLASSES, dtype=np.float32):
    hidden = (rng.integers(-8, 9, (tokens, features)) / 8).astype(dtype)
    classifier = (rng.integers(-8, 9, (features, classes)) / 4).astype(dtype)
    return hidden, classifier, rng.integers(0, classes, tokens).astype(np.int32)


def expected(hidden, classifier, labels, cotangent, *, bias=None, soft_cap=None, **options):
    """Return the losses, and the gradients of `sum(cotangent * losses)` by name, in extended precision."""
    h, w = (np.asarray(x).astype(EXTENDED) for x in (hidden, classifier))
    raw = h @ w if bias is None else h @ w + np.asarray(bias).astype(EXTENDED)
    z_by_raw, z_by_cap, z = np.ones_like(raw), np.zeros_like(raw), raw
    if soft_cap is not None:
        cap = EXTENDED(soft_cap)
        z = cap * np.tanh(raw / cap)
        z_by_raw = 1 / np.cosh(raw / cap) ** 2
        z_by_cap = np.tanh(raw / cap) - raw / cap * z_by_raw
    answer = oracle.integer_softmax(z, labels, cotangent=cotangent, **options)
    d, size = (np.asarray(x) for x in answer.logits)
    size = size + abs(d) * (1 + abs(z))
    loss = Quantity(answer.loss.value, answer.loss.scale + (0 if soft_cap is None else 2 * abs(z).max(-1)))
    gradients = {
        "hidden": Quantity((d * z_by_raw) @ w.T, (size * z_by_raw) @ abs(w).T),
        "classifier": Quantity(h.T @ (d * z_by_raw), abs(h).T @ (size * z_by_raw)),
        "bias": Quantity((d * z_by_raw).sum(0), (size * z_by_raw).sum(0)),
        "soft_cap": Quantity((d * z_by_cap).sum(), (size * (abs(z_by_cap) + abs(z))).sum()),
        "label_smoothing": answer.label_smoothing,
        "class_weights": answer.class_weights,
        "z_loss": answer.z_loss,
    }
    return loss, gradients
