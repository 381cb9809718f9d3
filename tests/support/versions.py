"""Marks for tests of what some supported releases of JAX do not do."""

import jax
import pytest

on_small_memory = pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2), reason="before jax 0.10.2, XLA for CPU stores copies of some results"
)
