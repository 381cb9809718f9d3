"""Trains a network on handwritten digits with JAX and jaxce alone.

python examples/start/plain_jax.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import jaxce

EPOCHS, BATCH, LEARNING_RATE = 20, 64, 0.5


def logits_of(params, images):
    hidden = jax.nn.relu(images @ params["hidden"] + params["hidden_bias"])
    return hidden @ params["out"] + params["out_bias"]  # logits, without softmax


def mean_loss(params, images, labels):
    # One loss per image. `label_smoothing=0.1` or `mask=` would go here.
    logits = logits_of(params, images)
    losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


@jax.jit
def step(params, images, labels):
    loss, gradient = jax.value_and_grad(mean_loss)(params, images, labels)
    return jax.tree.map(lambda x, g: x - LEARNING_RATE * g, params, gradient), loss


images, labels = load_digits(return_X_y=True)  # 1,797 images of 8 x 8 pixels
images, labels = jnp.asarray(images / 16), jnp.asarray(labels)
rng = np.random.default_rng(0)
test, train = np.split(rng.permutation(len(images)), [360])  # 360 test images

params = {
    "hidden": rng.normal(0, (2 / 64) ** 0.5, (64, 128)).astype(np.float32),
    "hidden_bias": jnp.zeros(128),
    "out": rng.normal(0, (1 / 128) ** 0.5, (128, 10)).astype(np.float32),
    "out_bias": jnp.zeros(10),
}
for epoch in range(1, EPOCHS + 1):
    order, losses = rng.permutation(train), []
    for i in range(0, len(order), BATCH):
        batch = order[i : i + BATCH]
        params, loss = step(params, images[batch], labels[batch])
        losses.append(loss)
    if epoch % 5 == 0:
        print(f"epoch {epoch}: training loss {np.mean(losses):.4f}")

accuracy = jnp.mean(logits_of(params, images[test]).argmax(-1) == labels[test])
print(f"accuracy on {len(test)} test images: {accuracy:.1%}")
