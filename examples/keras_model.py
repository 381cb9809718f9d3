"""Trains a Keras 3 model on Keras's JAX backend, with `jaxce.keras` instead of `keras.losses`: handwritten digits, no download.

python examples/keras_model.py

A tenth of the labels is -1, which means unlabelled. The model is compiled and trained twice from one seed, with Keras's loss and with jaxce's loss.
The two curves coincide. Then one label is wrong: 10, with ten classes from 0. Keras's loss of this label is 0, so training would continue; jaxce's
loss is NaN.
"""

import argparse
import os
import time

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
import pictures
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxce.keras

NUM_CLASSES, UNLABELLED, EPOCHS, SHORT_EPOCHS, BATCH_SIZE, SEED = 10, -1, 12, 2, 64, 0
REQUIRED_ACCURACY, CURVES_RTOL = 0.95, 1e-4

FIT: dict = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0}
OPTIONS = {"from_logits": True, "ignore_class": UNLABELLED}
LOSSES = {  # the constructors are the same
    "keras": keras.losses.SparseCategoricalCrossentropy(**OPTIONS),
    "jaxce.keras": jaxce.keras.losses.SparseCategoricalCrossentropy(**OPTIONS),
}


def compiled_model(loss) -> keras.Model:
    """Return a model that depends only on its loss."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(NUM_CLASSES),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
    return model


def accuracy(model: keras.Model, images, labels) -> float:
    return float(np.mean(np.argmax(model(images), -1) == labels))


def losses_of_wrong_label() -> dict[str, float]:
    """Return the losses of one image whose label is not a class."""
    logits, label = np.zeros((1, NUM_CLASSES), np.float32), np.array([NUM_CLASSES])
    return {name: float(loss(label, logits)) for name, loss in LOSSES.items()}


def draw(histories: dict[str, np.ndarray], accuracies: dict[str, float]):
    pictures.set_style()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, losses), width, color in zip(histories.items(), (7, 1.5), ("#9ecae1", pictures.OURS), strict=True):
        axes.plot(
            np.arange(1, len(losses) + 1),
            losses,
            label=f"{name}: {accuracies[name]:.1%} of the held-out images right",
            linewidth=width,
            color=color,
        )
    axes.locator_params(axis="x", integer=True)
    axes.set(
        title="SparseCategoricalCrossentropy, compiled into one model",
        xlabel="epoch",
        ylabel="training loss",
        yscale="log",
    )
    axes.legend()
    return pictures.save(figure, "keras_model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help=f"{SHORT_EPOCHS} epochs")
    options = parser.parse_args()
    # Some devices multiply float32 matrices in bfloat16 by default, and the two curves would then differ.
    jax.config.update("jax_default_matmul_precision", "highest")
    started = time.perf_counter()
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    images, held_out_images, labels, held_out_labels = train_test_split(
        images, labels.astype("int32"), test_size=0.2, stratify=labels, random_state=SEED
    )
    unseen = np.random.default_rng(SEED).random(len(labels)) < 0.1
    labels = np.where(unseen, UNLABELLED, labels)
    print("One Keras model learns handwritten digits twice: with the loss of keras, and with the loss of jaxce.keras.")
    print(f"{len(labels)} images, {unseen.sum()} of them without a label; {len(held_out_labels)} held-out images")
    histories, accuracies = {}, {}
    for name, loss in LOSSES.items():
        model = compiled_model(loss)
        epochs = SHORT_EPOCHS if options.short else EPOCHS
        history = model.fit(images, labels, epochs=epochs, **FIT)
        histories[name] = np.asarray(history.history["loss"])
        accuracies[name] = accuracy(model, held_out_images, held_out_labels)
        print(
            f"{name:>12}: loss {histories[name][0]:.4f} -> {histories[name][-1]:.4f}, accuracy {accuracies[name]:.2%}"
        )
    apart = np.max(np.abs(histories["jaxce.keras"] / histories["keras"] - 1))
    print(f"the two curves are {apart:.1e} apart; allowed {CURVES_RTOL:.0e}")
    for name, value in losses_of_wrong_label().items():
        print(f"{name:>12}: the loss of an image labelled {NUM_CLASSES} among {NUM_CLASSES} classes is {value}")
    print(f"picture: {draw(histories, accuracies)}   wall time: {time.perf_counter() - started:.1f} s")
    if not apart <= CURVES_RTOL:
        raise SystemExit("the two curves disagree")
    if not options.short and accuracies["jaxce.keras"] < REQUIRED_ACCURACY:
        raise SystemExit(f"held-out accuracy is below {REQUIRED_ACCURACY:.0%}")


if __name__ == "__main__":
    main()
