"""Check the losses of given logits against the oracle: the values, and the gradient with respect to every input."""

import jax
import numpy as np

from jaxce import sigmoid_binary_cross_entropy
from tests.support import oracle
from tests.support.closeness import assert_within

# A sum over n classes may lose about log2(n) ulps more than its terms.
SOFTMAX_ULPS = 6
SIGMOID_ULPS = 4


def value_and_gradients(loss, logits, labels, cotangent, axis=-1, **options):
    """Return the losses, and the gradients with respect to every differentiable input, by name."""
    arrays = {"logits": logits, **options}
    if loss.label_argnums:
        arrays["labels"] = labels
    fixed = {name: arrays.pop(name) for name in ("where", "mask") if name in arrays}

    @jax.jit
    def run(arrays, labels, cotangent):
        def losses(arrays):
            arrays = dict(arrays)
            return loss.function(arrays.pop("logits"), arrays.pop("labels", labels), axis=axis, **fixed, **arrays)

        values, vjp = jax.vjp(losses, arrays)
        return values, vjp(cotangent)[0]

    return run(arrays, labels, cotangent)


def check_softmax(loss, logits, labels, rng, axis=-1, ulps=SOFTMAX_ULPS, **options):
    working = np.float64 if logits.dtype == np.float64 else np.float32
    cotangent = rng.uniform(-2, 2, loss.shape(logits.shape, axis)).astype(working)
    values, gradients = value_and_gradients(loss, logits, labels, cotangent, axis, **options)
    answer = loss.oracle(logits, labels, axis=axis, cotangent=cotangent, **options)
    assert values.dtype == working
    assert_within(values, answer.loss, ulps)
    for name, gradient in gradients.items():
        given = {"logits": logits, "labels": labels, **options}[name]
        assert gradient.dtype == given.dtype, name
        assert gradient.shape == given.shape, name
        # The gradient of a scalar option is a sum over all rows.
        assert_within(gradient, getattr(answer, name), ulps + 2, working=working)


def check_sigmoid(logits, labels, rng, ulps=SIGMOID_ULPS, **options):
    working = np.float64 if logits.dtype == np.float64 else np.float32
    cotangent = rng.uniform(-2, 2, logits.shape).astype(working)
    arrays = {"logits": logits, "labels": labels, **options}
    fixed = {"mask": arrays.pop("mask")} if "mask" in options else {}

    @jax.jit
    def run(arrays, cotangent):
        values, vjp = jax.vjp(
            lambda kw: sigmoid_binary_cross_entropy(kw["logits"], kw["labels"], **fixed, **rest(kw)), arrays
        )
        return values, vjp(cotangent)[0]

    def rest(arrays):
        return {name: value for name, value in arrays.items() if name not in ("logits", "labels")}

    values, gradients = run(arrays, cotangent)
    answer = oracle.sigmoid(logits, labels, cotangent=cotangent, **options)
    assert values.dtype == working
    assert_within(values, answer.loss, ulps)
    for name, gradient in gradients.items():
        assert gradient.dtype == arrays[name].dtype, name
        assert gradient.shape == arrays[name].shape, name
        assert_within(gradient, getattr(answer, name), ulps + 2, working=working)
