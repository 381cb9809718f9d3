"""A small causal transformer whose classifier is tied to its embedding: the model of `language_model.py`."""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

EMBEDDING_SCALE = 0.02


class LanguageModel(nnx.Module):
    """Maps ids `[rows, sequence]` to hidden states `[rows, sequence, features]` and the classifier `[features, vocabulary]`."""

    def __init__(self, vocabulary: int, sizes: argparse.Namespace, rngs: nnx.Rngs):
        features, options = sizes.features, {"dtype": sizes.dtype, "rngs": rngs}
        embed = partial(nnx.Embed, embedding_init=nnx.initializers.normal(EMBEDDING_SCALE), **options)
        self.embedding, self.positions = embed(vocabulary, features), embed(sizes.sequence, features)
        self.norm, self.blocks = nnx.RMSNorm(features, **options), nnx.List()
        for _ in range(sizes.layers):
            attention = nnx.MultiHeadAttention(sizes.heads, features, decode=False, **options)
            wide, narrow = nnx.Linear(features, 4 * features, **options), nnx.Linear(4 * features, features, **options)
            mlp = nnx.Sequential(nnx.RMSNorm(features, **options), wide, nnx.gelu, narrow)
            self.blocks.append(nnx.List([nnx.RMSNorm(features, **options), attention, mlp]))

    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.embedding(ids) + self.positions(jnp.arange(ids.shape[1])[None])
        x = x / EMBEDDING_SCALE  # to the scale of the blocks' outputs
        for norm, attention, mlp in self.blocks:
            x = x + attention(norm(x), is_causal=True)
            x = x + mlp(x)
        return self.norm(x), self.embedding.embedding[...].astype(x.dtype).T
