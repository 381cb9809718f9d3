"""The size of a program: the number of equations of a traced function, including those of its inner functions."""

import jax


def number_of_equations(function, *args):
    """Return the number of equations of the function traced for these arguments. The body of a loop counts once."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr):
    inner = (sub for eqn in jaxpr.eqns for value in eqn.params.values() for sub in _jaxprs(value))
    return len(jaxpr.eqns) + sum(map(_count, inner))


def _jaxprs(value):
    """Yield the jaxprs in a parameter of an equation."""
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns"):
        yield value.jaxpr
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _jaxprs(part)
