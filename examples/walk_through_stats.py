# %% [markdown]
"""Shows what `LogitStats` computes for each row in one pass over the logits. The file is a script with cells for an editor or notebook.

python examples/walk_through_stats.py

The logits are those of a logistic regression on scikit-learn's handwritten digits (no download). Every number is compared with scipy's
`log_softmax` in float64.
"""

# %% Train the model, and compute the logits of the held-out images.
import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pictures
from matplotlib import pyplot as plt
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import jaxce

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--short", action="store_true", help="a model that is trained less")
options, _ = parser.parse_known_args()  # a notebook has its own arguments

images, digits = load_digits(return_X_y=True)
seen, held_out, seen_digits, held_out_digits = train_test_split(images / 16, digits, test_size=0.5, random_state=0)
model = LogisticRegression(max_iter=10 if options.short else 1000, tol=1e-2 if options.short else 1e-4)
model.fit(seen, seen_digits)
logits = jnp.asarray(model.decision_function(held_out), jnp.float32)
labels = jnp.asarray(held_out_digits, jnp.int32)
exact = log_softmax(np.asarray(logits, np.float64), axis=-1)  # the reference for every number below
of_label = exact[np.arange(len(exact)), held_out_digits]


def show(name: str, found, expected, atol: float = 1e-6) -> None:
    """Print a line of the table. Raise if the numbers differ by more than rounding."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol, err_msg=name)
    print(f"{name:46} {np.mean(found):10.4f}")


# %% One pass over the logits. The result is a few numbers per image, whatever the number of classes.
stats = jax.jit(jaxce.logit_stats)(logits, labels)
print(
    f"logits {logits.shape}; kept:",
    *(f"{name} {x.shape}" for name, x in vars(stats).items() if name != "integer_labels"),
)
print(f"\n{'':46} mean over the images")

# %% The loss; the log-probability of the label; the perplexity.
log_probability = -stats.nll
show("log-probability of the label", log_probability, of_label)
show("perplexity, exp of the mean loss", jnp.exp(stats.nll.mean()), np.exp(-of_label.mean()))

# %% The likeliest class, and its probability: the confidence of the model. Both need no softmax.
show("prediction", stats.prediction, exact.argmax(-1))
show("probability of the likeliest class", stats.confidence, np.exp(exact).max(-1))

# %% Whether the label is a class with the largest logit. The logits are only compared, so rounding cannot change the result.
show("accuracy", stats.correct, exact.argmax(-1) == held_out_digits)

# %% The uniform part of label smoothing, and the logarithm of the partition function, which a z-loss keeps near 0. (They are equal here, because
# the ten logits of this model sum to 0.)
show("loss against the uniform distribution", stats.smooth_nll, -exact.mean(-1))
show("log of the partition function", stats.log_z, np.asarray(logits, np.float64)[:, 0] - exact[:, 0])


# %% The entropy, a sum of terms that are not negative.
show("entropy of the predicted distribution", stats.entropy, -(np.exp(exact) * exact).sum(-1))

# %% The same without storing the logits: for a language model this is the entropy of each token. No labels are needed.
hidden, classifier, bias = (jnp.asarray(x, jnp.float32) for x in (held_out, model.coef_.T, model.intercept_))
lazy = jaxce.logit_stats(jaxce.LinearLogits(hidden, classifier, bias=bias))
show("entropy, from hidden and classifier alone", lazy.entropy, -(np.exp(exact) * exact).sum(-1))
cap = 5.0
capped = log_softmax(cap * np.tanh(np.asarray(logits, np.float64) / cap), axis=-1)
lazy = jaxce.logit_stats(jaxce.LinearLogits(hidden, classifier, bias=bias, soft_cap=cap))
show("  with logits capped at 5", lazy.entropy, -(np.exp(capped) * capped).sum(-1))

# %% Merge statistics of disjoint classes: the digits 0 to 4 and 5 to 9, as on two devices with half of the classes each.
halves = [jaxce.logit_stats(logits[:, 5 * i : 5 * i + 5], labels - 5 * i) for i in (0, 1)]
merged = jaxce.LogitStats.merge(*halves)
show("loss, from two halves of the classes", merged.nll, -of_label)


# %% A new loss is one line over the statistics, and JAX differentiates it. This one is the focal loss, (1 - p)^2 nll.
def focal_losses(logits):
    nll = jaxce.logit_stats(logits, labels).nll
    return jnp.expm1(-nll) ** 2 * nll  # (1 - p)^2 without subtracting p from 1


nll, onehot = -of_label[:, None], np.eye(10)[held_out_digits]
p = np.exp(-nll)
slope = (1 - p) ** 2 + 2 * (1 - p) * p * nll
show("focal loss", focal_losses(logits), ((1 - p) ** 2 * nll)[:, 0])
gradient = jax.grad(lambda z: focal_losses(z).sum())(logits)
show(
    "  its gradient, size of the largest component",
    abs(gradient).max(-1),
    abs(slope * (np.exp(exact) - onehot)).max(-1),
)

# %% Draw the images for which the model is unsure, and the images for which it is sure and wrong.
pictures.set_style()
wrong = ~np.asarray(stats.correct)
figure, axes = plt.subplot_mosaic([["s", "s", 0, 1, 2], ["s", "s", 3, 4, 5]], figsize=(12, 4.6), layout="constrained")
for some, name, color in ((~wrong, "right", pictures.OTHER), (wrong, "wrong", pictures.OURS)):
    label = f"{name}: {some.sum()} images"
    axes["s"].scatter(
        stats.entropy[some], stats.nll[some], s=14, alpha=0.7, color=color, label=label, edgecolors="none"
    )
axes["s"].set(title="Each held-out image, from its LogitStats", xlabel="entropy of the prediction, nats", yscale="log")
axes["s"].set(ylabel="loss, nats")
axes["s"].legend()
for place, image in enumerate(np.argsort(-stats.nll)[:6]):
    panel = axes[place]
    panel.imshow(held_out[image].reshape(8, 8), cmap="gray_r")
    said, sure = int(logits[image].argmax()), float(stats.confidence[image])
    panel.set_title(
        f"a {labels[image]}, said to be a {said}\n({sure:.0%} sure; loss {stats.nll[image]:.1f})", fontsize=9
    )
    panel.set_axis_off()
print(f"picture: {pictures.save(figure, 'walk_through_stats')}")
