"""The sources of the standard library as rows of word ids. Every machine with Python has this real text."""

import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import progress

OUTPUT = Path(__file__).parent / "output"
UNKNOWN, IGNORED = 0, -100
WORD = re.compile(r"\n *|\w+|[^\w\s]")  # a line end with the next indentation, a name or number, or a sign


def index(texts: list[str], least_count: int) -> tuple[list[str], list[np.ndarray]]:
    """Return the vocabulary and the ids of each text. The word `UNKNOWN`, for all rare words, comes first; the others by falling frequency."""
    counts = Counter(word for text in texts for word in WORD.findall(text))
    vocabulary = ["<unknown>", *(word for word, count in counts.most_common() if count >= least_count)]
    ids = {word: place for place, word in enumerate(vocabulary)}
    words = (WORD.findall(text) for text in progress.bar(texts, "corpus", unit="file"))
    return vocabulary, [np.array([ids.get(word, UNKNOWN) for word in text], np.int32) for text in words]


def rows_of(texts: list[np.ndarray], sequence: int) -> np.ndarray:
    """Return `[rows, sequence + 1]`: pieces of the texts. A row ends with the first id of the next piece; `IGNORED` fills up the last row."""
    rows = []
    for ids in texts:
        padded = np.pad(ids, (0, -(len(ids) - 1) % sequence), constant_values=IGNORED)
        rows += [padded[start : start + sequence + 1] for start in range(0, len(ids) - 1, sequence)]
    return np.stack(rows)


def sources(files: int | None) -> list[str]:
    """Return the first `files` files of the standard library, or all files."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    paths = [path for path in paths if not {"site-packages", "dist-packages"}.intersection(path.parts)]
    return [path.read_text("utf-8", "replace") for path in paths[:files]]


def standard_library_with_words(least_count: int, sequence: int, files: int) -> tuple[np.ndarray, list[str]]:
    """Return the rows of the first `files` files of the standard library, and the vocabulary."""
    vocabulary, texts = index(sources(files), least_count)
    return rows_of(texts, sequence), vocabulary


def standard_library(least_count: int, sequence: int, files: int | None) -> np.ndarray:
    """Return the rows of the first `files` files of the standard library, or of all files. The rows are stored for the next call."""
    version = ".".join(map(str, sys.version_info[:3]))
    path = OUTPUT / f"standard-library-{version}-{files or 'all'}-files-{least_count}-{sequence}.npy"
    if not path.exists():
        _, texts = index(sources(files), least_count)
        OUTPUT.mkdir(parents=True, exist_ok=True)
        # Write to another name first: if this run is stopped, the next run must not read an incomplete file.
        unfinished = path.with_suffix(".unfinished.npy")
        np.save(unfinished, rows_of(texts, sequence))
        unfinished.replace(path)
    return np.load(path)


def count_words(rows: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """Count the labels that are not `IGNORED`."""
    return np.count_nonzero(rows[..., 1:] != IGNORED, axis=axis)


def unequal_batches(rows: np.ndarray, batches: int, size: int, seed: int) -> np.ndarray:
    """Return `[batches, size, sequence + 1]`: the last rows of texts, sorted by length, as data loaders sort them to reduce padding."""
    words = count_words(rows, -1)
    some = np.random.default_rng(seed).choice(np.flatnonzero(words < words.max()), batches * size)
    return rows[some[np.argsort(words[some])]].reshape(batches, size, -1)
