"""The sigmoid losses of dense logits, with their derivative rule: `sigmoid` says what is computed, and `cpu` has its form."""

import functools

from jaxce._core import cpu, sigmoid
from jaxce._jax.rules import choose, inlined, linear, with_rule


def sigmoid_losses(arguments: sigmoid.Arguments):
    """Return the sigmoid loss of each logit. One whose `mask` is false has a finite loss, whatever it holds."""
    (loss,) = _sigmoid_with_rule(*sigmoid.logits_and_weights(arguments), arguments)
    return loss


@inlined
def _sigmoid_value(x, yes, no, arguments):
    def by_definition(x, yes, no, _):
        return sigmoid.losses(x, yes, no)

    @inlined
    def on_cpu(_, __, ___, arguments):
        return cpu.sigmoid_losses(arguments)

    form = on_cpu if cpu.suits(arguments.logits) else None
    return (choose(by_definition, x, yes, no, arguments, cpu=form),)


@inlined
def _sigmoid_jvp(args, _, tangents, *, with_forms=True):
    (x, yes, no, arguments), (x_dot, yes_dot, no_dot, _) = args, tangents
    by_logits = by_weights = None
    if x_dot is not None:
        if with_forms and cpu.suits(arguments.logits):
            by_logits = linear(_times_sigmoid_derivative, _sigmoid_vjp, x_dot, x, yes, no, arguments)
        else:
            by_logits = _times_sigmoid_derivative(x_dot, x, yes, no, arguments)
    if not (yes_dot is None and no_dot is None):
        by_weights = sigmoid.weights_jvp(yes_dot, no_dot, x)
    return (by_weights if by_logits is None else by_logits if by_weights is None else by_logits + by_weights,)


def _times_sigmoid_derivative(x_dot, x, yes, no, _):
    return x_dot * sigmoid.derivative(x, yes, no)


@inlined
def _sigmoid_vjp(loss_ct, x, yes, no, arguments):
    @inlined
    def on_cpu(loss_ct, x, _, __, arguments):
        return cpu.sigmoid_vjp(loss_ct, arguments).astype(x.dtype)

    return choose(_times_sigmoid_derivative, loss_ct, x, yes, no, arguments, cpu=on_cpu)


_sigmoid_with_rule = with_rule(_sigmoid_value, _sigmoid_jvp, functools.partial(_sigmoid_jvp, with_forms=False))
