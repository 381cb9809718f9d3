"""The primitive: JAX uses its rules in every dtype, transform and order, and lowers the form of the right platform.

In each function here, the rules and the forms differ from the code on purpose. So the result shows which of them JAX used.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.custom_derivatives import linear_call

from jaxce._jax.primitives import call, partial_jvp, trace
from tests.support.platform import lowered_for
from tests.support.programs import number_of_equations

pytestmark = pytest.mark.usefixtures("fast_compilation")

DTYPES = ["float64", "float32", "bfloat16", "float16", "float8_e4m3fn"]
MARK = {"cpu": 0.5, "cuda": 1.0, "tpu": 0.0}  # the number that each form adds


def power(x, count):
    """Return `exp(x) + mark + count`. By the rule, the derivative is twice the value, so the n-th derivative is `2**n` times the value."""
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32

    def code(x, count):
        return jnp.exp(x.astype(wide)).astype(x.dtype) + count.astype(x.dtype)

    def form(platform, x, count):
        return code(x, count) + jnp.asarray(MARK[platform], x.dtype)

    def jvp(args, tangents):
        out = power(*args)
        assert tangents[1] is None  # `count` is an integer
        return out, None if tangents[0] is None else out * tangents[0] * jnp.asarray(2, x.dtype)

    args = x, count
    forms = {"cpu": functools.partial(form, "cpu"), "gpu": functools.partial(form, "cuda")}
    return call(trace(code, args), args, jvp=jvp, **forms)


WAYS = {
    "as it is": lambda f: f,
    "jit": jax.jit,
    "vmap": jax.vmap,
    "vmap of vmap": lambda f: lambda x, n: jax.vmap(jax.vmap(f))(x[None], n[None])[0],
    "vmap of x": lambda f: lambda x, n: jnp.diagonal(jax.vmap(lambda count: jax.vmap(f, (0, None))(x, count))(n)),
    "scan": lambda f: lambda x, n: lax.scan(lambda c, row: (c, f(*row)), 0, (x, n))[1],
    "map": lambda f: lambda x, n: lax.map(lambda row: f(*row), (x, n)),
    "vmap of scan": lambda f: lambda x, n: jax.vmap(WAYS["scan"](f))(x[None], n[None])[0],
    "checkpoint": jax.checkpoint,
    "vmap of checkpoint": lambda f: jax.vmap(jax.checkpoint(f)),
    "cond": lambda f: lambda x, n: lax.cond(x[0] < 9, f, lambda x, _: x, x, n),
}


def differentiated(f, order, modes):
    """Return the derivative of this order of each `f(x[i])` with respect to `x[i]`, as a function."""
    for mode in modes[:order]:
        f = _derivative(f, mode)
    return f


def _derivative(f, mode):
    if mode == "forward":
        return lambda x, n: jax.jvp(lambda x: f(x, n), (x,), (jnp.ones_like(x),))[1]
    return lambda x, n: jax.grad(lambda x: jnp.sum(f(x, n)))(x)


MODES = [("reverse", "reverse", "reverse"), ("reverse", "forward", "reverse"), ("forward", "reverse", "forward")]


def arguments(dtype):
    return jnp.asarray([0, 0.5, 1], dtype), jnp.asarray([0, 1, 2], jnp.int32)


def assert_power(found, x, n, order, platform, *, dtype):
    want = 2**order * (np.exp(np.asarray(x, np.float64)) + np.asarray(n) + MARK[platform])
    assert found.dtype == x.dtype
    # Each order rounds once or twice.
    np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=4 * float(jnp.finfo(dtype).eps))


@pytest.fixture(params=["cpu", "cuda", "tpu"])
def on_platform(request):
    with lowered_for(request.param):
        yield request.param


@pytest.mark.covering(1)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("modes", MODES, ids="-".join)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rule_and_form_are_used_inside_every_transform(dtype, way, modes, order, on_platform, x64):
    x, n = arguments(dtype)
    found = jax.jit(differentiated(WAYS[way](power), order, modes))(x, n)
    assert_power(found, x, n, order, on_platform, dtype=dtype)


@pytest.mark.covering(1)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_transforms_of_derivatives(dtype, way, order, on_platform, x64):
    """Apply the transform outside the derivatives: `vmap` of `grad`, a loop over derivatives, and so on."""
    x, n = arguments(dtype)
    found = jax.jit(WAYS[way](differentiated(power, order, MODES[0])))(x, n)
    assert_power(found, x, n, order, on_platform, dtype=dtype)


@pytest.mark.covering(1)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("way", ["as it is", "vmap", "scan", "checkpoint"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_program_for_several_platforms(dtype, way, order, x64):
    """A program exported for several platforms uses the CPU form on a CPU. Export works for each platform alone and for all together."""
    x, n = arguments(dtype)
    function = jax.jit(differentiated(WAYS[way](power), order, MODES[0]))
    exported = export.export(function, platforms=["cpu", "cuda", "tpu"])(x, n)
    assert_power(exported.call(x, n), x, n, order, "cpu", dtype=dtype)
    for platform in ("cpu", "cuda", "tpu"):
        assert export.export(function, platforms=[platform])(x, n).platforms == (platform,)


def test_outside_jit_the_code_runs():
    x, n = arguments("float32")
    np.testing.assert_allclose(power(x, n), np.exp(x) + np.asarray(n, np.float32), rtol=1e-6)


def scaled(x, y, *, with_transpose):
    """Return `x * y`, which is linear in `x`. The forms also multiply by 3 and 5, the transpose by 7."""

    def code(x, y):
        return x * y

    def form(factor, x, y):
        return x * y * jnp.asarray(factor, x.dtype)

    def transpose(ct, y):
        return ct * y * jnp.asarray(7, y.dtype)

    forms = {"cpu": functools.partial(form, 3), "gpu": functools.partial(form, 5)}
    return call(
        trace(code, (x, y)),
        (x, y),
        jvp=functools.partial(partial_jvp, code),
        transpose=transpose if with_transpose else None,
        **forms,
    )


def linear_in_x(x, y, with_transpose):
    """Return `sum(x)`, with a rule that says that its tangent is `sum(scaled(x_dot, y))`."""

    def jvp(args, tangents):
        (x, y), x_dot = args, tangents[0]
        return jnp.sum(x), jnp.sum(scaled(x_dot, y, with_transpose=with_transpose))

    return call(trace(lambda x, _: jnp.sum(x), (x, y)), (x, y), jvp=jvp)


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", ["as it is", "jit", "vmap", "vmap of vmap", "scan", "map", "checkpoint"])
@pytest.mark.parametrize("with_transpose", [True, False], ids=["own transpose", "code transposed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose_uses_the_rule_or_transposes_the_code_and_the_forms(dtype, with_transpose, way, on_platform, x64):
    x = jnp.asarray([1, 2, 3], dtype)
    y = jnp.asarray([1, 0.5, 2], dtype)

    def total(x):
        return jnp.sum(WAYS[way](lambda x, y: linear_in_x(x, y, with_transpose))(x, y))

    forward = {"cpu": 3, "cuda": 5, "tpu": 1}[on_platform]
    backward = 7 if with_transpose else forward
    np.testing.assert_array_equal(np.asarray(jax.jit(jax.grad(total))(x), np.float64), backward * np.asarray(y, float))
    tangent = jax.jit(lambda x: jax.jvp(total, (x,), (jnp.ones_like(x),))[1])(x)
    np.testing.assert_allclose(float(tangent), forward * np.asarray(y, float).sum(), rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("with_transpose", [True, False], ids=["own transpose", "code transposed"])
@pytest.mark.parametrize("way", ["as it is", "vmap", "scan"])
def test_transposed_functions_are_differentiable_with_respect_to_what_they_depend_on(way, with_transpose):
    """The gradient with respect to `x` is a multiple of `y`, so its Jacobian with respect to `y` is a multiple of the identity."""
    x, y = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([1.0, 0.5, 2.0])

    def gradient(y):
        return jax.grad(lambda x: jnp.sum(WAYS[way](lambda x, y: linear_in_x(x, y, with_transpose))(x, y)))(x)

    jacobian = jax.jit(jax.jacrev(gradient))(y), jax.jit(jax.jacfwd(gradient))(y)
    # Without a rule for the transpose, JAX differentiates the transposed code, not the form.
    for found in jacobian:
        np.testing.assert_array_equal(found, (7 if with_transpose else 1) * np.eye(3))


def test_transposed_code_with_respect_to_some_of_its_operands():
    """The function is linear in both operands together. If only one cotangent is needed, only that operand is transposed."""

    def both(x, y):
        return call(
            trace(lambda x, y: 2 * x + 3 * y, (x, y)),
            (x, y),
            jvp=functools.partial(partial_jvp, lambda x, y: 2 * x + 3 * y),
        )

    x, y = jnp.arange(3.0), jnp.ones(3)
    np.testing.assert_array_equal(jax.linear_transpose(both, x, y)(y)[0], [2, 2, 2])
    np.testing.assert_array_equal(jax.linear_transpose(both, x, y)(y)[1], [3, 3, 3])
    (found,) = jax.linear_transpose(lambda y: both(jnp.zeros(3), y), y)(x)
    np.testing.assert_array_equal(found, 3 * x)


def several(x):
    """Return three results with different costs. The rule needs only the first result."""

    def code(x):
        return {"exp": jnp.exp(x), "sum": jnp.sum(jnp.sin(jnp.cos(jnp.tan(x)))), "log": jnp.log1p(jnp.abs(x))}

    def jvp(args, tangents):
        outs = several(*args)
        (x_dot,) = tangents
        return outs, {"exp": 2 * outs["exp"] * x_dot, "sum": 5 * jnp.sum(x_dot), "log": 3 * x_dot}

    def form(x):
        return {name: out + 1 for name, out in code(x).items()}

    return call(trace(code, (x,)), (x,), jvp=jvp, gpu=form)


def first_result(x):
    """Return only the first result of `several`, with the same rule and form."""

    def jvp(args, tangents):
        out = first_result(*args)
        return out, 2 * out * tangents[0]

    return call(trace(jnp.exp, (x,)), (x,), jvp=jvp, gpu=lambda x: jnp.exp(x) + 1)


DROPPING = {
    "as it is": lambda f: lambda x: jnp.sum(f(x)),
    "jit": lambda f: lambda x: jnp.sum(jax.jit(f)(x)),
    "vmap": lambda f: lambda x: jnp.sum(jax.vmap(f)(x)),
    "scan": lambda f: lambda x: lax.scan(lambda c, row: (c + f(row), None), jnp.float32(0), x)[0],
    "checkpoint": lambda f: lambda x: jnp.sum(jax.checkpoint(f)(x)),
}


@pytest.mark.covering(1, at_most=15)
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("way", DROPPING)
def test_unused_results_are_dropped(way, order, on_platform):
    """Values, derivatives and the compiled cost are the same as for a function without the unused results.

    The lowered program is the same too, except with a form: only the compiler drops the unused results of a form.
    """
    x = jnp.asarray([0, 0.25, 1])

    def function(row_function):
        total = DROPPING[way](row_function)
        for _ in range(order):
            total = functools.partial(lambda f, x: jnp.sum(jax.grad(f)(x)), total)
        return jax.jit(total)

    dropped, single = function(lambda x: several(x)["exp"]), function(first_result)
    want = 2**order * np.sum(np.exp(x) + (on_platform == "cuda"))
    np.testing.assert_allclose(dropped(x), want, rtol=1e-6)
    np.testing.assert_allclose(single(x), want, rtol=1e-6)
    lowered = dropped.lower(x), single.lower(x)
    if on_platform != "cuda":
        assert len(lowered[0].as_text().splitlines()) == len(lowered[1].as_text().splitlines())
    costs = [program.compile().cost_analysis() for program in lowered]
    for name in ("flops", "transcendentals", "bytes accessed"):
        assert costs[0].get(name, 0) == costs[1].get(name, 0)


def test_used_results_make_the_program_longer():
    x = jnp.asarray([0, 0.25, 1])
    one, all_three = (jax.jit(f).lower(x).as_text().splitlines() for f in (lambda x: several(x)["exp"], several))
    assert len(one) < len(all_three)


def test_unused_results_of_a_reverse_pass_are_dropped_at_trace_time():
    x = jnp.asarray([0, 0.25, 1])
    dropped, single = (
        number_of_equations(jax.grad(lambda x, f=f: jnp.sum(jax.checkpoint(f)(x))), x)
        for f in (lambda x: several(x)["exp"], first_result)
    )
    assert dropped == single


def test_unused_results_have_no_cotangent():
    """A transpose gets None as the cotangent of an unused result. If no result is used, the transpose is not called."""
    seen = []

    def pair(x, y):
        def transpose(cotangents, y):
            seen.append(tuple(ct is not None for ct in cotangents))
            return sum(ct * y for ct in cotangents if ct is not None)

        def code(x, y):
            return (x * y, 2 * x * y)

        return call(trace(code, (x, y)), (x, y), jvp=functools.partial(partial_jvp, code), transpose=transpose)

    x, y = jnp.ones(2), jnp.arange(2.0)
    for use in (lambda a, b: (a, b), lambda a, _: a, lambda _, b: b):
        jax.linear_transpose(lambda x, use=use: use(*pair(x, y)), x)(use(y, y))
    assert seen == [(True, True), (True, False), (False, True)]
    seen.clear()
    (zero,) = jax.linear_transpose(lambda x: (pair(x, y), 0 * x)[1], x)(y)
    assert not seen and not zero.any()


def test_tangents_that_are_zero_are_none():
    """The tangent of a constant operand and of an integer is None, so the rule can skip it."""
    seen = []

    def product(x, y, n):
        def jvp(args, tangents):
            seen.append(tuple(t is not None for t in tangents))
            x, y, _ = args
            dots = [d * o for d, o in zip(tangents, (y, x), strict=False) if d is not None]
            return product(*args), sum(dots[1:], dots[0]) if dots else None

        return call(trace(lambda x, y, n: x * y + n.astype(x.dtype), (x, y, n)), (x, y, n), jvp=jvp)

    x, y, n = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 4.0]), jnp.asarray([1, 2])
    dx, dy = jax.grad(lambda x, y: jnp.sum(product(x, y, n)), (0, 1))(x, y)
    np.testing.assert_array_equal(dx, y)
    np.testing.assert_array_equal(dy, x)
    for argnum, other in ((0, y), (1, x)):
        found = jax.grad(lambda x, y: jnp.sum(product(x, y, n)), argnum)(x, y)
        np.testing.assert_array_equal(found, other)
        mapped = jax.vmap(jax.grad(product, argnum))(x, y, n)
        np.testing.assert_array_equal(mapped, other)
    assert set(seen) == {(True, True, False), (True, False, False), (False, True, False)}


def test_results_whose_tangent_is_none_have_zero_tangents():
    def parts(x):
        return call(
            trace(lambda x: (jnp.sin(x), jnp.cos(x)), (x,)),
            (x,),
            jvp=lambda args, dots: (parts(*args), (dots[0], None)),
        )

    x = jnp.asarray([0.5, 1.0])
    _, (first, second) = jax.jvp(parts, (x,), (jnp.ones(2),))
    np.testing.assert_array_equal(first, [1, 1])
    np.testing.assert_array_equal(second, [0, 0])
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(parts(x)[1]))(x), [0, 0])


def test_integer_results_and_operands_inside_transforms(on_platform):
    """The function returns the index of the largest number and the number. The index has no derivative."""

    def largest(x, n):
        def code(x, n):
            return jnp.argmax(x) + n, jnp.max(x)

        def jvp(args, tangents):
            index, value = largest(*args)
            return (index, value), (None, tangents[0][index - args[1]])

        return call(trace(code, (x, n)), (x, n), jvp=jvp)

    x, n = jnp.asarray([[1.0, 3.0, 2.0], [9.0, 0.0, 0.0]]), jnp.asarray([10, 20])
    want = np.float32([[0, 1, 0], [1, 0, 0]])
    index, value = jax.jit(jax.vmap(largest))(x, n)
    np.testing.assert_array_equal(index, [11, 20])
    np.testing.assert_array_equal(value, [3, 9])
    np.testing.assert_array_equal(jax.vmap(jax.grad(lambda x, n: largest(x, n)[1]))(x, n), want)

    def in_loop(x):
        return lax.scan(lambda c, row: (c + largest(*row)[1], largest(*row)[0]), 0.0, (x, n))[0]

    np.testing.assert_array_equal(jax.grad(in_loop)(x), want)


def test_operands_that_are_not_mapped_are_summed_over():
    """The rule for the transpose gives the cotangent of an operand that `vmap` does not map, summed over the mapped axis."""
    x, ys = jnp.asarray([1.0, 2.0]), jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    scaled_by = functools.partial(scaled, with_transpose=True)
    (found,) = jax.linear_transpose(lambda x: jax.vmap(scaled_by, (None, 0))(x, ys), x)(jnp.ones_like(ys))
    np.testing.assert_array_equal(found, 7 * ys.sum(0))
    (found,) = jax.linear_transpose(lambda xs: jax.vmap(scaled_by, (0, None))(xs, x), ys)(ys)
    np.testing.assert_array_equal(found, 7 * ys * x[None])


# The reasons for the primitive. Each of these tests fails, or is skipped, once JAX no longer needs the primitive.


def custom_exp(x):
    """Return `exp(x)` as a `jax.custom_jvp` function. By its rule, the derivative is twice the value."""
    function = jax.custom_jvp(jnp.exp)

    @function.defjvp
    def _(primals, tangents):
        out = function(*primals)
        return out, 2 * out * tangents[0]

    return function(x)


def test_jax_loses_the_rule_of_custom_jvp_in_a_loop():
    """By the rule, the second derivative is 4. Reverse mode through a loop differentiates the code that the rule calls, and gives 2."""

    def in_loop(x):
        return lax.map(custom_exp, x[None])[0]

    x = jnp.zeros(())
    assert jax.grad(jax.grad(custom_exp))(x) == 4
    found = jax.grad(jax.grad(in_loop))(x)
    if found == 4:
        pytest.skip(f"JAX {jax.__version__} keeps the rule. Above 0.11.2 `call` may be a `jax.custom_jvp` function.")
    assert found == 2


def test_jax_transposes_the_code_of_custom_jvp():
    """A `jax.custom_jvp` function cannot define its transpose. JAX transposes the code (factor 2), not the rule (factor 3)."""
    function = jax.custom_jvp(lambda x: 2 * x)
    function.defjvp(lambda primals, tangents: (function(*primals), 3 * tangents[0]))
    assert jax.linear_transpose(function, 1.0)(1.0) == (2,)
    assert not hasattr(function, "deftranspose") and not hasattr(function, "def_transpose")


def test_jax_has_no_forward_mode_of_custom_vjp():
    function = jax.custom_vjp(jnp.sin)
    function.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (ct * jnp.cos(x),))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(function, (1.0,), (1.0,))


def product(x, y):
    """Return `x * y`, linear in `x`, by `linear_call`, the function of JAX for custom transposes."""
    return linear_call(lambda y, x: x * y, lambda y, ct: ct * y, y, x)


def test_jax_cannot_map_linear_call():
    assert jax.grad(product)(1.0, 2.0) == 2
    with pytest.raises(NotImplementedError, match="Batching rule for 'linear_call' not implemented"):
        jax.vmap(product)(jnp.ones(3), jnp.ones(3))


def test_jax_cannot_differentiate_linear_call_with_respect_to_what_it_depends_on():
    with pytest.raises((AssertionError, NotImplementedError, TypeError)):
        jax.jvp(lambda y: product(1.0, y), (2.0,), (1.0,))


def test_jax_traces_and_differentiates_the_code_of_all_platforms():
    traced, rules = [], []

    @jax.custom_jvp
    def for_tpu(x):
        traced.append("tpu")
        return jnp.sin(x)

    @for_tpu.defjvp
    def _(primals, tangents):
        rules.append("tpu")
        return for_tpu(*primals), tangents[0]

    def function(x):
        return lax.platform_dependent(x, tpu=for_tpu, default=jnp.cos)

    jax.jit(function)(1.0)
    assert traced
    jax.jit(jax.grad(function))(1.0)
    assert rules


def test_call_traces_a_form_when_a_program_is_lowered_for_its_platform():
    """A form is traced only at that time. This keeps tracing fast, and a form needs no derivative."""
    traced = []

    def form(platform, x):
        traced.append(platform)
        return lax.while_loop(lambda x: x[0] < 0, lambda x: x + 1, x)  # no reverse mode

    def function(x):
        forms = {"cpu": functools.partial(form, "cpu"), "gpu": functools.partial(form, "cuda")}
        return call(trace(jnp.sin, (x,)), (x,), jvp=functools.partial(partial_jvp, jnp.sin), **forms)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(function(x)))(x)

    x = jnp.ones(2)
    jax.make_jaxpr(function)(x)
    jax.make_jaxpr(gradient)(x)
    assert not traced
    np.testing.assert_allclose(jax.jit(gradient)(x), np.cos(x), rtol=1e-6)
    jax.jit(function)(x)
    assert set(traced) == {"cpu"}
