"""The programs that are timed: jaxce, the floors, and other libraries, each called as its documentation says."""

import functools
from collections.abc import Callable, Iterable, Iterator

import jax

from benchmarks.measure import Program
from benchmarks.peers import in_jax, in_torch
from benchmarks.problems import Problem


def programs(
    problem: Problem, what: str, arrays: tuple[jax.Array, ...], names: Iterable[str]
) -> Iterator[tuple[str, Callable[[], Program]]]:
    """For each of `names` that offers the loss, yield the name and a function that makes the program."""
    for module in (in_jax, in_torch):
        for name in module.names(problem, what):
            if name in names:
                yield name, functools.partial(module.program, name, problem, what, arrays)
