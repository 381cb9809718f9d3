"""The same losses in PyTorch, eager and compiled, on as many threads as there are cores; nothing where it cannot be imported."""

import importlib.util
from collections.abc import Callable, Iterator

import jax
import numpy as np

from benchmarks.cpu.in_jax import Program
from benchmarks.cpu.problems import GRADIENT, LAYER, SIGMOID, SMOOTHED, SMOOTHING, Z_LOSS, Problem

EAGER, COMPILED = "torch", "torch.compile"


def programs(problem: Problem, what: str, arrays: tuple[jax.Array, ...]) -> Iterator[tuple[str, Callable[[], Program]]]:
    """The names, and what makes the programs; they call it as its documentation says."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    *factors, labels = (torch.from_dlpack(x) for x in arrays)
    labels = labels if labels.is_floating_point() else labels.long()
    factors = [x.detach().requires_grad_(what == GRADIENT) for x in factors]

    def mean(*args):
        *factors, labels = args
        return _loss(problem, factors[0] @ factors[1] if problem.loss == LAYER else factors[0], labels)

    def running(function):
        def run():
            if what != GRADIENT:
                with torch.no_grad():
                    return (function(*factors, labels),)
            value = function(*factors, labels)
            return value, *torch.autograd.grad(value, factors)

        return run

    def compiled():
        torch._dynamo.reset()  # it keeps few versions of a function, then runs it eagerly
        return Program(COMPILED, running(torch.compile(mean, dynamic=False)), _answer)

    yield EAGER, lambda: Program(EAGER, running(mean), _answer)
    yield COMPILED, compiled


def _loss(problem, logits, labels):
    from torch.nn import functional

    if problem.loss == SIGMOID:
        return functional.binary_cross_entropy_with_logits(logits, labels)
    if problem.loss == SMOOTHED:
        loss = functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
        return loss + Z_LOSS * logits.logsumexp(-1).square().mean()
    return functional.cross_entropy(logits, labels)


def _answer(found):
    value, *gradients = found
    return float(value.detach()), np.asarray(gradients[0][:8].float()) if gradients else None
