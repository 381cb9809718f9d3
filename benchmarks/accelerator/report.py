"""What a run leaves behind: one CSV, written row by row, and the markdown and plots that are made from it."""

import dataclasses
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import records
from benchmarks.accelerator.in_jax import COPY, MATMULS, OURS
from benchmarks.accelerator.problems import DENSE, FORWARD, GRADIENTS

NUMERICS, TIMING = "numerics", "timing"
OUT_OF_TIME = "out of time"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the CSV: a check of the numerics, or a program that was timed. What does not apply is empty."""

    part: str
    subject: str  # the loss that was checked, or the model
    kind: str
    dtype: str
    shape: str
    what: str
    who: str = "jaxce"
    status: str = "done"
    ulps: str = ""
    milliseconds: str = ""
    least: str = ""
    most: str = ""
    first_seconds: str = ""
    held_mib: str = ""
    logits_mib: str = ""
    loss: str = ""


class Writer:
    """Appends rows to a CSV that is complete after each of them."""

    def __init__(self, path: Path):
        self._path = path
        records.start(path, Row)

    def add(self, row: Row) -> None:
        """Writes it through."""
        records.append(self._path, row)


def read(path: Path) -> list[Row]:
    """The rows of a CSV."""
    return records.read(path, Row)


def markdown(title: str, machine: str, rows: list[Row]) -> str:
    """What it ran on, the numerics in a few lines, then a table for each kind of loss."""
    parts = [f"# {title}", machine, _numerics([row for row in rows if row.part == NUMERICS])]
    for kind, what in _sections(rows):
        parts.append(_table(kind, what, [r for r in _timings(rows) if (r.kind, r.what) == (kind, what)]))
    return "\n\n".join(parts) + "\n"


def plot(title: str, rows: list[Row], stem: Path) -> list[Path]:
    """Bars of time and of memory for each kind of loss, each in a file of its own."""
    paths = []
    for kind, what in _sections(rows):
        done = [r for r in _timings(rows) if (r.kind, r.what, r.status) == (kind, what, "done")]
        if not done:
            continue
        figure, (times, memory) = plt.subplots(2, 1, figsize=(11, 8), sharex=True, layout="constrained")
        groups = list(dict.fromkeys((r.subject, r.dtype) for r in done))
        people = list(dict.fromkeys(r.who for r in done))
        found = {((r.subject, r.dtype), r.who): r for r in done}
        colors = plt.get_cmap("tab10").colors
        for i, who in enumerate(people):
            places = [g + (i - (len(people) - 1) / 2) * 0.8 / len(people) for g in range(len(groups))]
            mine = [found.get((group, who)) for group in groups]
            heights = [_times_the_floor(r, found) or 0 for r in mine]
            options = {"width": 0.8 / len(people), "label": who, "color": colors[i % 10]}
            times.bar(places, heights, **options)
            memory.bar(places, [float(r.held_mib) if r and r.held_mib else 0 for r in mine], **options)
        times.axhline(1, color="black", linewidth=0.8)
        times.set(ylabel=f"time / {_floor_words(kind, what)}", title=f"{title}: {kind} loss, {what}")
        times.margins(y=0.35)
        times.legend(ncols=4, fontsize=8, loc="upper left")
        memory.set(ylabel="MiB held beyond the arguments")
        memory.set_xticks(range(len(groups)), ["\n".join(group) for group in groups], fontsize=8)
        for axes in (times, memory):
            axes.grid(axis="y", alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        paths.append(stem.with_name(f"{stem.name}-{kind}-{what.replace(' ', '-')}.png"))
        figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths


def floor_milliseconds(row: Row, found: dict) -> float | None:
    """The time that no implementation goes below: one read of the logits forward, two and a write with gradients; or the bare matmuls."""
    floor = found.get(((row.subject, row.dtype), COPY if row.kind == DENSE else MATMULS))
    if floor is None or not floor.milliseconds:
        return None
    copies = {FORWARD: 0.5, GRADIENTS: 1.5}[row.what] if row.kind == DENSE else 1.0  # a copy is a read and a write
    return float(floor.milliseconds) * copies


def _timings(rows):
    return [row for row in rows if row.part == TIMING]


def _sections(rows):
    return dict.fromkeys((row.kind, row.what) for row in _timings(rows))


def _floor_words(kind, what):
    if kind != DENSE:
        return "bare matmul" if what == FORWARD else "three bare matmuls"
    return "one read of the logits" if what == FORWARD else "two reads and a write of the logits"


def _times_the_floor(row, found):
    floor = row and floor_milliseconds(row, found)
    return float(row.milliseconds) / floor if floor else None


def _numerics(rows):
    if not rows:
        return "Numerics: not run."
    worst, cut = {}, [row for row in rows if row.status == OUT_OF_TIME]
    rows = [row for row in rows if row not in cut]
    for row in rows:
        key = (row.subject, row.dtype)
        worst[key] = max(worst.get(key, 0.0), float(row.ulps) if row.ulps != "nan" else float("inf"))
    failed = [row for row in rows if row.status != "done"]
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    lines = [
        f"Numerics: {len(rows) - len(failed)} of {len(rows)} within the limit. Worst error in ulps, values and gradients:",
        "",
        f"| | {' | '.join(dtypes)} |",
        "|---|" + "---|" * len(dtypes),
    ]
    for subject in dict.fromkeys(row.subject for row in rows):
        cells = [f"{worst[subject, dtype]:.2g}" if (subject, dtype) in worst else "" for dtype in dtypes]
        lines.append(f"| {subject} | {' | '.join(cells)} |")
    if cut:
        lines.append("\nThere was no time for the rest of the checks.")
    lines += [f"\nBeyond the limit: {r.subject}, {r.what}, {r.dtype}, {r.shape}: {r.ulps} ulps." for r in failed]
    return "\n".join(lines)


def _table(kind, what, rows):
    lines = [
        f"## {kind} loss, {what}",
        "",
        f"| | | ms | x {_floor_words(kind, what)} | x {OURS[kind]} | MiB held | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {((r.subject, r.dtype), r.who): r for r in rows if r.status == "done"}
    cut = [r for r in rows if r.status == OUT_OF_TIME]
    for r in rows:
        if r in cut:
            continue
        title = f"{r.subject} {r.shape} {r.dtype}"
        if r.status != "done":
            lines.append(f"| {title} | {r.who} | {r.status} | | | | |")
            continue
        by_floor, ours = _times_the_floor(r, found), found.get(((r.subject, r.dtype), OURS[kind]))
        by_floor = f"{by_floor:.2f}" if by_floor else ""
        by_ours = f"{float(r.milliseconds) / float(ours.milliseconds):.2f}" if ours else ""
        held = f"{float(r.held_mib):,.1f}" if r.held_mib else ""
        lines.append(
            f"| {title} | {r.who} | {float(r.milliseconds):.3f} | {by_floor} | {by_ours} | {held} | {r.loss} |"
        )
    if cut:
        problems = "; ".join(dict.fromkeys(f"{r.subject} {r.dtype}" for r in cut))
        lines += ["", f"There was no time for {len(cut)} programs of {problems}."]
    return "\n".join(lines)
