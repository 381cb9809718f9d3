"""`LinearLogits` on a mesh of Auto axes, where only XLA knows how arrays are split: each device stores, computes and sends what it does in Explicit
mode, with `split` and without."""

import functools
import math
import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import Chunked, LinearLogits, Split
from tests.support import linear_cases
from tests.support.auto_mesh import LAYOUTS, SIZES, figures_of, mesh_of, per_token, total
from tests.support.closeness import assert_within
from tests.support.device_work import figures
from tests.support.oracle import Quantity
from tests.support.paths import ROOT
from tests.support.versions import on_small_memory

WHOLE = math.prod(SIZES)  # the multiplications of one matmul of the layer
TOKENS, (FEATURES, CLASSES) = SIZES[0] * SIZES[1], SIZES[2:]


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("mode", ["auto", "auto, out_shardings", "split"])
@pytest.mark.parametrize("loss", [total, per_token], ids=lambda f: f.__name__)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_device_stores_computes_and_sends_what_it_does_in_explicit_mode(layout, loss, mode):
    found, explicit = figures_of(layout, loss, mode), figures_of(layout, loss, "explicit")
    for name, most in explicit._asdict().items():
        assert getattr(found, name) <= 1.1 * most, (name, found, explicit)


@on_small_memory
@pytest.mark.covering(1)
@pytest.mark.parametrize("loss", [total, per_token], ids=lambda f: f.__name__)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_explicit_mode_has_a_part_of_the_work_and_sends_no_array_of_classes_in_a_loop(layout, loss):
    _, _, tokens, features, classes = LAYOUTS[layout]
    mesh = mesh_of(layout, AxisType.Explicit)
    parts = [int(np.prod([mesh.shape[a] for a in axes])) for axes in ([*tokens], [classes] if classes else [])]
    found = figures_of(layout, loss, "explicit")
    assert 3 * WHOLE / np.prod(parts) <= found.products <= 4 * WHOLE / np.prod(parts)
    assert found.sent_in_loops <= 4 * 10 * TOKENS / parts[0]  # a few numbers per token
    own_classifier = 4 * FEATURES * CLASSES / parts[1]
    gathered_and_scattered = (
        own_classifier * (1 + 1 / mesh.shape["data"]) if features else own_classifier * (parts[0] > 1)
    )
    of_hidden = 4 * TOKENS * FEATURES / parts[0] if classes else 0
    assert found.sent <= gathered_and_scattered + of_hidden + 4 * 10 * TOKENS / parts[0]
    logits = 4 * TOKENS * CLASSES / np.prod(parts)
    assert found.temporaries <= max(logits, 2**25) + 3 * own_classifier
    assert found.temporaries <= 0.4 * figures_of(layout, per_token, "naive").temporaries


@pytest.mark.parametrize(
    ("classifier_spec", "skips"), [(P(), True), (P(None, "model"), False)], ids=["tokens", "classes"]
)
def test_blocks_of_masked_tokens_are_skipped_where_a_device_decides_alone(classifier_spec, skips):
    """The number of blocks is then unknown to the compiler. Devices that split the classes must take part in the same number of merges."""
    arrays, on_mesh = placed(auto_mesh(), P("data"), classifier_spec)

    def run(hidden, classifier, mask):
        logits = LinearLogits(hidden, classifier, implementation=Chunked(8))
        return jaxce.softmax_cross_entropy_sum(logits, arrays[2], mask=mask).total

    compiled = jax.jit(jax.grad(run)).lower(*on_mesh, jnp.ones((8, 16), bool)).compile()
    assert np.isinf(figures(compiled).products) == skips


def placed(mesh, hidden_spec, classifier_spec, tokens=(8, 16)):
    """Return the arrays of a small problem, and the same arrays on the mesh, less the labels."""
    size = int(np.prod(tokens))
    hidden, classifier, labels = linear_cases.make(np.random.default_rng(0), size, 4, 24)
    arrays = hidden.reshape(*tokens, 4), classifier, labels.reshape(tokens)
    specs = zip(arrays, (hidden_spec, classifier_spec), strict=False)
    return arrays, [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in specs]


MESH = functools.partial(Mesh, axis_types=(AxisType.Auto,) * 2)


def auto_mesh(shape=(2, 4)):
    return MESH(np.array(jax.devices()).reshape(shape), ("data", "model"))


