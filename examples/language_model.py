"""Trains a small causal language model on the sources of the standard library (no download): a softmax over some 50,000 words.

python examples/language_model.py                   # trains with both losses (or with one: --loss); the curves must agree
python examples/language_model.py --preset gpu      # 12 layers of 768 features in bfloat16, enough work for one accelerator
python examples/language_model.py --mesh 2x4        # on 8 devices, virtual ones on a CPU: parameters fully sharded over 2, vocabulary split over 4
"""

import argparse
import resource
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import progress
from corpus import IGNORED, OUTPUT, UNKNOWN, count_words, standard_library, unequal_batches
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from matplotlib import pyplot as plt
from transformer import LanguageModel

import jaxce

SIZES = ("layers", "features", "heads", "sequence", "batch", "steps", "learning_rate", "least_count", "files", "dtype")
PRESETS = {
    "short": (1, 64, 2, 64, 8, 8, 1e-2, 2, 100, "float32"),
    "cpu": (4, 64, 4, 128, 8, 16, 1e-2, 3, None, "float32"),
    "gpu": (12, 768, 12, 1024, 16, 500, 6e-4, 2, None, "bfloat16"),
}
LOSSES = (
    "linear",
    "dense",
)  # the one that needs less memory first, because the peak memory of a process never decreases
SEED, MICRO_BATCHES, MICRO_ROWS, GRADIENT_RTOL, CURVES_RTOL = 0, 3, 4, 1e-6, {"float32": 1e-4, "bfloat16": 5e-2}


def loss_of_rows(name: str, graph, params, rows) -> jaxce.LossSum:
    """Return the sum of the losses of the words that count, and their number. "linear" never stores all logits; "dense" does."""
    hidden, classifier = nnx.merge(graph, params)(jnp.maximum(rows[:, :-1], UNKNOWN))
    labels, mask = rows[:, 1:], rows[:, 1:] != IGNORED
    if name == "linear":
        return jaxce.linear_softmax_cross_entropy_sum(hidden, classifier, labels, mask=mask)
    losses = jaxce.softmax_cross_entropy_with_integer_labels(hidden @ classifier, labels, mask=mask)
    return jaxce.LossSum.of(losses, mask=mask)


def mean_and_gradient(loss, params, micro_batches):
    """Return the mean loss over all words of `[micro_batches, rows, sequence + 1]` and its gradient, one micro-batch at a time."""

    def total(params, rows):
        loss_sum = loss(params, rows)
        return loss_sum.total, loss_sum

    def add(carry, rows):
        sums, gradients = carry
        (_, loss_sum), gradient = jax.value_and_grad(total, has_aux=True)(params, rows)
        return (sums + loss_sum, jax.tree.map(jnp.add, gradients, gradient)), None

    start = jaxce.LossSum.zero(), jax.tree.map(jnp.zeros_like, params)
    (loss_sum, gradient), _ = jax.lax.scan(add, start, micro_batches)
    # Totals and weights can be added, means cannot. So the division comes after the last micro-batch.
    return loss_sum.mean(), jax.tree.map(lambda g: jnp.where(loss_sum.weight == 0, 0, g / loss_sum.weight), gradient)


@partial(jax.jit, static_argnums=0)
def gradient_errors(loss, params, micro_batches):
    """Return the errors of the gradients by `LossSum` and by `optax.MultiSteps`, relative to the gradient of all micro-batches as one batch."""
    gradient_of_mean = jax.grad(lambda params, rows: loss(params, rows).mean())
    whole = gradient_of_mean(params, jnp.concatenate(micro_batches))
    _, of_sums = mean_and_gradient(loss, params, micro_batches)
    multi_steps = optax.MultiSteps(optax.identity(), len(micro_batches))
    of_means, state = params, multi_steps.init(params)
    for rows in micro_batches:
        of_means, state = multi_steps.update(gradient_of_mean(params, rows), state, params)
    differences = [jax.tree.map(jnp.subtract, gradient, whole) for gradient in (of_sums, of_means)]
    return [optax.tree.norm(difference) / optax.tree.norm(whole) for difference in differences]


def show_gradient_errors(rows: np.ndarray, sizes: argparse.Namespace) -> None:
    micro_batches = unequal_batches(rows, MICRO_BATCHES, MICRO_ROWS, SEED)
    small = argparse.Namespace(**vars(sizes) | {"layers": 1, "features": 64, "heads": 2, "dtype": "float32"})
    graph, params = nnx.split(LanguageModel(int(rows.max()) + 1, small, nnx.Rngs(SEED)))  # bfloat16 rounds more
    of_sums, of_means = gradient_errors(partial(loss_of_rows, "linear", graph), params, micro_batches)
    print(f"gradient of micro-batches of {count_words(micro_batches, (1, 2))} words, relative to that of all at once:")
    print(f"  through jaxce.LossSum {of_sums:.1e} off, means through optax.MultiSteps {of_means:.1e} off")
    if not of_sums <= GRADIENT_RTOL:
        raise SystemExit(f"the gradient through jaxce.LossSum is more than {GRADIENT_RTOL:.0e} off")


