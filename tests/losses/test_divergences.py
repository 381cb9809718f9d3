"""The divergences of two softmaxes: exact values and gradients, infinities, every option, for dense logits and those of a layer."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import (
    Chunked,
    LossSum,
    softmax_js_divergence,
    softmax_js_divergence_sum,
    softmax_kl_divergence,
    softmax_kl_divergence_sum,
)
from tests.support import covering, divergences
from tests.support.closeness import assert_within
from tests.support.divergences import DENSE, WEIGHT, as_layer
from tests.support.oracle import Quantity
from tests.support.row_losses import assert_near

pytestmark = pytest.mark.usefixtures("fast_compilation")

INF, NAN = np.inf, np.nan
WAYS = {
    "dense": (DENSE, DENSE),
    "lazy": (Chunked(5), Chunked(5)),
    "lazy target": (Chunked(7), DENSE),
    "lazy logits": (DENSE, "reference"),
}
DTYPES = ["bfloat16", "float16", "float32", "float64", "float16 and float64", "bfloat16 and float32"]
SUMS = {softmax_kl_divergence: softmax_kl_divergence_sum, softmax_js_divergence: softmax_js_divergence_sum}


def logits_in(way, target, logits):
    """Return the logits, each dense or those of a layer."""
    return tuple(x if i == DENSE else as_layer(x, i) for x, i in zip((target, logits), WAYS[way], strict=True))


def js(target, logits, **options):
    return softmax_js_divergence(target, logits, **{"weight": WEIGHT, **options})


def results(way, target, logits, temperature, weight):
    """Return, for each divergence, the values and all gradients."""

    def of(function, **options):
        def losses(target, logits, temperature, options):
            return function(*logits_in(way, target, logits), temperature=temperature, **options)

        values, pull = jax.vjp(losses, target, logits, temperature, options)
        return values, pull(jnp.ones_like(values))

    return of(softmax_kl_divergence), of(softmax_js_divergence, weight=weight)


def assert_exact(found, target, logits, temperature, ulps=8):
    for (values, gradients), weight in zip(found, (None, WEIGHT), strict=True):
        answer = divergences.exact(target, logits, temperature, weight)
        assert (np.asarray(values) >= 0).all()
        assert_within(values, answer.value, ulps)
        for name, gradient in zip(("target", "logits", "temperature"), gradients[:3], strict=True):
            if gradient is not None:
                assert_within(gradient, getattr(answer, name), ulps, working=values.dtype)
        if weight is not None:
            of_weight = Quantity(*(x.sum() for x in answer.weight))
            assert_within(gradients[3]["weight"], of_weight, ulps, working=values.dtype)


KINDS = itertools.product(WAYS, (False, True), DTYPES, (2, 7, 300))
QUICK = [
    ("dense", False, "bfloat16", 7),
    ("lazy", False, "float16 and float64", 2),
    ("lazy target", True, "float32", 7),
]


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize(("way", "with_temperature", "dtypes", "num_classes"), covering.quick(KINDS, QUICK))
def test_values_and_gradients_keep_every_digit(way, with_temperature, dtypes, num_classes, rng, x64):
    """The last rows have equal arguments: divergence 0 and gradient 0."""
    narrow, wide = (jnp.dtype(name) for name in (dtypes.split(" and ") * 2)[:2])
    target, logits = divergences.rows_of_any_divergence(rng, num_classes, narrow)
    if num_classes > 100:  # the oracle is slow
        target, logits = target[::4], logits[::4]
    equal = (len(target) + np.arange(3)) % len(target)
    target, logits = np.concatenate([target, logits[equal]]), np.concatenate([logits, logits[equal]]).astype(wide)
    temperature = np.linspace(0.5, 2, len(target), dtype=np.float32) if with_temperature else None
    found = jax.jit(functools.partial(results, way))(target, logits, temperature, WEIGHT)
    for values, gradients in found:
        assert values.dtype == (np.float64 if wide == np.float64 else np.float32)
        assert [g.dtype for g in gradients[:2]] == [narrow, wide]
        for x in (values, *gradients[:3]):
            assert x is None or (np.asarray(x)[-3:] == 0).all()
    assert_exact(found, target, logits, temperature)


def test_rows_are_hard_for_the_textbook_formula(rng):
    """The formula in float32 is negative, or off by a quarter, for some rows."""
    target, logits = divergences.rows_of_any_divergence(rng, 7, np.dtype(np.float32))
    wanted = divergences.exact(target, logits).value.value
    assert wanted.min() < 1e-13 and wanted.max() > 30
    found = np.asarray(divergences.plain(target, logits))
    assert (found < 0).any() and (abs(found - wanted) > wanted / 4).sum() >= 3


def test_a_constant_added_to_all_logits_changes_nothing(rng):
    """The differences of the logits are exact in float32, so only their own rounding could cost digits."""
    target = (rng.integers(-(2**20), 2**20, (5, 40)) / 2**19).astype(np.float32)
    logits = (np.round(target * 2**9) / 2**9 + rng.integers(-3, 4, target.shape) / 2**9).astype(np.float32)
    shift = np.float32([0, 100, -4096, 1, -32])[:, None]
    found = jax.jit(functools.partial(results, DENSE))(target, logits + shift, None, WEIGHT)
    assert_exact(found, target, logits, None)


# The target's logits, the student's, the Kullback-Leibler divergence and its gradients with respect to both. None: any number, or NaN.
LOG2, THIRD = np.log(2), 1 / 3
BIG = float(np.finfo(np.float32).max)
HARD = {
    "target leaves out a class": ([0, 0, -INF], [0, 0, 0], np.log(1.5), [0, 0, 0], [-1 / 6, -1 / 6, THIRD]),
    "student leaves out a class": ([0, 0, 0], [0, 0, -INF], INF, None, [1 / 6, 1 / 6, -THIRD]),
    "student leaves out all but one": ([0, 0, 0], [-INF, 5, -INF], INF, None, [-THIRD, 2 / 3, -THIRD]),
    "both leave out a class": (
        [0, np.log(3), -INF],
        [np.log(3), 0, -INF],
        LOG2 * 0 + np.log(3) / 2,
        None,
        [0.5, -0.5, 0],
    ),
    "each leaves out one": ([0, 0, -INF], [-INF, 0, 0], INF, None, [-0.5, 0, 0.5]),
    "no class in common": ([0, -INF, -INF], [-INF, 0, 0], INF, None, [-1, 0.5, 0.5]),
    "one class": ([0, -INF, -INF], [7, -INF, -INF], 0, [0, 0, 0], [0, 0, 0]),
    "an underflow where the student is 0": ([0, 0, -200], [0, 0, -INF], INF, None, [0, 0, 0]),
    "an underflow where the student is not": ([0, 0, -200], [0, 0, 0], np.log(1.5), [0, 0, 0], [-1 / 6, -1 / 6, THIRD]),
    "a student that underflows": ([0, 0, 0], [0, -200, -200], 400 / 3 - np.log(3), None, [2 / 3, -THIRD, -THIRD]),
    "1e38 apart": ([1e38, 0, 0], [0, 1e38, 0], 1e38, [0, 0, 0], [-1, 1, 0]),
    "more than the largest number apart": ([3e38, -3e38, 0], [-3e38, 3e38, 0], BIG, None, [-1, 1, 0]),
    "equal and as far apart": ([3e38, -3e38, 0], [3e38, -3e38, 0], 0, [0, 0, 0], [0, 0, 0]),
    "target of no class": ([-INF] * 3, [0, 0, 0], NAN, None, None),
    "student of no class": ([0, 0, 0], [-INF] * 3, NAN, None, None),
    "no class": ([-INF] * 3, [-INF] * 3, NAN, None, None),
    "NaN in the target": ([0, NAN, 0], [0, 0, 0], NAN, [NAN] * 3, [NAN] * 3),
    "NaN in the student": ([0, 0, 0], [0, NAN, 0], NAN, [NAN] * 3, [NAN] * 3),
    "+inf in the target": ([0, INF, 0], [0, 0, 0], NAN, None, None),
    "+inf in the student": ([0, 0, 0], [0, INF, 0], NAN, None, None),
    "+inf in both": ([0, INF, 0], [0, INF, 0], NAN, None, None),
    "NaN beside -inf": ([-INF, NAN, 0], [-INF, 0, NAN], NAN, None, None),
}
# The Jensen-Shannon divergences with weight 1/2 that are not those of the textbook formula.
JS = {"no class in common": LOG2, "1e38 apart": LOG2, "more than the largest number apart": LOG2}


def js_of(target, logits):
    """Return the Jensen-Shannon divergence with weight 1/2, with 0 log 0 = 0."""
    with np.errstate(all="ignore"):
        q, p = (np.exp(x - np.max(x)) / np.exp(x - np.max(x)).sum() for x in map(np.float64, (target, logits)))
        m = (q + p) / 2
        terms = (np.where(x == 0, 0, x * np.log(np.where(x == 0, 1, x) / np.where(m == 0, 1, m))) for x in (q, p))
        return sum(terms).sum() / 2


@functools.partial(jax.jit, static_argnums=0)
def kl_and_js(way, target, logits, options):
    """Return the values and the gradients with respect to both arguments."""

    def of(function):
        values, pull = jax.vjp(lambda *z: function(*logits_in(way, *z), **options), target, logits)
        return values, *pull(jnp.ones_like(values))

    return of(softmax_kl_divergence), of(functools.partial(js, weight=0.5))


@pytest.mark.parametrize("way", ["dense", *covering.nightly_values("dense with temperature", "lazy")])
def test_infinities_and_nan(way):
    target, logits, values, by_target, by_logits = zip(*HARD.values(), strict=True)
    pair = [np.float32(x) for x in (target, logits)]
    options = {"temperature": jnp.ones(len(HARD))} if way.endswith("temperature") else {}
    if way == "lazy":  # a layer has an infinite logit if its bias is infinite, so every row is a layer of its own
        found = jax.jit(jax.vmap(of_biases))(*pair)
    else:
        found = kl_and_js(DENSE, *pair, options)
    for i, name in enumerate(HARD):
        (kl, *kl_gradients), (js_value, *js_gradients) = jax.tree.map(lambda x, i=i: np.asarray(x[i]), found)
        np.testing.assert_allclose(kl, values[i], rtol=1e-6, atol=0, err_msg=name)
        want = JS.get(name, js_of(target[i], logits[i]) if np.isfinite(values[i]) or values[i] > 0 else NAN)
        np.testing.assert_allclose(js_value, want, rtol=1e-6, atol=1e-30, err_msg=name)
        for gradient, want in zip(kl_gradients, (by_target[i], by_logits[i]), strict=True):
            if want is not None:
                np.testing.assert_allclose(gradient, want, rtol=1e-6, atol=1e-7, err_msg=name)
        if np.isnan(kl):
            assert np.isnan(kl_gradients).all() and np.isnan(js_gradients).all(), name
        if np.isfinite(js_value):
            assert np.isfinite(js_gradients).all(), name
            left_out = np.array([target[i], logits[i]]) == -INF
            assert (np.array(js_gradients)[left_out] == 0).all(), name


def of_biases(target, logits):
    """Return the divergences of two layers whose logits are their biases, with the gradients with respect to the biases."""

    def of(function):
        def value(*biases):
            layers = (divergences.layer_of_bias(bias, Chunked(1)) for bias in biases)
            return function(*layers)[0]

        return jax.value_and_grad(value, (0, 1))(target, logits)

    (kl, by_kl), (js_value, by_js) = of(softmax_kl_divergence), of(functools.partial(js, weight=0.5))
    return (kl, *by_kl), (js_value, *by_js)


@pytest.mark.parametrize("way", ["dense", *covering.nightly_values("lazy", "lazy target", "lazy logits")])
def test_masked_rows_have_divergence_0_and_gradient_0_whatever_they_hold(way, rng):
    target, logits = rng.standard_normal((2, 6, 5)).astype(np.float32)
    mask, temperature = np.array([True, False] * 3), np.full(6, 0.5, np.float32)
    # A masked row may have no class. Rows of a layer have the same classes.
    where = {"where": np.arange(6)[:, None] != np.full((1, 5), 1)} if way == "dense" else {}
    clean = jax.tree.map(np.copy, (target, logits))
    target[1], target[3, 2], logits[3, 0], logits[5], temperature[3:6:2] = NAN, INF, -INF, NAN, (NAN, -1)

    def run(target, logits, temperature):
        options = {"mask": mask, "temperature": temperature}

        def losses(*z, temperature):
            z = logits_in(way, *z)
            options = {"mask": mask, "temperature": temperature, **where}
            rows = softmax_kl_divergence(*z, **options), js(*z, **options)
            totals = softmax_kl_divergence_sum(*z, **options), softmax_js_divergence_sum(*z, weight=WEIGHT, **options)
            return rows, [(x.total, x.weight) for x in totals]

        values, pull = jax.vjp(lambda *x: losses(*x[:2], temperature=x[2]), target, logits, options["temperature"])
        return values, pull(jax.tree.map(jnp.ones_like, values))

    with jax.debug_nans(True):
        (rows, totals), gradients = jax.jit(run)(target, logits, temperature)
    wanted = expected(*clean, temperature=np.full(6, 0.5))
    for values, (total, weight), want in zip(rows, totals, wanted, strict=True):
        assert (np.asarray(values)[~mask] == 0).all() and weight == 3
        np.testing.assert_allclose(np.asarray(values)[mask], want[mask], rtol=2e-6)
        np.testing.assert_allclose(total, want[mask].sum(), rtol=2e-6)
    for gradient in gradients:
        gradient = np.asarray(gradient)
        assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("way", ["dense", "lazy"])
def test_an_infinite_divergence_of_weight_0_counts_as_0_with_gradient_0(way):
    target = np.float32([[0, 0, 0], [0, 1, 2]])  # of two rows
    bias = np.float32([0, 0, -INF])  # the student leaves out a class
    weights = np.float32([0, 0])

    def total(target, bias, weights):
        layers = (
            divergences.layers_with_bias(target, bias, Chunked(1)) if way == "lazy" else (target, target + bias[None])
        )
        return softmax_kl_divergence_sum(*layers, weights=weights).total

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(target, bias, weights)
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
    assert jax.jit(total)(target, bias, np.float32([0, 1])) == INF


def test_a_temperature_that_is_not_positive_gives_nan(rng):
    target, logits = rng.standard_normal((2, 4, 5)).astype(np.float32)
    temperature = np.float32([1, 0, -1, NAN])
    found = jax.jit(lambda *z: [both(*logits_in(way, *z), temperature=temperature) for way in ("dense", "lazy")])
    for values in jax.tree.leaves(found(target, logits)):
        np.testing.assert_array_equal(np.isnan(values), [False, True, True, True])


def expected(target, logits, **options):
    """Return both divergences by the textbook formulas in float64."""
    with jax.enable_x64(True):
        pair = [np.asarray(x, np.float64) for x in (target, logits)]
        weights = {}, {"weight": np.float64(WEIGHT)}
        return [np.asarray(divergences.plain(*pair, **options, **weight)) for weight in weights]


def both(target, logits, **options):
    return softmax_kl_divergence(target, logits, **options), js(target, logits, **options)


@pytest.mark.parametrize("axes", [(2, 0), *covering.nightly_values((0,), (1, 2), (0, 1, 2))], ids=str)
def test_class_axes_and_where(axes, rng):
    """Take any class axis or several, and leave out classes by row."""
    target, logits = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    where = rng.random((3, 1, 5)) > 0.3
    where[..., 0] = where[0] = True

    def to_last(x, axes):
        x = np.moveaxis(x, axes, range(-len(axes), 0))
        return x.reshape(*x.shape[: 3 - len(axes)], -1)

    options = {"where": to_last(np.broadcast_to(where, target.shape), axes)}
    wanted = expected(to_last(target, axes), to_last(logits, axes), **options)
    axis = axes if len(axes) > 1 else axes[0]

    def total(*z):
        kl, js_values = both(*z, axis=axis, where=where)
        return jnp.sum(kl + js_values), (kl, js_values)

    (_, found), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(target, logits)
    assert_near(found, wanted, 2e-6)
    for gradient in gradients:
        assert np.abs(np.asarray(gradient).sum(axes)).max() < 1e-6
        assert (np.asarray(gradient)[~np.broadcast_to(where, target.shape)] == 0).all()


MAPS = {
    "both": (0, 0),
    "target": (0, None),
    "logits": (None, 0),
    "other axes": (1, 2),
}


@pytest.mark.parametrize(
    ("way", "in_axes"),
    covering.quick(itertools.product(("dense", "lazy"), MAPS), [("dense", "target")]),
)
def test_vmap_of_values_and_gradients(way, in_axes, rng):
    axes = MAPS[in_axes]
    pair = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    given = [x[0] if axis is None else np.moveaxis(x, 0, axis) for x, axis in zip(pair, axes, strict=True)]
    whole = [np.broadcast_to(x[0], x.shape) if axis is None else x for x, axis in zip(pair, axes, strict=True)]

    def of_rows(*z):
        kl, js_values = both(*logits_in(way, *z))
        return jnp.sum(kl + js_values)

    found = jax.jit(jax.vmap(jax.value_and_grad(of_rows, (0, 1)), axes))(*given)
    with jax.enable_x64(True):
        plain = jax.vmap(
            jax.value_and_grad(
                lambda *z: jnp.sum(divergences.plain(*z) + divergences.plain(*z, weight=np.float64(WEIGHT))), (0, 1)
            )
        )
        wanted = plain(*(jnp.asarray(x, jnp.float64) for x in whole))
    assert_near(found, wanted, 4e-6)


@pytest.mark.parametrize("way", ["dense", *covering.nightly_values("lazy")])
def test_a_sum_is_the_weighted_sum_of_the_rows_that_count(way, rng):
    target, logits = rng.standard_normal((2, 2, 7, 5)).astype(np.float32)
    mask, weights = rng.random((2, 7)) > 0.4, rng.standard_normal((2, 7)).astype(np.float32)
    pair, options = logits_in(way, target, logits), {"mask": mask, "weights": weights}
    for function, wanted in zip((softmax_kl_divergence, softmax_js_divergence), expected(target, logits), strict=True):
        result = SUMS[function](*pair, **options, **({} if function is softmax_kl_divergence else {"weight": WEIGHT}))
        assert isinstance(result, LossSum)
        np.testing.assert_allclose(result.total, (weights * wanted)[mask].sum(), rtol=2e-6)
        np.testing.assert_allclose(result.weight, weights[mask].sum(), rtol=1e-6)
        result = SUMS[function](*pair, mask=np.zeros((2, 7), bool))
        assert (result.total, result.weight, result.mean()) == (0, 0, 0)
        none = logits_in(way, target[:, :0], logits[:, :0])
        assert function(*none).shape == (2, 0) and SUMS[function](*none).mean() == 0


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("way", ["dense", "lazy"])
@pytest.mark.parametrize("side", [0, 1], ids=["target", "logits"])
def test_gradient_and_hessian_with_respect_to_one_argument_alone(way, side, rng):
    """The other argument is a constant, as the logits of a teacher are."""
    pair = rng.standard_normal((2, 1, 5)).astype(np.float32)

    def derivatives(functions, pair):
        def derivative(function):
            def value(z):
                both = (z, pair[1]) if side == 0 else (pair[0], z)
                return jnp.sum(function(*both))

            return jax.grad(value)(pair[side]), jax.hessian(value)(pair[side])

        return [derivative(function) for function in functions]

    def kl_in_way(*z):
        return softmax_kl_divergence(*logits_in(way, *z))

    def js_in_way(*z):
        return js(*logits_in(way, *z))

    found = jax.jit(functools.partial(derivatives, (kl_in_way, js_in_way)))(pair)
    with jax.enable_x64(True):
        plain = divergences.plain, functools.partial(divergences.plain, weight=np.float64(WEIGHT))
        wanted = jax.tree.map(np.asarray, derivatives(plain, jnp.asarray(pair, jnp.float64)))
    assert_near(found, wanted, 4e-6)


def test_weight_of_the_target_may_be_any_number_between_0_and_1(rng):
    target, logits = (np.float32([[1], [10]] * 3) * rng.standard_normal((2, 6, 9))).astype(np.float32)
    found_of = jax.jit(lambda *z: results(DENSE, *z[:2], None, z[2])[1])
    for weight in np.float32([1e-6, 0.5, 1 - 1e-6]):
        found = found_of(target, logits, weight)
        answer = divergences.exact(target, logits, None, weight)
        assert_within(found[0], answer.value, 8)
        assert_within(found[1][0], answer.target, 8)
        assert_within(found[1][1], answer.logits, 8)


@pytest.mark.nightly
@pytest.mark.parametrize("shape", [(1100, 1000), (9, 50_257)])
def test_long_rows_in_the_form_of_the_platform(shape, rng):
    """The rows are computed in parts, of which the last is not whole."""
    target, logits = (3 * rng.standard_normal((2, *shape))).astype(np.float32)
    logits[::2] = target[::2] + logits[::2] / 2**12
    found = jax.jit(functools.partial(results, DENSE))(target, logits, None, WEIGHT)
    for i, (values, gradients) in enumerate(found):
        weight = (None, np.float64(WEIGHT))[i]
        with jax.enable_x64(True):
            pair = [jnp.asarray(x, jnp.float64) for x in (target, logits)]
            wanted, pull = jax.vjp(lambda *z, w=weight: divergences.plain(*z, weight=w), *pair)
            of_pair = map(np.asarray, pull(jnp.ones_like(wanted)))
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-13)
        for gradient, want, x in zip(gradients[:2], of_pair, (target, logits), strict=True):
            p = np.exp(x - x.max(-1, keepdims=True)).astype(np.float64)
            p /= p.sum(-1, keepdims=True)
            # A gradient is p times the difference of a logarithm and a divergence, both up to 20: a few ulps of these.
            assert (abs(np.asarray(gradient) - want) <= 1e-5 * abs(want) + 4 * 20 * 2**-23 * p + 1e-12).all()
