"""`LinearLogits`: a pytree that stands for logits in every softmax loss, with every option, for integer labels and class probabilities."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxce
from jaxce import Chunked, LinearLogits
from tests.support import covering, linear_cases
from tests.support.closeness import assert_within
from tests.support.linear_cases import CLASSES, DIFFERENTIABLE, OPTIONS, TOKENS
from tests.support.oracle import Quantity

BLOCKS = [None, Chunked(4, 5), Chunked(4), Chunked(None, 5), "reference"]
WHERE = np.arange(CLASSES) % 4 != 2
OF_LAYER = ("bias", "soft_cap")  # the others are options of the loss


def labels_of(kind, rng):
    if kind == "integer":
        return rng.integers(0, CLASSES // 4, TOKENS).astype(np.int32) * 4
    q = (rng.random((TOKENS, CLASSES)) * WHERE).astype(np.float32)
    return q / q.sum(1, keepdims=True)


def loss_of(labels):
    return jaxce.softmax_cross_entropy_with_integer_labels if labels.ndim == 1 else jaxce.softmax_cross_entropy


def call(function, arrays, fixed, labels, implementation):
    arrays = dict(arrays)
    layer = {name: arrays.pop(name) for name in OF_LAYER if name in arrays}
    logits = LinearLogits(arrays.pop("hidden"), arrays.pop("classifier"), **layer, implementation=implementation)
    return function(logits, arrays.pop("labels", labels), **arrays, **fixed)


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.covering(1, at_most=3)
@pytest.mark.parametrize("kind", ["integer", "probabilities"])
@pytest.mark.parametrize("names", covering.subsets((*OPTIONS, "where")), ids="+".join)
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_losses_and_sums_with_every_option(blocks, names, kind):
    rng = np.random.default_rng(3)
    hidden, classifier, _ = linear_cases.make(rng)
    labels = labels_of(kind, rng)
    options = {name: OPTIONS[name] for name in names if name != "where"}
    if "where" in names:
        options["where"] = WHERE[None]
    fixed = {name: options[name] for name in ("mask", "where") if name in options}
    moving = {"hidden": hidden, "classifier": classifier} | {n: options[n] for n in DIFFERENTIABLE if n in options}
    moving |= {} if kind == "integer" else {"labels": labels}
    cotangent = np.linspace(-1, 2, TOKENS, dtype=np.float32)

    def run(moving):
        losses, pull = jax.vjp(lambda x: call(loss_of(labels), x, fixed, labels, blocks), moving)
        total = jax.value_and_grad(lambda x: call(jaxce.softmax_cross_entropy_sum, x, fixed, labels, blocks).total)
        return {"losses": (losses, pull(cotangent)[0]), "sum": total(moving)}

    found = jax.jit(run)(moving)
    given = {name: x for name, x in options.items() if name != "where"}
    given |= {"where": WHERE[None]} if "where" in options else {}
    for name, ct in (("losses", cotangent), ("sum", np.ones(TOKENS))):
        want, want_gradients = linear_cases.expected(hidden, classifier, labels, ct, **given)
        want = want if name == "losses" else Quantity(want.value.sum(), want.scale.sum())
        value, gradients = found[name]
        assert_within(value, want, 8)
        for argument, gradient in gradients.items():
            assert gradient.dtype == moving[argument].dtype
            assert_within(gradient, want_gradients[argument], 10)


def test_weight_of_a_sum_is_the_number_of_tokens_that_count(rng):
    hidden, classifier, labels = linear_cases.make(rng)
    for mask in (None, OPTIONS["mask"]):
        total = jaxce.softmax_cross_entropy_sum(LinearLogits(hidden, classifier), labels, mask=mask)
        assert float(total.weight) == (TOKENS if mask is None else mask.sum())


@pytest.mark.nightly
@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize("blocks", [Chunked(4, 5), *covering.nightly_values(Chunked(4), "reference")], ids=str)
def test_second_derivatives_of_class_probabilities_in_blocks(blocks, rng, x64):
    """The gradient's gradient by all arguments, labels and temperature included, against whole logits."""
    hidden, classifier, _ = linear_cases.make(rng, dtype=np.float64)
    arrays = {"hidden": hidden, "classifier": classifier, "labels": labels_of("probabilities", rng).astype(np.float64)}
    arrays |= {"temperature": np.float64(OPTIONS["temperature"]), "soft_cap": np.float64(3)}

    def squared(function):
        gradient = jax.grad(function)
        return jax.grad(lambda x: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(x))))

    def whole(x):
        z = x["soft_cap"] * jnp.tanh(x["hidden"] @ x["classifier"] / x["soft_cap"]) / x["temperature"][:, None]
        return -jnp.sum(x["labels"] * jax.nn.log_softmax(z))

    want = jax.jit(squared(whole))(arrays)
    found = jax.jit(squared(lambda x: call(jaxce.softmax_cross_entropy_sum, x, {}, None, blocks).total))(arrays)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), found, want)


