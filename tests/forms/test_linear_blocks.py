"""Which blocks the losses of a linear layer are made in, and blocks that are chosen for other shapes and platforms than those of these tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce._blocks import choice, loops, sizes
from tests.support.covering import nightly_values
from tests.support.linear import ALL_OR_NONE, check, differentiate
from tests.support.linear_cases import TOKENS

pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.fixture
def gathered(monkeypatch):
    """Blocks of 2 tokens, of which 3 are gathered before a matmul adds them to the gradient of the classifier."""
    for rule in ("for_total", "for_total_on_gpu"):
        monkeypatch.setattr(sizes, rule, lambda _, num_classes, __: sizes.Blocks(2, num_classes, 3))
    jax.clear_caches()  # or a program that another test has made is run
    yield
    jax.clear_caches()


@pytest.mark.parametrize("names", ALL_OR_NONE, ids=lambda names: "+".join(names) or "plain")
def test_gathered_blocks(rng, names, gathered):
    check(rng, None, names)


@pytest.mark.parametrize("mode", ["vmap of grad", "hvp of scan", *nightly_values("hvp", "checkpoint")])
def test_derivatives_in_gathered_blocks(rng, mode, gathered, x64):
    differentiate(rng, mode, True, None)


@pytest.mark.parametrize("names", ALL_OR_NONE, ids=lambda names: "+".join(names) or "plain")
def test_blocks_that_are_others_on_a_gpu(rng, names, others_on_a_gpu):
    """Both are in the program; those of this platform are run."""
    check(rng, None, names)


@pytest.mark.parametrize("mode", ["hvp of scan", *nightly_values("vmap of grad", "hvp")])
def test_derivatives_in_blocks_that_are_others_on_a_gpu(rng, mode, others_on_a_gpu, x64):
    differentiate(rng, mode, True, None)


@pytest.mark.parametrize("gathered", [1, 2])
@pytest.mark.parametrize(("valid", "visited"), [(0, 0), (1, 1), (4, 1), (5, 2), (10, 3), (11, 3)])
def test_only_blocks_with_valid_tokens_are_visited(rng, valid, visited, gathered):
    mask = jnp.asarray(rng.permutation(TOKENS) < valid)
    hidden, labels = jnp.asarray(rng.normal(size=(TOKENS, 2)), jnp.float32), jnp.arange(TOKENS)

    def of_block(visits, rows):
        return (visits[0] + 1,), jnp.where(rows["mask"][:, None], rows["hidden"], 0)

    def of_group(carry, rows, results):
        assert rows["hidden"].shape == results.shape == (4 * gathered, 2)
        return carry, 2 * results

    rows, blocks = {"hidden": hidden, "labels": labels, "mask": mask}, sizes.Blocks(4, 1, gathered)
    visits, outs = loops.over_valid_tokens(of_block, of_group, (jnp.zeros(()),), rows, blocks, skips=True)
    assert float(visits[0]) == visited
    np.testing.assert_array_equal(outs, 2 * np.where(mask[:, None], hidden, 0))


# (tokens, features of a bfloat16 layer, classes): for a sum with its gradients anywhere and on a GPU, then for statistics.
BLOCK_SIZES = {
    (64, 16, 1000): [(64, 1000)] * 4,  # small: all at once
    (64, 16, 1001): [(64, 1001)] * 4,
    (600, 16, 1000): [(300, 1000), (300, 1000), (600, 1000), (600, 1000)],
    # A GPU gathers slopes where the gradient of the classifier will be, which has as many rows as there are features.
    (8192, 4096, 128256): [(2048, 128256), (256, 128256, 16), (8192, 768), (8192, 2048)],
    (8192, 2048, 128256): [(1024, 128256), (256, 128256, 8), (8192, 768), (8192, 2048)],
    (8192, 2304, 262144): [(1024, 262144), (256, 262144, 8), (8192, 1024), (8192, 2048)],
    (8192, 3584, 151936): [(1024, 151936), (256, 151936, 8), (8192, 1024), (8192, 2048)],
    (1024, 4096, 128256): [(1024, 128256), (256, 128256, 4), (1024, 8192), (1024, 16384)],
    (32768, 4096, 128256): [(2048, 128256), (512, 128256, 8), (16384, 384), (16384, 768)],
    # Evenly, if not in the sizes wished for.
    (8000, 4096, 128256): [(2000, 128256), (250, 128256, 16), (8000, 768), (8000, 2048)],
    # None divides a prime.
    (8191, 4096, 128256): [(2048, 128256), (256, 128256, 16), (8191, 768), (8191, 2048)],
    # Too few features to gather.
    (8192, 512, 128256): [(512, 128256), (1024, 128256), (8192, 768), (8192, 2048)],
    # A GPU multiplies rows of 50,257 slowly.
    (8192, 768, 50257): [(512, 50257), (8192, 2048), (8192, 1024), (8192, 2048)],
    # Few: a fourth matmul costs more than rewriting the sums.
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
    ("hidden", "classifier", "spare"),
    [("bfloat16", "bfloat16", 32), ("float32", "float32", 0), ("float32", "bfloat16", 0)],
)
def test_room_that_is_spare_where_a_narrow_gradient_will_be(monkeypatch, hidden, classifier, spare):
    seen = []
    monkeypatch.setattr(sizes, "for_total_on_gpu", lambda *shape: seen.append(shape) or sizes.Blocks(5, 9))
    choice.plans_of_sum(None, jnp.zeros((5, 16), hidden), jnp.zeros((16, 9), classifier))
    assert seen == [(5, 9, spare)]
