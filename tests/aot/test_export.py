"""One exported program of each loss with its gradients works on every platform. Needs no compilers of accelerators and no devices."""

import jax
import numpy as np
import pytest

from tests.aot import programs
from tests.support.covering import nightly_values

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
QUICK = {"integer", "soft", "sigmoid", "logit_stats", "linear sum"}


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize("loss", [name if name in QUICK else nightly_values(name)[0] for name in programs.LOSSES])
def test_one_export_serves_all_platforms(loss, rng):
    loss = programs.LOSSES[loss]
    shapes = loss.arguments(loss.shapes["small"], "bfloat16")
    program = jax.jit(loss.program("value and gradients"))
    exported = jax.export.export(program, platforms=PLATFORMS)(*(jax.ShapeDtypeStruct(*s) for s in shapes))
    assert exported.platforms == PLATFORMS
    loaded = jax.export.deserialize(exported.serialize())
    arguments = [
        np.asarray(rng.integers(0, 8, shape) if d == "int32" else rng.random(shape), np.dtype(d)) for shape, d in shapes
    ]
    # The exported program has the branches of all platforms. On this machine it must give the same result as the program itself.
    jax.tree.map(np.testing.assert_array_equal, loaded.call(*arguments), program(*arguments))


def test_program_of_one_platform_is_refused():
    only_tpu = jax.jit(lambda x: jax.lax.platform_dependent(x, tpu=lambda x: x + 1))
    with pytest.raises(NotImplementedError, match="platform"):
        jax.export.export(only_tpu, platforms=PLATFORMS)(jax.ShapeDtypeStruct((2,), "float32"))
