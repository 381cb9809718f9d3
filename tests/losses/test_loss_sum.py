"""`LossSum`: its mean over micro-batches and devices is exact; a mean of means is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxce import LossSum, softmax_cross_entropy_with_integer_labels
from tests.support import cases, oracle
from tests.support.cases import INTEGER
from tests.support.closeness import assert_within

pytestmark = pytest.mark.usefixtures("fast_compilation")

LOSSES = np.float32([1, 2, 30, 5])
MASK = np.array([True, True, False, True])


def test_of_adds_up_losses_and_counts_them():
    loss_sum = LossSum.of(LOSSES)
    assert (loss_sum.total, loss_sum.weight, loss_sum.mean()) == (38, 4, 9.5)


def test_of_leaves_out_masked_losses():
    loss_sum = LossSum.of(LOSSES, mask=MASK)
    assert (loss_sum.total, loss_sum.weight) == (8, 3)
    assert_within(loss_sum.mean(), np.float64(8) / 3, 1)


def test_of_with_weights():
    loss_sum = LossSum.of(LOSSES, weights=np.float32([1, 0.5, 0, 2]))
    assert (loss_sum.total, loss_sum.weight) == (12, 3.5)
    masked = LossSum.of(LOSSES, weights=np.array([1, 4, 7, 2]), mask=MASK)
    assert (masked.total, masked.weight) == (19, 7)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0), (2, 3, 4)], ids=str)
def test_of_takes_any_shape(shape, rng):
    losses = np.asarray(rng.random(shape).astype(np.float32))
    loss_sum = LossSum.of(losses)
    assert loss_sum.total.shape == loss_sum.weight.shape == ()
    assert_within(loss_sum.total, losses.astype(np.float64).sum(), 4)
    assert loss_sum.weight == losses.size


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_small_dtypes_add_up_in_float32(dtype):
    # In the narrow dtype, neither the count nor the total would be exact.
    loss_sum = LossSum.of(np.ones(4099, dtype))
    assert (loss_sum.total, loss_sum.weight) == (4099, 4099)
    assert loss_sum.total.dtype == loss_sum.weight.dtype == jnp.float32


def test_float64_adds_up_in_float64(x64):
    loss_sum = LossSum.of(np.float64([1, 1e-12]))
    assert loss_sum.total.dtype == jnp.float64
    assert loss_sum.total == 1 + 1e-12


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "no jit"])
@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_masked_loss_is_not_added_whatever_it_is(junk, jit):
    """Also test without jit, because XLA compiles a product with a mask to a select. This would hide a product of 0 and NaN."""
    losses = np.float32([1, junk, 3])
    mask = np.array([True, False, True])
    with jax.disable_jit(not jit):
        assert LossSum.of(losses, mask=mask).mean() == 2
        assert LossSum.of(losses, weights=np.float32([1, junk, 1]), mask=mask).mean() == 2


@pytest.mark.parametrize(
    "nothing",
    [{"mask": np.zeros(4, bool)}, {"weights": np.zeros(4, np.float32)}, {"weights": np.float32([1, -1, 2, -2])}],
    ids=["mask", "weights", "weights that sum to 0"],
)
def test_mean_over_nothing_is_0_with_gradient_0(nothing):
    mean, gradient = jax.value_and_grad(lambda x: LossSum.of(x, **nothing).mean())(LOSSES)
    assert mean == 0
    np.testing.assert_array_equal(gradient, np.zeros(4))


def test_gradient_with_respect_to_losses_and_weights():
    weights = np.float32([1, 2, 0.5, 4])
    by_losses, by_weights = jax.grad(lambda x, w: LossSum.of(x, w).mean(), argnums=(0, 1))(LOSSES, weights)
    w, x = weights.astype(np.float64), LOSSES.astype(np.float64)
    assert_within(by_losses, w / w.sum(), 4)
    assert_within(by_weights, (x - (w * x).sum() / w.sum()) / w.sum(), 8)


def test_sums_add_up_with_plus_and_with_sum():
    parts = [LossSum.of(LOSSES[i : i + 1], mask=MASK[i : i + 1]) for i in range(4)]
    for whole in (parts[0] + parts[1] + (parts[2] + parts[3]), sum(parts), sum(parts[1:], start=parts[0])):
        assert (whole.total, whole.weight) == (8, 3)


@pytest.mark.parametrize("other", [1, 1.0, None, np.float32(0), {1: 2}])
def test_nothing_else_may_be_added(other):
    with pytest.raises(TypeError, match=r"can be added to a LossSum alone; .*`LossSum.zero\(\)`"):
        LossSum.of(LOSSES) + other
    with pytest.raises(TypeError, match=r"can be added to a LossSum alone; .*`LossSum.zero\(\)`"):
        other + LossSum.of(LOSSES)


def test_repr_shows_total_and_weight_alone():
    shown = repr(LossSum.of(LOSSES))
    assert "total=" in shown and "weight=" in shown and "remainder" not in shown


def test_zero_is_a_sum_of_no_losses():
    assert sum([], start=LossSum.zero()).mean() == 0
    whole = sum([LossSum.of(LOSSES[:1]), LossSum.of(LOSSES[1:])], start=LossSum.zero())
    assert (whole.total, whole.weight, whole.mean()) == (38, 4, 9.5)
    assert all(x.dtype == jnp.float32 and not x.weak_type for x in jax.tree.leaves(LossSum.zero()))
    for dtype in (jnp.int32, jnp.bfloat16):
        with pytest.raises(TypeError, match=rf"`dtype` must be float32 or float64, .*; got {jnp.dtype(dtype)}"):
            LossSum.zero(dtype)
    with pytest.raises(TypeError, match=r"`dtype` must be a dtype; got 'single precision'"):
        LossSum.zero("single precision")


def test_zero_of_float64_starts_a_scan_over_float64(x64):
    losses = np.float64([[1, 1e-12], [2, 1e-12]])
    add = lambda s, x: (s + LossSum.of(x), None)  # noqa: E731
    total = jax.lax.scan(add, LossSum.zero(jnp.float64), losses)[0].total
    assert total.dtype == jnp.float64 and total == 3 + 2e-12


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda s: jax.lax.scan(lambda c, _: (c + s, None), 0, None, 2), r"start a `scan`.* from `LossSum.zero\(\)`"),
        (lambda s: jax.lax.scan(lambda c, _: (c + s, None), 0.0, None, 2), r"start a `scan`.* from `LossSum.zero\(\)`"),
        (lambda s: jax.lax.fori_loop(0, 2, lambda _, c: c + s, jnp.zeros(())), r"a loop .* from `LossSum.zero\(\)`"),
        (lambda s: sum([s, s], start=0.0), r"a `sum` from `LossSum.zero\(\)`"),
        (lambda s: float(s), r"not a number.*`float\(loss_sum.mean\(\)\)`"),
        (lambda s: s / 3, r"cannot be divided by int.*`.mean\(\)`.*`.total`"),
        (lambda s: s / s.weight, r"cannot be divided by ArrayImpl.*`.mean\(\)`"),
        (lambda _: jax.grad(LossSum.of)(LOSSES), r"only defined for scalar.*LossSum\(total=.*`.mean\(\)` or `.total`"),
    ],
    ids=["scan from 0", "scan from 0.0", "loop", "sum from 0.0", "float", "division", "division by an array", "grad"],
)
def test_error_of_an_invalid_use_names_the_alternative(use, message):
    with pytest.raises(TypeError, match=f"(?i){message}"):
        use(LossSum.of(LOSSES))


def exact_sums(loss_sum):
    return (
        float(loss_sum.total) + float(loss_sum.total_remainder),
        float(loss_sum.weight) + float(loss_sum.weight_remainder),
    )


def test_small_weights_are_not_lost_in_a_large_sum():
    whole = LossSum(jnp.float32(2**23), jnp.float32(2**24)) + LossSum.of(np.full(1, 100, np.float32))
    assert exact_sums(whole) == (2**23 + 100, 2**24 + 1)
    # Each of these weights is too small to change the sum; together they change it.
    many = sum([LossSum.of(np.ones(1, np.float32))] * 4, start=LossSum(jnp.float32(2**25), jnp.float32(2**25)))
    assert (many.total, many.weight) == (2**25 + 4, 2**25 + 4)


def mean_loss(i, batches):
    """Return the mean loss of batch `i`, in [0, 2). It is computed from integers, so that NumPy gives the same number."""
    return (i * 7919 % batches).astype("float32") / np.float32(batches / 2)


def by_fori_loop(batches, batch_sum):
    return jax.lax.fori_loop(0, batches, lambda i, s: s + batch_sum(i), LossSum.zero())


def by_scan(batches, batch_sum):
    return jax.lax.scan(lambda s, i: (s + batch_sum(i), None), LossSum.zero(), jnp.arange(batches))[0]


@pytest.mark.parametrize(("batches", "tokens"), [(300_000, 333), (1_000_000, 1000)])
@pytest.mark.parametrize("way", [by_fori_loop, by_scan])
def test_mean_over_a_thousand_million_tokens(way, batches, tokens):
    """Plain float32 sums have an error of 1e-3 or more. Under jit, the number of tokens is a constant that XLA may simplify."""
    weight = np.float32(tokens)
    found = jax.jit(lambda: way(batches, lambda i: LossSum(mean_loss(i, batches) * weight, weight)))()
    exact = mean_loss(np.arange(batches, dtype=np.int32), batches).astype(np.float64).mean()
    assert exact_sums(found)[1] == batches * tokens
    np.testing.assert_allclose(float(found.mean()), exact, rtol=1e-6)


def test_psum_includes_the_remainders():
    """Each device sums many batches before `psum`."""
    batches, devices = 20_000, 8
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))

    def local(first):
        zero = jax.tree.map(lambda x: jax.lax.pcast(x, "data", to="varying"), LossSum.zero())

        def add(i, loss_sum):
            index = first[0] * batches + i
            return loss_sum + LossSum(jnp.float32(4097) * mean_loss(index, batches * devices), jnp.float32(4097))

        return jax.lax.fori_loop(0, batches, add, zero).psum("data")

    found = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P()))(jnp.arange(devices))
    exact = mean_loss(np.arange(batches * devices, dtype=np.int32), batches * devices).astype(np.float64).mean()
    np.testing.assert_allclose(exact_sums(found)[1], batches * devices * 4097, rtol=1e-7)
    np.testing.assert_allclose(float(found.mean()), exact, rtol=1e-6)


def test_a_long_sum_is_differentiable(rng):
    """Differentiate a scan with respect to losses and weights: once in both modes, and twice. The remainders are constants."""
    x = rng.random((5, 3)).astype(np.float32) + 1

    def mean(x):
        start = LossSum(jnp.float32(2**24), jnp.float32(2**24))
        add = lambda s, x: (s + LossSum.of(x**3, weights=x), None)  # noqa: E731
        return jax.lax.scan(add, start, x)[0].mean()

    wide = x.astype(np.float64)
    total, weight = 2**24 + (wide**4).sum(), 2**24 + wide.sum()
    by_x = 4 * wide**3 / weight - total / weight**2
    for mode in (jax.jacrev, jax.jacfwd):
        np.testing.assert_allclose(jax.jit(mode(mean))(x), by_x, rtol=2e-5, atol=2e-5 * abs(by_x).max())
    found = jax.jit(jax.hessian(mean))(x).reshape(15, 15)
    gradient_terms = (4 * wide**3).ravel()
    expected = np.diag((12 * wide**2).ravel()) / weight
    expected += 2 * total / weight**3 - (gradient_terms[:, None] + gradient_terms[None]) / weight**2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected).max())


def test_infinite_losses_stay_infinite():
    infinite = LossSum.of(np.float32([np.inf])) + LossSum.of(LOSSES)
    assert infinite.mean() == np.inf and jnp.isnan((infinite + LossSum.of(np.float32([np.nan]))).mean())


def test_loss_sum_is_a_pytree():
    loss_sum = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s))(LossSum.of(LOSSES))
    assert isinstance(loss_sum, LossSum)
    assert loss_sum.mean() == 9.5 and loss_sum.weight == 8


def uneven_batch(rng):
    """Return eight micro-batches. One has no valid example, and one has a single valid example."""
    shape = (8, 6, 5)
    logits, labels = cases.make_logits(rng, shape), INTEGER.make_labels(rng, shape, -1)
    mask = rng.random((8, 6)) < 0.7
    mask[1], mask[2] = False, np.arange(6) == 3
    return logits, labels, mask


def oracle_mean(logits, labels, mask):
    answer = oracle.integer_softmax(logits, labels, mask=mask)
    n = mask.sum()
    gradient = answer.logits
    return (answer.loss.value.sum() / n, answer.loss.scale.sum() / n), (gradient.value / n, gradient.scale / n)


def loss_sum_of(logits, labels, mask):
    return LossSum.of(softmax_cross_entropy_with_integer_labels(logits, labels, mask=mask), mask=mask)


def test_micro_batches_add_up_to_the_batch_and_the_mean_of_means_does_not(rng):
    logits, labels, mask = uneven_batch(rng)
    value, gradient = oracle_mean(logits, labels, mask)

    def accumulated(logits):
        return sum(loss_sum_of(*micro) for micro in zip(logits, labels, mask, strict=True)).mean()

    def mean_of_means(logits):
        return jnp.stack([loss_sum_of(*micro).mean() for micro in zip(logits, labels, mask, strict=True)]).mean()

    actual, actual_gradient = jax.jit(jax.value_and_grad(accumulated))(logits)
    assert_within(actual, value, 8)
    assert_within(actual_gradient, gradient, 8)
    wrong, wrong_gradient = jax.jit(jax.value_and_grad(mean_of_means))(logits)
    assert abs(float(wrong) - value[0]) > 0.05 * value[0]
    assert np.max(abs(np.asarray(wrong_gradient) - gradient[0])) > 0.2 * np.max(abs(gradient[0]))


def test_micro_batches_add_up_in_a_scan(rng):
    logits, labels, mask = uneven_batch(rng)
    value, gradient = oracle_mean(logits, labels, mask)

    def accumulated(logits):
        zero = LossSum.zero()
        return jax.lax.scan(lambda s, micro: (s + loss_sum_of(*micro), None), zero, (logits, labels, mask))[0].mean()

    actual, actual_gradient = jax.jit(jax.value_and_grad(accumulated))(logits)
    assert_within(actual, value, 8)
    assert_within(actual_gradient, gradient, 8)


def test_gradients_of_totals_add_up_to_the_gradient_of_the_mean(rng):
    """Accumulate the gradients of the totals, and divide by the weight at the end."""
    logits, labels, mask = uneven_batch(rng)
    _, (expected, scale) = oracle_mean(logits, labels, mask)

    def total(bias, logits, labels, mask):
        loss_sum = loss_sum_of(logits + jnp.broadcast_to(bias, logits.shape), labels, mask)
        return loss_sum.total, loss_sum.weight

    step = jax.jit(jax.grad(total, has_aux=True))
    steps = [step(jnp.zeros(5), *micro) for micro in zip(logits, labels, mask, strict=True)]
    gradient = sum(g for g, _ in steps) / sum(w for _, w in steps)
    assert_within(gradient, (expected.sum((0, 1)), scale.sum((0, 1))), 8)


def test_psum_over_a_vmapped_axis(rng):
    logits, labels, mask = uneven_batch(rng)
    value, _ = oracle_mean(logits, labels, mask)
    means = jax.vmap(lambda *micro: loss_sum_of(*micro).psum("batch").mean(), axis_name="batch")(logits, labels, mask)
    assert_within(means, (np.full(8, value[0]), np.full(8, value[1])), 8)


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=lambda m: m.name)
@pytest.mark.parametrize("axes", [("data",), ("data", "model")], ids="+".join)
def test_psum_over_devices_gives_every_device_the_same_mean(axes, mode, rng):
    logits, labels, mask = uneven_batch(rng)
    value, gradient = oracle_mean(logits, labels, mask)
    mesh = jax.make_mesh((8,) if len(axes) == 1 else (4, 2), axes, axis_types=(mode,) * len(axes))
    name = axes[0] if len(axes) == 1 else axes

    @jax.jit
    @jax.value_and_grad
    def mean(*arrays):
        def local(*shard):
            return loss_sum_of(*shard).psum(name).mean()

        return jax.shard_map(local, mesh=mesh, in_specs=P(axes), out_specs=P())(*arrays)

    actual, actual_gradient = mean(*jax.device_put((logits, labels, mask), NamedSharding(mesh, P(axes))))
    assert_within(actual, value, 8)
    assert_within(actual_gradient, gradient, 8)


MICRO, ROWS, CLASSES = 4, 16, 6


@functools.cache
def accumulated(devices, inside):
    """Return a function that computes the mean over micro-batches in a scan, and its gradient with respect to a bias.

    Each micro-batch is split over devices: inside `shard_map`, or only under jit.
    """
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])

    def mean_over_micro_batches(bias, logits, labels, mask):
        def add(loss_sum, micro):
            logits, labels, mask = micro
            return loss_sum + loss_sum_of(logits + bias[None], labels, mask), None

        zero = LossSum.zero()
        if inside:
            zero = jax.tree.map(lambda x: jax.lax.pcast(x, "data", to="varying"), zero)
        loss_sum = jax.lax.scan(add, zero, (logits, labels, mask))[0]
        return (loss_sum.psum("data") if inside else loss_sum).mean()

    spec = P(None, "data")
    mean = mean_over_micro_batches
    if inside:
        mean = jax.shard_map(mean, mesh=mesh, in_specs=(P(), spec, spec, spec), out_specs=P())
    run = jax.jit(jax.value_and_grad(mean))
    return lambda bias, *arrays: run(bias, *jax.device_put(arrays, NamedSharding(mesh, spec)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    masks=st.lists(st.sampled_from(["none", "all", "one", "some"]), min_size=MICRO, max_size=MICRO),
    seed=st.integers(0, 2**32 - 1),
    devices=st.sampled_from([1, 2, 4, 8]),
    inside=st.booleans(),
)
def test_micro_batches_on_devices_add_up_to_one_batch(masks, seed, devices, inside):
    rng = np.random.default_rng(seed)
    shape = (MICRO, ROWS, CLASSES)
    logits, labels = cases.make_logits(rng, shape), INTEGER.make_labels(rng, shape, -1)
    kinds = {"none": np.zeros(ROWS, bool), "all": np.ones(ROWS, bool), "one": np.arange(ROWS) == seed % ROWS}
    mask = np.stack([kinds.get(kind, rng.random(ROWS) < 0.5) for kind in masks])
    labels[~mask] = -100
    value, gradient = accumulated(devices, inside)(np.zeros(CLASSES, np.float32), logits, labels, mask)
    n = max(mask.sum(), 1)
    answer = oracle.integer_softmax(logits, labels, mask=mask)
    assert_within(value, tuple(x.sum() / n for x in answer.loss), 8)
    assert_within(gradient, tuple(x.sum((0, 1)) / n for x in answer.logits), 8)


def by_hand(losses, ids, number, weights=None, mask=None):
    """Return the sum of each segment, of its weights, and of the sizes of its terms, in float64."""
    weights = np.ones(losses.shape) if weights is None else weights.astype(np.float64)
    weights = weights if mask is None else np.where(mask, weights, 0)
    terms = np.where(weights == 0, 0, losses.astype(np.float64)) * weights
    of = [ids == i for i in range(number)]
    return tuple(np.array([x[some].sum() for some in of]) for x in (terms, weights, np.abs(terms)))


@pytest.mark.covering(2)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("given", [(), ("weights",), ("mask",), ("weights", "mask")], ids=str)
@pytest.mark.parametrize("shape", [(3, 700), (1500,), (0,), (5,)], ids=str)
def test_sums_of_segments(shape, given, dtype, rng, x64):
    losses, ids = rng.random(shape).astype(jnp.dtype(dtype)), rng.integers(-2, 6, shape)
    options = {"weights": rng.standard_normal(shape).astype(np.float32), "mask": rng.random(shape) < 0.7}
    options = {name: options[name] for name in given}
    found = LossSum.by_segment(losses, ids, 4, **options)
    total, weight, size = by_hand(losses, ids, 4, **options)
    assert found.total.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert_within(found.total, (total, size), 2)
    assert_within(found.weight, (weight, np.abs(weight) + size), 2)
    mean = np.where(weight == 0, 0, total / np.where(weight == 0, 1, weight))
    np.testing.assert_allclose(found.mean(), mean, rtol=1e-4 if "weights" in given else 1e-6)


def test_sums_of_long_segments_are_exact(rng):
    """A plain float32 sum of these losses, one after the other, is off by 1e-4."""
    losses, ids = rng.random(300_000).astype(np.float32) * 10, rng.integers(0, 2, 300_000)
    found = jax.jit(functools.partial(LossSum.by_segment, num_segments=2))(losses, ids)
    total, weight, _ = by_hand(losses, ids, 2)
    np.testing.assert_allclose(found.total, total, rtol=1e-7)
    np.testing.assert_array_equal(found.weight, weight)
    both = (found + found).total
    np.testing.assert_allclose(both, 2 * total, rtol=1e-7)


def test_sums_of_segments_are_differentiable_in_every_mode(rng, x64):
    losses, ids, weights = rng.standard_normal(20), rng.integers(-1, 5, 20), rng.standard_normal(20)
    factors = np.array([2.0, -1, 3, 0.5])

    def ours(losses, weights):
        return jnp.sum(jnp.sin(LossSum.by_segment(losses, ids, 4, weights).total) * factors)

    def plain(losses, weights):
        of_segment = (ids == np.arange(4)[:, None]).astype(float)
        return jnp.sum(jnp.sin(of_segment @ (losses * weights)) * factors)

    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        found, want = (jax.jit(derivative(f, (0, 1)))(losses, weights) for f in (ours, plain))
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-13)


def test_sums_of_segments_inside_transforms(rng):
    losses, ids = rng.random((3, 40)).astype(np.float32), rng.integers(0, 3, (3, 40))
    of_row = functools.partial(LossSum.by_segment, num_segments=3)
    want = np.stack([by_hand(x, i, 3)[0] for x, i in zip(losses, ids, strict=True)])
    np.testing.assert_allclose(jax.vmap(of_row)(losses, ids).total, want, rtol=1e-6)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    for check_vma in (True, False):
        summed = jax.shard_map(
            lambda x, i: of_row(x, i).psum("data"),
            mesh=mesh,
            in_specs=P(None, "data"),
            out_specs=P(),
            check_vma=check_vma,
        )
        np.testing.assert_allclose(summed(losses, ids).total, want.sum(0), rtol=1e-6)
    explicit = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    placed = (jax.device_put(x, NamedSharding(explicit, P(None, "data"))) for x in (losses, ids))
    np.testing.assert_allclose(of_row(*placed).total, want.sum(0), rtol=1e-6)


def test_infinite_losses_of_segments_stay_in_them():
    losses, weights = np.float32([1, np.inf, 2, np.inf, np.nan]), np.float32([1, 1, 1, 0, 1])
    found = LossSum.by_segment(losses, np.array([0, 1, 2, 2, 3]), 4, weights)
    np.testing.assert_array_equal(found.total, np.float32([1, np.inf, 2, np.nan]))


SEGMENTS_BAD = {
    "float ids": ((LOSSES, LOSSES, 2), TypeError, r"`segment_ids` must be integers; got float32\. Convert them"),
    "shape of ids": ((LOSSES, np.zeros(3, int), 2), ValueError, r"`segment_ids` must have the shape of the losses, \(4,\); got \(3,\)"),
    "negative number": ((LOSSES, np.zeros(4, int), -1), ValueError, "`num_segments` must not be negative; got -1"),
    "float number": ((LOSSES, np.zeros(4, int), 2.0), TypeError, "`num_segments` must be a Python integer"),
    "integer losses": ((np.zeros(4, int), np.zeros(4, int), 2), TypeError, "`losses` must be floating point"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "error", "message"), SEGMENTS_BAD.values(), ids=SEGMENTS_BAD)
def test_invalid_segments_raise(args, error, message):
    with pytest.raises(error, match=message):
        LossSum.by_segment(*args)


@pytest.mark.covering(1, at_most=12)
@pytest.mark.parametrize("number", [128, 200, 256, 300, 40_000])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
def test_narrow_ids_count_any_number_of_segments(dtype, number):
    ids, losses = np.array([0, 1, 100, 1]).astype(dtype), np.float32([1, 2, 30, 4])
    if dtype.startswith("int"):
        ids, losses = np.append(ids, np.array(-1, dtype)), np.append(losses, np.float32(500))
    total = np.asarray(LossSum.by_segment(losses, ids, number).total)
    assert {int(i): float(total[i]) for i in np.flatnonzero(total)} == {0: 1, 1: 6, 100: 30}


def test_a_nan_outside_every_segment_reaches_no_gradient():
    losses, ids = jnp.float32([1, np.nan, 3]), np.array([0, 7, 1])

    def total(losses, weights):
        return jnp.sum(LossSum.by_segment(losses, ids, 2, weights).total)

    of_losses, of_weights = jax.grad(total, (0, 1))(losses, jnp.float32([2, 2, 2]))
    np.testing.assert_array_equal(of_losses, [2, 0, 2])
    np.testing.assert_array_equal(of_weights, [1, 0, 3])


def test_sums_of_segments_of_a_symbolic_number_of_losses(rng):
    (size,) = jax.export.symbolic_shape("t")
    types = jax.ShapeDtypeStruct((size,), np.float32), jax.ShapeDtypeStruct((size,), np.int32)
    exported = jax.export.export(jax.jit(lambda x, ids: LossSum.by_segment(x, ids, 3)))(*types)
    losses, ids = rng.random(70).astype(np.float32), rng.integers(0, 3, 70).astype(np.int32)
    np.testing.assert_allclose(exported.call(losses, ids).total, by_hand(losses, ids, 3)[0], rtol=1e-6)


def test_sums_of_different_numbers_of_segments_do_not_add():
    a, b = (LossSum.by_segment(LOSSES, np.zeros(4, int), number) for number in (2, 3))
    with pytest.raises(ValueError, match=r"same number of segments; got shapes \(2,\) and \(3,\)"):
        a + b
