"""The package as a library of losses, with the function names that the tables of cells use."""

from typing import NamedTuple

import jax

import jaxce
from jaxce import keras

IGNORED = -1


def _integer(logits, labels, **options):
    return jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, **options)


def _loss_sum(logits, labels, where=None, mask=None):
    """Return the mean of each group of examples."""
    losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, where=where, mask=mask)
    if mask is None:
        return jax.vmap(lambda x: jaxce.LossSum.of(x).mean())(losses)
    return jax.vmap(lambda x, m: jaxce.LossSum.of(x, mask=m).mean())(losses, mask)


def _keras_sparse(logits, labels, mask=None):
    """Express a mask by `ignore_class`: an excluded example gets the ignored label."""
    ignore_class = None
    if mask is not None:
        labels, ignore_class = jax.numpy.where(mask, labels, IGNORED), IGNORED
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True, ignore_class=ignore_class)


def _keras_categorical(logits, labels):
    return keras.losses.categorical_crossentropy(labels, logits, from_logits=True)


def _keras_binary(logits, labels):
    return keras.backend.binary_crossentropy(labels, logits, from_logits=True)


class Library(NamedTuple):
    integer = staticmethod(_integer)
    soft = staticmethod(jaxce.softmax_cross_entropy)
    sigmoid = staticmethod(jaxce.sigmoid_binary_cross_entropy)
    loss_sum = staticmethod(_loss_sum)
    keras_sparse = staticmethod(_keras_sparse)
    keras_categorical = staticmethod(_keras_categorical)
    keras_binary = staticmethod(_keras_binary)
    options = ("where", "mask")


OURS = Library()
