"""`LinearLogits`: the logits of a linear layer, which are never stored whole."""

from __future__ import annotations

import dataclasses
import json

import jax
from jax import export

from jaxce._blocks import choice
from jaxce._blocks.choice import Chunked, Implementation, Split
from jaxce._blocks.reference import logits_dtype
from jaxce._checks import linear as linear_checks
from jaxce._checks import scalars
from jaxce._types import Array, ArrayLike

_ARRAYS = ("hidden", "classifier", "bias", "soft_cap")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False, init=False)
class LinearLogits:
    r"""The logits of a linear layer, for any softmax loss and for `logit_stats`. They are computed block by block, and never stored whole.

    .. math:: z = \mathrm{cap}(h W + b), \qquad \mathrm{cap}(x) = c \tanh(x / c)

    A pytree of its arrays. The arguments are checked when it is made.

    Attributes:
      hidden: `[..., features]`, floating: :math:`h`.
      classifier: `[features, num_classes]`, floating: :math:`W`. For a tied embedding pass `embedding.T`. The compilers then store a transposed
        copy. For value and gradients of the sum over 8,192 tokens and a (128256, 2048) bfloat16 embedding, the temporaries grow from 1,066 to
        3,070 MiB on TPU v5e, and from 1,575 to 2,076 MiB on H100. `implementation=Chunked(block_classes=768)` costs a fourth matmul and reduces
        them to 1,067 and 1,105 MiB.
      bias: `[num_classes]`, floating: :math:`b`. A class whose bias is -inf takes no part.
      soft_cap: Scalar, positive: :math:`c`; None for no cap.
      split: How the arrays are split over a mesh of `AxisType.Auto`, a `Split`; None if their types say it, or if the compiler decides. The guide
        "Sharding" says when it is needed.
      implementation: None lets jaxce choose. "chunked" or a `Chunked` computes the logits in blocks. "reference" stores all logits.

    Raises:
      TypeError: An argument has the wrong type or dtype.
      ValueError: An argument has the wrong shape or value.

    Numerics:
      `hidden` and `classifier` are multiplied in their dtype if they share one, otherwise in float32 (float64 if either is float64). Products
      are summed and stored in float32. Reverse mode stores the arguments and a few numbers per token, and sums the gradient with respect to
      the classifier in float32.

      A loss per token recomputes the logits for its gradient, so value and gradients take four matmuls. A sum computes its gradients together
      with its value, in three matmuls if a block has whole rows of logits, otherwise four. Every mode of differentiation works, at any order.
      The gradients of a sum are as exact as those of the losses, in every dtype. In bfloat16 a GPU or TPU multiplies the gradients with respect
      to the logits in bfloat16, as in any matmul of the layer. A CPU keeps them in float32, and so does every platform in float16 and float8;
      the logits are then computed twice, which is a fourth matmul. In `python -m benchmarks.linear` two CPU cores take 0.76 times as long as
      three bare matmuls at (4096, 768, 50257) in bfloat16 (0.88 with jax 0.12). Gradients rounded to bfloat16 would take 0.45 (0.48).

      Under `jax.export` sizes may be symbolic. If the number of tokens is unknown and `implementation` is None, a block has all tokens and up to
      1,024 classes: `tokens * 1024` logits are stored at a time, and the gradients of a sum take a fourth matmul. If the number of classes is
      unknown, all logits are stored; `Chunked(block_tokens=...)` stores fewer.

    Example:
      >>> logits = LinearLogits(jax.numpy.ones((2, 3)), jax.numpy.eye(3), soft_cap=30.0)
      >>> logits
      LinearLogits(float32[2,3] = cap(hidden float32[2,3] @ classifier float32[3,3]))
      >>> from jaxce import softmax_cross_entropy_with_integer_labels
      >>> print(softmax_cross_entropy_with_integer_labels(logits, jax.numpy.array([0, 2])).round(4))
      [1.0986 1.0986]

    References:
      Wijmans et al., Cut your losses in large-vocabulary language models, 2024. Soft caps: Gemma 2, 2024.
      Guide: docs/pages/guides/large_vocabularies.md
    """

    hidden: Array
    classifier: Array
    bias: Array | None
    soft_cap: Array | None
    split: Split | None
    implementation: Implementation

    def __init__(
        self,
        hidden: ArrayLike,
        classifier: ArrayLike,
        *,
        bias: ArrayLike | None = None,
        soft_cap: ArrayLike | None = None,
        split: Split | None = None,
        implementation: Implementation = None,
    ):
        checked_hidden = linear_checks.hidden(hidden)
        checked_classifier = linear_checks.classifier(classifier, checked_hidden)
        arrays = (
            checked_hidden,
            checked_classifier,
            linear_checks.bias(bias, checked_classifier),
            scalars.soft_cap(soft_cap),
        )
        self._set(arrays, (choice.checked_split(split), choice.checked(implementation)))

    def _set(self, arrays, static):
        for name, value in zip((*_ARRAYS, "split", "implementation"), (*arrays, *static), strict=True):
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the logits, `[..., num_classes]`."""
        return (*self.hidden.shape[:-1], self.classifier.shape[1])

    @property
    def ndim(self) -> int:
        """The number of axes of the logits."""
        return self.hidden.ndim

    @property
    def dtype(self) -> jax.numpy.dtype:
        """The dtype in which the logits are computed: float64 if `hidden` or `classifier` is float64, otherwise float32."""
        return logits_dtype(self.hidden, self.classifier)

    def __repr__(self) -> str:
        leaves = self.hidden, self.classifier, *jax.tree.leaves(self)
        if not all(hasattr(x, "shape") for x in leaves):  # JAX makes such pytrees of other things than arrays
            return f"LinearLogits({', '.join(f'{name}={getattr(self, name)!r}' for name in _ARRAYS)})"
        formula = f"hidden {_type(self.hidden)} @ classifier {_type(self.classifier)}"
        formula += "" if self.bias is None else f" + bias {_type(self.bias)}"
        formula = formula if self.soft_cap is None else f"cap({formula})"
        options = [
            f", {name}={value!r}" for name in ("split", "implementation") if (value := getattr(self, name)) is not None
        ]
        return f"LinearLogits({_type(self)} = {formula}{''.join(options)})"

    def tree_flatten_with_keys(self):
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in _ARRAYS]
        return children, (self.split, self.implementation)

    def tree_flatten(self):
        return [getattr(self, name) for name in _ARRAYS], (self.split, self.implementation)

    @classmethod
    def tree_unflatten(cls, static, arrays):
        # JAX also makes pytrees of things that are not arrays, so nothing is checked here.
        logits = object.__new__(cls)
        logits._set(arrays, static)
        return logits


Logits = ArrayLike | LinearLogits


def _type(array):
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _saved(static):
    """Return the static fields as bytes, for `jax.export`. `split` is lost: it may hold a mesh of this process."""
    _, implementation = static
    is_chunked = isinstance(implementation, Chunked)
    return json.dumps(dataclasses.astuple(implementation) if is_chunked else implementation).encode()


def _loaded(saved):
    implementation = json.loads(saved)
    return None, Chunked(*implementation) if isinstance(implementation, list) else implementation


export.register_pytree_node_serialization(
    LinearLogits, serialized_name="jaxce.LinearLogits", serialize_auxdata=_saved, deserialize_auxdata=_loaded
)
