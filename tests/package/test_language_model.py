"""`examples/language_model.py`: exact gradients of unequal micro-batches, the same step with each loss, and the corpus."""

import argparse
import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

nnx = pytest.importorskip("flax.nnx")
for _library in ("matplotlib", "tqdm"):
    pytest.importorskip(_library)

corpus = importlib.import_module("corpus")
language_model = importlib.import_module("language_model")
transformer = importlib.import_module("transformer")

pytestmark = pytest.mark.nightly

VOCABULARY, SEQUENCE, FEATURES = 37, 9, 5
WORDS_PER_ROW = np.array([[1, 0], [9, 9], [3, 2], [9, 1]])


class Bigram(nnx.Module):
    """A model in which the hidden state of a word is its embedding: small enough for an oracle."""

    def __init__(self, rng):
        self.embedding = nnx.Param(jnp.asarray(rng.standard_normal((VOCABULARY, FEATURES)), jnp.float32))
        self.classifier = nnx.Param(jnp.asarray(rng.standard_normal((FEATURES, VOCABULARY)), jnp.float32))

    def __call__(self, ids):
        return self.embedding[...][ids], self.classifier[...]


@pytest.fixture
def micro_batches(rng):
    """Return an array `[micro_batches, rows, sequence + 1]` with few and many words, and with a row without words."""
    rows = rng.integers(0, VOCABULARY, (*WORDS_PER_ROW.shape, SEQUENCE + 1), dtype=np.int32)
    return np.where(np.arange(SEQUENCE + 1) <= WORDS_PER_ROW[..., None], rows, np.int32(corpus.IGNORED))


def oracle(model, rows):
    """Return the mean loss of a bigram model over all words that are not ignored, and its gradients, in float64."""
    embedding, classifier = (np.asarray(x[...], np.float64) for x in (model.embedding, model.classifier))
    counts = rows[:, 1:] != corpus.IGNORED
    ids, labels = rows[:, :-1][counts], rows[:, 1:][counts]
    logits = embedding[ids] @ classifier
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    by_logits = (p - np.eye(VOCABULARY)[labels]) / len(ids)
    by_embedding = np.zeros_like(embedding)
    np.add.at(by_embedding, ids, by_logits @ classifier.T)
    return -np.log(p[np.arange(len(ids)), labels]).mean(), by_embedding, embedding[ids].T @ by_logits


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", language_model.LOSSES)
def test_gradient_of_unequal_micro_batches_equals_that_of_the_batch(name, micro_batches, rng):
    model = Bigram(rng)
    graph, params = nnx.split(model)
    loss = partial(language_model.loss_of_rows, name, graph)
    mean, gradient = jax.jit(partial(language_model.mean_and_gradient, loss))(params, micro_batches)
    expected, by_embedding, by_classifier = oracle(model, micro_batches.reshape(-1, SEQUENCE + 1))
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    assert relative_error(np.asarray(gradient["embedding"][...]), by_embedding) < 1e-6
    assert relative_error(np.asarray(gradient["classifier"][...]), by_classifier) < 1e-6


@pytest.mark.parametrize("name", language_model.LOSSES)
def test_means_of_means_have_a_large_error(name, micro_batches, rng):
    graph, params = nnx.split(Bigram(rng))
    loss = partial(language_model.loss_of_rows, name, graph)
    with jax.numpy_dtype_promotion("standard"):  # the arithmetic of optax needs standard promotion
        sum_error, mean_error = language_model.gradient_errors(loss, params, micro_batches)
    assert sum_error <= language_model.GRADIENT_RTOL <= 1e-6
    assert mean_error > 0.01


