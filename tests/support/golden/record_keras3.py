"""Record the answers of Keras 3 on JAX to the cases of `keras3_cases`: `python -m tests.support.golden.record_keras3`. This needs Keras.

It writes `corpus/keras3.json` and `corpus/keras3.npz`. All numbers are in one array of float64, which holds every narrower dtype exactly.
"""

import json
import os
import pathlib
import platform
import warnings
from unittest import mock

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tests.support.golden import keras3_cases

FOLDER = pathlib.Path(__file__).parent / "corpus"


class Numbers:
    """The array of all numbers."""

    def __init__(self):
        self.parts, self.size = [], 0

    def add(self, array):
        """Add an array, and return where it is: offset, shape, dtype."""
        array = np.asarray(array)
        self.parts.append(array.astype(np.float64).ravel())
        self.size += array.size
        return [self.size - array.size, list(array.shape), array.dtype.name]


def call(case, y_true, y_pred):
    """Return the loss of Keras, by a function or by an object."""
    found = getattr(keras.losses, case["function"])
    if not isinstance(found, type):
        return found(y_true, y_pred, **case["args"])
    weight = case["sample_weight"]
    if case["mask"] is not None:
        keras.src.backend.set_keras_mask(y_pred, jnp.array(case["mask"]))
    return found(**case["args"])(y_true, y_pred, None if weight is None else jnp.asarray(weight, y_pred.dtype))


def answer(case, numbers):
    """Return where the loss and its gradients are, or the exception."""
    y_true, y_pred = jnp.asarray(case["y_true"]), jnp.asarray(case["y_pred"])
    moving = (0, 1) if jnp.issubdtype(y_true.dtype, jnp.floating) and case["function"].islower() else (1,)

    def total(y_true, y_pred):
        loss = call(case, y_true, y_pred)
        return jnp.sum(loss * jnp.asarray(keras3_cases.cotangent(loss.shape), loss.dtype))

    try:
        loss = call(case, y_true, y_pred)
        gradients = jax.grad(total, moving)(y_true, y_pred)
    except Exception as error:  # an answer too
        return {"exception": type(error).__name__}
    names = [("grad_true", "grad_pred")[i] for i in moving]
    found = {"loss": loss, **dict(zip(names, gradients, strict=True))}
    return {name: numbers.add(array) for name, array in found.items()}


def wide(case):
    """Return a case with the same exact answer, in a wider dtype and with the class axis last, and that axis; None if nothing would change."""
    args, axis = dict(case["args"]), case["args"].get("axis", -1)
    y_true, y_pred = case["y_true"], case["y_pred"]
    if case["function"] == keras3_cases.GENERALIZED and y_true.ndim == y_pred.ndim and y_true.shape[-1:] == (1,):
        y_true = y_true[..., 0]
    moves = case["function"] == keras3_cases.CATEGORICAL and axis != -1
    half = y_pred.dtype.itemsize == 2
    dtype = np.dtype("float64" if args.get("from_logits") else "float32" if half else y_pred.dtype)
    rounds_mean = case["function"] == keras3_cases.BINARY and dtype == np.float64
    if dtype == y_pred.dtype and not moves and not rounds_mean and y_true is case["y_true"]:
        return None, -1
    if moves:
        y_true, y_pred, args["axis"] = np.moveaxis(y_true, axis, -1), np.moveaxis(y_pred, axis, -1), -1
    y_true = y_true if y_true.dtype.kind == "i" else y_true.astype(dtype)
    return {**case, "args": args, "y_true": y_true, "y_pred": y_pred.astype(dtype)}, axis if moves else -1


def record(case, numbers):
    """Return the entry of a case in the index."""
    kept = ("function", "args", "parameters", "quirks", "sample_weight", "mask")
    entry = {key: case[key] for key in kept if key in case}
    entry |= {key: numbers.add(case[key]) for key in ("y_true", "y_pred")}
    with jax.enable_x64(case["y_pred"].dtype == np.float64):
        results = {"keras3-jax": answer(case, numbers)}
    is_mistake = case["parameters"]["kind"].startswith("mistake")
    widened, axis = (None, -1) if is_mistake else wide(case)
    if widened is not None:
        # Keras takes means in float32, also those of float64.
        in_float64 = mock.patch.object(keras.src.losses.losses.ops, "mean", jnp.mean)
        with jax.enable_x64(widened["y_pred"].dtype == np.float64), in_float64:
            results["keras3-jax-wide"] = {**answer(widened, numbers), "axis": axis}
    return {**entry, "results": results}


def main():
    numbers = Numbers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns about one class
        index = {name: record(case, numbers) for name, case in keras3_cases.cases().items()}
    versions = {"keras": keras.__version__, "jax": jax.__version__, "python": platform.python_version()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in index.items())
    (FOLDER / "keras3.json").write_text(f'{{"versions": {json.dumps(versions)}, "cases": {{\n{lines}\n}}}}\n')
    np.savez_compressed(FOLDER / "keras3.npz", numbers=np.concatenate(numbers.parts))
    print(len(index), "cases,", numbers.size, "numbers")


if __name__ == "__main__":
    main()
