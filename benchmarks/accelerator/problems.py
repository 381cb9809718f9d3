"""The problems to time: losses of the size of named models, and their arrays."""

import dataclasses

import jax
import jax.numpy as jnp

MODELS = {
    "Llama-3 8B": (128256, 4096),
    "GPT-2": (50257, 768),
    "Qwen-2.5 7B": (151936, 3584),
    "Gemma-2 2B": (262144, 2304),
}
TINY = {"tiny": (517, 48)}
TOKENS, TINY_TOKENS = 8192, 64
DTYPES = ("bfloat16", "float32")
DENSE, LINEAR = "dense", "linear"
FORWARD, GRADIENTS = "forward", "value and gradients"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss of logits that are given, or of those of a linear layer."""

    model: str
    kind: str
    dtype: str
    tokens: int
    features: int
    classes: int

    @property
    def logits_bytes(self) -> int:
        """What one pass over the logits reads or writes."""
        return self.tokens * self.classes * jnp.dtype(self.dtype).itemsize

    def arrays(self):
        """(logits, labels) or (hidden, classifier, labels), on the device."""
        keys = jax.random.split(jax.random.key(0), 3)
        labels = jax.random.randint(keys[0], (self.tokens,), 0, self.classes)
        if self.kind == DENSE:
            return _normal(keys[1], (self.tokens, self.classes), 2.0, self.dtype), labels
        hidden = _normal(keys[1], (self.tokens, self.features), 1.0, self.dtype)
        return hidden, _normal(keys[2], (self.features, self.classes), self.features**-0.5, self.dtype), labels


def problems(*, tiny: bool):
    """Each problem and what of it to time, the most telling first, as time may run out."""
    models, tokens = (TINY, TINY_TOKENS) if tiny else (MODELS, TOKENS)
    for what in (GRADIENTS, FORWARD):
        for dtype in DTYPES:
            for model, (classes, features) in models.items():
                for kind in (DENSE, LINEAR):
                    yield Problem(model, kind, dtype, tokens, features, classes), what


def _normal(key, shape, scale, dtype):
    # Compiled as one program, which holds no array of another dtype.
    return jax.jit(lambda key: (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype))(key)
