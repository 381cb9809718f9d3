"""Runs the examples in the documentation of `tf.keras` with `jaxce.keras`, and compares the results with the numbers printed there.

    python examples/from_keras.py

The exit status is not 0 if a number differs. The documentation is that of TensorFlow 1.15 for `backend.categorical_crossentropy`, and that of
TensorFlow 2.2 for the two `losses`.
"""

import numpy as np

from jaxce import keras

A = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
B = [[0.9, 0.05, 0.05], [0.5, 0.89, 0.6], [0.05, 0.01, 0.94]]
PROBABILITIES = [[0.05, 0.95, 0], [0.1, 0.8, 0.1]]

# The call, its result here, and the result in the documentation.
EXAMPLES = [
    (
        "backend.categorical_crossentropy(a, b)",
        keras.backend.categorical_crossentropy(A, B),
        "0.10536055 0.8046684 0.06187541",
    ),
    (
        "backend.categorical_crossentropy(a, a)",
        keras.backend.categorical_crossentropy(A, A),
        "1.1920929e-07 1.1920929e-07 1.1920929e-07",
    ),
    (
        "losses.sparse_categorical_crossentropy",
        keras.losses.sparse_categorical_crossentropy([1, 2], PROBABILITIES),
        "0.0513 2.303",
    ),
    (
        "losses.binary_crossentropy",
        keras.losses.binary_crossentropy([[0, 1], [0, 0]], [[0.6, 0.4], [0.4, 0.6]]),
        "0.916 0.714",
    ),
]


def agrees(result: np.floating, documented: str) -> bool:
    """Return whether a result equals the printed number, up to half a unit of its last digit and two roundings of float32."""
    digits, _, exponent = documented.partition("e")
    last_digit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return abs(float(result) - float(documented)) <= last_digit / 2 + 2 * np.spacing(result)


def main() -> None:
    print("The examples in the documentation of tf.keras: the results of jaxce.keras, and the numbers printed there.")
    print(f"{'':40}{'jaxce.keras':>16}{'documented':>16}")
    different = 0
    for call, results, documented in EXAMPLES:
        for result, number in zip(np.asarray(results), documented.split(), strict=True):
            same = agrees(result, number)
            different += not same
            print(f"{call:40}{result!s:>16}{number:>16}{'' if same else '   differs'}")
            call = ""
    if different:
        raise SystemExit(f"{different} numbers differ")


if __name__ == "__main__":
    main()
