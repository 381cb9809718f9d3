"""Covering selections: a few of many combinations of values, among which every value occurs, or every two values of different parameters."""

import collections
import itertools

import pytest


def selection(rows, strength):
    """Those of `rows`, each a dictionary of parameters, among which any `strength` values occur together that do so in one row.

    Greedy: the row with the most that is new is next, of such the one whose values are the rarest so far, of such the first. Values are told
    apart by `repr`.
    """
    values = [sorted((name, repr(value)) for name, value in row.items()) for row in rows]
    together = [set(itertools.combinations(v, min(strength, len(v)))) for v in values]
    missing, seen, chosen = set().union(*together), collections.Counter(), []
    while missing:
        best = max(range(len(rows)), key=lambda i: (len(together[i] & missing), -sum(seen[v] for v in values[i])))
        missing -= together[best]
        seen.update(values[best])
        chosen.append(best)
    return sorted(chosen)


def quick(rows, chosen):
    """`rows`, each a tuple, as parameters of a test: those of `chosen` belong to the quick tier, the others to the nightly one."""
    chosen = set(chosen)
    return [pytest.param(*row, marks=() if row in chosen else pytest.mark.nightly) for row in rows]


def at_night(*values):
    """The values of a parameter that belong to the nightly tier."""
    return [pytest.param(value, marks=pytest.mark.nightly) for value in values]


def subsets(names, strength=2):
    """Sets of names: any `strength` of them together, apart, and one without the other. The first is empty, the last has all."""
    rows = [dict(zip(names, on, strict=True)) for on in itertools.product((False, True), repeat=len(names))]
    kept = {0, *selection(rows, strength), len(rows) - 1}
    return [tuple(name for name, on in rows[i].items() if on) for i in sorted(kept)]
