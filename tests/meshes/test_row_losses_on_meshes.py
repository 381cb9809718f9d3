"""`loss_sum` and the statistics of the softmax give the same on every mesh, in every mode, with every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import Chunked, LinearLogits, Split
from tests.support import row_losses, sharded
from tests.support.row_losses import assert_near, policy_loss_and_metrics

pytestmark = pytest.mark.usefixtures("fast_compilation")

ROWS, CLASSES = (4, 6), 40
NAMES = row_losses.Problem._fields
# How the tokens (batch, sequence) are split, and the classifier (features, classes).
LAYOUTS = {
    "tokens": (P("data", None), P()),
    "batch and sequence": (P("data", "model"), P()),
    "tokens and classes": (P("data", None), P(None, "model")),
    "classes": (P(), P(None, ("data", "model"))),
    "tokens, features and classes": (P("data", None), P("data", "model")),
}


def problem():
    return row_losses.make(np.random.default_rng(0), ROWS, classes=CLASSES)


def specs_of(tokens, classifier):
    of_rows = P(*tokens)
    specs = dict.fromkeys(("labels", "mask", "advantages", "old", "weights"), of_rows)
    return specs | {"hidden": P(*tokens, None) if tokens else P(), "classifier": classifier, "clip": P(), "beta": P()}


def totals(logits_of, psum, arrays, **options):
    """Return the sum, and its weight and the metrics."""
    given = row_losses.Problem(**arrays)
    logits = logits_of(given.hidden, given.classifier)
    result, metrics = row_losses.ours(given, logits, loss=policy_loss_and_metrics, has_aux=True, **options)
    result, metrics = psum((result, metrics))
    return result.total, (result.weight, {name: metric.total for name, metric in metrics.items()})


def check(run, arrays):
    """Compare the totals, the metrics and every gradient with the textbook formula in float64."""
    fixed = {name: arrays[name] for name in ("labels", "mask")}

    def total(moving):
        return run(fixed | moving)

    moving = {name: arrays[name] for name in row_losses.DIFFERENTIABLE}
    (value, (weight, metrics)), found = jax.jit(jax.value_and_grad(total, has_aux=True))(moving)
    exact = row_losses.as_float64(problem())
    with jax.enable_x64(True):
        want_value, wanted = row_losses.gradients(row_losses.naive, exact)
    assert_near(value, want_value, 4e-6)
    assert_near(found, {name: wanted[name] for name in found}, 4e-6)
    z = exact.hidden @ exact.classifier
    log_p = z - np.logaddexp.reduce(z, -1, keepdims=True)
    of_rows = {
        "entropy": -(np.exp(log_p) * log_p).sum(-1),
        "correct": z.argmax(-1) == exact.labels,
        "prediction": z.argmax(-1),
    }
    for name, metric in metrics.items():
        np.testing.assert_allclose(metric, of_rows[name][exact.mask].sum(), rtol=2e-6)
    np.testing.assert_allclose(weight, exact.weights[exact.mask].sum(), rtol=2e-6)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", [None, Chunked(3, 5), "dense"], ids=str)
@pytest.mark.parametrize("mode", ["auto", "explicit", "split"])
def test_loss_sum_with_nothing_said_and_with_split(mode, way, layout):
    if way == "dense" and (mode == "split" or (mode == "explicit" and "features" in layout)):
        pytest.skip("`split` is about LinearLogits, and JAX refuses this product in explicit mode")
    tokens, classifier = LAYOUTS[layout]
    mesh, specs = sharded.mesh_of((2, 2), mode, jax.devices()[:4]), specs_of(tokens, classifier)
    split = Split(tokens, *reversed(tuple(classifier) or (None, None))) if mode == "split" else None

    def logits_of(hidden, weights):
        return hidden @ weights if way == "dense" else LinearLogits(hidden, weights, split=split, implementation=way)

    placed = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in problem()._asdict().items()}
    with jax.set_mesh(mesh):
        check(functools.partial(totals, logits_of, lambda x: x), placed)


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("way", ["dense", "reference", Chunked(3, 5), Chunked(3)], ids=str)
@pytest.mark.parametrize("check_vma", [True, False])
def test_loss_sum_inside_shard_map(check_vma, way):
    mesh, specs = sharded.mesh_of((2, 2), "auto", jax.devices()[:4]), specs_of(*LAYOUTS["tokens and classes"])

    def logits_of(hidden, weights):
        return hidden @ weights if way == "dense" else LinearLogits(hidden, weights, implementation=way)

    def psum(results):
        return jax.tree.map(lambda x: x.psum("data"), results, is_leaf=lambda x: isinstance(x, jaxce.LossSum))

    local = functools.partial(totals, logits_of, psum, axis_name="model")
    arrays = jax.tree.map(jnp.asarray, problem()._asdict())
    check(
        lambda given: jax.shard_map(
            local, mesh=mesh, in_specs=({name: specs[name] for name in given},), out_specs=P(), check_vma=check_vma
        )(given),
        arrays,
    )


@pytest.mark.parametrize("mode", ["auto", "explicit", "split"])
def test_statistics_without_labels(mode):
    mesh, given = sharded.mesh_of((2, 2), mode, jax.devices()[:4]), problem()
    split = Split("data", "model", mesh=mesh) if mode == "split" else None
    placed = (
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in ((given.hidden, P("data")), (given.classifier, P(None, "model")), (given.mask, P("data")))
    )

    @jax.jit
    def of_layer(hidden, classifier, mask):
        stats = jaxce.logit_stats(LinearLogits(hidden, classifier, split=split), mask=mask)
        return stats.entropy, stats.prediction, stats.confidence

    entropy, prediction, confidence = of_layer(*placed)
    z = np.float64(given.hidden) @ np.float64(given.classifier)
    log_p = z - np.logaddexp.reduce(z, -1, keepdims=True)
    mask = given.mask
    np.testing.assert_array_equal(prediction, np.where(mask, z.argmax(-1), 0))
    np.testing.assert_allclose(entropy, np.where(mask, -(np.exp(log_p) * log_p).sum(-1), 0), rtol=1e-6)
    np.testing.assert_allclose(confidence, np.where(mask, np.exp(log_p.max(-1)), 1), rtol=1e-6)
