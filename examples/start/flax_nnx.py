"""Trains a network of flax NNX on handwritten digits, with optax and jaxce.

python examples/start/flax_nnx.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import jaxce

EPOCHS, BATCH = 20, 64


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.hidden(images)))  # logits, without softmax


def mean_loss(network: Network, images, labels):
    logits = network(images)
    # One loss per image. `label_smoothing=0.1` or `mask=` would go here.
    losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


@nnx.jit
def step(network: Network, optimizer: nnx.Optimizer, images, labels):
    loss, gradient = nnx.value_and_grad(mean_loss)(network, images, labels)
    optimizer.update(network, gradient)
    return loss


images, labels = load_digits(return_X_y=True)  # 1,797 images of 8 x 8 pixels
images, labels = jnp.asarray(images / 16), jnp.asarray(labels)
rng = np.random.default_rng(0)
test, train = np.split(rng.permutation(len(images)), [360])  # 360 test images

network = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(network, optax.adam(3e-3), wrt=nnx.Param)
for epoch in range(1, EPOCHS + 1):
    order, losses = rng.permutation(train), []
    for i in range(0, len(order), BATCH):
        batch = order[i : i + BATCH]
        losses.append(step(network, optimizer, images[batch], labels[batch]))
    if epoch % 5 == 0:
        print(f"epoch {epoch}: training loss {np.mean(losses):.4f}")

accuracy = jnp.mean(network(images[test]).argmax(-1) == labels[test])
print(f"accuracy on {len(test)} test images: {accuracy:.1%}")
