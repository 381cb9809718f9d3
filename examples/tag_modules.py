"""Tags the modules of the standard library (no download) with the modules that they import: many labels at once, most of them rare.

python examples/tag_modules.py

The input of a linear model is the frequency of each word in a file. Import lines and the names of the tags are removed. The model is trained twice
with `jaxce.sigmoid_binary_cross_entropy`: without and with `pos_weight`. Without `pos_weight` the model hardly ever predicts a rare tag.
"""

import argparse
import ast
import re
import sysconfig
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pictures
import progress
from matplotlib import pyplot as plt
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import precision_score, recall_score

import jaxce

TAGS, WORDS, STEPS, SHORT_STEPS, SHORT_FILES, LEARNING_RATE, SEED = 16, 4000, 300, 60, 400, 3e-2, 0


def imported(tree: ast.AST) -> set[str]:
    """Return the top-level modules that a source imports anywhere."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def standard_library(files: int | None) -> tuple[list[str], list[set[str]]]:
    """Return the text of each file without its import lines, and the modules that it imports."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    paths = [path for path in paths if not {"site-packages", "dist-packages"}.intersection(path.parts)]
    # Every n-th file, so that a few files are of all kinds.
    paths = paths[:: max(1, len(paths) // files)] if files else paths
    texts, imports = [], []
    for path in paths:
        text = path.read_text("utf-8", "replace")
        try:
            names = imported(ast.parse(text))
        except (SyntaxError, ValueError):  # the library has test files with deliberate errors
            continue
        texts.append(re.sub(r"^\s*(from\s+\S+\s+)?import\b.*$", "", text, flags=re.MULTILINE))
        imports.append(names)
    return texts, imports


def data(files: int | None):
    """Return training and held-out words `[files, words]`, training and held-out labels `[files, tags]`, and the tags."""
    texts, imports = standard_library(files)
    counts = Counter(name for names in imports for name in names)
    tags = [name for name, _ in counts.most_common(TAGS)]  # by falling frequency
    labels = np.array([[tag in names for tag in tags] for names in imports], np.float32)
    reader = TfidfVectorizer(max_features=WORDS, stop_words=tags, sublinear_tf=True, token_pattern=r"[A-Za-z]{2,}")
    order = np.random.default_rng(SEED).permutation(len(texts))
    train, held_out = np.split(order, [round(0.7 * len(order))])
    seen = csr_array(reader.fit_transform([texts[i] for i in train]), dtype=np.float32)
    unseen = csr_array(reader.transform([texts[i] for i in held_out]), dtype=np.float32)
    return seen.toarray(), unseen.toarray(), labels[train], labels[held_out], tags


def train(words: np.ndarray, labels: np.ndarray, pos_weight, steps: int, name: str):
    """Return the logits of the trained model as a function of words."""
    params = {"weights": jnp.zeros((words.shape[1], labels.shape[1])), "bias": jnp.zeros(labels.shape[1])}
    optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=1e-3)

    def logits(params, words):
        return words @ params["weights"] + params["bias"]

    @jax.jit
    def step(params, state):
        def loss(params):
            return jaxce.sigmoid_binary_cross_entropy(logits(params, words), labels, pos_weight=pos_weight).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for _ in (bar := progress.bar(range(steps), name)):
        params, state, value = step(params, state)
        bar.set_postfix(loss=f"{value:.4f}")
    return lambda words: logits(params, words)


def draw(tags, rates, recalls, precisions):
    pictures.set_style()
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
    rows = np.arange(len(tags))
    for panel, scores, title in zip(axes, (recalls, precisions), ("Recall", "Precision"), strict=True):
        for shift, (name, values), color in zip(
            (0.2, -0.2), scores.items(), (pictures.OTHER, pictures.OURS), strict=True
        ):
            panel.barh(rows - shift, 100 * values, 0.38, label=name, color=color)
        means = ", ".join(f"{name} {values.mean():.0%}" for name, values in scores.items())
        panel.set(title=f"{title}: {means}", xlabel="%, on the held-out files", xlim=(0, 100))
    axes[0].set_yticks(rows, [f"{tag} ({rate:.0%})" for tag, rate in zip(tags, rates, strict=True)])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return pictures.save(figure, "tag_modules")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="some of the files, a few steps")
    options = parser.parse_args()
    started = time.perf_counter()
    words, held_out, labels, held_out_labels, tags = data(SHORT_FILES if options.short else None)
    rates = labels.mean(axis=0)
    print("A linear model guesses the imports of the files of Python's standard library from their words.")
    print(f"{len(words)} files, {len(held_out)} held out; {len(tags)} modules, {labels.sum(1).mean():.1f} per file")
    # For each tag, the files with the tag together have the same weight as the files without it.
    losses = {"plain": None, "pos_weight": (1 - rates) / rates}
    recalls, precisions = {}, {}
    for name, pos_weight in losses.items():
        logits = train(words, labels, pos_weight, SHORT_STEPS if options.short else STEPS, name)
        given = np.asarray(logits(held_out) > 0)
        scores = {"average": None, "zero_division": 0.0}
        recalls[name] = recall_score(held_out_labels, given, **scores)
        precisions[name] = precision_score(held_out_labels, given, **scores)
        f1 = np.mean(2 * recalls[name] * precisions[name] / np.maximum(recalls[name] + precisions[name], 1e-9))
        print(f"{name}: recall {recalls[name].mean():.1%}, precision {precisions[name].mean():.1%}, F1 {f1:.3f}")
    picture = draw(tags, rates, recalls, precisions)
    print(f"picture: {picture}   wall time: {time.perf_counter() - started:.1f} s")
    if not recalls["pos_weight"].mean() > recalls["plain"].mean():
        raise SystemExit("`pos_weight` has not raised the recall")


if __name__ == "__main__":
    main()
