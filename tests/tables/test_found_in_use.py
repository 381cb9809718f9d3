"""Bugs that were found in real use: one row for each bug, with the example that showed it. Other tests cover the whole class of each bug."""

import copy
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import LossSum

LOGITS = np.float32([[0.5, -1, 2, 0, 1], [1, 1.5, -0.5, 0.25, 3]])
LABELS = np.int32([2, 0])


def softmax(z):
    e = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def close(found, want, rtol=1e-5):
    np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=rtol, atol=rtol * np.max(np.abs(want)))


def second_derivatives_of_narrow_logits():
    z = LOGITS.astype(jnp.bfloat16)
    loss = jaxce.softmax_cross_entropy_with_integer_labels
    found = jax.grad(lambda z: (jax.vmap(jax.grad(loss))(z, LABELS).astype("float32") ** 2).sum())(z)
    p = softmax(LOGITS)
    g = p - np.eye(5)[LABELS]
    close(found, 2 * p * (g - (p * g).sum(1, keepdims=True)), rtol=2e-2)


def weight_beside_a_long_sum():
    whole = LossSum(jnp.float32(0.5 * 2**24), jnp.float32(2**24)) + LossSum(jnp.float32(100), jnp.float32(1))
    assert float(whole.weight) + float(whole.weight_remainder) == 2**24 + 1


def keras_objects_and_functions_are_copied():
    loss = jaxce.keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    for copied in (copy.copy(loss), copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(copied) is type(loss) and copied.get_config() == loss.get_config()
    function = jaxce.keras.losses.sparse_categorical_crossentropy
    assert pickle.loads(pickle.dumps(function)) is copy.deepcopy(function) is function


def keras_options_are_checked_by_the_constructor():
    with pytest.raises(TypeError, match="`ignore_class` must be a Python integer"):
        jaxce.keras.losses.SparseCategoricalCrossentropy(True, "sum")


def accuracy_from_blocks():
    z = np.random.default_rng(0).standard_normal((500, 40)).astype(np.float32)
    labels = z.argmax(1)
    parts = [jaxce.logit_stats(z[:, i : i + 10], labels - i) for i in (0, 10, 20, 30)]
    merged = parts[0]
    for part in parts[1:]:
        merged = jaxce.LogitStats.merge(merged, part)
    assert merged.correct.all()


def tangents_of_statistics():
    _, dots = jax.jvp(lambda z: jaxce.logit_stats(z, LABELS), (LOGITS,), (np.ones_like(LOGITS),))
    with pytest.raises(TypeError, match=r"`log_z` of the tangents .* is not the tangent of `log_z`"):
        _ = dots.log_z


def narrow_classifier_with_a_mean():
    """The gradient of the sum is as accurate as that of the losses per token, whose error is the rounding of the gradients to the narrow dtype."""
    rng = np.random.default_rng(0)
    for dtype, mean in ((jnp.bfloat16, 5), (jnp.float16, 0.5), (jnp.float8_e4m3fn, 1)):
        h = rng.standard_normal((64, 32)).astype(dtype)
        w = (mean + 0.02 * rng.standard_normal((32, 500))).astype(dtype)
        labels = rng.integers(0, 500, 64)
        wide = w.astype(np.float64)
        want = (softmax(h.astype(np.float64) @ wide) - np.eye(500)[labels]) @ wide.T

        def error(loss, h=h, w=w, labels=labels, want=want):
            found = np.asarray(jax.grad(lambda h: loss(h, w, labels))(h), np.float64)
            return np.linalg.norm(found - want) / np.linalg.norm(want)

        per_token = error(lambda h, w, y: jaxce.linear_softmax_cross_entropy(h, w, y).sum())
        for implementation in (None, jaxce.Chunked(16), jaxce.Chunked(16, 100)):
            summed = error(
                lambda h, w, y, i=implementation: (
                    jaxce.linear_softmax_cross_entropy_sum(h, w, y, implementation=i).total
                )
            )
            assert summed < 1.05 * per_token, (dtype, implementation, summed, per_token)


def arrays_on_mesh(specs, dtype):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((16, 4)), rng.standard_normal((4, 24))
    arrays = [np.asarray(x, dtype) for x in arrays] + [rng.integers(0, 24, 16), np.arange(16) % 3 != 0]
    return [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, specs, strict=True)], arrays


