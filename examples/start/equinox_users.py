"""Trains an equinox model on handwritten digits, with optax and jaxce.

python examples/start/equinox_users.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxce

EPOCHS, BATCH = 20, 64


@eqx.filter_value_and_grad
def mean_loss(model: eqx.nn.MLP, images, labels):
    logits = jax.vmap(model)(images)  # an equinox model sees one image
    # jaxce sees the whole batch: no `vmap` is needed. One loss per image.
    losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


@eqx.filter_jit
def step(model: eqx.nn.MLP, state, images, labels):
    loss, gradient = mean_loss(model, images, labels)
    updates, state = optimizer.update(gradient, state)
    return eqx.apply_updates(model, updates), state, loss


images, labels = load_digits(return_X_y=True)  # 1,797 images of 8 x 8 pixels
images, labels = jnp.asarray(images / 16), jnp.asarray(labels)
rng = np.random.default_rng(0)
test, train = np.split(rng.permutation(len(images)), [360])  # 360 test images

model = eqx.nn.MLP(64, 10, width_size=128, depth=1, key=jax.random.key(0))
optimizer = optax.adam(3e-3)
state = optimizer.init(eqx.filter(model, eqx.is_array))
for epoch in range(1, EPOCHS + 1):
    order, losses = rng.permutation(train), []
    for i in range(0, len(order), BATCH):
        batch = order[i : i + BATCH]
        model, state, loss = step(model, state, images[batch], labels[batch])
        losses.append(loss)
    if epoch % 5 == 0:
        print(f"epoch {epoch}: training loss {np.mean(losses):.4f}")

accuracy = jnp.mean(jax.vmap(model)(images[test]).argmax(-1) == labels[test])
print(f"accuracy on {len(test)} test images: {accuracy:.1%}")
