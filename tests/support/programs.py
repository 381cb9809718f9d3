"""How large a program is: the equations of a traced function, those of the functions inside it too."""

import jax


def number_of_equations(function, *args):
    """Return the number of equations of the function traced for these arguments; what a loop repeats counts once."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr):
    inner = (sub for eqn in jaxpr.eqns for value in eqn.params.values() for sub in _jaxprs(value))
    return len(jaxpr.eqns) + sum(map(_count, inner))


def _jaxprs(value):
    """The functions that a parameter of an equation holds."""
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns"):
        yield value.jaxpr
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _jaxprs(part)