def losses_lie_as_labels_do():
    both = P(("data", "model"))
    (h, w, y, mask), (hidden, classifier, labels, counts) = arrays_on_mesh(
        (both, P(None, "model"), both, both), "float32"
    )
    losses = jaxce.linear_softmax_cross_entropy(h, w, y, mask=mask)
    assert jax.typeof(losses).sharding.spec == jax.typeof(y).sharding.spec
    nll = -np.log(softmax(hidden @ classifier)[np.arange(16), labels])
    close(LossSum.of(losses, mask=mask).mean(), nll[counts].mean())


def symbolic_batch_and_classes():
    b, v = export.symbolic_shape("b, v")
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    integer = jax.ShapeDtypeStruct((b,), jnp.int32)
    platforms = ("cpu", "cuda", "tpu")
    dense = export.export(jax.jit(jaxce.softmax_cross_entropy_with_integer_labels), platforms=platforms)
    close(dense(float32(b, v), integer).call(LOGITS, LABELS), -np.log(softmax(LOGITS)[[0, 1], LABELS]))
    hidden, classifier = LOGITS[:, :3], LOGITS.T[:3]
    linear = jax.jit(lambda h, w, y: jaxce.linear_softmax_cross_entropy_sum(h, w, y).total)
    found = export.export(linear, platforms=platforms)(float32(b, 3), float32(3, 2), integer)
    labels = np.int32([1, 0])
    want = -np.log(softmax(hidden @ classifier)[[0, 1], labels]).sum()
    close(found.call(hidden, classifier, labels), want)


def public_names_show_themselves():
    assert set(jaxce.__all__) >= {"softmax_cross_entropy", "LossSum", "linear_softmax_cross_entropy_sum"}
    code = "import jaxce; jaxce.keras.losses; print(*(n for n in dir(jaxce.keras.losses) if n[0] != '_'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    names = done.stdout.split()
    assert "sparse_categorical_crossentropy" in names and set(names) == set(jaxce.keras.losses.__all__)


def several_class_axes():
    z = LOGITS.reshape(1, 2, 5)
    found = jaxce.softmax_cross_entropy_with_integer_labels(z, np.int32([7]), axis=(-2, -1))
    close(found, -np.log(softmax(LOGITS.reshape(-1))[7]))


def class_probabilities_of_a_linear_layer():
    layer, labels = (LOGITS, np.ones((5, 3), np.float32)), np.ones((2, 3), np.float32)
    with pytest.raises(
        TypeError, match=r"`labels` must be integers; got float32\. For class probabilities use softmax_cross_entropy; "
    ):
        jaxce.linear_softmax_cross_entropy(*layer, labels)
    found = jaxce.softmax_cross_entropy(jaxce.LinearLogits(*layer), labels)
    close(found, np.full(2, 3 * np.log(3)))


FOUND = (
    second_derivatives_of_narrow_logits,
    weight_beside_a_long_sum,
    keras_objects_and_functions_are_copied,
    keras_options_are_checked_by_the_constructor,
    accuracy_from_blocks,
    tangents_of_statistics,
    narrow_classifier_with_a_mean,
    losses_lie_as_labels_do,
    symbolic_batch_and_classes,
    public_names_show_themselves,
    several_class_axes,
    class_probabilities_of_a_linear_layer,
)
# Two more bugs are tested elsewhere: a compiler bug that aborts the process (test_layouts), and wrong types (test_types).


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize("found", FOUND, ids=lambda f: f.__name__)
def test_bug_found_in_use_is_fixed(found):
    found()
