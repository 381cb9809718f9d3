"""Sharded logits need no option: the results are correct under jit in Auto and Explicit mode and inside shard_map, and no logits are gathered."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxce import LossSum
from tests.support import cases
from tests.support.closeness import assert_within

pytestmark = pytest.mark.usefixtures("fast_compilation")

SHAPE = (8, 4, 16)
SPECS = [P("data"), P(None, "data"), P(None, None, "model"), P("data", None, "model"), P(("data", "model"))]


def mesh_of(mode):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(mode, mode))


def sharded(rng, loss, spec, mesh):
    logits, labels = cases.make_logits(rng, SHAPE), loss.make_labels(rng, SHAPE, -1)
    label_spec = spec if labels.ndim == 3 else P(*spec[:2])
    return (
        logits,
        labels,
        jax.device_put(logits, NamedSharding(mesh, spec)),
        jax.device_put(labels, NamedSharding(mesh, label_spec)),
    )


def total_and_losses(loss, **options):
    def total(z, y):
        losses = loss.function(z, y, **options)
        return losses.sum(), losses

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.mark.covering(1)
@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=lambda m: m.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_values_and_gradients_under_jit(loss, spec, mode, rng):
    mesh = mesh_of(mode)
    logits, labels, z, y = sharded(rng, loss, spec, mesh)
    with jax.set_mesh(mesh):
        (_, losses), gradient = total_and_losses(loss)(z, y)
    answer = loss.oracle(logits, labels)
    assert_within(losses, answer.loss, 6)
    assert_within(gradient, answer.logits, 6)
    assert gradient.sharding.is_equivalent_to(z.sharding, 3)


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=lambda m: m.name)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_every_option_with_split_classes(loss, mode, rng):
    """There are classes at -inf, masked rows of NaN, and an excluded true class."""
    mesh, spec = mesh_of(mode), P("data", None, "model")
    logits, labels = cases.make_logits(rng, SHAPE), loss.make_labels(rng, SHAPE, -1)
    options = cases.make_options(rng, cases.SOFTMAX_OPTIONS, loss, SHAPE, labels)
    where, mask = options["where"], options["mask"]
    logits[~where & (rng.random(SHAPE) < 0.5)] = -np.inf
    logits[~mask] = np.nan
    row = tuple(np.argwhere(mask)[0])
    where[row] = (np.arange(SHAPE[-1]) != labels[row]) if loss is cases.INTEGER else labels[row] == 0
    where[row][-2:] = True
    answer = loss.oracle(logits, labels, **options)
    z, y, options["where"], options["mask"] = (
        jax.device_put(x, NamedSharding(mesh, spec if np.ndim(x) == 3 else P("data", None)))
        for x in (logits, labels, where, mask)
    )
    with jax.set_mesh(mesh):
        (_, losses), gradient = total_and_losses(loss, **options)(z, y)
    assert_within(losses, answer.loss, 6)
    assert_within(gradient, answer.logits, 8)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1}], ids=["plain", "options"])
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_sharded_classes_are_not_gathered(loss, options, rng):
    mesh = mesh_of(AxisType.Auto)
    _, _, z, y = sharded(rng, loss, P("data", None, "model"), mesh)
    program = total_and_losses(loss, **options).lower(z, y).compile().as_text()
    assert "all-reduce" in program
    gathered = [
        m
        for m in re.findall(r"= (\S+) all-gather", program)
        if np.prod([int(n) for n in re.findall(r"\d+", m.split("{")[0])[1:]]) > 32
    ]
    assert not gathered


@pytest.mark.parametrize("loss", cases.LOSSES)
def test_mean_and_gradient_in_shard_map_over_examples(loss, rng):
    mesh = mesh_of(AxisType.Auto)
    logits, labels = cases.make_logits(rng, SHAPE), loss.make_labels(rng, SHAPE, -1)
    mask = rng.random(loss.shape(SHAPE)) < 0.5

    def local(z, y, m):
        return LossSum.of(loss.function(z, y, mask=m), mask=m).psum(("data", "model")).mean()

    spec = P(("data", "model"))
    mean = jax.shard_map(local, mesh=mesh, in_specs=(spec, spec, spec), out_specs=P())
    value, gradient = jax.jit(jax.value_and_grad(mean))(logits, labels, mask)
    answer, n = loss.oracle(logits, labels, mask=mask), mask.sum()
    assert_within(value, (answer.loss.value.sum() / n, answer.loss.scale.sum() / n), 6)
    assert_within(gradient, tuple(x / n for x in answer.logits), 8)


@pytest.mark.parametrize("loss", cases.LOSSES)
def test_forward_mode_and_gradient_inside_shard_map(loss, rng):
    mesh = mesh_of(AxisType.Auto)
    logits, labels = cases.make_logits(rng, SHAPE), loss.make_labels(rng, SHAPE, -1)
    spec = P("data")

    def local(z, y):
        tangents = jax.jvp(lambda z: loss.function(z, y), (z,), (jnp.ones_like(z),))[1]
        return tangents, jax.grad(lambda z: loss.function(z, y).sum())(z)

    tangents, gradient = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec)))(
        logits, labels
    )
    answer = loss.oracle(logits, labels)
    tangents_wanted = answer.logits if not loss.has_class_axis else tuple(x.sum(-1) for x in answer.logits)
    assert_within(tangents, tangents_wanted, 6)
    assert_within(gradient, answer.logits, 6)


@pytest.mark.covering(1)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": np.float32(0.1)}], ids=["plain", "label_smoothing"])
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_labels_that_are_the_same_on_all_devices_of_a_shard_map(loss, options, check_vma, rng):
    logits, labels = cases.make_logits(rng, (8, 16)), loss.make_labels(rng, (2, 16), -1)
    gradient = jax.grad(lambda z: loss.function(z, jnp.asarray(labels), **options).sum())
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(gradient, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check_vma)
    want = np.concatenate([jax.jit(gradient)(part) for part in np.split(logits, 4)])
    np.testing.assert_allclose(jax.jit(split)(logits), want, rtol=1e-6, atol=1e-12)
    oracle_gradient = loss.oracle(logits, np.concatenate([labels] * 4), **options).logits
    assert_within(want, oracle_gradient, 8)


def test_gradient_of_an_option_that_is_the_same_on_all_devices_of_a_shard_map(rng):
    logits, labels = cases.make_logits(rng, (8, 16)), cases.SIGMOID.make_labels(rng, (8, 16), -1)

    def gradient(z, y, weight):
        return jax.grad(lambda w: cases.SIGMOID.function(z, y, pos_weight=w).sum())(weight)

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(gradient, mesh=mesh, in_specs=(P("data"), P("data"), P()), out_specs=P())
    weight = jnp.linspace(0.5, 2, 16, dtype=jnp.float32)
    np.testing.assert_allclose(jax.jit(split)(logits, labels, weight), gradient(logits, labels, weight), rtol=1e-5)
