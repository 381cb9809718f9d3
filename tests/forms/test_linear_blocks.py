"""The blocks of the losses of a linear layer: their sizes, and kinds of blocks that are normally chosen for other shapes and platforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce._blocks import loops, plans, sizes
from tests.support.covering import nightly_values
from tests.support.linear import ALL_OR_NONE, check, differentiate
from tests.support.linear_cases import TOKENS

pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.fixture
def gathered_blocks(monkeypatch):
    """Use blocks of 2 tokens. The gradients of 3 blocks are stored until one matmul adds them to the gradient of the classifier."""
    for rule in ("for_total", "for_total_on_gpu"):
        monkeypatch.setattr(sizes, rule, lambda _, num_classes, __: sizes.Blocks(2, num_classes, 3))
    jax.clear_caches()  # otherwise JAX could run a program that another test compiled
    yield
    jax.clear_caches()


@pytest.mark.parametrize("names", ALL_OR_NONE, ids=lambda names: "+".join(names) or "plain")
def test_gathered_blocks(rng, names, gathered_blocks):
    check(rng, None, names)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("mode", ["vmap of grad", "hvp of scan", *nightly_values("hvp", "checkpoint")])
def test_derivatives_in_gathered_blocks(rng, mode, gathered_blocks, x64):
    differentiate(rng, mode, True, None)


@pytest.mark.parametrize("names", ALL_OR_NONE, ids=lambda names: "+".join(names) or "plain")
def test_blocks_that_differ_on_a_gpu(rng, names, other_blocks_on_gpu):
    """The plans have both kinds of blocks. The program uses those of its platform."""
    check(rng, None, names)


@pytest.mark.parametrize("mode", ["hvp of scan", *nightly_values("vmap of grad", "hvp")])
def test_derivatives_in_blocks_that_differ_on_a_gpu(rng, mode, other_blocks_on_gpu, x64):
    differentiate(rng, mode, True, None)


@pytest.mark.parametrize("gathered", [1, 2])
@pytest.mark.parametrize(("valid", "visited"), [(0, 0), (1, 1), (4, 1), (5, 2), (10, 3), (11, 3)])
def test_only_blocks_with_valid_tokens_are_visited(rng, valid, visited, gathered):
    mask = jnp.asarray(rng.permutation(TOKENS) < valid)
    hidden, labels = jnp.asarray(rng.normal(size=(TOKENS, 2)), jnp.float32), jnp.arange(TOKENS)

    def block_step(visits, rows):
        return (visits[0] + 1,), jnp.where(rows["mask"][:, None], rows["hidden"], 0)

    def group_step(carry, rows, results):
        assert rows["hidden"].shape == results.shape == (4 * gathered, 2)
        return carry, 2 * results

    rows, blocks = {"hidden": hidden, "labels": labels, "mask": mask}, sizes.Blocks(4, 1, gathered)
    visits, outs = loops.over_valid_tokens(block_step, group_step, (jnp.zeros(()),), rows, blocks, skips=True)
    assert float(visits[0]) == visited
    np.testing.assert_array_equal(outs, 2 * np.where(mask[:, None], hidden, 0))


# (tokens, features of a bfloat16 layer, classes) -> the blocks for a sum with its gradients by default and on a GPU, then for statistics by
# default and on a GPU.
BLOCK_SIZES = {
    (64, 16, 1000): [(64, 1000)] * 4,  # small: one block
    (64, 16, 1001): [(64, 1001)] * 4,
    (600, 16, 1000): [(300, 1000), (300, 1000), (600, 1000), (600, 1000)],
    # A GPU stores an eighth of the logits. It buffers their gradients in the memory of the classifier's gradient, which has one row per feature.
    (8192, 4096, 128256): [(2048, 128256), (1024, 128256, 4), (8192, 768), (8192, 2048)],
    (8192, 2048, 128256): [(1024, 128256), (1024, 128256, 2), (8192, 768), (8192, 2048)],
    (8192, 2304, 262144): [(1024, 262144), (1024, 262144, 2), (8192, 1024), (8192, 2048)],
    (8192, 3584, 151936): [(1024, 151936), (1024, 151936, 2), (8192, 1024), (8192, 2048)],
    (1024, 4096, 128256): [(1024, 128256), (256, 128256, 4), (1024, 8192), (1024, 16384)],
    (32768, 4096, 128256): [(2048, 128256), (1024, 128256, 4), (16384, 384), (16384, 768)],
    # The tokens are divided evenly, into blocks of nearly the preferred size.
    (8000, 4096, 128256): [(2000, 128256), (800, 128256, 5), (8000, 768), (8000, 2048)],
    # No block size divides a prime.
    (8191, 4096, 128256): [(2048, 128256), (820, 128256, 5), (8191, 768), (8191, 2048)],
    # Too few features for buffered blocks.
    (8192, 512, 128256): [(512, 128256), (1024, 128256), (8192, 768), (8192, 2048)],
    # Rows of 50,257 classes are not aligned, which makes the matmul of a GPU slow.
    (8192, 768, 50257): [(512, 50257), (8192, 2048), (8192, 1024), (8192, 2048)],
    # Few blocks: a fourth matmul would cost more than the repeated reading and writing of the gradient.
    (1024, 64, 262144): [(256, 262144), (256, 262144), (1024, 8192), (1024, 16384)],
    (4096, 64, 262144): [(4096, 2048), (512, 262144), (4096, 2048), (4096, 4096)],
    (0, 16, 10): [(0, 10)] * 4,
    (1, 16, 10**8): [(1, 10**8), (1, 10**8), (1, 2**23), (1, 10**7)],
}


@pytest.mark.parametrize("shape", BLOCK_SIZES, ids=str)
def test_block_sizes(shape):
    tokens, features, num_classes = shape
    assert sizes.for_value(tokens, num_classes) == sizes.for_total(tokens, num_classes, 0)
    rules = sizes.for_total, sizes.for_total_on_gpu, sizes.for_statistics, sizes.for_statistics_on_gpu
    found = [rule(tokens, num_classes, 2 * features) for rule in rules]
    assert found == [sizes.Blocks(*blocks) for blocks in BLOCK_SIZES[shape]]


@pytest.mark.parametrize(
    ("hidden", "classifier", "free_bytes"),
    [("bfloat16", "bfloat16", 32), ("float32", "float32", 0), ("float32", "bfloat16", 0)],
)
def test_memory_of_a_narrow_gradient_is_free_for_buffers(monkeypatch, hidden, classifier, free_bytes):
    seen = []
    monkeypatch.setattr(sizes, "for_total_on_gpu", lambda *shape: seen.append(shape) or sizes.Blocks(5, 9))
    plans.plans_of_gradients(None, jnp.zeros((5, 16), hidden), jnp.zeros((16, 9), classifier))
    assert seen == [(5, 9, free_bytes)]
