"""The setting of every test: eight CPU devices, no implicit promotion of dtypes or ranks, float64 on request."""

import functools
import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import jax
import numpy as np
import pytest
from jax._src import compiler
from jax.experimental.compilation_cache import compilation_cache

from tests.support import covering

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# JAX creates so many objects during tracing that the default garbage collection takes 5 % of the time.
gc.set_threshold(50_000, 20, 20)


def pytest_configure(config):
    """Register the markers here, because the copies of the tests for mutants have no pyproject.toml."""
    config.addinivalue_line("markers", "nightly: slow and rarely red; run by -m nightly, left out by default")
    config.addinivalue_line(
        "markers", "covering(strength, at_most=None): a selection of its parameters is quick, see covering.py"
    )
    config.option.markexpr = config.option.markexpr or "not nightly"


@pytest.hookimpl(tryfirst=True)  # before pytest evaluates -m
def pytest_collection_modifyitems(items):
    """Mark as nightly the combinations of parameters that are not in the covering selection."""
    items_by_test = {}
    for item in items:
        if item.get_closest_marker("covering") and not item.get_closest_marker("nightly"):
            items_by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in items_by_test.values():
        marker = cases[0].get_closest_marker("covering")
        quick = set(covering.selection([item.callspec.params for item in cases], *marker.args, **marker.kwargs))
        for i, item in enumerate(cases):
            if i not in quick:
                item.add_marker("nightly")


@pytest.fixture(scope="session", autouse=True)
def shared_compilation_cache(request, tmp_path_factory):
    """Share compiled programs between the tests and processes of one run. The cache is empty at the start."""
    folder = tmp_path_factory.getbasetemp()
    # With pytest-xdist, the folder of each process is inside the folder of the run.
    folder = folder.parent if hasattr(request.config, "workerinput") else folder
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    compilation_cache.reset_cache()


@pytest.fixture
def x64():
    """Enable float64 and int64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    """Return a random generator with the same seed for every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def clear_compiled_programs():
    """Clear the programs after each module: some machines do not let one process map thousands of programs into memory."""
    yield
    jax.clear_caches()


@functools.cache
def fast_compiler_options():
    """Return the option that turns off the fusion emitters of XLA for CPU, or no option if XLA does not know it, as in jax 0.12."""
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


@pytest.fixture
def fast_compilation(monkeypatch):
    """Compile programs without optimisation, which saves a third of the time: for tests of rules, not of compiled code.

    LLVM does not optimise the programs. JAX has no global setting for compiler options of XLA, so this fixture adds them to each compilation.
    """
    get_compile_options, options = compiler.get_compile_options, fast_compiler_options()

    def patched(*arguments, env_options_overrides=None, **others):
        overrides = {**options, **(env_options_overrides or {})}
        return get_compile_options(*arguments, env_options_overrides=overrides, **others)

    monkeypatch.setattr(compiler, "get_compile_options", patched)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
