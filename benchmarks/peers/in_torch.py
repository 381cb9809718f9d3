"""The programs in PyTorch: eager, compiled, PyTorch's own linear loss, Liger-Kernel and Cut Cross-Entropy.

The programs get the same arrays as the JAX programs, on the same device. Their classifier is `[classes, features]`.
"""

import functools
import gc
import importlib
import importlib.util
import os

import jax

from benchmarks.measure import Program
from benchmarks.peers.in_jax import some_rows
from benchmarks.problems import GRADIENT, INTEGER, LAYER, LINEAR, SIGMOID, SMOOTHED, SMOOTHING, Z_LOSS, Problem

EAGER, COMPILED = "torch", "torch.compile"
EAGER_WIDE, COMPILED_WIDE = "torch in float32", "torch.compile in float32"
LINEAR_LOSS, LINEAR_CHUNKED = "torch linear_cross_entropy", "torch linear_cross_entropy, chunked"
LIGER, CCE = "Liger-Kernel", "Cut Cross-Entropy"
# With this setting, waiting threads of PyTorch do not occupy a core that the next program needs. PyTorch reads the setting when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_COMPILED, _WIDE = (COMPILED, COMPILED_WIDE), (EAGER_WIDE, COMPILED_WIDE)


def names(problem: Problem, _: str) -> list[str]:
    """Return the names of the programs that offer the loss."""
    if problem.kind == LINEAR:
        return [LINEAR_LOSS, LINEAR_CHUNKED, EAGER_WIDE, COMPILED_WIDE, LIGER, CCE]
    return [EAGER, COMPILED, *([EAGER_WIDE, COMPILED_WIDE, LIGER] if problem.kind == INTEGER else [])]


def program(name: str, problem: Problem, what: str, arrays: tuple[jax.Array, ...]) -> Program:
    """Make the mean loss, with its gradients if `what` says so."""
    torch = _torch()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # like JAX's default for float32
    *factors, labels = (torch.from_dlpack(x) for x in arrays)
    labels = labels if labels.is_floating_point() else labels.long()
    if problem.kind == LINEAR:
        factors[1] = factors[1].T.contiguous()
    elif name == LIGER:
        factors[0] = factors[0].clone()  # Liger-Kernel overwrites the logits with the gradient
    factors = [x.detach().requires_grad_(what == GRADIENT) for x in factors]
    loss = _loss(torch, name, problem)

    def start():
        if what != GRADIENT:
            with torch.no_grad():
                return (loss(*factors, labels),)
        value = loss(*factors, labels)
        return value.detach(), *torch.autograd.grad(value, factors)

    def wait(found):
        if on_gpu:
            torch.cuda.synchronize()
        return found

    def answer(found):
        value, *gradients = found
        of = ("hidden", "classifier") if problem.features else ("logits",)
        turned = [
            g.T if problem.kind == LINEAR and by == "classifier" else g for by, g in zip(of, gradients, strict=False)
        ]
        return float(value), {by: some_rows(g).float().cpu().numpy() for by, g in zip(of, turned, strict=False)}

    return Program(start, wait, answer, *(_memory(torch, lambda: wait(start())) if on_gpu else (None, 0)))


def release() -> None:
    """Release PyTorch's unused memory, so that JAX can use it."""
    if importlib.util.find_spec("torch") is not None:
        torch = importlib.import_module("torch")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _torch():
    torch = importlib.import_module("torch")
    on_gpu = jax.default_backend() == "gpu"
    if jax.default_backend() not in ("cpu", "gpu") or on_gpu != torch.cuda.is_available():
        raise ImportError(f"PyTorch does not see the device that JAX uses, a {jax.default_backend()}")
    return torch


def _memory(torch, run):
    """Return the bytes that a call needs in addition to its arguments and results, and the bytes of the results."""
    run()
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = sum(x.nbytes for x in run())
    return torch.cuda.max_memory_allocated() - before - results, results


def _loss(torch, name, problem):
    functional = torch.nn.functional
    if name == CCE:
        return importlib.import_module("cut_cross_entropy").linear_cross_entropy
    if name == LIGER:
        liger = importlib.import_module("liger_kernel.transformers")
        if problem.kind != LINEAR:
            return liger.LigerCrossEntropyLoss()
        fused = liger.LigerFusedLinearCrossEntropyLoss()
        return lambda hidden, weight, labels: fused(weight, hidden, labels)
    if name in (LINEAR_LOSS, LINEAR_CHUNKED):
        if not hasattr(functional, "linear_cross_entropy"):
            raise ImportError("linear_cross_entropy came with PyTorch 2.13")
        options = {"options": torch.nn.LinearCrossEntropyOptions()} if name == LINEAR_CHUNKED else {}
        return functools.partial(functional.linear_cross_entropy, **options)

    def mean(*args):
        *factors, labels = args
        if problem.kind == LINEAR:
            logits = factors[0] @ factors[1].T
        else:
            logits = factors[0] @ factors[1] if problem.kind == LAYER else factors[0]
        return _of_logits(functional, problem.kind, logits.float() if name in _WIDE else logits, labels)

    if name not in _COMPILED:
        return mean
    torch._dynamo.reset()  # dynamo compiles only a few versions of a function, and then runs it eagerly
    return torch.compile(mean, dynamic=False)


def _of_logits(functional, kind, logits, labels):
    if kind == SIGMOID:
        return functional.binary_cross_entropy_with_logits(logits, labels)
    if kind == SMOOTHED:
        loss = functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
        return loss + Z_LOSS * logits.logsumexp(-1).square().mean()
    return functional.cross_entropy(logits, labels)
