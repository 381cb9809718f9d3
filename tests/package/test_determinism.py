"""The same inputs give the same bits: in repeated calls, in another process, with another number of threads, and from concurrent threads."""

import concurrent.futures
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.support.fingerprints import COMPUTATIONS, fingerprint, fingerprints
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def digests():
    """Return the digests of the results of this process."""
    return fingerprints()


def in_new_processes(number=1, *, callers, threads):
    """Return the digests from new processes. In each process, XLA uses `threads` threads, and `callers` Python threads run at the same time."""
    # XLA uses NPROC threads, but at least one per device.
    setting = {"NPROC": str(threads), "PJRT_NPROC": str(threads), "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-m", "tests.support.fingerprints", str(callers)]

    def run(_):
        return subprocess.run(command, cwd=ROOT, env=os.environ | setting, capture_output=True, text=True)

    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        answers = []
        for done in pool.map(run, range(number)):
            assert done.returncode == 0, done.stderr
            answers.append(json.loads(done.stdout))
            assert answers[-1]["threads"] in (threads, None)
    return [answer["fingerprints"] for answer in answers]


@pytest.mark.nightly
@pytest.mark.parametrize("repeats", [10, 100])
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_repeats_give_the_same_bits(name, repeats, digests):
    for _ in range(repeats):
        assert fingerprint(COMPUTATIONS[name]) == digests[name]


@pytest.mark.nightly
def test_compiling_again_gives_the_same_bits(digests, request, tmp_path):
    kept = jax.config.jax_compilation_cache_dir
    request.addfinalizer(lambda: set_cache_folder(kept))
    set_cache_folder(str(tmp_path))
    jax.clear_caches()
    assert fingerprints() == digests
    assert any(tmp_path.iterdir())  # the cache has the compiled programs


def set_cache_folder(path):
    """Use another folder for the cache of compiled programs."""
    jax.config.update("jax_compilation_cache_dir", path)
    compilation_cache.reset_cache()


@pytest.mark.nightly
def test_a_new_process_with_another_number_of_threads_gives_the_same_bits(digests):
    assert in_new_processes(callers=1, threads=5) == [[digests]]


@pytest.mark.nightly
def test_new_processes_with_one_thread_give_the_same_bits(digests):
    """The digests equal those of several threads, except for one sum over rows. With one thread, XLA fuses its product and its sum."""
    (first,), (second,) = in_new_processes(2, callers=1, threads=1)
    assert first == second
    for name, found in first.items():
        differing = {path for path, digest in found.items() if digest != digests[name][path]}
        assert differing <= {"[1]['class_weights']"}, name


@pytest.mark.nightly
def test_sixteen_concurrent_python_threads_get_the_same_bits(digests):
    assert in_new_processes(callers=16, threads=2) == [[digests] * 16]


@pytest.mark.nightly
def test_one_bit_changes_a_fingerprint(digests):
    value, gradient = COMPUTATIONS["merged"]()
    assert fingerprint(lambda: (value, gradient)) == digests["merged"]
    nearby = gradient.at[-1, -1].set(jnp.nextafter(gradient[-1, -1], jnp.float32(0)))
    assert {p for p, digest in fingerprint(lambda: (value, nearby)).items() if digest != digests["merged"][p]} == {
        "[1]"
    }
