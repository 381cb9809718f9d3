"""The training loop of a PyTorch user in JAX. Comments show the old lines.

python examples/start/pytorch_users.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxce

STEPS, BATCH = 500, 64


def model(params, images):  # def forward(self, images):
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def mean_loss(params, images, labels):
    # F.cross_entropy(model(images), labels, weight=weight, ignore_index=-100)
    loss_sum = jaxce.softmax_cross_entropy_sum(
        model(params, images), labels, mask=labels != -100, weights=weight[labels]
    )
    return loss_sum.mean()  # reduction="mean"; loss_sum.total is reduction="sum"


@jax.jit  # torch.compile
def step(params, state, images, labels):
    loss, gradient = jax.value_and_grad(mean_loss)(params, images, labels)  # backward()
    updates, state = optimizer.update(gradient, state)  # optimizer.step()
    return optax.apply_updates(params, updates), state, loss  # no zero_grad()


images, labels = load_digits(return_X_y=True)  # 1,797 images of 8 x 8 pixels
images, labels = jnp.asarray(images / 16), jnp.asarray(labels)  # torch.tensor
rng = np.random.default_rng(0)
test, train = np.split(rng.permutation(len(images)), [360])  # 360 test images
weight = len(labels) / jnp.bincount(labels)  # the images of rare digits count more
labels = labels.at[train[:100]].set(-100)  # labels[train[:100]] = -100
key1, key2 = jax.random.split(jax.random.key(0))  # torch.manual_seed(0)
normal = jax.nn.initializers.he_normal()
params = {"w1": normal(key1, (64, 128)), "b1": jnp.zeros(128)}  # nn.Linear(64, 128)
params |= {"w2": normal(key2, (128, 10)), "b2": jnp.zeros(10)}  # nn.Linear(128, 10)
optimizer = optax.adam(3e-3)  # torch.optim.Adam(model.parameters(), lr=3e-3)
state = optimizer.init(params)
for i in range(1, STEPS + 1):
    batch = rng.choice(train, BATCH, replace=False)  # for images, labels in loader:
    params, state, loss = step(params, state, images[batch], labels[batch])
    if i % 100 == 0:
        print(f"step {i}: loss {loss:.4f}")

logits = model(params, images[test])  # no model.eval(), no torch.no_grad()
# F.cross_entropy(logits, labels[test], reduction="none")
losses = jaxce.softmax_cross_entropy_with_integer_labels(logits, labels[test])
accuracy = jnp.mean(logits.argmax(-1) == labels[test])
print(f"accuracy on {len(test)} test images: {accuracy:.1%}, loss {losses.mean():.4f}")
