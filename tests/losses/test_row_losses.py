"""`loss_sum`: any formula over the statistics of a row, over dense logits and linear layers, with every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from jaxce import Chunked, LinearLogits, loss_sum
from tests.support import row_losses
from tests.support.row_losses import assert_near

pytestmark = pytest.mark.usefixtures("fast_compilation")

DENSE = "dense"
WAYS = [DENSE, "reference", "chunked", Chunked(4, 5), Chunked(4), Chunked(None, 5)]
# The largest error, as a part of the largest number: a few ulps of the result and of the statistics.
ERROR = {"bfloat16": 1e-2, "float16": 1e-3, "float32": 4e-6, "float64": 1e-13}


def logits_of(way, hidden, classifier):
    if way == DENSE:
        return jnp.asarray(hidden) @ jnp.asarray(classifier)
    return LinearLogits(hidden, classifier, implementation=way)


def total_of(way, **options):
    return lambda p: row_losses.ours(p, logits_of(way, p.hidden, p.classifier), **options).total


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("rows", [(11,), (3, 5), (0,)], ids=str)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_value_and_every_gradient(way, rows, dtype, rng, x64):
    problem = row_losses.make(rng, rows, jnp.dtype(dtype))
    if way == DENSE and dtype in ("bfloat16", "float16"):
        way = "reference"  # the product in this dtype would round the logits
    value, found = row_losses.gradients(total_of(way), problem)
    want_value, wanted = row_losses.gradients(row_losses.naive, row_losses.as_float64(problem))
    assert value.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert_near(value, want_value, ERROR[value.dtype.name])
    for name, gradient in found.items():
        assert gradient.dtype == getattr(problem, name).dtype
        assert_near(gradient, wanted[name], max(ERROR[gradient.dtype.name], ERROR[value.dtype.name]))
        if gradient.shape == rows:
            assert (np.asarray(gradient)[~problem.mask] == 0).all()


def with_float64(rng, rows=(row_losses.TOKENS,)):
    return row_losses.as_float64(row_losses.make(rng, rows))


MODES = {
    "jvp": lambda f, x, t: jax.jvp(f, (x,), (t,))[1],
    "jvp of grad": lambda f, x, t: jax.jvp(jax.grad(f), (x,), (t,))[1],
    "grad of jvp": lambda f, x, t: jax.grad(lambda x: jax.jvp(f, (x,), (t,))[1])(x),
    "grad of grad": lambda f, x, t: jax.grad(lambda x: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.grad(f)(x), t))))(
        x
    ),
    "third": lambda f, x, t: jax.jvp(lambda x: jax.jvp(jax.grad(f), (x,), (t,))[1], (x,), (t,))[1],
}


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", [DENSE, Chunked(4, 5), Chunked(4)], ids=str)
def test_derivatives_of_every_mode_and_order(way, mode, rng, x64):
    problem = with_float64(rng)
    by_name, replaced = row_losses.split(problem)
    tangents = {n: jnp.asarray(np.where(np.isnan(x), 0, 0.3)) for n, x in by_name.items()}

    def derivative(total):
        return jax.jit(lambda x, t: MODES[mode](lambda x: total(replaced(x)), x, t))(by_name, tangents)

    assert_near(derivative(total_of(way)), derivative(row_losses.naive), 1e-11)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("way", ["reference", Chunked(4, 5), Chunked(4)], ids=str)
def test_second_derivatives_of_narrow_arrays_under_vmap(way, dtype, rng, x64):
    problem = row_losses.make(rng, (3, 5), jnp.dtype(dtype))
    tangent = jnp.asarray(rng.integers(-4, 5, problem.classifier.shape) / 4)

    def along(total, problem):
        def of_batch(*rows):
            some = problem._replace(
                **dict(zip(("hidden", "labels", "mask", "advantages", "old", "weights"), rows, strict=True))
            )

            def gradient(w):
                return jax.grad(lambda w: total(some._replace(classifier=w)))(w)

            w = jnp.asarray(problem.classifier)
            return jax.jvp(gradient, (w,), (tangent.astype(w.dtype),))[1]

        rows = (problem.hidden, problem.labels, problem.mask, problem.advantages, problem.old, problem.weights)
        return jax.jit(jax.vmap(of_batch))(*map(jnp.asarray, rows))

    found = along(total_of(way), problem)
    wanted = along(row_losses.naive, row_losses.as_float64(problem))
    assert_near(found, wanted, {"bfloat16": 3e-2, "float16": 4e-3, "float32": 1e-5}[dtype])


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("way", ["reference", Chunked(4, 5), Chunked(4)], ids=str)
def test_gradient_of_vmap_and_vmap_of_gradient(way, dtype, rng, x64):
    problem = row_losses.make(rng, (3, 5), jnp.dtype(dtype))
    names = ("hidden", "labels", "mask", "advantages", "old", "weights")

    def both(total, problem):
        w, rows = jnp.asarray(problem.classifier), tuple(jnp.asarray(getattr(problem, name)) for name in names)

        def of_rows(w, rows):
            return total(problem._replace(classifier=w, **dict(zip(names, rows, strict=True))))

        of_sum = jax.grad(lambda w: jnp.sum(jax.vmap(of_rows, (None, 0))(w, rows)))(w)
        return of_sum, jax.vmap(jax.grad(of_rows), (None, 0))(w, rows)

    found = jax.jit(lambda: both(total_of(way), problem))()
    wanted = both(row_losses.naive, row_losses.as_float64(problem))
    assert_near(found, wanted, 2 * ERROR[dtype] if dtype != "float64" else 1e-12)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("way", [DENSE, Chunked(2, 5), Chunked(2)], ids=str)
@pytest.mark.parametrize("loop", ["scan", "checkpoint", "map of checkpoint"])
def test_loops(loop, way, rng, x64):
    problem = with_float64(rng, (3, 4))
    names = ("hidden", "labels", "mask", "advantages", "old", "weights")

    def looped(x):
        whole = problem._replace(**x)
        rows = tuple(jnp.asarray(getattr(whole, name)) for name in names)

        def of_batch(rows):
            return total_of(way)(whole._replace(**dict(zip(names, rows, strict=True))))

        if loop == "scan":
            return jax.lax.scan(lambda s, rows: (s + of_batch(rows), None), jnp.zeros(()), rows)[0]
        if loop == "checkpoint":
            return sum(jax.checkpoint(of_batch)(jax.tree.map(lambda r, i=i: r[i], rows)) for i in range(3))
        return jnp.sum(jax.lax.map(jax.checkpoint(of_batch), rows))

    by_name, replaced = row_losses.split(problem)
    found = jax.jit(jax.value_and_grad(looped))(by_name)
    assert_near(found, jax.value_and_grad(lambda x: row_losses.naive(replaced(x)))(by_name), 1e-12)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("way", [DENSE, Chunked(4, 5), Chunked(4)], ids=str)
def test_metrics_are_sums_over_the_rows_that_count_without_weights_and_gradient(way, rng):
    problem = row_losses.make(rng)

    def total(hidden):
        logits = logits_of(way, hidden, problem.classifier)
        result, metrics = row_losses.ours(problem, logits, loss=row_losses.policy_loss_and_metrics, has_aux=True)
        return result.total + sum(metric.total for metric in metrics.values()), metrics

    (_, metrics), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(problem.hidden)
    plain = jax.grad(lambda h: total_of(way)(problem._replace(hidden=h)))(jnp.asarray(problem.hidden))
    assert_near(gradient, plain, 4e-6)
    z, mask = problem.hidden.astype(np.float64) @ problem.classifier.astype(np.float64), problem.mask
    log_p = z - np.logaddexp.reduce(z, -1, keepdims=True)
    wanted = {
        "entropy": -(np.exp(log_p) * log_p).sum(-1),
        "correct": z.argmax(-1) == problem.labels,
        "prediction": z.argmax(-1),
    }
    for name, metric in metrics.items():
        np.testing.assert_allclose(metric.total, wanted[name][mask].sum(), rtol=1e-6)
        assert metric.weight == int(mask.sum())


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("way", [DENSE, Chunked(4, 5), Chunked(4)], ids=str)
def test_weights_of_any_sign(way, rng):
    problem = row_losses.make(rng)
    result = row_losses.ours(problem, logits_of(way, problem.hidden, problem.classifier))
    np.testing.assert_allclose(result.weight, problem.weights[problem.mask].sum(), rtol=1e-6)
    integers = np.arange(11) - 4
    result = row_losses.ours(problem._replace(weights=integers), logits_of(way, problem.hidden, problem.classifier))
    assert result.weight == integers[problem.mask].sum().item()
    unweighted = problem._replace(weights=None)
    result = row_losses.ours(unweighted, logits_of(way, problem.hidden, problem.classifier))
    assert result.weight == int(problem.mask.sum())


SUMS = {
    "dense": lambda y, w: jaxce.softmax_cross_entropy_sum(np.float32([[0, 1], [-np.inf, 0]]), y, weights=w),
    "linear": lambda y, w: jaxce.linear_softmax_cross_entropy_sum(
        np.float32([[1, 0], [0, 1]]), np.float32([[0, 1], [-np.inf, 0]]), y, weights=w, implementation="chunked"
    ),
    "loss_sum": lambda y, w: loss_sum(np.float32([[0, 1], [-np.inf, 0]]), y, nll, weights=w),
    "sigmoid": lambda y, w: jaxce.sigmoid_binary_cross_entropy_sum(
        np.float32([-np.log(np.e - 1), np.inf]), y.astype(np.float32), weights=w
    ),
}


def nll(stats):
    return stats.nll


@pytest.mark.parametrize("name", ["dense", "loss_sum", "sigmoid"])
def test_an_infinite_loss_of_weight_zero_counts_as_zero(name):
    labels = np.int32([0, 0])
    result = SUMS[name](labels, np.float32([2, 0]))
    np.testing.assert_allclose(
        result.total, 2 * np.log1p(np.e) if name != "sigmoid" else 2 * np.log(1 + 1 / (np.e - 1)), rtol=1e-6
    )
    assert result.weight == 2
    assert SUMS[name](labels, np.float32([2, 1])).total == np.inf


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("way", [DENSE, Chunked(4, 5), Chunked(4)], ids=str)
@pytest.mark.parametrize("options", [(), ("class_weights",), ("label_smoothing", "class_weights", "z_loss")], ids=str)
@pytest.mark.parametrize("kind", ["integer", "soft"])
def test_weighted_cross_entropy_is_the_sum_of_the_weighted_losses(kind, options, way, rng):
    problem = row_losses.make(rng)
    some = {"label_smoothing": 0.1, "z_loss": 0.01, "class_weights": np.linspace(0.5, 2, 13, dtype=np.float32)}
    some = {name: some[name] for name in options}
    labels = problem.labels if kind == "integer" else rng.dirichlet(np.ones(13), 11).astype(np.float32)

    def total(weights):
        logits = logits_of(way, problem.hidden, problem.classifier)
        result = jaxce.softmax_cross_entropy_sum(logits, labels, mask=problem.mask, weights=weights, **some)
        return result.total, result.weight

    z = (problem.hidden @ problem.classifier).astype(np.float64)
    loss = jaxce.softmax_cross_entropy_with_integer_labels if kind == "integer" else jaxce.softmax_cross_entropy
    losses = np.asarray(loss(jnp.asarray(z, jnp.float32), labels, **some), np.float64)  # tested in test_values
    (value, weight), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(problem.weights))
    kept, mask = problem.weights[problem.mask].astype(np.float64), problem.mask
    np.testing.assert_allclose(value, (kept * losses[mask]).sum(), rtol=2e-6)
    np.testing.assert_allclose(weight, kept.sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.where(mask, losses, 0), rtol=2e-6)


def test_a_loss_without_labels(rng):
    problem = row_losses.make(rng)

    def negative_entropy(stats):
        return -stats.entropy

    for way in (DENSE, Chunked(4, 5), Chunked(4)):

        def total(hidden, way=way):
            return loss_sum(logits_of(way, hidden, problem.classifier), None, negative_entropy).total

        def plain(hidden):
            log_p = jax.nn.log_softmax(hidden @ problem.classifier)
            return jnp.sum(jnp.exp(log_p) * log_p)

        hidden = jnp.asarray(problem.hidden)
        assert_near(jax.value_and_grad(total)(hidden), jax.value_and_grad(plain)(hidden), 4e-6)


def test_arrays_with_more_axes_and_pytrees_per_row(rng):
    problem, extra = row_losses.make(rng), rng.standard_normal((11, 3)).astype(np.float32)
    integers = rng.integers(0, 3, 11)

    def loss(stats, tree, third):
        return stats.nll * jnp.sum(tree["extra"]) + tree["extra"][third] * stats.log_z

    z = problem.hidden.astype(np.float64) @ problem.classifier.astype(np.float64)
    log_z = np.logaddexp.reduce(z, -1)
    wanted = (log_z - z[np.arange(11), problem.labels]) * extra.sum(-1) + extra[np.arange(11), integers] * log_z
    for way in (DENSE, Chunked(4, 5), Chunked(4)):
        result = loss_sum(
            logits_of(way, problem.hidden, problem.classifier), problem.labels, loss, ({"extra": extra}, integers)
        )
        np.testing.assert_allclose(result.total, wanted.sum(), rtol=2e-6)


def test_an_array_per_row_may_be_empty(rng):
    """Of the gradients, the one with respect to the empty array is empty too."""
    problem = row_losses.make(rng)

    def total(hidden, x, way):
        logits = logits_of(way, hidden, problem.classifier)
        return loss_sum(logits, problem.labels, lambda stats, x: stats.nll + jnp.sum(x), (x,)).total

    empty = jnp.zeros((11, 0))
    z = problem.hidden.astype(np.float64) @ problem.classifier.astype(np.float64)
    p = np.exp(z - np.logaddexp.reduce(z, -1, keepdims=True))
    wanted = (p - np.eye(z.shape[-1])[problem.labels]) @ problem.classifier.T
    for way in (DENSE, None, Chunked(4, 5)):
        of_hidden, of_empty = jax.grad(total, (0, 1))(jnp.asarray(problem.hidden), empty, way)
        np.testing.assert_allclose(of_hidden, wanted, rtol=1e-5, atol=1e-6)
        assert of_empty.shape == (11, 0)


def test_a_loss_may_ignore_the_statistics(rng):
    problem = row_losses.make(rng)
    hidden, x = jnp.asarray(problem.hidden), jnp.arange(11.0)

    def loss(stats, x):
        return jnp.square(x) + jax.lax.stop_gradient(stats.nll) * 0

    def total(hidden, x):
        return loss_sum(LinearLogits(hidden, problem.classifier), problem.labels, loss, (x,)).total

    of_hidden, of_x = jax.grad(total, (0, 1))(hidden, x)
    np.testing.assert_array_equal(of_hidden, np.zeros_like(hidden))
    np.testing.assert_array_equal(of_x, 2 * x)


def counting():
    calls = []

    def loss(stats, scale=1.0):
        calls.append(None)
        return stats.nll * scale

    return loss, calls


def test_a_loss_is_traced_once_for_each_signature(rng):
    problem, (loss, calls) = row_losses.make(rng), counting()

    def run(loss, rows=11):
        layer = LinearLogits(problem.hidden[:rows], problem.classifier, implementation=Chunked(4))
        return float(loss_sum(layer, problem.labels[:rows], loss).total)

    first, number = run(loss), len(calls)
    assert number and run(loss) == first and len(calls) == number
    assert np.isclose(run(functools.partial(loss, scale=2.0)), 2 * first) and len(calls) > number
    number = len(calls)
    run(functools.partial(loss, scale=2.0))  # another partial of the same constants
    assert len(calls) == number
    assert np.isclose(run(functools.partial(loss, scale=3.0)), 3 * first) and len(calls) > number
    run(functools.partial(loss, scale=jnp.float32(2))), len(calls)
    number = len(calls)
    assert np.isclose(run(functools.partial(loss, scale=jnp.float32(4))), 4 * first)
    assert len(calls) == number  # an array is an argument, not a constant
    run(loss, 7)
    assert len(calls) > number


def test_constants_of_different_types_are_told_apart(rng):
    problem = row_losses.make(rng)

    def loss(stats, option):
        return stats.nll * (1.0 if option is True else 2.0)

    one, other = (
        loss_sum(problem.hidden @ problem.classifier, problem.labels, functools.partial(loss, option=option)).total
        for option in (True, 1)
    )
    assert other == 2 * one


def test_a_loss_may_close_over_arrays_that_are_not_traced(rng):
    problem, factor = row_losses.make(rng), jnp.float32(3)

    def total(hidden):
        return loss_sum(hidden @ problem.classifier, problem.labels, lambda stats: stats.nll * factor).total

    plain = loss_sum(problem.hidden @ problem.classifier, problem.labels, nll).total
    np.testing.assert_allclose(jax.jit(total)(problem.hidden), 3 * plain, rtol=1e-6)


Z, Y = np.zeros((4, 5), np.float32), np.zeros(4, np.int32)
BAD = {
    "no function": ({"loss": 3}, TypeError, "`loss` must be a function of the statistics of a row; got int"),
    "unhashable option": ({"loss": functools.partial(nll, option={"a": {1}})}, TypeError, r"must be arrays or hashable.*got \{1\}"),
    "bound key": ({"loss": functools.partial(nll, key=jax.random.key(0))}, TypeError, r"bound to `loss`.*got key.*key_data"),
    "closure over the rows": ({"loss": lambda s: s.nll * jnp.ones(4)}, ValueError, r"shape \(4,\).*`per_row`"),
    "no number": ({"loss": lambda s: None}, TypeError, "`loss` must return a floating-point number.*got NoneType"),
    "integer": ({"loss": lambda s: s.prediction}, TypeError, "`loss` must return a floating-point number.*got int32"),
    "metrics without has_aux": ({"loss": lambda s: (s.nll, {})}, TypeError, "`loss` must return a floating.*got tuple.*metrics too, pass has_aux"),
    "has_aux without metrics": ({"loss": nll, "has_aux": True}, TypeError, "With `has_aux`.*got float32"),
    "metric of rows": ({"loss": lambda s: (s.nll, {"a": jnp.ones(4)}), "has_aux": True}, ValueError, r"metric 'a'.*shape \(4,\)"),
    "complex metric": ({"loss": lambda s: (s.nll, {"a": 1j}), "has_aux": True}, TypeError, "metric 'a'.*got complex"),
    "name of a metric": ({"loss": lambda s: (s.nll, {1: s.nll}), "has_aux": True}, TypeError, r"names of the metrics.*got \[1\]"),
    "has_aux": ({"has_aux": 1}, TypeError, "`has_aux` must be True or False; got 1"),
    "column per row": ({"loss": lambda s, x: x, "per_row": (np.ones((4, 1), np.float32),)}, ValueError, r"shape \(1,\).*more axes than the labels"),
    "list per row": ({"per_row": ([1.0] * 4,)}, ValueError, r"`per_row`.*got \(\).*list of numbers is a pytree"),
    "float labels": ({"labels": np.zeros(4, np.float32)}, TypeError, r"`labels` must be integers \(4,\), or class probabilities \(4, 5\)"),
    "bare array": ({"per_row": np.ones(4, np.float32)}, TypeError, r"`per_row` must be a tuple.*got ndarray.*per_row=\(array,\)"),
    "wrong shape per row": ({"per_row": (np.ones(3, np.float32),)}, ValueError, r"`per_row`.*\(4,\); got \(3,\).*functools.partial"),
    "text per row": ({"per_row": ("a",)}, TypeError, "`per_row` must hold arrays; got str"),
    "boolean weights": ({"weights": np.ones(4, bool)}, TypeError, "`weights` must be numbers; got booleans.*`mask`"),
    "weights of another shape": ({"weights": np.ones(5, np.float32)}, ValueError, r"`weights` must.*\(4,\); got \(5,\)"),
    "mask of another shape": ({"mask": np.ones(5, bool)}, ValueError, r"`mask`.*\(4,\); got \(5,\)"),
    "nll without labels": ({"labels": None}, ValueError, "`nll` needs labels"),
    "axis": ({"axis": 2}, ValueError, "`axis` must be an axis of `logits`"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "error", "message"), BAD.values(), ids=BAD)
def test_invalid_calls_raise_while_tracing(given, error, message):
    given = dict(given)
    args = given.pop("labels", Y), given.pop("loss", nll)
    with pytest.raises(error, match=f"(?s){message}"):
        jax.eval_shape(lambda z: loss_sum(z, *args, **given), Z)


def test_closures_over_traced_values_are_refused():
    def total(beta):
        return loss_sum(Z, Y, lambda stats: beta * stats.nll).total

    message = r"(?s)`loss` must not close over traced values.*functools\.partial\(loss"
    for function, beta in ((jax.jit(total), 1.0), (jax.grad(total), 1.0), (jax.vmap(total), np.ones(3, np.float32))):
        with pytest.raises(TypeError, match=message):
            function(beta)


def unlikelihood(stats, *per_row, beta=1.0):
    """A loss that is infinite, with infinite derivatives, for a certain row and for an input of 1."""
    return -beta * jnp.log(-jnp.expm1(-stats.nll)) + sum(jnp.log1p(-x) for x in per_row)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("way", [DENSE, Chunked(4, 5), Chunked(4)], ids=str)
def test_a_masked_row_reaches_no_gradient_even_of_a_bound_array(way, rng):
    problem, x = row_losses.make(rng), jnp.linspace(0.1, 0.9, 11)

    def total(kept, hidden, beta, x):
        logits = logits_of(way, hidden[kept], problem.classifier)
        loss = functools.partial(unlikelihood, beta=beta)
        mask = None if kept is not Ellipsis else problem.mask
        return loss_sum(logits, problem.labels[kept], loss, (x[kept],), mask=mask).total

    args = jnp.asarray(problem.hidden), jnp.float32(0.5), x
    some = np.flatnonzero(problem.mask)
    found = jax.value_and_grad(functools.partial(total, Ellipsis), (0, 1, 2))(*args)
    wanted = jax.value_and_grad(functools.partial(total, some), (0, 1, 2))(*args)
    assert_near(found, wanted, 4e-6)
    dots = jax.tree.map(jnp.ones_like, args)
    assert np.isfinite(jax.jvp(functools.partial(total, Ellipsis), args, dots)[1])


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("way", [DENSE, Chunked(1, 2), Chunked(1)], ids=str)
def test_an_infinite_loss_of_weight_zero_has_gradient_zero(way):
    """The gradient with respect to another weight of 0 is the loss all the same, and so is the mixed second derivative."""
    z, labels = jnp.float32([[2, 1, 0], [0, 300, 0], [1, 0, 2]]), np.int32([0, 1, 1])

    def total(z, weights, beta):
        logits = logits_of(way, z, np.eye(3, dtype=np.float32))
        return loss_sum(logits, labels, functools.partial(unlikelihood, beta=beta), weights=weights).total

    weights, beta = jnp.float32([1, 0, 0]), jnp.float32(1)
    of_z, of_weights, of_beta = jax.grad(total, (0, 1, 2))(z, weights, beta)
    alone = jax.grad(lambda z: total(z, jnp.float32([1, 0, 0]), beta))(z.at[1].set(0))
    np.testing.assert_allclose(of_z, np.where(np.arange(3)[:, None] == 0, alone, 0), rtol=1e-6)
    p = np.asarray(jax.nn.softmax(z)[jnp.arange(3), labels], np.float64)
    losses = -np.log1p(-np.where(np.arange(3) == 1, 0, p))
    np.testing.assert_allclose(of_weights, losses, rtol=1e-6)
    np.testing.assert_allclose(of_beta, losses[0], rtol=1e-6)
    mixed = jax.grad(lambda w: jnp.vdot(jax.grad(total)(z, w, beta), jnp.ones_like(z) + z))(weights)
    assert np.isfinite(mixed).all() and mixed[2] != 0


def test_no_tracer_outlives_its_trace(rng):
    """JAX's caches keep the formula; it must hold no array."""
    problem = row_losses.make(rng)
    names = ("hidden", "mask", "advantages", "weights")

    def total(moving):
        return row_losses.ours(problem._replace(**moving)).mean()

    with jax.checking_leaks():
        jax.jit(jax.grad(lambda h: total({"hidden": h})))(problem.hidden)
        jax.jit(lambda x: jax.grad(lambda h: total(x | {"hidden": h}))(x["hidden"]))(
            {name: getattr(problem, name) for name in names}
        )


def test_masked_nan_in_numpy_arrays_is_no_error_for_debug_nans(rng):
    problem = row_losses.make(rng)
    with jax.debug_nans(True):
        jax.grad(lambda h: row_losses.ours(problem._replace(hidden=h)).mean())(jnp.asarray(problem.hidden))
