"""A fixture for blocks of a linear layer that depend on the platform."""

import jax
import pytest

from jaxce._blocks import sizes


@pytest.fixture
def other_blocks_on_gpu(monkeypatch):
    """Compute sums and statistics in blocks of classes, but on a GPU in blocks of tokens."""
    monkeypatch.setattr(sizes, "for_total", lambda tokens, *_: sizes.Blocks(tokens, 7))
    monkeypatch.setattr(sizes, "for_total_on_gpu", lambda _, num_classes, *__: sizes.Blocks(6, num_classes))
    monkeypatch.setattr(sizes, "for_statistics", lambda tokens, *_: sizes.Blocks(tokens, 7))
    monkeypatch.setattr(sizes, "for_statistics_on_gpu", lambda tokens, num_classes, *_: sizes.Blocks(6, num_classes))
    jax.clear_caches()  # otherwise JAX could run a program that another test compiled
    yield
    jax.clear_caches()
