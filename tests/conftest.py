"""The setting of every test: eight CPU devices, no implicit promotion of dtypes or ranks, float64 on request."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """float64 and int64 are what they say."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    """The same numbers for every test, whichever tests run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def no_programs_of_other_modules():
    """Thousands of compiled programs in one process are more than some machines let it map into memory."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def made_quickly():
    """Programs are not optimised by LLVM, which takes a fourth off: for tests of rules, not of what a compiler makes of them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
