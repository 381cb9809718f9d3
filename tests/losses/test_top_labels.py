"""`label_probabilities`: the probabilities of a few classes give what the same probabilities of all classes give, which are spread by NumPy.

The losses of class probabilities are compared with the oracle elsewhere. Here they are the peer, because the two share no code for labels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from jaxce import Chunked, LinearLogits
from tests.support.versions import on_small_memory

pytestmark = pytest.mark.usefixtures("fast_compilation", "x64")

ROWS, CLASSES, FEATURES, LABELS = 12, 37, 6, 5
RNG = np.random.default_rng(0)
HIDDEN, CLASSIFIER, BIAS = (RNG.normal(size=size) for size in ((ROWS, FEATURES), (FEATURES, CLASSES), CLASSES))
INDICES = RNG.integers(0, CLASSES, size=(ROWS, LABELS))
INDICES[:, 1] = INDICES[:, 0]  # the same class twice
PROBABILITIES = RNG.random((ROWS, LABELS)) * 0.3
INDICES[2, 3], PROBABILITIES[2, 3] = -1, 0  # padding
INDICES[3, 3], PROBABILITIES[3, 3] = CLASSES, 0
MASK, CLASS_WEIGHTS, WEIGHTS = RNG.random(ROWS) < 0.7, RNG.random(CLASSES) + 0.1, RNG.normal(size=ROWS)
MASK[[2, 3]] = True
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "soft_cap": 3.0, "temperature": 0.7}
TOLERANCE = {"float64": 1e-13, "float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}


def spread(probabilities):
    """Return the probability of each class."""
    labels = np.zeros((ROWS, CLASSES))
    rows = np.broadcast_to(np.arange(ROWS)[:, None], INDICES.shape)
    is_class = (INDICES >= 0) & (INDICES < CLASSES)
    np.add.at(labels, (rows[is_class], INDICES[is_class]), np.asarray(probabilities, np.float64)[is_class])
    return labels


def lazy(implementation):
    return lambda hidden, classifier, bias: LinearLogits(hidden, classifier, bias=bias, implementation=implementation)


def dense(hidden, classifier, bias):
    return hidden @ classifier + bias[None]


WAYS = {
    "dense": dense,
    "lazy": lazy(None),
    "blocks": lazy(Chunked(block_tokens=5, block_classes=16)),
    "blocks of tokens": lazy(Chunked(block_tokens=5)),
    "reference": lazy("reference"),
}


def per_row(logits, labels, **options):
    losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, **options)
    return jnp.sum(losses * WEIGHTS.astype(losses.dtype))


def summed(logits, labels, **options):
    return jaxce.softmax_cross_entropy_sum(logits, labels, weights=WEIGHTS, **options).total


def of_formula(logits, labels, label_probabilities, **options):
    for name in ("label_smoothing", "z_loss", "class_weights"):
        options.pop(name)
    options |= {"label_probabilities": label_probabilities, "weights": WEIGHTS}
    return jaxce.loss_sum(logits, labels, lambda stats: stats.nll + stats.label_mass * stats.log_z, **options).total


def spread_formula(logits, labels, **options):
    for name in ("label_smoothing", "z_loss", "class_weights"):
        options.pop(name)
    return jaxce.loss_sum(
        logits, labels, lambda stats: stats.nll + stats.label_mass * stats.log_z, weights=WEIGHTS, **options
    ).total


LOSSES = {"per row": (per_row, summed), "sum": (summed, summed), "loss_sum": (of_formula, spread_formula)}


def gradients(function, order):
    """Return the value and the gradients, or with order 2 the gradients of the gradients along a direction."""
    if order == 1:
        return jax.value_and_grad(function, (0, 1, 2, 3))

    def along(*args):
        found = jax.grad(function, (0, 1, 2, 3))(*args)
        return sum(jnp.sum(jnp.sin(jnp.arange(g.size, dtype=g.dtype)).reshape(g.shape) * g) for g in found)

    return jax.grad(along, (0, 1, 2))


def assert_close(got, wanted, tolerance):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * np.max(np.abs(y)))


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("way", list(WAYS))
def test_losses_and_gradients_are_those_of_all_class_probabilities(way, loss, dtype, order):
    of_top, of_all = LOSSES[loss]
    # Arrays of a narrow dtype may hold what the wide ones hold: the peer takes the rounded numbers in float64.
    narrow = [jnp.asarray(x).astype(dtype) for x in (HIDDEN, CLASSIFIER, BIAS, PROBABILITIES)]
    wide = [x.astype(jnp.float64) for x in narrow]
    options = OPTIONS | {
        "mask": MASK,
        "class_weights": CLASS_WEIGHTS.astype("float32" if dtype != "float64" else dtype),
    }

    def top(hidden, classifier, bias, probabilities):
        layer = hidden, classifier, bias
        if way == "dense":  # the matmul in the dtype of the losses, as that of a lazy layer
            layer = [x.astype("float64" if dtype == "float64" else "float32") for x in layer]
        return of_top(WAYS[way](*layer), INDICES, label_probabilities=probabilities, **options)

    def everything(hidden, classifier, bias, probabilities):
        at = jnp.where((INDICES >= 0) & (INDICES < CLASSES), INDICES, CLASSES)
        labels = jnp.zeros((ROWS, CLASSES)).at[np.arange(ROWS)[:, None], at].add(probabilities, mode="drop")
        return of_all(hidden @ classifier + bias[None], labels, **options)

    got, wanted = (jax.jit(gradients(f, order))(*args) for f, args in ((top, narrow), (everything, wide)))
    assert_close(got, wanted, TOLERANCE[dtype] * (1 if order == 1 else 10))


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("way", list(WAYS))
def test_no_labels_at_all_leave_the_terms_without_labels(way):
    """With labels `[..., 0]` the label mass is 0, and only `z_loss` is left."""
    none, no_probabilities = np.zeros((ROWS, 0), int), np.zeros((ROWS, 0))

    def total(hidden, probabilities):
        logits = WAYS[way](hidden, CLASSIFIER, BIAS)
        options = {"label_probabilities": probabilities, "z_loss": 0.01}
        losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, none, **options)
        return jaxce.softmax_cross_entropy_sum(logits, none, **options).total + jnp.sum(losses)

    value, (gradient, of_probabilities) = jax.value_and_grad(total, (0, 1))(HIDDEN, no_probabilities)
    logits = HIDDEN @ CLASSIFIER + BIAS
    log_z = np.log(np.sum(np.exp(logits), -1))
    p = np.exp(logits - log_z[:, None])
    np.testing.assert_allclose(value, 2 * 0.01 * np.sum(log_z**2), rtol=1e-13)
    np.testing.assert_allclose(gradient, 2 * 0.02 * log_z[:, None] * (p @ CLASSIFIER.T), rtol=1e-12, atol=1e-14)
    assert of_probabilities.shape == (ROWS, 0)


@pytest.mark.parametrize("way", ["dense", "blocks"])
def test_statistics_are_those_of_all_class_probabilities(way):
    logits = WAYS[way](HIDDEN, CLASSIFIER, BIAS)
    got = jaxce.logit_stats(logits, INDICES, label_probabilities=PROBABILITIES, mask=MASK)
    wanted = jaxce.logit_stats(dense(HIDDEN, CLASSIFIER, BIAS), spread(PROBABILITIES), mask=MASK)
    assert not got.integer_labels
    assert_close(got, wanted, 1e-13)


def test_a_class_axis_that_is_not_the_last_and_two_class_axes():
    logits, labels = dense(HIDDEN, CLASSIFIER, BIAS)[:, :36], spread(PROBABILITIES)[:, :36]
    inside = INDICES < 36
    options = {"label_probabilities": np.where(inside, PROBABILITIES, 0)}
    loss = jaxce.softmax_cross_entropy_with_integer_labels
    wanted = jaxce.softmax_cross_entropy(logits, labels)
    np.testing.assert_allclose(loss(logits.T, INDICES, axis=0, **options), wanted, rtol=1e-13)
    images = logits.reshape(ROWS, 4, 9)
    np.testing.assert_allclose(loss(images, INDICES, axis=(1, 2), **options), wanted, rtol=1e-13)


@pytest.mark.parametrize("way", ["dense", "blocks", "lazy"])
def test_a_label_that_is_no_class_makes_its_row_nan_unless_its_probability_is_0(way):
    indices = INDICES.copy()
    indices[0, 2], indices[1, 2] = CLASSES, -1

    def loss(hidden):
        logits = WAYS[way](hidden, CLASSIFIER, BIAS)
        return jaxce.softmax_cross_entropy_sum(
            logits, indices, label_probabilities=PROBABILITIES, mask=np.arange(ROWS) != 1
        ).total

    def losses(hidden):
        logits = WAYS[way](hidden, CLASSIFIER, BIAS)
        return jaxce.softmax_cross_entropy_with_integer_labels(logits, indices, label_probabilities=PROBABILITIES)

    value = losses(HIDDEN)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(value)), [0, 1])
    gradient = jax.grad(loss)(HIDDEN)
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), np.arange(ROWS) == 0)
    assert not np.any(gradient[1])  # the masked row


def test_a_label_at_a_class_that_takes_no_part():
    logits = jnp.array([[1.0, -jnp.inf, 2.0], [1.0, -jnp.inf, 2.0]])
    losses = jaxce.softmax_cross_entropy_with_integer_labels(
        logits, jnp.array([[0, 1], [0, 1]]), label_probabilities=jnp.array([[0.5, 0.5], [1.0, 0.0]])
    )
    np.testing.assert_allclose(losses, [np.inf, np.log1p(np.e)], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("way", ["dense", "lazy"])
def test_gradient_keeps_its_digits_where_the_label_and_its_class_are_certain(way, dtype):
    gaps = np.array([30.0, 60.0, 5.0])
    hidden = jnp.asarray(np.stack([gaps, 0 * gaps, 0 * gaps], -1)).astype(dtype)

    def loss(hidden):
        logits = hidden if way == "dense" else LinearLogits(hidden, jnp.eye(3, dtype=hidden.dtype))
        labels, probabilities = jnp.array([[0, 0]] * 3), jnp.array([[0.5, 0.5]] * 3)
        return jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, label_probabilities=probabilities).sum()

    small = 2 * np.exp(-gaps) / (1 + 2 * np.exp(-gaps))
    wanted = np.stack([-small, small / 2, small / 2], -1)
    got = np.asarray(jax.jit(jax.grad(loss))(hidden), np.float64)
    np.testing.assert_allclose(got, wanted, rtol={"float32": 4e-6, "float64": 1e-14, "bfloat16": 5e-3}[dtype])


@pytest.mark.parametrize("way", ["dense", "blocks", "lazy"])
@pytest.mark.parametrize("order", ["logits first", "probabilities first"])
def test_a_label_of_no_class_that_takes_part_has_no_mixed_derivative(way, order):
    """Of `sum_j q_j (log_z - z_j)` it is `p - onehot(j)` for a class that takes part, and 0 for padding and for a class that `where` excludes."""
    indices, probabilities = np.array([[1, -1, 4, 2, 5, 1]]), np.array([[0.5, 0, 0, 0, 0, 0.2]])
    logits, where = np.array([[0.3, 1.0, -0.5, 0.7, 3.0]]), np.array([[True, True, True, True, False]])

    def loss(logits, probabilities):
        if way != "dense":
            how = Chunked(block_classes=2) if way == "blocks" else None
            logits = LinearLogits(logits, jnp.eye(5), implementation=how)
        options = {"label_probabilities": probabilities, "where": where}
        return jaxce.softmax_cross_entropy_with_integer_labels(logits, indices, **options)[0]

    inner, outer = (0, 1) if order == "logits first" else (1, 0)
    found = np.squeeze(jax.jit(jax.jacfwd(jax.grad(loss, inner), outer))(logits, probabilities))
    p = np.where(where, np.exp(logits), 0)[0]
    wanted = p / p.sum() - np.eye(6)[indices[0], :5]
    wanted[[1, 2, 4]] = 0
    np.testing.assert_allclose(found.T if inner == 0 else found, wanted, rtol=1e-12, atol=1e-15)


@on_small_memory
def test_no_array_of_all_classes_is_stored():
    rows, classes, k = 256, 4096, 8
    logits = jax.ShapeDtypeStruct((rows, classes), jnp.float32)
    indices, probabilities = (jax.ShapeDtypeStruct((rows, k), dtype) for dtype in (jnp.int32, jnp.float32))

    def loss(logits, indices, probabilities):
        return jaxce.softmax_cross_entropy_with_integer_labels(logits, indices, label_probabilities=probabilities).sum()

    memory = [
        jax.jit(f).lower(logits, indices, probabilities).compile().memory_analysis().temp_size_in_bytes
        for f in (loss, jax.grad(loss))
    ]
    of_logits = rows * classes * 4
    # The gradient adds two arrays: that of the sums, and that which the labels are scattered into.
    assert memory[0] < of_logits / 4
    assert memory[1] < of_logits * 1.1


@pytest.mark.parametrize("rows", [(), (3, 4)], ids=str)
def test_rows_may_have_any_number_of_axes(rows):
    """Compare with the formula in NumPy: the value, and the gradients with respect to the logits, the probabilities and the class weights."""
    rng = np.random.default_rng(1)
    logits, indices = rng.normal(size=(*rows, 7)), rng.integers(0, 7, size=(*rows, 3))
    probabilities, class_weights = rng.random((*rows, 3)), rng.random(7) + 0.1

    def total(logits, probabilities, class_weights):
        options = {"label_probabilities": probabilities, "class_weights": class_weights}
        stats = jaxce.logit_stats(logits, indices, label_probabilities=probabilities)
        losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, indices, **options)
        return jnp.sum(losses + stats.label_mass + 2 * stats.top_label_mass)

    value, gradients = jax.value_and_grad(total, (0, 1, 2))(logits, probabilities, class_weights)
    log_p = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
    onehot = np.eye(7)[indices]
    nll = -np.take_along_axis(log_p, indices, -1)
    is_top = indices == np.argmax(logits, -1)[..., None]
    of_labels = class_weights[indices] * probabilities
    np.testing.assert_allclose(value, np.sum(of_labels * nll + probabilities * (1 + 2 * is_top)), rtol=1e-13)
    differences = of_labels[..., None] * (np.exp(log_p)[..., None, :] - onehot)
    wanted = np.sum(differences, -2), class_weights[indices] * nll + 1 + 2 * is_top
    of_weights = np.sum((probabilities * nll)[..., None] * onehot, tuple(range(onehot.ndim - 1)))
    for found, want in zip(gradients, (*wanted, of_weights), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-15)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("way", ["dense", "blocks"])
def test_masked_nan_probabilities_reach_no_gradient_even_of_the_class_weights(way):
    probabilities, indices, mask = np.array(PROBABILITIES), INDICES.copy(), np.arange(ROWS) != 4
    probabilities[4], indices[4] = np.nan, 10**6

    def total(hidden, probabilities, class_weights):
        logits = WAYS[way](hidden, CLASSIFIER, BIAS)
        options = {"label_probabilities": probabilities, "class_weights": class_weights, "mask": mask}
        losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, indices, **options)
        return jnp.sum(losses) + jaxce.softmax_cross_entropy_sum(logits, indices, **options).total

    gradients = jax.jit(jax.grad(total, (0, 1, 2)))(HIDDEN, probabilities, CLASS_WEIGHTS)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not np.any(gradients[0][4]) and not np.any(gradients[1][4])
    log_p = jax.nn.log_softmax(dense(HIDDEN, CLASSIFIER, BIAS))
    wanted = -2 * np.sum(spread(np.where(mask[:, None], PROBABILITIES, 0)) * log_p, 0)
    np.testing.assert_allclose(gradients[2], wanted, rtol=1e-12)


def test_a_row_without_classes_has_no_likeliest_class():
    stats = jaxce.logit_stats(
        jnp.full((1, 3), -jnp.inf), jnp.array([[0, 2]]), label_probabilities=jnp.array([[0.2, 0.8]])
    )
    assert stats.top_label_mass == 0 and stats.prediction == -1 and np.isnan(stats.nll)


BAD = {
    "real labels": ({"labels": spread(PROBABILITIES)[:, :LABELS]}, TypeError, "`labels` must be integers"),
    "another shape": ({"label_probabilities": PROBABILITIES[:, 1:]}, ValueError, "the shape of `labels`"),
    "of all classes": (
        {"label_probabilities": np.zeros((ROWS, CLASSES), np.float32)},
        ValueError,
        "all classes are the `labels`",
    ),
    "one label per row": (
        {"labels": INDICES[:, 0], "label_probabilities": PROBABILITIES[:, 0]},
        ValueError,
        "one more axis",
    ),
    "other rows": ({"labels": INDICES[1:], "label_probabilities": PROBABILITIES[1:]}, ValueError, "one more axis"),
    "booleans": ({"label_probabilities": PROBABILITIES > 0}, TypeError, "must be numbers"),
    "no labels": ({"labels": None}, TypeError, "`labels`"),
}


@pytest.mark.parametrize("name", list(BAD))
@pytest.mark.parametrize(
    "function", [jaxce.softmax_cross_entropy_with_integer_labels, jaxce.softmax_cross_entropy_sum, jaxce.logit_stats]
)
def test_bad_input_raises(function, name):
    change, error, message = BAD[name]
    arguments = {"labels": INDICES, "label_probabilities": PROBABILITIES} | change
    with pytest.raises(error, match=message):
        function(dense(HIDDEN, CLASSIFIER, BIAS), **arguments)


def test_vmap_and_scan_give_the_losses_of_each_part():
    loss = functools.partial(jaxce.softmax_cross_entropy_with_integer_labels)
    logits = dense(HIDDEN, CLASSIFIER, BIAS)
    wanted = loss(logits, INDICES, label_probabilities=PROBABILITIES)
    one = lambda z, i, q: loss(z, i, label_probabilities=q)  # noqa: E731
    np.testing.assert_allclose(jax.vmap(one)(logits, INDICES, PROBABILITIES), wanted, rtol=1e-14)
    _, scanned = jax.lax.scan(lambda _, x: (None, one(*x)), None, (logits, INDICES, PROBABILITIES))
    np.testing.assert_allclose(scanned, wanted, rtol=1e-14)
