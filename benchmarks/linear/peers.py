"""Others' losses of a linear layer, each called as its documentation says.

Those whose classifier is `[classes, features]` get it so, and give its gradient so.
"""

import gc
import importlib
from collections.abc import Callable, Iterator

import jax

from benchmarks.linear.programs import Problem, Program, in_jax

Make = Callable[[Problem], Program]


def installed() -> Iterator[tuple[str, Make | str]]:
    """(name, what makes its program or why there is none) of each."""
    for library, find in _LIBRARIES.items():
        try:
            yield from find(importlib.import_module(library))
        except Exception as error:  # one made for another JAX may raise anything
            yield library.replace("_", "-"), f"left out: {type(error).__name__}: {error}".splitlines()[0]


def _tokamax(tokamax):
    for name, options in {"tokamax": {}, "tokamax, chunked": {"implementation": "chunked_xla"}}.items():

        def loss(hidden, classifier, labels, options=options):
            return tokamax.linear_softmax_cross_entropy_loss(hidden, labels, classifier, reduction="mean", **options)

        yield name, lambda p, name=name, loss=loss: in_jax(name, loss, p.hidden, p.classifier, p.labels)


def _jax_cce(jax_cce):
    name, loss = "jax-cce", jax_cce.linear_cross_entropy
    yield name, lambda p: in_jax(name, loss, p.hidden, p.classifier.T, p.labels, transposed=True)


def _torch(torch):
    on_gpu = jax.default_backend() == "gpu"
    if jax.default_backend() not in ("cpu", "gpu") or on_gpu != torch.cuda.is_available():
        raise RuntimeError(f"PyTorch does not see the device that JAX uses, a {jax.default_backend()}")
    functional = torch.nn.functional

    def plain(hidden, weight, labels):
        return functional.cross_entropy(functional.linear(hidden, weight), labels)

    if hasattr(functional, "linear_cross_entropy"):  # since 2.13
        losses = {
            "torch": functional.linear_cross_entropy,
            "torch, chunked": lambda *args: functional.linear_cross_entropy(
                *args, options=torch.nn.LinearCrossEntropyOptions()
            ),
        }
    else:
        yield "torch linear_cross_entropy", "left out: it came with PyTorch 2.13"
        losses = {"torch cross_entropy": plain, "torch cross_entropy, compiled": torch.compile(plain, dynamic=False)}
    for name, loss in losses.items():
        yield name, lambda p, name=name, loss=loss: _in_torch(torch, name, loss, p, on_gpu)


_LIBRARIES = {"tokamax": _tokamax, "jax_cce": _jax_cce, "torch": _torch}
PACKAGES = tuple(name.replace("_", "-") for name in _LIBRARIES)


def _in_torch(torch, name, loss, problem, on_gpu):
    """Its mean loss with gradients, of JAX's own arrays; on a GPU, with the bytes it holds beyond them and the results."""
    torch.set_float32_matmul_precision("high")  # as JAX multiplies float32 by default
    arrays = problem.hidden, jax.block_until_ready(problem.classifier.T + 0), problem.labels
    hidden, weight, labels = map(torch.from_dlpack, arrays)
    hidden, weight, labels = hidden.detach().requires_grad_(), weight.detach().requires_grad_(), labels.long()

    def run():
        value = loss(hidden, weight, labels)
        gradients = torch.autograd.grad(value, (hidden, weight))
        if on_gpu:
            torch.cuda.synchronize()
        return value.detach(), *gradients

    def answer(found):
        value, of_hidden, of_weight = found
        return float(value), of_hidden.float().cpu().numpy(), of_weight.float().cpu().numpy().T

    temporaries = None
    if on_gpu:
        run()
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = sum(x.nbytes for x in run())
        temporaries = torch.cuda.max_memory_allocated() - before - results
    return Program(name, run, answer, temporaries)