def check(run, arrays, on_mesh, labels, weight=1.0):
    """Check the value and the gradients of `run(hidden, classifier, labels)`, a sum of all losses times `weight`."""
    value, gradients = jax.jit(jax.value_and_grad(run, (0, 1)))(*on_mesh, labels)
    hidden, classifier, _ = arrays
    flat = hidden.reshape(-1, hidden.shape[-1]), classifier, labels.reshape(-1)
    want, want_gradients = linear_cases.expected(*flat, np.full(labels.size, weight))
    assert_within(value, Quantity(weight * want.value.sum(), weight * want.scale.sum()), 8)
    for name, gradient in zip(("hidden", "classifier"), gradients, strict=True):
        assert_within(gradient, Quantity(*(x.reshape(gradient.shape) for x in want_gradients[name])), 8)


def of_reshaped(hidden, classifier, labels):
    """Cut the tokens in a way that the axes of the mesh cannot say."""
    return total(LinearLogits(hidden.reshape(4, 32, 4), classifier), labels.reshape(4, 32))


def of_uneven_parts(hidden, classifier, labels):
    """Use tokens and classes that the devices cannot share evenly."""
    extra = jnp.zeros((4, 1), classifier.dtype)
    logits = LinearLogits(
        hidden[:, :-1], jnp.concatenate((classifier, extra), 1), bias=jnp.where(jnp.arange(25) < 24, 0.0, -jnp.inf)
    )
    rest = LinearLogits(hidden[:, -1:], classifier)
    return per_token(logits, labels[:, :-1]) + total(rest, labels[:, -1:])


def of_vmap(hidden, classifier, labels):
    return jax.vmap(lambda h, y: total(LinearLogits(h, classifier), y))(hidden, labels).sum()


def of_vmap_in_blocks(hidden, classifier, labels):
    def of_row(h, y):
        return per_token(LinearLogits(h, classifier, implementation=Chunked(3, 5)), y)

    return jax.vmap(of_row)(hidden, labels).sum()


def of_labels_that_are_split_in_another_way(hidden, classifier, labels):
    labels = jax.lax.with_sharding_constraint(labels, NamedSharding(auto_mesh(), P(None, "data")))
    return total(LinearLogits(hidden, classifier), labels)


def of_scan(hidden, classifier, labels):
    def step(carry, rows):
        h, y = rows
        return carry + total(LinearLogits(h, classifier, implementation=Chunked(3)), y), None

    return jax.lax.scan(step, jnp.float32(0), (jnp.swapaxes(hidden, 0, 1), labels.T))[0]


def of_checkpoint(hidden, classifier, labels):
    return jax.checkpoint(lambda h, w: per_token(LinearLogits(h, w), labels))(hidden, classifier)


def of_embedding(hidden, classifier, labels):
    return total(LinearLogits(hidden, classifier.T.T), labels)


WAYS = [
    of_reshaped,
    of_uneven_parts,
    of_vmap,
    of_vmap_in_blocks,
    of_labels_that_are_split_in_another_way,
    of_scan,
    of_checkpoint,
    of_embedding,
]


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("specs", [(P("data"), P(None, "model")), (P(("data", "model")), P(("data",)))], ids=str)
def test_ways_to_call_a_loss(way, specs):
    arrays, on_mesh = placed(auto_mesh(), *specs)
    check(way, arrays, on_mesh, arrays[2])


@pytest.mark.usefixtures("fast_compilation")
def test_sequences_that_devices_cannot_share_evenly():
    """Four devices share sequences of 16, less one token. XLA gives the last device a part that is filled up."""
    arrays, on_mesh = placed(auto_mesh(), P("data", "model"), P())
    check(of_uneven_parts, arrays, on_mesh, arrays[2])


