"""Run whole losses on a CPU with the forms of another platform: patch the platform of the lowering and the smallest sizes of the forms."""

import contextlib

import jax
import pytest

from jaxce._core import cpu, gpu
from jaxce._jax import primitives
from tests.support.covering import nightly_values

# A TPU has no forms: it runs the definition, which the other tests run too.
PLATFORMS = ["cpu", "cuda", *nightly_values("tpu")]


@contextlib.contextmanager
def lowered_for(platform):
    """Lower programs with the forms of this platform. A CPU compiles and runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(primitives, "platforms_of", lambda _: (platform,))
        jax.clear_caches()  # A program that another test has compiled must not run instead.
        yield platform
    jax.clear_caches()


@contextlib.contextmanager
def forms_of(platform):
    """Lower programs with the forms of this platform, for arrays of any size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "SMALLEST", 0)
        patch.setattr(gpu, "SHORTEST", 1)
        with lowered_for(platform):
            yield platform


@pytest.fixture
def on_a_gpu():
    with forms_of("cuda"):
        yield


@pytest.fixture
def on_a_cpu():
    with forms_of("cpu"):
        yield
