"""Covering selections: a few of many combinations of parameters that still contain every value, or every pair of values."""

import collections
import itertools

import pytest


def selection(rows, strength, at_most=None):
    """Return the indices of a covering selection of `rows`, which are dictionaries of parameters.

    Each combination of `strength` values that occurs in some row also occurs in a selected row. The algorithm is greedy: the next row is the one
    with the most new combinations; among equals, the one whose values were selected least often; among equals, the first. Values are compared by
    their `repr`. The selection ends after `at_most` rows: then it has the most different ones, but perhaps not every combination.
    """
    values = [sorted((name, repr(value)) for name, value in row.items()) for row in rows]
    together = [set(itertools.combinations(v, min(strength, len(v)))) for v in values]
    missing, seen, chosen = set().union(*together), collections.Counter(), []
    while missing and len(chosen) != at_most:
        best = max(range(len(rows)), key=lambda i: (len(together[i] & missing), -sum(seen[v] for v in values[i])))
        missing -= together[best]
        seen.update(values[best])
        chosen.append(best)
    return sorted(chosen)


def quick(rows, chosen):
    """Return `rows` (tuples) as parameters of a test. The rows in `chosen` are in the quick tier, the others in the nightly tier."""
    chosen = set(chosen)
    return [pytest.param(*row, marks=() if row in chosen else pytest.mark.nightly) for row in rows]


def nightly_values(*values):
    """Return the values of a parameter, marked for the nightly tier."""
    return [pytest.param(value, marks=pytest.mark.nightly) for value in values]


def subsets(names, strength=2):
    """Return subsets of the names. For any `strength` names, the subsets contain every choice of present and absent ones.

    The first subset is empty, the last has all names.
    """
    rows = [dict(zip(names, on, strict=True)) for on in itertools.product((False, True), repeat=len(names))]
    kept = {0, *selection(rows, strength), len(rows) - 1}
    return [tuple(name for name, on in rows[i].items() if on) for i in sorted(kept)]
