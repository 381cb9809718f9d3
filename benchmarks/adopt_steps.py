"""The programs of `benchmarks.adopt`: three training steps with the loss that they had, and with those that replace it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxce
from jaxce import LinearLogits, LossSum


class Sizes(NamedTuple):
    """The sizes of the models and of a batch. `mesh_vocabulary` is the vocabulary of the third program."""

    batch: int
    length: int
    features: int
    heads: int
    layers: int
    vocabulary: int
    mesh_vocabulary: int


class Program(NamedTuple):
    """`steps` maps the name of a loss to a step. The first is the step before the change. A step returns the loss, the gradients and the metrics."""

    title: str
    steps: dict[str, Callable[..., Any]]
    arrays: tuple[Any, ...]


class Batch(NamedTuple):
    tokens: jax.Array
    labels: jax.Array
    mask: jax.Array


SMOOTHING, SOFT_CAP, Z_LOSS, MICRO_BATCHES = 0.1, 30.0, 1e-4, 2
BEFORE, DENSE, LAZY = "before", "dense", "`LinearLogits`"


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)


def cap(logits):
    return SOFT_CAP * jnp.tanh(logits / SOFT_CAP)


def batch_of(shape: tuple[int, ...], vocabulary: int) -> Batch:
    """Return tokens whose sequences end early, each at another place."""
    keys = jax.random.split(jax.random.key(1), 2)
    tokens = jax.random.randint(keys[0], (*shape[:-1], shape[-1] + 1), 0, vocabulary)
    ends = jax.random.randint(keys[1], (*shape[:-1], 1), shape[-1] // 4, shape[-1] + 1)
    return Batch(tokens[..., :-1], tokens[..., 1:], jnp.arange(shape[-1]) < ends)


# The first program: modules of flax, smoothed labels, a soft cap, and metrics that read the logits.


def mean(losses, mask):
    return jnp.sum(losses * mask) / jnp.sum(mask)


def smoothed_losses(logits, labels):
    """Return the losses of labels that give the share `SMOOTHING` to all other classes."""
    classes = logits.shape[-1]
    targets = jnp.where(jax.nn.one_hot(labels, classes, dtype=bool), 1 - SMOOTHING, SMOOTHING / (classes - 1))
    return -jnp.sum(targets * jax.nn.log_softmax(logits), -1)


def flax_program(sizes: Sizes) -> Program:
    from flax import nnx

    class Decoder(nnx.Module):
        def __init__(self, rngs):
            self.embedding = nnx.Embed(sizes.vocabulary, sizes.features, rngs=rngs)
            self.layers = nnx.List()
            for _ in range(sizes.layers):
                attention = nnx.MultiHeadAttention(sizes.heads, sizes.features, decode=False, rngs=rngs)
                self.layers.append(nnx.List([attention, nnx.Linear(sizes.features, sizes.features, rngs=rngs)]))

        def __call__(self, tokens):
            x = self.embedding(tokens)
            for attention, linear in self.layers:
                x = x + attention(norm(x), is_causal=True)
                x = x + nnx.gelu(linear(norm(x)))
            return norm(x), self.embedding.embedding[...].T

    graph, params = nnx.split(Decoder(nnx.Rngs(0)))

    def before(params, batch: Batch):
        def loss(params):
            hidden, classifier = nnx.merge(graph, params)(batch.tokens)
            logits = cap(hidden @ classifier)
            return mean(smoothed_losses(logits, batch.labels), batch.mask), logits  # the metrics read the logits

        (loss, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        hits = jnp.argmax(logits, -1) == batch.labels
        return loss, gradients, {"nll": mean(nll, batch.mask), "accuracy": mean(hits, batch.mask)}

    def smoothed(stats):
        share = SMOOTHING * stats.num_classes / (stats.num_classes - 1)  # of all classes, not of all others
        return (1 - share) * stats.nll + share * stats.smooth_nll, {"nll": stats.nll, "accuracy": stats.correct}

    def after(make_logits, params, batch: Batch):
        def loss(params):
            logits = make_logits(*nnx.merge(graph, params)(batch.tokens))
            total, metrics = jaxce.loss_sum(logits, batch.labels, smoothed, mask=batch.mask, has_aux=True)
            return total.mean(), {name: metric.mean() for name, metric in metrics.items()}

        (loss, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return loss, gradients, metrics

    steps = {
        BEFORE: before,
        DENSE: functools.partial(after, lambda hidden, classifier: cap(hidden @ classifier)),
        LAZY: functools.partial(after, functools.partial(LinearLogits, soft_cap=SOFT_CAP)),
    }
    title = f"flax: label smoothing, soft cap, metrics; {sizes.vocabulary:,} words"
    return Program(title, steps, (params, batch_of((sizes.batch, sizes.length), sizes.vocabulary)))


# The second program: a model that is called on one sequence, as an equinox module is, and mapped over the batch by jax.vmap.


class Model(NamedTuple):
    """A decoder of one sequence, a pytree of arrays. The classifier is tied to the embedding."""

    embedding: jax.Array
    attention: jax.Array
    linear: jax.Array

    def hidden(self, tokens, heads):
        def layer(x, weights):
            attention, linear = weights
            projected = (norm(x) @ attention).reshape(len(x), heads, -1)
            x = x + jax.nn.dot_product_attention(*jnp.split(projected, 3, -1), is_causal=True).reshape(x.shape)
            return x + jax.nn.gelu(norm(x) @ linear), None

        return norm(jax.lax.scan(layer, self.embedding[tokens], (self.attention, self.linear))[0])


def model_of(sizes: Sizes, vocabulary: int) -> Model:
    n = sizes.features
    shapes = (vocabulary, n), (sizes.layers, n, 3 * n), (sizes.layers, n, n)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return Model(*(n**-0.5 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)))


def vmap_program(sizes: Sizes) -> Program:
    def logits_of(model, tokens):
        return model.hidden(tokens, sizes.heads) @ model.embedding.T

    def hidden_of(model, tokens):
        return jax.vmap(functools.partial(model.hidden, heads=sizes.heads))(tokens)

    def before(model, batch: Batch):
        logits = jax.vmap(functools.partial(logits_of, model))(batch.tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    def dense(model, batch: Batch):
        logits = jax.vmap(functools.partial(logits_of, model))(batch.tokens)
        return jaxce.softmax_cross_entropy_sum(logits, batch.labels).mean()

    def dense_of_rows(model, batch: Batch):
        rows = hidden_of(model, batch.tokens).reshape(-1, sizes.features)
        return jaxce.softmax_cross_entropy_sum(rows @ model.embedding.T, batch.labels.reshape(-1)).mean()

    def outside(model, batch: Batch):
        logits = LinearLogits(hidden_of(model, batch.tokens), model.embedding.T)
        return jaxce.softmax_cross_entropy_sum(logits, batch.labels).mean()

    def inside(model, batch: Batch):
        def of_one(tokens, labels):
            logits = LinearLogits(model.hidden(tokens, sizes.heads), model.embedding.T)
            return jaxce.softmax_cross_entropy_sum(logits, labels).psum("batch")

        return jax.vmap(of_one, axis_name="batch", out_axes=None)(batch.tokens, batch.labels).mean()

    names = BEFORE, DENSE, f"{DENSE}, rows before the last layer", f"{LAZY} after `vmap`", f"{LAZY} inside `vmap`"
    losses = before, dense, dense_of_rows, outside, inside
    steps = {name: functools.partial(step_of, loss) for name, loss in zip(names, losses, strict=True)}
    arrays = model_of(sizes, sizes.vocabulary), batch_of((sizes.batch, sizes.length), sizes.vocabulary)
    return Program(f"`vmap` over sequences, as in equinox; {sizes.vocabulary:,} words", steps, arrays)


def step_of(loss, model, batch):
    return *jax.value_and_grad(loss)(model, batch), {}


# The third program: a tied embedding, a z-loss, a soft cap, and micro-batches in a scan, on a mesh of 2 x 4 devices in Auto mode.


def mesh_program(sizes: Sizes) -> Program:
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    specs = Model(P("tensor", "fsdp"), P(None, "fsdp", "tensor"), P(None, "fsdp", "tensor"))
    shardings = Model(*(NamedSharding(mesh, spec) for spec in specs))

    def before(hidden, classifier, batch: Batch):
        logits = cap(hidden @ classifier)
        log_z = jax.nn.logsumexp(logits, -1)
        one_hot = jax.nn.one_hot(batch.labels, classifier.shape[-1])
        losses = log_z - jnp.sum(one_hot * logits, -1) + Z_LOSS * log_z**2
        return LossSum(jnp.sum(losses * batch.mask), jnp.sum(batch.mask, dtype=jnp.float32))

    def after(make_logits, hidden, classifier, batch: Batch):
        return jaxce.softmax_cross_entropy_sum(
            make_logits(hidden, classifier), batch.labels, mask=batch.mask, z_loss=Z_LOSS
        )

    def step(loss, model, batches):
        def total(model, batch):
            hidden = jax.vmap(functools.partial(model.hidden, heads=sizes.heads))(batch.tokens)
            found = loss(hidden, model.embedding.T, batch)
            return found.total, found

        def add(carry, batch):
            (_, found), gradients = jax.value_and_grad(total, has_aux=True)(model, batch)
            return (carry[0] + found, jax.tree.map(jnp.add, carry[1], gradients)), None

        start = LossSum.zero(), jax.tree.map(jnp.zeros_like, model)
        (found, gradients), _ = jax.lax.scan(add, start, batches)
        gradients = jax.tree.map(lambda g: g / found.weight, gradients)
        return found.mean(), jax.lax.with_sharding_constraint(gradients, shardings), {}

    split = jaxce.Split(tokens=P("fsdp"), classes="tensor", features="fsdp", mesh=mesh)
    losses = {
        BEFORE: before,
        DENSE: functools.partial(after, lambda hidden, classifier: cap(hidden @ classifier)),
        LAZY: functools.partial(after, functools.partial(LinearLogits, soft_cap=SOFT_CAP)),
        f"{LAZY} with `split`": functools.partial(
            after, functools.partial(LinearLogits, soft_cap=SOFT_CAP, split=split)
        ),
    }
    batches = batch_of((MICRO_BATCHES, sizes.batch, sizes.length), sizes.mesh_vocabulary)
    arrays = (
        jax.device_put(model_of(sizes, sizes.mesh_vocabulary), shardings),
        jax.device_put(batches, NamedSharding(mesh, P(None, "fsdp"))),
    )
    title = f"mesh 2 x 4, micro-batches, z-loss, soft cap; {sizes.mesh_vocabulary:,} words"
    return Program(title, {name: functools.partial(step, loss) for name, loss in losses.items()}, arrays)
