"""Cross-entropy for JAX: exact, small in memory, fast, sharded.

Guide: docs/pages/choose.md
"""

import typing as _typing

from jaxce import _keras_hook
from jaxce._blocks.choice import Chunked as Chunked
from jaxce._blocks.choice import Split as Split
from jaxce._divergence import softmax_js_divergence as softmax_js_divergence
from jaxce._divergence import softmax_js_divergence_sum as softmax_js_divergence_sum
from jaxce._divergence import softmax_kl_divergence as softmax_kl_divergence
from jaxce._divergence import softmax_kl_divergence_sum as softmax_kl_divergence_sum
from jaxce._linear import linear_logit_stats as linear_logit_stats
from jaxce._linear import linear_softmax_cross_entropy as linear_softmax_cross_entropy
from jaxce._linear import linear_softmax_cross_entropy_sum as linear_softmax_cross_entropy_sum
from jaxce._linear_logits import LinearLogits as LinearLogits
from jaxce._logit_stats import LogitStats as LogitStats
from jaxce._loss_sum import LossSum as LossSum
from jaxce._row_loss import loss_sum as loss_sum
from jaxce._sigmoid import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from jaxce._sigmoid import sigmoid_binary_cross_entropy_sum as sigmoid_binary_cross_entropy_sum
from jaxce._softmax import softmax_cross_entropy as softmax_cross_entropy
from jaxce._softmax import softmax_cross_entropy_sum as softmax_cross_entropy_sum
from jaxce._softmax import softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels
from jaxce._stats import logit_stats as logit_stats

__version__ = "0.2.0"

# Without `keras`: `from jaxce import *` must not replace the Keras of the caller.
__all__ = [
    "Chunked",
    "LinearLogits",
    "LogitStats",
    "LossSum",
    "Split",
    "linear_logit_stats",
    "linear_softmax_cross_entropy",
    "linear_softmax_cross_entropy_sum",
    "logit_stats",
    "loss_sum",
    "sigmoid_binary_cross_entropy",
    "sigmoid_binary_cross_entropy_sum",
    "softmax_cross_entropy",
    "softmax_cross_entropy_sum",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_js_divergence",
    "softmax_js_divergence_sum",
    "softmax_kl_divergence",
    "softmax_kl_divergence_sum",
]

if _typing.TYPE_CHECKING:
    from jaxce import keras as keras
else:
    __getattr__ = _keras_hook.attribute_of_package
    __dir__ = _keras_hook.names_of_package

_keras_hook.install()
