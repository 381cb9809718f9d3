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
# JAX makes so many objects while it traces that looking for garbage as often as by default takes a twentieth of the time.
gc.set_threshold(50_000, 20, 20)


def pytest_configure(config):
    """Here, as the mutants' copies of the tests have no pyproject.toml."""
    config.addinivalue_line("markers", "nightly: slow and rarely red; run by -m nightly, left out by default")
    config.addinivalue_line("markers", "covering(strength): a selection of its parameters is quick, see covering.py")
    config.option.markexpr = config.option.markexpr or "not nightly"


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items):
    """The combinations that no covering selection needs are nightly."""
    of_test = {}
    for item in items:
        if item.get_closest_marker("covering"):
            of_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in of_test.values():
        (strength,) = cases[0].get_closest_marker("covering").args
        quick = set(covering.selection([item.callspec.params for item in cases], strength))
        for i, item in enumerate(cases):
            if i not in quick:
                item.add_marker("nightly")


@pytest.fixture(scope="session", autouse=True)
def programs_made_once(request, tmp_path_factory):
    """What several tests or processes of one run compile is compiled by the first of them. It starts with nothing."""
    folder = tmp_path_factory.getbasetemp()
    # With pytest-xdist each process has a folder of its own in one of the run.
    folder = folder.parent if hasattr(request.config, "workerinput") else folder
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()


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


@functools.cache
def options_in_haste():
    """XLA for CPU without its emitters of fused loops. Where it has nothing else to use, as in jax 0.12, it has no such option."""
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


@pytest.fixture
def made_quickly(monkeypatch):
    """Programs are compiled in haste, which takes a third off: for tests of rules, not of what a compiler makes of them.

    LLVM does not optimise them. JAX has no setting for options of XLA that holds for every program, so they are added here.
    """
    make, options = compiler.get_compile_options, options_in_haste()

    def made(*arguments, env_options_overrides=None, **others):
        return make(*arguments, env_options_overrides={**options, **(env_options_overrides or {})}, **others)

    monkeypatch.setattr(compiler, "get_compile_options", made)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