def test_arguments_can_be_donated():
    arrays, on_mesh = placed(auto_mesh(), P("data"), P("data", "model"))

    def step(hidden, classifier):
        gradients = jax.grad(lambda *x: total(LinearLogits(*x), arrays[2]), (0, 1))(hidden, classifier)
        return hidden - gradients[0], classifier - gradients[1]

    want = jax.jit(step)(*arrays[:2])
    found = jax.jit(step, donate_argnums=(0, 1))(*on_mesh)
    assert all(x.is_deleted() for x in on_mesh)
    for x, y in zip(found, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_arrays_without_a_sharding_work_under_set_mesh():
    arrays, _ = placed(auto_mesh(), P(), P())
    with jax.set_mesh(auto_mesh()):
        check(lambda h, w, y: total(LinearLogits(h, w), y), arrays, arrays[:2], arrays[2])


def test_program_is_exported_without_a_call_that_only_this_process_knows():
    arrays, on_mesh = placed(auto_mesh(), P("data"), P("data", "model"))
    run = jax.jit(jax.value_and_grad(lambda h, w: total(LinearLogits(h, w), arrays[2]), (0, 1)))
    types = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in on_mesh]
    exported = export.export(run)(*types)
    assert (
        "CustomSPMDPartitioning" not in exported.mlir_module()
        and "CustomSPMDPartitioning" in run.lower(*types).as_text()
    )
    found = jax.jit(export.deserialize(exported.serialize()).call)(*on_mesh)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(run(*on_mesh)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


PROGRAM = """
import jax, jax.numpy as jnp, jaxce
from jax.sharding import PartitionSpec as P
jax.config.update("jax_compilation_cache_dir", {folder!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", {flag})
mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
place = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, P(*spec)))
hidden, classifier, labels = place(jnp.ones((8, 4)), "data"), place(jnp.eye(4, 24), None, "model"), place(jnp.arange(8), "data")
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
loss = lambda h, w: {loss}(jaxce.LinearLogits(h, w), labels)
compiled = jax.jit(jax.value_and_grad(loss)).lower(hidden, classifier).compile()
print(len(hits), float(compiled(hidden, classifier)[0]), "CustomSPMDPartitioning" in jax.jit(loss).lower(hidden, classifier).as_text())
"""
# The two losses have operands of the same shapes. Only the code differs that XLA gets when it asks.
FIRST = "(lambda z, y: jaxce.softmax_cross_entropy_sum(z, y, label_smoothing=0.3).total)"
SECOND = "(lambda z, y: jaxce.softmax_cross_entropy_sum(z, y, z_loss=0.3).total)"


def run_program(folder, loss, flag):
    """Return the number of hits, the value, whether the program asks how to partition it, and whether it warned."""
    program = PROGRAM.format(folder=str(folder), loss=loss, flag=flag)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    hits, value, asks = done.stdout.split()
    return (
        int(hits) > 0,
        float(value),
        asks == "True",
        "jax_remove_custom_partitioning_ptr_from_cache_key" in done.stderr,
    )


@pytest.mark.nightly
def test_persistent_cache_finds_the_program_of_the_same_loss_in_another_process(tmp_path):
    with_flag = [run_program(tmp_path / "flag", loss, True) for loss in (FIRST, FIRST, SECOND, SECOND)]
    assert [hit for hit, *_ in with_flag] == [False, True, False, True]
    assert all(asks and not warned for _, _, asks, warned in with_flag)
    first, again, second, second_again = (value for _, value, *_ in with_flag)
    assert first == again and second == second_again and abs(second - first) > 1
    without = [run_program(tmp_path / "no flag", FIRST, False) for _ in range(2)]
    assert [hit for hit, *_ in without] == [False, True]
    assert all(warned and not asks and value == pytest.approx(first, rel=1e-6) for _, value, asks, warned in without)


def test_without_the_flag_a_program_for_the_cache_warns_and_does_not_ask():
    arrays, on_mesh = placed(auto_mesh(), P("data"), P(None, "model"))

    def lowered(**split):
        # A new function: JAX would find the lowered program of the last one.
        return jax.jit(lambda h, w: total(LinearLogits(h, w, **split), arrays[2])).lower(*on_mesh).as_text()

    assert "CustomSPMDPartitioning" in lowered()
    kept = jax.config.jax_remove_custom_partitioning_ptr_from_cache_key
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", False)
    try:
        with pytest.warns(UserWarning, match="`split=jaxce.Split"):
            assert "CustomSPMDPartitioning" not in lowered()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lowered(split=Split("data", "model", mesh=auto_mesh()))
    finally:
        jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", kept)


def partitioned_sum():
    """Return a function that XLA asks how to partition, as JAX's documentation shows it."""

    @custom_partitioning
    def call(x):
        return x.sum(1)

    def partition(mesh, operands, _):
        split = NamedSharding(mesh, P(operands[0].sharding.spec[0]))
        return mesh, lambda x: x.sum(1), split, (split,)

    call.def_partition(partition=partition, sharding_rule="i j -> i")
    return call


def test_jax_still_lacks_what_the_package_works_around():
    """Once this fails, `jaxce._jax.partitioning` can do less."""
    _, (x, _) = placed(auto_mesh(), P("data"), P(), (8,))
    call = partitioned_sum()
    with pytest.raises(NotImplementedError, match="Batching rule for 'custom_partitioning' not implemented"):
        jax.vmap(call)(x[None])
    with pytest.raises(NotImplementedError, match="custom_partitioning"):
        jax.grad(lambda x: call(x).sum())(x)
    texts = [jax.jit(lambda x, f=f: f(x)).lower(x).as_text() for f in (partitioned_sum(), partitioned_sum())]
    addresses = [re.search(r'CustomSPMDPartitioning.*?backend_config = "(\d+)"', text)[1] for text in texts]
    assert addresses[0] != addresses[1]
    with pytest.raises(NotImplementedError, match="serialization of host_callbacks"):
        export.export(jax.jit(call))(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding))
