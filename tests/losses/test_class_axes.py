"""Several class axes: `axis=(-2, -1)` is a softmax over an image. It equals a softmax over one class axis with the pixels in row-major order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxce
from tests.support import cases
from tests.support.cases import INTEGER, SOFT
from tests.support.closeness import assert_within

pytestmark = pytest.mark.usefixtures("fast_compilation")

SHAPE = (3, 4, 5, 2)
AXES = [(-2, -1), (1, 2), (2, 1), (0, 3), (3, 1), (1, 2, 3), (-1,), (0, 1, 2, 3)]


def merge_axes(array, axis):
    """Merge the class axes into one last axis."""
    return np.moveaxis(array, axis, range(-len(axis), 0)).reshape(*row_sizes(axis), -1)


def split_axes(array, axis):
    """Split the last axis into the class axes: the inverse of `merge_axes`."""
    classes = [SHAPE[i] for i in axis]
    return np.moveaxis(array.reshape(*row_sizes(axis), *classes), range(-len(axis), 0), axis)


def row_sizes(axis):
    return [size for i, size in enumerate(SHAPE) if i not in {a % 4 for a in axis}]


@pytest.mark.covering(1)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("names", [(), ("where", "label_smoothing"), cases.SOFTMAX_OPTIONS], ids=cases.name_of)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_losses_and_gradients(loss, dtype, names, axis, rng):
    logits = cases.make_logits(rng, SHAPE).astype(jnp.dtype(dtype))
    z = merge_axes(logits, axis)
    labels = loss.make_labels(rng, z.shape, -1)
    options = cases.make_options(rng, names, loss, z.shape, labels, -1)
    cotangent = rng.uniform(-1, 2, z.shape[:-1]).astype(np.float32)
    answer = loss.oracle(z, labels, cotangent=cotangent, **options)
    given = dict(options)
    if "where" in given:
        given["where"] = split_axes(np.broadcast_to(given["where"], z.shape), axis)
    if "class_weights" in given:
        given["class_weights"] = given["class_weights"].reshape([SHAPE[i] for i in axis])
    shaped = labels if loss is INTEGER else split_axes(labels, axis)
    value, pull = jax.vjp(jax.jit(lambda z: loss.function(z, shaped, axis=axis, **given)), logits)
    (gradient,) = pull(jnp.asarray(cotangent))
    assert gradient.dtype == logits.dtype
    assert_within(value, answer.loss, 6)
    assert_within(np.asarray(gradient), tuple(split_axes(x, axis) for x in answer.logits), 8, working=np.float32)


@pytest.mark.parametrize("axis", [(-2, -1), (2, 1)])
def test_where_broadcasts_along_a_class_axis(axis, rng):
    logits = cases.make_logits(rng, SHAPE)
    where = np.array([True, False, True, True, True]).reshape(1, 1, 5, 1)
    z, full = merge_axes(logits, axis), merge_axes(np.broadcast_to(where, SHAPE), axis)
    labels = np.where(full, 1, 0).argmax(-1)
    found = jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, axis=axis, where=where)
    assert_within(found, INTEGER.oracle(z, labels, where=full).loss, 6)


@pytest.mark.parametrize(
    "axis", [AXES[0], AXES[4], *(pytest.param(axis, marks=pytest.mark.nightly) for axis in AXES[5:])], ids=str
)
def test_statistics(axis, rng):
    logits = cases.make_logits(rng, SHAPE)
    z = merge_axes(logits, axis)
    labels = z.argmax(-1)
    stats = jaxce.logit_stats(logits, labels, axis=axis)
    assert_within(stats.nll, INTEGER.oracle(z, labels).loss, 6)
    np.testing.assert_array_equal(stats.max_logit, z.max(-1))
    assert np.all(stats.correct) and np.all(stats.num_classes == z.shape[-1])
    q = SOFT.make_labels(rng, z.shape, -1)
    assert_within(jaxce.logit_stats(logits, split_axes(q, axis), axis=axis).nll, SOFT.oracle(z, q).loss, 6)


@pytest.mark.parametrize("axis", [(-2, -1), (2, 1)])
def test_agrees_with_optax(axis, rng):
    logits = cases.make_logits(rng, SHAPE)
    labels = rng.integers(0, np.prod([SHAPE[i] for i in axis]), row_sizes(axis))
    theirs = optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis=axis)
    ours = jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, axis=axis)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"axis": ()}, ValueError, r"`axis` must be one or more different axes of `logits`; got \(\) for shape"),
        ({"axis": (1, -3)}, ValueError, r"different axes of `logits`; got \(1, -3\)"),
        ({"axis": (1, 4)}, ValueError, r"`axis` must be an axis of `logits`, from -4 to 3; got 4"),
        ({"axis": [-2, -1]}, TypeError, r"an integer or a tuple of integers; got \[-2, -1\]"),
        ({"axis": (1, True)}, TypeError, r"`axis` must be an integer; got True"),
        ({"axis": (1, 2)}, ValueError, r"without axis \(1, 2\), \(3, 2\); got \(3, 4\)"),
        ({"axis": (2, 3), "class_weights": np.ones(10)}, ValueError, r"each of the 10 classes, shape \(5, 2\); got \(10,\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_raises(arguments, error, message):
    logits, labels = np.zeros(SHAPE, np.float32), np.zeros((3, 4), np.int32)
    for function in (jaxce.softmax_cross_entropy_with_integer_labels, jaxce.logit_stats):
        with pytest.raises(error, match=message):
            function(logits, labels, **arguments)


def test_classes_split_over_devices_have_one_axis():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(None, "model")

    def local(z):
        return jaxce.softmax_cross_entropy_with_integer_labels(z, jnp.zeros(3, int), axis=(1, 2), axis_name="model")

    with pytest.raises(ValueError, match=r"`axis_name` splits the classes of one axis; got `axis` \(1, 2\)"):
        jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec())(jnp.zeros((3, 8, 4)))
