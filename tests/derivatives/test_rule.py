"""The derivative rules: exact in every mode and order, for every differentiable input, with small residuals for the reverse pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxce import logit_stats
from tests.support import cases
from tests.support.cases import INTEGER, SIGMOID, SOFT
from tests.support.closeness import assert_within

pytestmark = pytest.mark.usefixtures("fast_compilation")

SHAPE = (3, 4)
OPTION_SETS = [(loss, names) for loss in (INTEGER, SOFT) for names in cases.SOFTMAX_OPTION_SETS]
OPTION_SETS += [(SIGMOID, names) for names in cases.SIGMOID_OPTION_SETS]
OPTION_SETS = [
    pytest.param(
        loss,
        names,
        id=f"{loss.name}-{cases.name_of(names)}",
        marks=() if names in ((), loss.options) else pytest.mark.nightly,  # none, and all at once
    )
    for loss, names in OPTION_SETS
]


def example(rng, loss, names):
    """Return the differentiable inputs, a direction for each of them, and the other arguments, in float64."""
    logits = cases.make_logits(rng, SHAPE, np.float64, size=1.5)
    labels = loss.make_labels(rng, SHAPE, -1)
    options = cases.make_options(rng, names, loss, SHAPE, labels)
    fixed = {n: options.pop(n) for n in ("where", "mask") if n in options}
    inputs = {"logits": logits, **{n: np.asarray(v, np.float64) for n, v in options.items()}}
    if loss.label_argnums:
        inputs["labels"] = labels.astype(np.float64)
    else:
        fixed["labels"] = labels
    direction = {n: np.asarray(rng.standard_normal(v.shape)) for n, v in inputs.items()}
    if "where" in names and "labels" in direction:
        direction["labels"] *= fixed["where"]  # a nonzero label of an excluded class has an infinite loss
    return inputs, direction, fixed


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize(("loss", "names"), OPTION_SETS)
def test_second_derivatives_of_every_input_in_every_mode(loss, names, rng, x64):
    """Compare with finite differences of the gradients of the oracle, in extended precision."""
    inputs, direction, fixed = example(rng, loss, names)
    cotangent = rng.uniform(-2, 2, loss.shape(SHAPE))

    @jax.jit
    def second_derivatives(inputs, direction):
        def total(inputs):
            return jnp.sum(cotangent * call(loss, inputs, fixed))

        def directional(inputs):
            return sum(jnp.vdot(x, direction[n]) for n, x in jax.grad(total)(inputs).items())

        def forward(inputs):
            return jax.jvp(total, (inputs,), (direction,))[1]

        forward_over_reverse = jax.jvp(jax.grad(total), (inputs,), (direction,))[1]
        return (
            forward_over_reverse,
            jax.grad(directional)(inputs),
            jax.grad(forward)(inputs),
            jax.jvp(forward, (inputs,), (direction,))[1],
        )

    def gradient(step):
        moved = {n: x.astype(np.longdouble) + step * direction[n] for n, x in inputs.items()}
        answer = call(loss._replace(function=functools.partial(loss.oracle, cotangent=cotangent)), moved, fixed)
        return {n: getattr(answer, n).value for n in inputs}

    step = np.longdouble(1e-6)
    ahead, behind = gradient(step), gradient(-step)
    expected = {n: (ahead[n] - behind[n]) / (2 * step) for n in inputs}
    *products, curvature = second_derivatives(inputs, direction)
    # The truncation error is of second order in the step. On platforms where `longdouble` is double, rounding adds more.
    tolerance = {"rtol": 1e-8, "atol": 1e-8}
    for product in products:
        for n in inputs:
            # The derivative with respect to the label of an excluded class is 0 by definition; the oracle gives another value.
            counts = fixed.get("where", True) if n == "labels" else True
            np.testing.assert_allclose(
                np.asarray(product[n]) * counts, expected[n].astype(np.float64), **tolerance, err_msg=n
            )
    np.testing.assert_allclose(curvature, float(sum((expected[n] * direction[n]).sum() for n in inputs)), **tolerance)


def call(loss, inputs, fixed):
    arguments = {**inputs, **fixed}
    return loss.function(arguments.pop("logits"), arguments.pop("labels"), **arguments)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("mode", ["fwd", "rev"])
@pytest.mark.parametrize(
    ("loss", "names"),
    [
        pytest.param(loss, names, id=loss.name)
        for loss, names in (
            (INTEGER, cases.SOFTMAX_OPTIONS),
            (SOFT, cases.SOFTMAX_OPTIONS[1:]),
            (SIGMOID, cases.SIGMOID_OPTIONS),
        )
    ],
)
def test_check_grads(mode, loss, names, rng, x64):
    inputs, _, fixed = example(rng, loss, names)
    check_grads(
        jax.jit(lambda inputs: call(loss, inputs, fixed)),
        (inputs,),
        order=2,
        modes=mode,
        atol=1e-5,
        rtol=1e-5,
        eps=1e-4,
    )


def closed_forms(z, labels, w):
    """Return the derivatives of each statistic of one row with respect to z and to w. The maximum counts as a constant."""
    e = np.exp(z - z.max())
    p = e / e.sum()
    nll = np.log(e.sum()) + z.max() - z
    q = np.eye(len(z))[labels] if np.ndim(labels) == 0 else labels
    label, total = q.sum() * p - q, w.sum() * p - w
    one, zero, n = np.ones_like(z), np.zeros_like(z), len(z)
    return {
        "max_logit": (zero, zero),
        "sum_exp_rest": (e, zero),
        "log_norm": (p, zero),
        "log_z": (p, zero),
        "label_nll": (label, zero),
        "nll": (label, zero),
        "label_mass": (zero, zero),
        "uniform_nll": (total, nll),
        "smooth_nll": (total / n, nll / n),
        "weight_sum": (zero, one),
        "top_label_mass": (zero, zero),
    }


@pytest.mark.parametrize("field", closed_forms(np.zeros(2), 0, np.ones(2)))
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_derivatives_of_every_statistic(field, loss, rng, x64):
    z, w = cases.make_logits(rng, (5,), np.float64), rng.uniform(0.5, 2, 5)
    labels = np.asarray(loss.make_labels(rng, (5,), -1))
    labels = labels if loss is INTEGER else 2 * labels.astype(np.float64)

    def statistic(z, w):
        return getattr(logit_stats(z, labels, class_weights=w), field)

    for mode in (jax.jacrev, jax.jacfwd):
        for actual, expected in zip(mode(statistic, (0, 1))(z, w), closed_forms(z, labels, w)[field], strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd], ids=lambda f: f.__name__)
def test_derivatives_of_statistics_by_class_probabilities(mode, rng, x64):
    z, q = cases.make_logits(rng, (5,), np.float64), rng.uniform(0.5, 2, 5)
    nll = np.log(np.exp(z - z.max()).sum()) + z.max() - z
    expected = {"label_nll": nll, "label_mass": np.ones(5), "uniform_nll": np.zeros(5), "log_z": np.zeros(5)}
    expected["top_label_mass"] = (z == z.max()).astype(np.float64)
    for field, of_q in expected.items():
        actual = mode(lambda q, field=field: getattr(logit_stats(z, q), field))(q)
        np.testing.assert_allclose(actual, of_q, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("loss", cases.LOSSES)
def test_jvp_linearize_and_vjp_agree_with_the_oracle(loss, rng):
    logits, labels = cases.make_logits(rng, SHAPE), loss.make_labels(rng, SHAPE, -1)
    z_dot = np.float32(rng.standard_normal(SHAPE))
    answer = loss.oracle(logits, labels)
    tangents_wanted = (answer.logits.value * z_dot, answer.logits.scale * abs(z_dot))
    expected = tuple(x if loss is SIGMOID else x.sum(1) for x in tangents_wanted)
    f = functools.partial(loss.function, labels=labels)
    values, tangents = jax.jvp(lambda z: f(z), (logits,), (z_dot,))
    assert_within(values, answer.loss, 6)
    assert_within(tangents, expected, 8)
    values, linear = jax.linearize(lambda z: f(z), logits)
    assert_within(values, answer.loss, 6)
    assert_within(linear(z_dot), expected, 8)
    assert_within(jax.linear_transpose(linear, logits)(jnp.ones_like(values))[0], answer.logits, 8)


KEPT = [
    ("plain", {}),
    ("label_smoothing", {"label_smoothing": 0.1}),
    ("z_loss", {"z_loss": 0.1}),
    (
        "all",
        {"label_smoothing": 0.1, "z_loss": 0.1, "class_weights": np.ones(64, np.float32), "mask": np.ones(8, bool)},
    ),
]


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("options", [pytest.param(o, id=n) for n, o in KEPT])
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_reverse_pass_keeps_the_logits_in_their_own_dtype_and_numbers_per_row(dtype, options, loss, rng):
    shape = (8, 64)
    logits = jnp.asarray(cases.make_logits(rng, shape, dtype))
    labels = jnp.asarray(loss.make_labels(rng, shape, -1)).astype(jnp.int32 if loss is INTEGER else dtype)
    kept = [x.aval for x in jax.tree.leaves(jax.vjp(lambda z: loss.function(z, labels, **options), logits)[1])]
    large = sorted(x.dtype.name for x in kept if x.size >= 8 * 64)
    assert large == [jnp.dtype(dtype).name] * (1 if loss is INTEGER else 2)
    assert {x.shape for x in kept if x.size < 8 * 64} <= {(), (8,), (64,)}
    assert "float32" in {x.dtype.name for x in kept if x.shape == (8,)}  # statistics, which are stored, not recomputed


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_sigmoid_reverse_pass_keeps_logits_and_labels_in_their_own_dtype(dtype, rng):
    shape = (8, 64)
    logits, labels = (jnp.asarray(f(rng, shape, -1)).astype(dtype) for f in (SIGMOID.make_labels, SIGMOID.make_labels))
    vjp = jax.vjp(lambda z: SIGMOID.function(z, labels, label_smoothing=0.1, pos_weight=2.0), logits)[1]
    large = [x.dtype for x in jax.tree.leaves(vjp) if x.size > 1]
    assert large == [jnp.dtype(dtype)] * 2


@pytest.mark.parametrize("loss", cases.LOSSES)
def test_programs_have_no_effects(loss, rng):
    logits, labels = cases.make_logits(rng, SHAPE), loss.make_labels(rng, SHAPE, -1)
    for f in (lambda z: loss.function(z, labels).sum(), jax.grad(lambda z: loss.function(z, labels).sum())):
        assert not jax.make_jaxpr(f)(logits).effects