def test_micro_batches_without_words_have_no_loss_and_no_gradient(micro_batches, rng):
    graph, params = nnx.split(Bigram(rng))
    loss = partial(language_model.loss_of_rows, "linear", graph)
    nothing = np.full_like(micro_batches, corpus.IGNORED)
    mean, gradient = language_model.mean_and_gradient(loss, params, nothing)
    assert mean == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_both_losses_give_the_same_gradient(rng):
    sizes = argparse.Namespace(layers=1, features=16, heads=2, sequence=SEQUENCE, dtype="float32")
    graph, params = nnx.split(transformer.LanguageModel(VOCABULARY, sizes, nnx.Rngs(0)))
    rows = rng.integers(0, VOCABULARY, (1, 4, SEQUENCE + 1), dtype=np.int32)
    rows[0, 1, 4:] = corpus.IGNORED
    (linear, linear_gradient), (dense, dense_gradient) = (
        jax.jit(partial(language_model.mean_and_gradient, partial(language_model.loss_of_rows, name, graph)))(
            params, rows
        )
        for name in ("linear", "dense")
    )
    np.testing.assert_allclose(linear, dense, rtol=1e-6)
    size = optax.tree.norm(dense_gradient)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, linear_gradient, dense_gradient)) < 1e-5 * size
    for ours, theirs in zip(jax.tree.leaves(linear_gradient), jax.tree.leaves(dense_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * size)


def test_model_does_not_look_ahead(rng):
    sizes = argparse.Namespace(layers=1, features=16, heads=2, sequence=SEQUENCE, dtype="float32")
    model = transformer.LanguageModel(VOCABULARY, sizes, nnx.Rngs(0))
    ids = rng.integers(0, VOCABULARY, (1, SEQUENCE), dtype=np.int32)
    others = np.where(np.arange(SEQUENCE) < 5, ids, (ids + 1) % VOCABULARY)
    hidden, other = model(ids)[0], model(others)[0]
    np.testing.assert_array_equal(hidden[:, :5], other[:, :5])
    assert not np.any(np.all(hidden[:, 5:] == other[:, 5:], axis=-1))


TEXTS = ["def f(x):\n    return x + 1\n", "", "x", "def g(x):\n    return f(x)\n\n    # never\n"]


def test_vocabulary_round_trip():
    vocabulary, texts = corpus.index(TEXTS, 2)
    words = [corpus.WORD.findall(text) for text in TEXTS]
    assert [len(ids) for ids in texts] == [len(text) for text in words]
    ids, words = np.concatenate(texts), [word for text in words for word in text]
    assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < len(vocabulary) == len(set(vocabulary))
    rare = {word for word in words if words.count(word) < 2}
    assert {"1", "+", "g", "never"} <= rare
    unknown = vocabulary[corpus.UNKNOWN]
    assert [vocabulary[i] for i in ids] == [unknown if word in rare else word for word in words]
    counts = [words.count(word) for word in vocabulary[1:]]
    assert counts == sorted(counts, reverse=True) and min(counts) >= 2


def test_words_omit_only_spaces_within_a_line():
    assert corpus.WORD.findall(TEXTS[0]) == ["def", "f", "(", "x", ")", ":", "\n    ", "return", "x", "+", "1", "\n"]


@pytest.mark.parametrize("sequence", [1, 3, 4, 100])
def test_rows_have_each_word_as_a_label_once(sequence):
    texts = [np.arange(1, 1 + length, dtype=np.int32) for length in (0, 1, 2, 4, 5, 9)]
    rows = corpus.rows_of(texts, sequence)
    assert rows.dtype == np.int32 and rows.shape[1] == sequence + 1
    counts = rows[:, 1:] != corpus.IGNORED
    np.testing.assert_array_equal(rows[:, 1:][counts], np.concatenate([text[1:] for text in texts]))
    np.testing.assert_array_equal(rows[:, :-1][counts], np.concatenate([text[:-1] for text in texts]))
    assert corpus.count_words(rows) == counts.sum()


def test_corpus_from_its_cache_file_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "OUTPUT", tmp_path / "output")
    read = corpus.standard_library(2, 16, 3)
    (kept,) = (tmp_path / "output").iterdir()
    monkeypatch.setattr(corpus, "index", None)
    np.testing.assert_array_equal(corpus.standard_library(2, 16, 3), read)
    assert kept.suffix == ".npy" and read.min() == corpus.IGNORED and read.max() > 100


def test_unequal_batches_grow():
    rows = corpus.rows_of([np.arange(length, dtype=np.int32) for length in range(2, 60)], 16)
    batches = corpus.unequal_batches(rows, 4, 3, 0)
    assert batches.shape == (4, 3, 17)
    words = corpus.count_words(batches, (1, 2))
    assert np.all(np.diff(words) > 0) and words[-1] > 2 * words[0]
