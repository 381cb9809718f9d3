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
]
