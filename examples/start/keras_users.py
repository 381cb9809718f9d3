"""Trains a Keras 3 model on handwritten digits, with the JAX backend and jaxce.

python examples/start/keras_users.py
"""

import os

os.environ["KERAS_BACKEND"] = "jax"  # before the first import of Keras

import keras
import numpy as np
from sklearn.datasets import load_digits

import jaxce.keras

images, labels = load_digits(return_X_y=True)  # 1,797 images of 8 x 8 pixels
images, labels = images.astype(np.float32) / 16, labels.astype(np.int32)
rng = np.random.default_rng(0)
test, train = np.split(rng.permutation(len(images)), [360])  # 360 test images
labels[train[:100]] = -1  # these images have no label

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(10),  # logits: no activation="softmax"
    ]
)
# The only change: jaxce.keras for keras. Names, arguments and defaults are the same.
# A label 10 would give NaN, and not a loss of 0.
losses = jaxce.keras.losses
loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
options: dict = {"batch_size": 64, "verbose": 0}
history = model.fit(images[train], labels[train], epochs=20, **options)
for epoch in range(5, 21, 5):
    print(f"epoch {epoch}: training loss {history.history['loss'][epoch - 1]:.4f}")

logits = model.predict(images[test], **options)
accuracy = np.mean(logits.argmax(-1) == labels[test])
print(f"accuracy on {len(test)} test images: {accuracy:.1%}")