@pytest.mark.covering(1, at_most=1)
@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, *covering.nightly_values(jnp.float16, jnp.float32), jnp.float64], ids=lambda d: d.__name__
)
def test_every_dtype_under_vmap_scan_and_checkpoint(dtype, rng, x64):
    hidden, classifier, _ = linear_cases.make(rng, 12, dtype=dtype)
    labels = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, 12)]
    temperature = np.linspace(0.5, 2, 12, dtype=np.float32)

    def total(h, w, y, t):
        logits = LinearLogits(h, w, soft_cap=3.0, implementation=Chunked(4, 5))
        return jaxce.softmax_cross_entropy_sum(logits, y, temperature=t).total

    rows = tuple(x.reshape(3, 4, *x.shape[1:]) for x in (hidden, labels, temperature))
    ways = {
        "plain": total,
        "vmap": lambda h, w, y, t: jax.vmap(total, (0, None, 0, 0))(*_at(rows, h, y, t, w)).sum(),
        "scan": lambda h, w, y, t: jax.lax.map(lambda x: total(x[0], w, x[1], x[2]), _cut(h, y, t)).sum(),
        "checkpoint": jax.checkpoint(total),
    }
    want, want_gradients = linear_cases.expected(
        hidden, classifier, labels, np.ones(12), soft_cap=np.float32(3), temperature=temperature
    )
    working = np.float64 if dtype == jnp.float64 else np.float32
    arrays = hidden, classifier, labels, temperature
    found = jax.jit(lambda *x: {name: jax.value_and_grad(way, (0, 1, 3))(*x) for name, way in ways.items()})(*arrays)
    for name, (value, gradients) in found.items():
        assert value.dtype == working, name
        assert_within(value, Quantity(want.value.sum(), want.scale.sum()), 8)
        for argument, gradient in zip(("hidden", "classifier", "temperature"), gradients, strict=True):
            narrow = dtype in (jnp.bfloat16, jnp.float16) and name in ("vmap", "scan")  # JAX adds narrow gradients
            assert_within(gradient, want_gradients[argument], 2 if narrow else 10, working=dtype if narrow else working)


def _cut(*arrays):
    return tuple(x.reshape(3, 4, *x.shape[1:]) for x in arrays)


def _at(_, h, y, t, w):
    h, y, t = _cut(h, y, t)
    return h, w, y, t


def test_it_is_a_pytree_with_a_shape_a_dtype_and_a_repr():
    logits = LinearLogits(
        jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones((4, 5), jnp.bfloat16), bias=jnp.ones(5), implementation=Chunked(8)
    )
    assert logits.shape == (2, 3, 5) and logits.ndim == 3 and logits.dtype == jnp.float32
    assert repr(logits) == (
        "LinearLogits(float32[2,3,5] = hidden bfloat16[2,3,4] @ classifier bfloat16[4,5] + bias float32[5], "
        "implementation=Chunked(block_tokens=8, block_classes=None))"
    )
    assert (
        repr(jax.tree.map(lambda _: None, logits))
        == "LinearLogits(hidden=None, classifier=None, bias=None, soft_cap=None)"
    )
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(logits)]
    assert paths == [".hidden", ".classifier", ".bias"]
    doubled = jax.jit(lambda x: jax.tree.map(lambda a: 2 * a, x))(logits)
    assert isinstance(doubled, LinearLogits) and doubled.implementation == Chunked(8) and float(doubled.bias[0]) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        logits.bias = None
    gradient = jax.grad(lambda x: jaxce.softmax_cross_entropy_sum(x, jnp.zeros((2, 3), jnp.int32)).total)(logits)
    assert isinstance(gradient, LinearLogits) and gradient.hidden.dtype == jnp.bfloat16


def test_exported_program_takes_and_returns_it(rng):
    hidden, classifier, labels = linear_cases.make(rng)
    logits = LinearLogits(hidden, classifier, soft_cap=3.0, implementation=Chunked(4))
    step = jax.jit(jax.grad(lambda x: jaxce.softmax_cross_entropy_sum(x, labels).total))
    loaded = export.deserialize(export.export(step)(logits).serialize())
    found = loaded.call(logits)
    assert isinstance(found, LinearLogits) and found.implementation == Chunked(4)
    np.testing.assert_array_equal(found.hidden, step(logits).hidden)


