"""Trains a small convolutional network on scikit-learn's handwritten digits (1,797 images, no download) and draws its loss curve.

python examples/train_classifier.py                 # `jaxce`: integer labels
python examples/train_classifier.py --loss keras    # `jaxce.keras`: one-hot labels; the same curve, up to rounding
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import progress
from flax import nnx
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxce
import jaxce.keras

NUM_CLASSES, LABEL_SMOOTHING, BATCH_SIZE, LEARNING_RATE, SEED = 10, 0.1, 128, 3e-3, 0
REQUIRED_ACCURACY = 0.97
LOOK_EVERY = 20  # steps between two evaluations on the held-out images
SHORT_STEPS, FACES_RTOL = 20, 1e-5

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def jax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the loss of each image by `jaxce`."""
    return jaxce.softmax_cross_entropy_with_integer_labels(logits, labels, label_smoothing=LABEL_SMOOTHING)


def keras_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the loss of each image by `jaxce.keras`."""
    onehot = jax.nn.one_hot(labels, NUM_CLASSES)
    options = {"from_logits": True, "label_smoothing": LABEL_SMOOTHING}
    return jaxce.keras.losses.categorical_crossentropy(onehot, logits, **options)


LOSSES: dict[str, Loss] = {"jax": jax_loss, "keras": keras_loss}


class Network(nnx.Module):
    """Two convolutions and a linear layer. Maps images `[batch, 8, 8, 1]` to logits `[batch, NUM_CLASSES]`."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.linear = nnx.Linear(4 * 4 * 64, NUM_CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        features = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))
        return self.linear(features.reshape(len(images), -1))


def train(loss: Loss, data, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of each step `[steps]`, and rows of (steps done, held-out loss, held-out accuracy)."""
    images, held_out_images, labels, held_out_labels = data
    network = Network(nnx.Rngs(SEED))
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, steps)
    optimizer = nnx.Optimizer(network, optax.adamw(schedule), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer, images, labels):
        value, gradient = nnx.value_and_grad(lambda network: loss(network(images), labels).mean())(network)
        optimizer.update(network, gradient)
        return value

    @nnx.jit
    def look(network):
        logits = network(held_out_images)
        return loss(logits, held_out_labels).mean(), (logits.argmax(axis=-1) == held_out_labels).mean()

    rng = np.random.default_rng(SEED)
    losses, looks = [], []
    for done in (bar := progress.bar(range(1, steps + 1), unit="step")):
        batch = rng.choice(len(images), BATCH_SIZE, replace=False)
        losses.append(step(network, optimizer, images[batch], labels[batch]))
        if done % LOOK_EVERY == 0 or done == steps:
            looks.append((done, *map(float, look(network))))
            bar.set_postfix(loss=f"{losses[-1]:.4f}", held_out_accuracy=f"{looks[-1][2]:.2%}")
    return np.asarray(jnp.stack(losses)), np.asarray(looks)


def draw(losses: np.ndarray, looks: np.ndarray, path: Path) -> None:
    """Draw the training and held-out losses, the least loss that smoothed labels allow, and the accuracy on the held-out images."""
    smoothed = (1 - LABEL_SMOOTHING) * np.eye(NUM_CLASSES)[0] + LABEL_SMOOTHING / NUM_CLASSES
    least = -np.sum(smoothed * np.log(smoothed))
    steps, held_out_losses, accuracies = looks.T

    plt.switch_backend("agg")
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    plt.rcParams.update({"grid.color": "#e6e6e6", "axes.axisbelow": True, "legend.frameon": False})
    held_out = {"color": "#d94801", "linewidth": 1.8, "marker": "o", "markersize": 3.5, "label": "held out"}
    bound = {"color": "#444444", "linewidth": 1.2, "linestyle": "--"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharex=True)
    left.plot(np.arange(1, len(losses) + 1), losses, color="#3182bd", linewidth=1.3, label="training, each batch")
    left.plot(steps, held_out_losses, **held_out)
    left.axhline(least, label=f"least possible, {least:.3f}", **bound)
    left.set(title=f"Cross-entropy, label smoothing {LABEL_SMOOTHING}", xlabel="step", ylabel="nats per image")
    left.legend()
    right.plot(steps, 100 * accuracies, **held_out)
    right.axhline(100 * REQUIRED_ACCURACY, label=f"required, {REQUIRED_ACCURACY:.0%}", **bound)
    right.set(title=f"Accuracy, {accuracies[-1]:.2%} at the end", xlabel="step", ylabel="% of images", ylim=(None, 100))
    right.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=LOSSES, default="jax", help="the interface to use")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--short", action="store_true", help=f"{SHORT_STEPS} steps with each interface; the two must agree"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output" / "train_classifier.png")
    options = parser.parse_args()

    # Some devices multiply float32 matrices in bfloat16 by default, and the two curves would then differ.
    jax.config.update("jax_default_matmul_precision", "highest")
    started = time.perf_counter()
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    data = train_test_split(images, labels.astype(np.int32), test_size=0.2, stratify=labels, random_state=SEED)
    print(f"A convolutional network learns {len(images):,} handwritten digits; a fifth of them is held out.")
    print(f"interface: {options.loss}; label smoothing: {LABEL_SMOOTHING}; device: {jax.devices()[0].device_kind}")

    steps = SHORT_STEPS if options.short else options.steps
    losses, looks = train(LOSSES[options.loss], data, steps)
    draw(losses, looks, options.output)
    accuracy = looks[-1, 2]
    print(f"loss: {losses[0]:.4f} -> {losses[-1]:.4f}   held-out accuracy: {accuracy:.2%} of {len(data[1])} images")
    print(f"curve: {options.output}   wall time: {time.perf_counter() - started:.1f} s")

    if options.short:
        (other,) = set(LOSSES) - {options.loss}
        apart = np.max(np.abs(train(LOSSES[other], data, steps)[0] / losses - 1))
        print(f"the curves of the two interfaces are {apart:.1e} apart; allowed {FACES_RTOL:.0e}")
        if apart > FACES_RTOL:
            raise SystemExit("the two interfaces disagree")
    elif accuracy < REQUIRED_ACCURACY:
        raise SystemExit(f"held-out accuracy is below {REQUIRED_ACCURACY:.0%}")


if __name__ == "__main__":
    main()
