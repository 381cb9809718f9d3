"""What is timed: losses, their shapes and dtypes, and how fast each is meant to be."""

import dataclasses

import jax

VALUE, GRADIENT = "value", "value and gradient"
INTEGER, SOFT, SMOOTHED, SIGMOID, LAYER = (
    "integer labels",
    "class probabilities",
    "smoothing + z-loss",
    "sigmoid",
    "in a linear layer",
)
SMOOTHING, Z_LOSS = 0.1, 1e-4
_FEATURES = 64  # of the linear layer


@dataclasses.dataclass(frozen=True)
class Problem:
    """The mean loss of logits `[rows, classes]`. `targets` are the times of jaxce over those of optax that it is meant to reach."""

    loss: str
    rows: int
    classes: int
    dtype: str
    targets: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> str:
        """For people."""
        return f"{self.rows} x {self.classes}"

    def arrays(self) -> tuple[jax.Array, ...]:
        """(logits, labels); of the linear layer (hidden, classifier, labels)."""
        keys = jax.random.split(jax.random.key(0), 3)
        shape = self.rows, self.classes
        logits = (3 * jax.random.normal(keys[0], shape)).astype(self.dtype)
        if self.loss == SOFT:
            return logits, jax.nn.softmax(jax.random.normal(keys[1], shape)).astype(self.dtype)
        if self.loss == SIGMOID:
            return logits, jax.random.bernoulli(keys[1], 0.3, shape).astype(self.dtype)
        labels = jax.random.randint(keys[1], (self.rows,), 0, self.classes)
        if self.loss == LAYER:
            hidden = jax.random.normal(keys[0], (self.rows, _FEATURES)).astype(self.dtype)
            return hidden, jax.random.normal(keys[2], (_FEATURES, self.classes)).astype(self.dtype) / 8, labels
        return logits, labels


def problems(*, quick: bool) -> list[Problem]:
    """From small to large; quickly, the small ones in float32."""
    f32, bf16 = "float32", "bfloat16"
    everywhere = {GRADIENT: 1.05}
    found = [
        Problem(INTEGER, 256, 10, f32, everywhere),
        Problem(INTEGER, 256, 10, bf16),
        Problem(INTEGER, 8192, 1000, f32, everywhere),
        Problem(INTEGER, 8192, 1000, bf16, {GRADIENT: 0.25}),
        Problem(INTEGER, 4096, 32768, f32, everywhere),
        Problem(INTEGER, 4096, 32768, bf16, {GRADIENT: 0.5}),
        Problem(INTEGER, 1024, 131072, f32, everywhere | {VALUE: 0.3}),
        Problem(INTEGER, 1024, 131072, bf16, {VALUE: 0.3}),
        Problem(LAYER, 2048, 32768, f32, {GRADIENT: 0.8}),
        Problem(LAYER, 2048, 32768, bf16),
        *(Problem(SOFT, *shape, dtype) for shape in ((256, 10), (8192, 1000), (2048, 32768)) for dtype in (f32, bf16)),
        *(
            Problem(SMOOTHED, *shape, dtype, {GRADIENT: 0.5})
            for shape in ((8192, 1000), (2048, 32768))
            for dtype in (f32, bf16)
        ),
        *(
            Problem(SIGMOID, *shape, dtype, {GRADIENT: target})
            for shape in ((8192, 1000), (4096, 8192))
            for dtype, target in ((f32, 0.35), (bf16, 0.12))
        ),
    ]
    if quick:
        return [problem for problem in found if problem.rows * problem.classes <= 2**23 and problem.dtype == f32]
    return found
