"""The table of all problems that are timed: losses, shapes, dtypes and target times."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

VALUE, GRADIENT = "value", "value and gradient"
INTEGER, SOFT, SMOOTHED, SIGMOID = "integer labels", "class probabilities", "smoothing + z-loss", "sigmoid"
# LAYER: dense losses of `hidden @ classifier`. LINEAR: losses that take `hidden` and `classifier`.
LAYER, LINEAR = "in a linear layer", "linear"
SMOOTHING, Z_LOSS = 0.1, 1e-4
F32, BF16 = "float32", "bfloat16"

# Named models: classes and features.
MODELS = {
    "Llama-3 8B": (128256, 4096),
    "GPT-2": (50257, 768),
    "Qwen-2.5 7B": (151936, 3584),
    "Gemma-2 2B": (262144, 2304),
}
VOCABULARIES = (2**10, 2**12, 2**14, 2**15, 2**16, 2**17, 2**18)
# The allowed relative difference of the mean loss, and of its gradient as a vector, from jaxce's: the effect of rounding to the dtype.
_NEAR = {F32: (1e-5, 1e-3), BF16: (1e-2, 2e-2), "float16": (1e-3, 1e-2)}


@dataclasses.dataclass(frozen=True)
class Problem:
    """The mean loss of `rows` examples. `targets` are the ratios of jaxce's time to optax's time that jaxce should reach."""

    kind: str
    rows: int
    classes: int
    dtype: str
    features: int | None = None
    model: str = ""
    targets: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, classes), or (rows, features, classes) if the loss takes `hidden` and `classifier`."""
        return (self.rows, self.features, self.classes) if self.kind == LINEAR else (self.rows, self.classes)

    @property
    def logits_bytes(self) -> int:
        """Return the bytes of the logits, which one pass reads or writes."""
        return self.rows * self.classes * jnp.dtype(self.dtype).itemsize

    @property
    def near(self) -> tuple[float, float]:
        """Return the allowed relative differences of value and gradient from jaxce's. Some libraries round the dense loss to the dtype."""
        value, gradient = _NEAR.get(self.dtype, _NEAR[BF16])
        return (value, gradient) if self.kind == LINEAR or self.dtype == F32 else (2 * value, 1.5 * gradient)

    def arrays(self) -> tuple[jax.Array, ...]:
        """Return (logits, labels), or (hidden, classifier, labels). One program computes them, without storing an array of another dtype."""
        return jax.block_until_ready(jax.jit(self._arrays)())

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes and dtypes of the arrays."""
        return jax.eval_shape(self._arrays)

    def _arrays(self):
        keys = jax.random.split(jax.random.key(0), 3)
        shape = self.rows, self.classes
        labels = jax.random.randint(keys[1], (self.rows,), 0, self.classes)
        if self.features:
            hidden = self._normal(keys[0], (self.rows, self.features), 1.0)
            return hidden, self._normal(keys[2], (self.features, self.classes), self.features**-0.5), labels
        if self.kind == SOFT:
            labels = jax.nn.softmax(jax.random.normal(keys[1], shape, F32)).astype(self.dtype)
        elif self.kind == SIGMOID:
            labels = jax.random.bernoulli(keys[1], 0.3, shape).astype(self.dtype)
        return self._normal(keys[0], shape, 3.0), labels

    def _normal(self, key, shape, size):
        return (size * jax.random.normal(key, shape, F32)).astype(self.dtype)


def dense(*, quick: bool) -> list[Problem]:
    """Return the dense problems from small to large; with `quick`, the small problems in float32."""
    layer = functools.partial(Problem, LAYER, 2048, 32768, features=64)
    everywhere = {GRADIENT: 1.05}
    found = [
        Problem(INTEGER, 256, 10, F32, targets=everywhere),
        Problem(INTEGER, 256, 10, BF16),
        Problem(INTEGER, 8192, 1000, F32, targets=everywhere),
        Problem(INTEGER, 8192, 1000, BF16, targets={GRADIENT: 0.25}),
        Problem(INTEGER, 4096, 32768, F32, targets=everywhere),
        Problem(INTEGER, 4096, 32768, BF16, targets={GRADIENT: 0.5}),
        Problem(INTEGER, 1024, 131072, F32, targets=everywhere | {VALUE: 0.3}),
        Problem(INTEGER, 1024, 131072, BF16, targets={VALUE: 0.3}),
        layer(F32, targets={GRADIENT: 0.8}),
        layer(BF16),
    ]
    for shape in ((256, 10), (8192, 1000), (2048, 32768)):
        found += [Problem(SOFT, *shape, dtype) for dtype in (F32, BF16)]
    for shape in ((8192, 1000), (2048, 32768)):
        found += [Problem(SMOOTHED, *shape, dtype, targets={GRADIENT: 0.5}) for dtype in (F32, BF16)]
    for shape in ((8192, 1000), (4096, 8192)):
        found += [Problem(SIGMOID, *shape, dtype, targets={GRADIENT: t}) for dtype, t in ((F32, 0.35), (BF16, 0.12))]
    if quick:
        return [problem for problem in found if problem.rows * problem.classes <= 2**23 and problem.dtype == F32]
    return found


def linear(*, quick: bool = False) -> list[Problem]:
    """Return the problems of a linear layer; with `quick`, a small problem."""
    if quick:
        return [of_shape((256, 64, 2048), F32)]
    large = [
        ((2048, 512, 32768), F32),
        ((4096, 768, 50257), F32),
        ((1024, 2048, 128256), F32),
        ((4096, 768, 50257), BF16),
    ]
    return [of_shape(shape, dtype) for shape, dtype in large]


def of_shape(shape: tuple[int, int, int], dtype: str) -> Problem:
    """Return the problem of a linear layer of (rows, features, classes)."""
    rows, features, classes = shape
    return Problem(LINEAR, rows, classes, dtype, features)


def of_models(*, tiny: bool) -> Iterator[tuple[Problem, str]]:
    """Yield problems of the size of named models, each with value or gradient. The most informative come first, because time may run out."""
    models, rows = ({"tiny": (517, 48)}, 64) if tiny else (MODELS, 8192)
    for what in (GRADIENT, VALUE):
        for dtype in (BF16, F32):
            for model, (classes, features) in models.items():
                yield Problem(INTEGER, rows, classes, dtype, model=model), what
                yield Problem(LINEAR, rows, classes, dtype, features, model), what
