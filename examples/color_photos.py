"""Predicts the colour of every pixel of scikit-learn's two photos (no download) from the grey values: segmentation, classes on axis 1.

python examples/color_photos.py

Each photo has its own palette, which k-means finds. The classes are the colours of the palettes. The example uses three options of
`jaxce.softmax_cross_entropy_with_integer_labels`:

    axis=1   logits are [photos, classes, height, width], labels are [photos, height, width]
    where    [photos, classes, 1, 1]: the classes of a photo's pixels are the colours of its own palette
    mask     [photos, height, width]: the pixels that count. A held-out strip and the borders between two colours do not count
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pictures
import progress
from jax import lax
from matplotlib import pyplot as plt
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images

import jaxce

PALETTES = (6, 4)  # colours of each photo
SCALE, STRIP, VOID, SEED, LEARNING_RATE, STEPS, SHORT_STEPS = 4, (0.6, 0.75), 255, 0, 1e-2, 200, 20
WIDTH, DILATIONS = 24, (1, 2, 4, 8)  # the channels and the dilations of the convolutions


def photos() -> np.ndarray:
    """Return the photos, `[photos, height, width, 3]` from 0 to 1, downsampled by averaging."""
    images = np.stack(load_sample_images().images)
    n, height, width, _ = images.shape
    images = images[:, : height // SCALE * SCALE, : width // SCALE * SCALE]
    blocks = images.reshape(n, height // SCALE, SCALE, width // SCALE, SCALE, 3)
    return blocks.mean((2, 4)).astype(np.float32) / 255


def segmented(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the colours `[classes, 3]`, which photo has which colours `[photos, classes]`, and the labels `[photos, height, width]`."""
    palettes, labels = [], []
    for image, colors, first in zip(images, PALETTES, np.cumsum([0, *PALETTES]), strict=False):
        centers = KMeans(colors, random_state=SEED).fit(image.reshape(-1, 3)).cluster_centers_
        palettes.append(centers)
        labels.append(first + np.square(image[:, :, None] - centers).sum(-1).argmin(-1))
    own = np.repeat(np.arange(len(images)), PALETTES) == np.arange(len(images))[:, None]
    return np.concatenate(palettes), own, np.stack(labels).astype(np.int32)


def on_border(labels: np.ndarray) -> np.ndarray:
    """Return the pixels whose neighbour below or to the right has another class."""
    padded = np.pad(labels, ((0, 0), (0, 1), (0, 1)), mode="edge")
    return (padded[:, 1:, :-1] != labels) | (padded[:, :-1, 1:] != labels)


def initial_params(classes: int):
    """Return the kernels `[out, in, 3, 3]` and the biases of the convolutions."""
    channels = [3, *[WIDTH] * len(DILATIONS), classes]
    keys = jax.random.split(jax.random.key(SEED), len(channels))
    initialize = jax.nn.initializers.he_normal(in_axis=1, out_axis=0)
    pairs = zip(keys[1:], channels[:-1], channels[1:], strict=True)
    return [(initialize(key, (n_out, n_in, 3, 3)), jnp.zeros((n_out, 1, 1))) for key, n_in, n_out in pairs]


def logits_of(params, grey):
    """Return logits `[photos, classes, height, width]` of grey values `[photos, height, width]` and their positions."""
    _, height, width = grey.shape
    places = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
    x = jnp.stack([4 * grey - 2, *(jnp.broadcast_to(place, grey.shape) for place in places)], 1)
    for (kernel, bias), dilation in zip(params, (*DILATIONS, 1), strict=True):
        x = jax.nn.relu(x) if x.shape[1] == WIDTH else x
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", rhs_dilation=(dilation, dilation)) + bias
    return x


def train(grey, labels, where, steps):
    """Return the parameters, and the loss of each step."""
    mask = labels != VOID
    params = initial_params(where.shape[1])
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    @jax.jit
    def step(params, state):
        def loss(params):
            losses = jaxce.softmax_cross_entropy_with_integer_labels(
                logits_of(params, grey), labels, axis=1, where=where, mask=mask
            )
            return jaxce.LossSum.of(losses, mask=mask).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in (bar := progress.bar(range(steps), unit="step")):
        params, state, value = step(params, state)
        losses.append(float(value))
        bar.set_postfix(loss=f"{value:.4f}")
    return params, losses


def draw(grey, palette, labels, classes, strip, accuracies):
    pictures.set_style()
    plt.rcParams["axes.grid"] = False
    titles = "grey values, the input", "colours, the labels", "predicted; the strip was held out"
    figure, axes = plt.subplots(2, 3, figsize=(12, 5.6), layout="constrained")
    for row, *shown, accuracy in zip(axes, grey, palette[labels], palette[classes], accuracies, strict=True):
        row[2].set_xlabel(f"{accuracy:.0%} of the held-out pixels right")
        for panel, image in zip(row, shown, strict=True):
            panel.imshow(image, cmap="gray")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        for panel in row[1:]:
            panel.vlines([edge - 0.5 for edge in strip], -0.5, len(grey[0]) - 0.5, color="white", linewidth=1)
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title)
    return pictures.save(figure, "color_photos")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help=f"{SHORT_STEPS} steps")
    options = parser.parse_args()
    started = time.perf_counter()
    grey = (images := photos()).mean(-1)
    palette, own, labels = segmented(images)
    strip = slice(*(int(part * labels.shape[2]) for part in STRIP))
    print(f"A convolutional network colours two grey photos of {labels[0].shape} pixels with {sum(PALETTES)} colours.")
    print(f"It is trained without the colours of the columns {strip.start} to {strip.stop}, and tested there.")
    seen = np.where(on_border(labels), VOID, labels)
    seen[:, :, strip] = VOID
    params, losses = train(grey, seen, own[:, :, None, None], SHORT_STEPS if options.short else STEPS)
    logits = jax.jit(logits_of)(params, grey)
    classes = np.asarray(jnp.where(own[:, :, None, None], logits, -jnp.inf).argmax(1))
    right = (classes == labels)[:, :, strip].mean((1, 2))
    most_common = [np.bincount(part.ravel()).max() / part.size for part in labels[:, :, strip]]
    print(f"loss: {losses[0]:.4f} -> {losses[-1]:.4f}, over {np.mean(seen != VOID):.0%} of the pixels")
    for name, accuracy, least in zip(("china", "flower"), right, most_common, strict=True):
        print(f"{name}: {accuracy:.1%} of the held-out pixels right; {least:.1%} for its most common colour")
    picture = draw(grey, palette, labels, classes, (strip.start, strip.stop), right)
    print(f"picture: {picture}   wall time: {time.perf_counter() - started:.1f} s")
    if not (losses[-1] < losses[0] and (options.short or np.all(right > most_common))):
        raise SystemExit("the colours were not learnt")


if __name__ == "__main__":
    main()
