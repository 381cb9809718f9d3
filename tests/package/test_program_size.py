"""Programs have few equations, and unused statistics cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from tests.support.programs import number_of_equations

ROWS = 64


def integer(z, y, **options):
    return jaxce.softmax_cross_entropy_with_integer_labels(z, y, **options).sum()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("rows", "num_classes", "most"), [(256, 10, 120), (4096, 32000, 200)])
def test_value_and_gradient_have_few_equations(rows, num_classes, most, dtype):
    args = jax.ShapeDtypeStruct((rows, num_classes), dtype), jax.ShapeDtypeStruct((rows,), "int32")
    assert number_of_equations(jax.value_and_grad(integer), *args) <= most


def test_value_and_gradients_of_a_linear_layers_sum_have_few_equations():
    def linear(x, w, y):
        return jaxce.linear_softmax_cross_entropy_sum(x, w, y).mean()

    args = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((4096, 256), "float32"), ((256, 32000), "float32"), ((4096,), "int32"))
    )
    assert number_of_equations(jax.value_and_grad(linear, (0, 1)), *args) <= 190


def test_equations_of_inner_functions_count():
    def inner(x):
        return jnp.sin(x) + 1

    def looped(x):
        return jax.lax.scan(lambda c, _: (inner(c), None), x, None, length=3)[0]

    assert number_of_equations(inner, 1.0) == 2
    assert number_of_equations(jax.jit(inner), 1.0) == 3
    assert number_of_equations(looped, 1.0) == 3


def cost_per_logit(function, few=10, many=20, labels="integer"):
    """Return the floating-point operations and the transcendentals of the compiled program per logit, from two numbers of classes."""

    def cost(num_classes):
        logits = jax.ShapeDtypeStruct((ROWS, num_classes), "float32")
        args = logits, logits if labels == "soft" else jax.ShapeDtypeStruct((ROWS,), "int32")
        analysis = jax.jit(function).lower(*args).compile().cost_analysis()
        return np.array([analysis["flops"], analysis["transcendentals"]])

    return (cost(many) - cost(few)) / ((many - few) * ROWS)


def statistics(*names):
    return lambda z, y: [getattr(jaxce.logit_stats(z, y), name) for name in names]


def plain_nll(z, y):
    """Compute only the nll, from a maximum, a sum of exponentials without the maximal classes, and sums at the label.

    An invalid label gives NaN.
    """
    m = jnp.max(z, 1, keepdims=True)
    below = jnp.where(z == jnp.inf, 0, z - jnp.maximum(m, jnp.finfo(z.dtype).min))
    others = jnp.sum(jnp.where(z == m, 0, jnp.exp(below)), 1)
    ties = jnp.sum((z == m).astype(z.dtype), 1)
    one_hot = (jnp.arange(z.shape[1])[None] == y[:, None]).astype(z.dtype)
    mass, at_label = jnp.sum(one_hot, 1), jnp.sum(jnp.where(one_hot == 0, 0, one_hot * below), 1)
    return jnp.where(mass == 0, jnp.nan, mass * jnp.log1p(others + ties - 1) - at_label)


@pytest.mark.parametrize(
    "loss",
    [
        jaxce.softmax_cross_entropy_with_integer_labels,
        lambda z, y: jaxce.logit_stats(z, y).nll,
        lambda z, y: jaxce.softmax_cross_entropy_with_integer_labels(z, y, z_loss=1e-4),
    ],
    ids=["loss", "nll", "z_loss"],
)
def test_unused_statistics_cost_nothing(loss):
    """The loss needs at most as many operations per logit as a formula without the other statistics."""
    flops, transcendentals = cost_per_logit(loss)
    least_flops, least_transcendentals = cost_per_logit(plain_nll)
    assert flops <= least_flops
    assert transcendentals == least_transcendentals == 1


def test_used_statistics_cost_something():
    """This shows that the cost analysis counts the operations of the statistics."""
    assert cost_per_logit(statistics("nll"))[0] < cost_per_logit(statistics("nll", "uniform_nll"))[0]


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("labels", ["integer", "soft"])
@pytest.mark.parametrize("sizes", [(900, 990), (1024, 2048)], ids=["whole rows", "parts of rows"])
def test_unused_statistics_cost_nothing_in_the_form_for_a_cpu(sizes, labels):
    """Two statistics together cost the sum of their single costs, minus the cost of the sum that both use."""
    shared, label, uniform, both = (
        cost_per_logit(statistics(*names), *sizes, labels)
        for names in (["sum_exp_rest"], ["label_nll"], ["uniform_nll"], ["label_nll", "uniform_nll"])
    )
    assert uniform[0] > shared[0]
    np.testing.assert_allclose(both, label + uniform - shared, rtol=1e-2)


def test_unused_statistics_are_not_in_the_traced_program():
    args = jax.ShapeDtypeStruct((ROWS, 10), "float32"), jax.ShapeDtypeStruct((ROWS,), "int32")

    def gradient(*names):
        def total(z, y):
            stats = jaxce.logit_stats(z, y)
            return sum(jnp.sum(getattr(stats, name)) for name in names)

        return jax.grad(total)

    alone = number_of_equations(gradient("label_nll"), *args)
    both = number_of_equations(gradient("label_nll", "uniform_nll"), *args)
    assert alone < both
