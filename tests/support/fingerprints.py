"""Digests of the bits of every kind of loss and gradient. `python -m tests.support.fingerprints 16` prints the digests from 16 concurrent threads."""

import hashlib
import json
import pathlib
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

import jaxce
from tests.support import cases
from tests.support.cases import INTEGER, SIGMOID, SOFT

# Large enough that XLA splits the work among its threads. No usual number of threads divides the sizes.
SHAPE = (131, 2049)


def _gradients(loss, names, dtype):
    """Return a computation of the losses and their gradients with respect to every differentiable input."""
    rng = np.random.default_rng(0)
    logits, labels = cases.make_logits(rng, SHAPE, dtype), loss.make_labels(rng, SHAPE, -1)
    options = cases.make_options(rng, names, loss, SHAPE, labels)
    fixed = {name: options.pop(name) for name in ("where", "mask") if name in options}
    given = {"logits": logits, **options, **({"labels": labels} if loss.label_argnums else {})}

    def losses(given):
        given = {**fixed, **given}
        values = loss.function(given.pop("logits"), given.pop("labels", labels), **given)
        return jaxce.LossSum.of(values).mean(), values

    return lambda: jax.value_and_grad(losses, has_aux=True)(given)


def _merged(dtype):
    """Return a computation of the gradient of losses from merged statistics."""
    rng = np.random.default_rng(0)
    logits, labels = cases.make_logits(rng, SHAPE, dtype), INTEGER.make_labels(rng, SHAPE, -1)

    @jax.jit
    @jax.value_and_grad
    def total(logits):
        parts = jaxce.logit_stats(logits[:, :1025], labels), jaxce.logit_stats(logits[:, 1025:], labels - 1025)
        stats = jaxce.LogitStats.merge(*parts)
        return jnp.sum(stats.nll + stats.smooth_nll + jnp.square(stats.log_z))

    return lambda: total(logits)


COMPUTATIONS = {
    "integer": _gradients(INTEGER, (), np.float32),
    "integer, bfloat16, all options": _gradients(INTEGER, cases.SOFTMAX_OPTIONS, jnp.bfloat16),
    "soft, all options": _gradients(SOFT, cases.SOFTMAX_OPTIONS, np.float32),
    "sigmoid, all options": _gradients(SIGMOID, cases.SIGMOID_OPTIONS, np.float32),
    "merged": _merged(np.float32),
}


def fingerprint(computation):
    """Return the digest of each result array of the computation."""
    leaves = jax.tree_util.tree_leaves_with_path(computation())
    return {jax.tree_util.keystr(path): _digest(np.asarray(leaf)) for path, leaf in leaves}


def _digest(array):
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()


def fingerprints():
    return {name: fingerprint(computation) for name, computation in COMPUTATIONS.items()}


def fingerprints_of_threads(num_threads):
    """Return the fingerprints from each thread. All threads start each computation at the same time, so they also compile it at the same time."""
    start, results = threading.Barrier(num_threads, timeout=120), [{} for _ in range(num_threads)]

    def work(result):
        for name, computation in COMPUTATIONS.items():
            start.wait()
            result[name] = fingerprint(computation)

    threads = [threading.Thread(target=work, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _size_of_the_thread_pool():
    """Return the number of compute threads of XLA; None if the system does not list threads."""
    tasks = pathlib.Path("/proc/self/task")
    return sum(map(_is_compute_thread, tasks.iterdir())) if tasks.exists() else None


def _is_compute_thread(task):
    try:
        return "XLAEigen" in (task / "comm").read_text()
    except OSError:  # the thread has just ended
        return False


if __name__ == "__main__":
    found = fingerprints_of_threads(int(sys.argv[1]))
    print(json.dumps({"threads": _size_of_the_thread_pool(), "fingerprints": found}))
