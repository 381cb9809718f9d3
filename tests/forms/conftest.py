"""Blocks of a linear layer that depend on the platform, for every file here."""

import jax
import pytest

from jaxce._kernels import blocked, tiles


@pytest.fixture
def others_on_a_gpu(monkeypatch):
    """A total is made in blocks of classes, on a GPU in blocks of tokens."""
    monkeypatch.setattr(tiles, "for_total", lambda tokens, *_: blocked.Blocks(tokens, 7))
    monkeypatch.setattr(tiles, "for_total_on_gpu", lambda _, num_classes, *__: blocked.Blocks(6, num_classes))
    monkeypatch.setattr(tiles, "for_statistics", lambda tokens, *_: blocked.Blocks(tokens, 7))
    monkeypatch.setattr(tiles, "for_statistics_on_gpu", lambda tokens, num_classes, *_: blocked.Blocks(6, num_classes))
    jax.clear_caches()  # or a program that another test has made is run
    yield
    jax.clear_caches()