def make_mesh(shape: str | None) -> Mesh | None:
    """Return a mesh with the axes "data" and "model" in Auto mode, where the compiler decides how arrays are split."""
    if shape is None:
        return None
    data, model = map(int, shape.split("x"))
    jax.config.update("jax_num_cpu_devices", data * model)
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def place(params, mesh: Mesh):
    """Split the rows of the tied embedding, which are words, over "model", and an axis of every parameter over "data"."""

    def put(path, x):
        if "['embedding']['embedding']" in jax.tree_util.keystr(path):
            spec = P("model", "data")
        else:
            even = [i for i, n in enumerate(x.shape) if n % mesh.shape["data"] == 0]
            spec = P(*[None] * even[0], "data") if even else P()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map_with_path(put, params)


def train(name: str, rows: np.ndarray, sizes: argparse.Namespace, mesh: Mesh | None) -> tuple[np.ndarray, int]:
    """Return the loss of each step, and the memory of a step on one device, in bytes."""
    parts = mesh.shape["model"] if mesh else 1
    vocabulary = -(-(int(rows.max()) + 1) // parts) * parts  # with words that never occur, for equal parts
    graph, params = nnx.split(LanguageModel(vocabulary, sizes, nnx.Rngs(SEED)))
    params = params if mesh is None else place(params, mesh)
    schedule = optax.warmup_cosine_decay_schedule(0.0, sizes.learning_rate, 1 + sizes.steps // 20, sizes.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    def step(params, opt_state, micro_batches):
        value, gradient = mean_and_gradient(partial(loss_of_rows, name, graph), params, micro_batches)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    def put(micro_batches):
        return micro_batches if mesh is None else jax.device_put(micro_batches, NamedSharding(mesh, P(None, "data")))

    opt_state = optimizer.init(params)
    batches = np.random.default_rng(SEED).integers(len(rows), size=(sizes.steps, 1, sizes.batch))
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, opt_state, put(rows[batches[0]])).compile()
    losses, times = [], []
    for batch in (bar := progress.bar(batches, name, unit="step")):
        params, opt_state, value = compiled(params, opt_state, put(rows[batch]))
        losses.append(float(value))
        times.append(time.perf_counter())
        bar.set_postfix(loss=f"{losses[-1]:.4f}")
    speed = count_words(rows[batches[1:]]) / (times[-1] - times[0])
    use = compiled.memory_analysis()  # a donated array is both argument and output, and is counted once as an alias
    assert use is not None
    held = use.argument_size_in_bytes + use.output_size_in_bytes - use.alias_size_in_bytes + use.temp_size_in_bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, {speed:,.0f} tokens/s")
    where = "" if mesh is None else " on each device"
    print(
        f"  memory: a step {held / 2**20:,.0f} MiB{where} by the compiler, the process {peak / 2**20:,.0f} MiB so far"
    )
    return np.asarray(losses), held


def draw(curves: dict[str, np.ndarray]) -> None:
    plt.switch_backend("agg")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.locator_params(axis="x", integer=True)
    for (name, losses), width, color in zip(curves.items(), (7, 1.5), ("#9ecae1", "#d94801"), strict=False):
        axes.plot(np.arange(1, len(losses) + 1), losses, label=name, linewidth=width, color=color)
    axes.set(title="Cross-entropy of the next word", xlabel="step", ylabel="nats")
    axes.legend(frameon=False)
    figure.savefig(OUTPUT / "language_model.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=[*LOSSES, "both"], default="both", help="the loss to train with")
    parser.add_argument("--preset", choices=["cpu", "gpu"], default="cpu", help="the sizes of model and training")
    parser.add_argument("--short", action="store_true", help="a few steps of a smaller model on fewer words")
    parser.add_argument(
        "--mesh", help="the shape of a mesh, as in 2x4: fully sharded data parallelism x tensor parallelism"
    )
    options = parser.parse_args()
    mesh = make_mesh(options.mesh)
    # Some devices multiply float32 matrices in bfloat16 by default, and the two curves would then differ.
    jax.config.update("jax_default_matmul_precision", "highest")
    started = time.perf_counter()
    sizes = argparse.Namespace(**dict(zip(SIZES, PRESETS["short" if options.short else options.preset], strict=True)))
    rows = standard_library(sizes.least_count, sizes.sequence, sizes.files)
    print("A small transformer learns to predict the words of Python's standard library, twice:")
    print("with lazy logits, which are never stored whole (linear), and with an array of all logits (dense).")
    print(f"{count_words(rows):,} words, {rows.max() + 1:,} different ones; device: {jax.devices()[0].device_kind}")
    trained = {name: train(name, rows, sizes, mesh) for name in LOSSES if options.loss in (name, "both")}
    curves = {name: losses for name, (losses, _) in trained.items()}
    draw(curves)
    if options.loss == "both":
        apart, allowed = np.max(np.abs(curves["linear"] / curves["dense"] - 1)), CURVES_RTOL[sizes.dtype]
        print(f"the two curves are {apart:.1e} apart; allowed {allowed:.0e}")
        if not apart <= allowed:
            raise SystemExit("the two curves disagree")
        saved = trained["dense"][1] - trained["linear"][1]
        print(f"lazy logits save {saved / 2**20:,.0f} MiB" + (" on each device" if mesh else ""))
    show_gradient_errors(rows, sizes)
    print(f"picture: {OUTPUT / 'language_model.png'}   wall time: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