LAYER = np.zeros((2, 3, 4), np.float32), np.zeros((4, 5), np.float32)
Y = np.zeros((2, 3), np.int32)
Q = np.zeros((2, 3, 5), np.float32)
INTEGER, SOFT, SUM = (
    jaxce.softmax_cross_entropy_with_integer_labels,
    jaxce.softmax_cross_entropy,
    jaxce.softmax_cross_entropy_sum,
)
BAD = {
    "hidden": (lambda z: LinearLogits(np.zeros((2, 4), np.int32), LAYER[1]), TypeError, "`hidden` must be floating point; got int32"),
    "classifier": (lambda z: LinearLogits(LAYER[0], LAYER[1].T), ValueError, r"got \(5, 4\)\. Pass the transpose: classifier\.T\."),
    "bias": (lambda z: LinearLogits(*LAYER, bias=np.zeros(4, np.float32)), ValueError, r"`bias` must have one number for each of the 5 classes"),
    "soft_cap": (lambda z: LinearLogits(*LAYER, soft_cap=-1.0), ValueError, "`soft_cap` must be positive and finite; got -1.0"),
    "implementation": (lambda z: LinearLogits(*LAYER, implementation="fast"), ValueError, "`implementation` must be None, \"chunked\""),
    "axis": (lambda z: INTEGER(z, Y, axis=0), ValueError, r"`axis` must be the last axis of a LinearLogits, 2 or -1; got 0\."),
    "axes": (lambda z: SOFT(z, Q, axis=(0, 2)), ValueError, r"`axis` must be the last axis of a LinearLogits, 2 or -1; got \(0, 2\)\."),
    "where of rows": (lambda z: SUM(z, Y, where=np.ones((2, 3, 5), bool)), ValueError, r"`where` must be the same .*; got \(2, 3, 5\)\. An"),
    "where per class": (lambda z: SUM(z, Y, where=np.ones(5, bool)), ValueError, r"one boolean per class pass where\.reshape\(\(1, 1, 5\)\)\."),
    "soft_cap twice": (lambda z: SUM(LinearLogits(*LAYER, soft_cap=3.0), Y, soft_cap=2.0), ValueError, "`soft_cap` must be given once, .*; got both"),
    "labels": (lambda z: SUM(z, np.zeros((2, 4), np.int32)), ValueError, r"`labels` must .* without axis 2, .*; got \(2, 4\)\."),
    "probabilities": (lambda z: SOFT(z, Y), ValueError, r"`labels` must have the shape of `logits`, \(2, 3, 5\); got \(2, 3\)\."),
    "temperature": (lambda z: SUM(z, Y, temperature=np.ones(3, np.float32)), ValueError, r"`temperature` must be a scalar or .*; got \(3,\)\."),
    "sigmoid": (lambda z: jaxce.sigmoid_binary_cross_entropy(z, Q), TypeError, r"got LinearLogits\. Only the softmax losses and divergences, "),
    "temperature of 0": (lambda z: SUM(z, Y, temperature=0), ValueError, r"`temperature` must be positive and finite; got 0\.0\."),
    "temperature below 0": (lambda z: INTEGER(Q, Y, temperature=-1.0), ValueError, r"`temperature` must be positive and finite; got -1\.0\."),
    "integer temperatures": (lambda z: SOFT(Q, Q, temperature=np.ones((2, 3), int)), TypeError, "`temperature` must be floating point; got int"),
    "a list of temperatures": (lambda z: SUM(Q, Y, temperature=[1.0]), TypeError, "`temperature` must be an array; got list"),
    "soft_cap of 0": (lambda z: jaxce.logit_stats(Q, Y, soft_cap=0), ValueError, r"`soft_cap` must be positive and finite; got 0\.0\."),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call(LinearLogits(*LAYER))


@pytest.mark.covering(1, at_most=2)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_cap_or_temperature_in_an_array_that_is_not_positive_gives_nan(bad, dtype, rng, x64):
    """Only where it is not positive, and not in a masked row."""
    logits, labels = rng.standard_normal((3, 5)).astype(dtype), np.zeros(3, np.int32)
    temperature, mask = jnp.array([1.0, bad, bad], dtype), np.array([True, True, False])

    def losses(z, t):
        return INTEGER(z, labels, temperature=t, mask=mask)

    for found in (losses(logits, temperature), jax.grad(lambda z: losses(z, temperature).sum())(logits)[:, 0]):
        np.testing.assert_array_equal(np.isnan(np.asarray(found, float)), [False, True, False])
    lazy = LinearLogits(logits, jnp.eye(5, dtype=dtype), soft_cap=jnp.array(bad, dtype))
    assert np.isnan(SUM(lazy, labels).total) and np.isnan(SUM(logits, labels, soft_cap=jnp.array(bad, dtype)).total)
