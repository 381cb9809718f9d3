"""The losses in PyTorch that are timed where they can be imported: eager, compiled, of Liger-Kernel and of Cut Cross-Entropy.

They get JAX's own arrays, on the same device; a classifier in their layout, `[classes, features]`.
"""

import gc
import importlib.util

import jax

from benchmarks.accelerator import clock
from benchmarks.accelerator.problems import DENSE, FORWARD

_NEEDS = {
    "torch eager": "torch",
    "torch compile": "torch",
    "Liger-Kernel": "liger_kernel",
    "Cut Cross-Entropy": "cut_cross_entropy",
}


def names(problem, _):
    """What can be measured here; nothing where PyTorch does not see the device that JAX uses."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    if jax.default_backend() not in ("cpu", "gpu") or (jax.default_backend() == "gpu") != torch.cuda.is_available():
        return []
    installed = [name for name, module in _NEEDS.items() if importlib.util.find_spec(module)]
    return [name for name in installed if problem.kind != DENSE or name != "Cut Cross-Entropy"]


def measured(problem, name, what, arrays):
    """(timing, bytes held beyond the arguments, the loss) of one program; the bytes are None on a CPU."""
    import torch

    torch.set_float32_matmul_precision("high")  # as JAX multiplies float32 by default
    *factors, labels = (torch.from_dlpack(x) for x in arrays)
    labels = labels.long()
    if problem.kind != DENSE:
        factors[1] = factors[1].T.contiguous()
    elif name == "Liger-Kernel":
        factors[0] = factors[0].clone()  # it writes the gradient over the logits
    loss = _loss(problem.kind, name)
    factors = [x.detach().requires_grad_(what != FORWARD) for x in factors]

    def run():
        if what == FORWARD:
            with torch.no_grad():
                return (loss(*factors, labels),)
        value = loss(*factors, labels)
        return value, *torch.autograd.grad(value, factors)

    on_gpu = labels.is_cuda
    value = float(run()[0].detach())
    held = None
    if on_gpu:
        torch.cuda.synchronize()
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        held = torch.cuda.max_memory_allocated() - before
    timing = clock.timed(run, lambda _: torch.cuda.synchronize() if on_gpu else None)
    return timing, held, value


def release():
    """Gives PyTorch's unused memory back, so that JAX can have it."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _loss(kind, name):
    import torch
    from torch.nn.functional import cross_entropy

    if name == "Cut Cross-Entropy":
        from cut_cross_entropy import linear_cross_entropy

        return linear_cross_entropy
    if name == "Liger-Kernel":
        from liger_kernel.transformers import LigerCrossEntropyLoss, LigerFusedLinearCrossEntropyLoss

        dense, linear = LigerCrossEntropyLoss(), LigerFusedLinearCrossEntropyLoss()
        return dense if kind == DENSE else lambda hidden, weight, labels: linear(weight, hidden, labels)

    def of_logits(logits, labels):
        return cross_entropy(logits.float(), labels)

    def of_layer(hidden, weight, labels):
        return of_logits(hidden @ weight.T, labels)

    plain = of_logits if kind == DENSE else of_layer
    if name != "torch compile":
        return plain
    torch._dynamo.reset()  # it keeps few versions of a function, then runs it eagerly
    return torch.compile(plain, dynamic=False)
