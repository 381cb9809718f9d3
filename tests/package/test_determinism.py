"""The same inputs give the same bits: again, in another process, with other numbers of threads, and from many threads at once."""

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
def here():
    """The bits that this process gets."""
    return fingerprints()


def in_new_processes(number=1, *, callers, threads):
    """What `callers` Python threads get at once in each of so many processes of which XLA computes with so many threads."""
    # XLA computes with NPROC threads, but with no fewer than it has devices.
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


@pytest.mark.parametrize("repeats", [10, pytest.param(100, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_repeats_give_the_same_bits(name, repeats, here):
    for _ in range(repeats):
        assert fingerprint(COMPUTATIONS[name]) == here[name]


@pytest.mark.nightly
def test_compiling_again_gives_the_same_bits(here, request, tmp_path):
    kept = jax.config.jax_compilation_cache_dir
    request.addfinalizer(lambda: in_folder(kept))
    in_folder(str(tmp_path))
    jax.clear_caches()
    assert fingerprints() == here
    assert any(tmp_path.iterdir())  # what was compiled


def in_folder(path):
    """Programs are looked for there, and put there."""
    jax.config.update("jax_compilation_cache_dir", path)
    compilation_cache.reset_cache()


def test_a_new_process_with_another_number_of_threads_gives_the_same_bits(here):
    assert in_new_processes(callers=1, threads=5) == [[here]]


@pytest.mark.nightly
def test_new_processes_with_one_thread_give_the_same_bits(here):
    """As several threads do, but for one sum over rows: XLA joins its product and its sum where it need not divide them among threads."""
    (alone,), (again,) = in_new_processes(2, callers=1, threads=1)
    assert alone == again
    for name, found in alone.items():
        differing = {path for path, digest in found.items() if digest != here[name][path]}
        assert differing <= {"[1]['class_weights']"}, name


@pytest.mark.nightly
def test_sixteen_python_threads_at_once_get_the_same_bits_from_the_first_call_on(here):
    assert in_new_processes(callers=16, threads=2) == [[here] * 16]


def test_one_bit_changes_a_fingerprint(here):
    value, gradient = COMPUTATIONS["merged"]()
    assert fingerprint(lambda: (value, gradient)) == here["merged"]
    nearby = gradient.at[-1, -1].set(jnp.nextafter(gradient[-1, -1], jnp.float32(0)))
    assert {p for p, digest in fingerprint(lambda: (value, nearby)).items() if digest != here["merged"][p]} == {"[1]"}
