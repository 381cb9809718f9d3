"""Bugs that other libraries shipped, written into this library. For each bug, some test must fail."""

from typing import NamedTuple


class Bug(NamedTuple):
    """Code that occurs once in a module of the package, and the wrong code that replaces it."""

    name: str
    module: str
    right: str
    wrong: str


SHIPPED = [
    Bug("a label of -1 is a class", "_core/definition", "(labels >= 0) & (labels", "(labels >= -1) & (labels"),
    Bug(
        "a label beyond the last class is a class",
        "_core/definition",
        "(labels < num_classes)",
        "(labels <= num_classes)",
    ),
    Bug("a label that is no class costs 0", "_logit_stats", "defined &= self.label_mass != 0", "pass"),
    Bug(
        "a label of -1 is the last class",
        "_core/labels",
        "    labels = wide_indices(labels)\n",
        "    labels = wide_indices(labels) % jnp.asarray(num_classes, wide_indices(labels).dtype)\n",
    ),
    Bug(
        "p - 1 is a difference",
        "_core/definition",
        "jnp.where(-nll > -0.5, jnp.expm1(-nll), jnp.exp(-nll) - 1)",
        "jnp.exp(-nll) - 1",
    ),
    Bug(
        "log_z - z_y is a difference",
        "_core/definition",
        "rest = jnp.sum(jnp.where(is_top, 0.0, jnp.exp(gap)), axis) + jnp.where(m == -jnp.inf, 0.0, num_tops - 1)",
        "rest = jnp.sum(jnp.exp(gap), axis) - 1",
    ),
    Bug(
        "0 * inf at a class left out",
        "_core/definition",
        "jnp.where(weights == 0, 0.0, weights * gap)",
        "weights * gap",
    ),
    Bug(
        "a z-loss without a gradient",
        "_cross_entropy",
        "jnp.square(stats.log_z)",
        "jnp.square(jax.lax.stop_gradient(stats.log_z))",
    ),
    Bug(
        "classes of two blocks counted twice",
        "_core/merge",
        "num_classes=total(parts.num_classes)",
        "num_classes=2 * total(parts.num_classes)",
    ),
    Bug(
        "a mean of means", "_loss_sum", "jnp.where(none, 0, self.total) / jnp.where(none, 1, self.weight)", "self.total"
    ),
    Bug("labels that broadcast", "_checks/__init__", "if value.shape != rows:", "if value.size != math.prod(rows):"),
    Bug("a masked row that spreads", "_core/__init__", "z = jnp.where(per_row(mask, axis), z, 0)", "pass"),
    Bug(
        "a divergence is a difference of logarithms",
        "_core/divergence",
        "jnp.where(near_zero.is_near(x), q * near_zero.expm1_minus_x(x), p - q - q * x)",
        "p - q - q * x",
    ),
    Bug(
        "the gradient of a divergence is a difference of probabilities",
        "_core/divergence",
        "jnp.where(near_zero.is_near(x), of_q * near_zero.expm1(x), of_p - of_q)",
        "of_p - of_q",
    ),
    Bug(
        "0 * inf at a class that the target leaves out",
        "_core/divergence",
        "x = jnp.where(rows.target == -jnp.inf, _FAR, x)",
        "x = jnp.where(rows.target == -jnp.inf, jnp.inf, x)",
    ),
    Bug(
        "a masked row of a divergence that spreads",
        "_core/pairs",
        "jnp.where(per_row(mask, axis), z, 0) for z in (target, logits)",
        "z for z in (target, logits)",
    ),
    Bug(
        "0 * inf at a label of probability 0",
        "_core/top_labels",
        "jnp.where(q == 0, 0.0, q * gap)",
        "q * gap",
    ),
    Bug(
        "the mass that a teacher leaves out is the likeliest class",
        "_core/top_labels",
        "label_mass * jnp.log1p(stats.sum_exp_rest) + of_gaps",
        "jnp.log1p(stats.sum_exp_rest) + of_gaps",
    ),
    Bug(
        "a label of -1 with a probability is ignored",
        "_checks/top_labels",
        "is_valid = (indices >= 0) & (indices < num_classes) | (probabilities == 0)",
        "is_valid = indices < num_classes",
    ),
]
