"""The standard library's own sources as rows of word ids: real text that is on every machine with Python, for `language_model.py`."""

import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

OUTPUT = Path(__file__).parent / "output"
UNKNOWN, IGNORED = 0, -100
WORD = re.compile(r"\n *|\w+|[^\w\s]")  # the end of a line with the indentation of the next, a name or number, a sign


def index(texts: list[str], least_count: int) -> tuple[list[str], list[np.ndarray]]:
    """The vocabulary, by falling frequency after the word `UNKNOWN`, which stands for all words of a lower count; the ids of each text."""
    counts = Counter(word for text in texts for word in WORD.findall(text))
    vocabulary = ["<unknown>", *(word for word, count in counts.most_common() if count >= least_count)]
    ids = {word: place for place, word in enumerate(vocabulary)}
    words = (WORD.findall(text) for text in tqdm(texts, "corpus", unit="file"))
    return vocabulary, [np.array([ids.get(word, UNKNOWN) for word in text], np.int32) for text in words]


def rows_of(texts: list[np.ndarray], sequence: int) -> np.ndarray:
    """`[rows, sequence + 1]`: the texts in pieces, each with the first id of the next one; after the end of a text, `IGNORED`."""
    rows = []
    for ids in texts:
        padded = np.pad(ids, (0, -(len(ids) - 1) % sequence), constant_values=IGNORED)
        rows += [padded[start : start + sequence + 1] for start in range(0, len(ids) - 1, sequence)]
    return np.stack(rows)


def standard_library(least_count: int, sequence: int, files: int | None) -> np.ndarray:
    """The rows of its first `files` files, or of all; kept for the next time."""
    version = ".".join(map(str, sys.version_info[:3]))
    path = OUTPUT / f"standard-library-{version}-{files or 'all'}-files-{least_count}-{sequence}.npy"
    if not path.exists():
        sources = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
        sources = [source for source in sources if not {"site-packages", "dist-packages"}.intersection(source.parts)]
        _, texts = index([source.read_text("utf-8", "replace") for source in sources[:files]], least_count)
        OUTPUT.mkdir(parents=True, exist_ok=True)
        # Under another name until it is whole: a run that is stopped leaves nothing that the next one would take for it.
        unfinished = path.with_suffix(".unfinished.npy")
        np.save(unfinished, rows_of(texts, sequence))
        unfinished.replace(path)
    return np.load(path)


def count_words(rows: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """The labels that count."""
    return np.count_nonzero(rows[..., 1:] != IGNORED, axis=axis)


def unequal_batches(rows: np.ndarray, batches: int, size: int, seed: int) -> np.ndarray:
    """`[batches, size, sequence + 1]`: ends of texts, sorted by length, as loaders do to pad less."""
    words = count_words(rows, -1)
    some = np.random.default_rng(seed).choice(np.flatnonzero(words < words.max()), batches * size)
    return rows[some[np.argsort(words[some])]].reshape(batches, size, -1)
