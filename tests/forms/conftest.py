"""Blocks of a linear layer that depend on the platform, for every file here."""

import jax
import pytest

from jaxce._blocks import sizes


@pytest.fixture
def others_on_a_gpu(monkeypatch):
    """A total is made in blocks of classes, on a GPU in blocks of tokens."""
    monkeypatch.setattr(sizes, "for_total", lambda tokens, *_: sizes.Blocks(tokens, 7))
    monkeypatch.setattr(sizes, "for_total_on_gpu", lambda _, num_classes, *__: sizes.Blocks(6, num_classes))
    monkeypatch.setattr(sizes, "for_statistics", lambda tokens, *_: sizes.Blocks(tokens, 7))
    monkeypatch.setattr(sizes, "for_statistics_on_gpu", lambda tokens, num_classes, *_: sizes.Blocks(6, num_classes))
    jax.clear_caches()  # or a program that another test has made is run
    yield
    jax.clear_caches()
