"""The divergences of linear layers cost few matmuls and little memory. Those of dense logits store no array of the size of the logits."""

import itertools

import jax
import jax.numpy as jnp
import pytest

import jaxce
from jaxce import Chunked, LinearLogits
from tests.support import covering, device_work

TOKENS, FEATURES, CLASSES = 512, 64, 3000
LAYER = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((TOKENS, FEATURES), (FEATURES, CLASSES))]


def total(implementation, *arrays):
    target, student = (LinearLogits(*pair, implementation=implementation) for pair in (arrays[:2], arrays[2:]))
    return jaxce.softmax_kl_divergence_sum(target, student).mean()


def per_token(implementation, *arrays):
    target, student = (LinearLogits(*pair, implementation=implementation) for pair in (arrays[:2], arrays[2:]))
    return jnp.mean(jaxce.softmax_kl_divergence(target, student))


def figures(function, implementation, moving):
    """Return the matmuls, in those of the logits of one layer, and the temporaries in bytes."""

    def run(*arrays):
        return function(implementation, *arrays)

    program = jax.jit(jax.value_and_grad(run, moving) if moving else run).lower(*LAYER, *LAYER).compile()
    found = device_work.figures(program)
    return round(found.products / (TOKENS * FEATURES * CLASSES), 3), found.temporaries


STUDENT, BOTH = (2, 3), (0, 1, 2, 3)
CASES = {
    "value": (total, (), 2),
    "student": (total, STUDENT, 4),
    "both": (total, BOTH, 6),
    "student's classifier": (total, (3,), 3),
    "value per token": (per_token, (), 2),
    "student per token": (per_token, STUDENT, 6),
    "both per token": (per_token, BOTH, 8),
}


@pytest.mark.parametrize(
    ("case", "implementation"),
    covering.quick(
        itertools.product(CASES, (Chunked(64), None)),
        [("student", Chunked(64)), ("student per token", Chunked(64))],
    ),
    ids=str,
)
def test_matmuls_and_memory(case, implementation):
    function, moving, matmuls = CASES[case]
    found, temporaries = figures(function, implementation, moving)
    assert found == matmuls
    # The gradients, and some arrays as large as the logits of a block.
    gradients = 4 * len(moving) / 2 * (FEATURES * CLASSES + TOKENS * FEATURES)
    block = 64 if implementation else 256
    assert temporaries <= gradients + 12 * 4 * block * CLASSES + 2**18


@pytest.mark.parametrize(
    ("name", "moving"),
    covering.quick(
        itertools.product(("softmax_kl_divergence", "softmax_js_divergence"), ((), 0, 1, (0, 1))),
        [("softmax_kl_divergence", (0, 1)), ("softmax_js_divergence", 1)],
    ),
    ids=str,
)
def test_dense_divergences_store_no_array_of_the_size_of_the_logits(name, moving):
    logits = jax.ShapeDtypeStruct((8192, 512), jnp.float32)

    def run(target, logits):
        return jnp.sum(getattr(jaxce, name)(target, logits))

    function = run if moving == () else jax.value_and_grad(run, moving)
    program = jax.jit(function).lower(logits, logits).compile()
    assert program.memory_analysis().temp_size_in_bytes <= 4 * logits.size * 0.75
