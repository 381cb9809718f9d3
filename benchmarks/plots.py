"""The plots of the rows of a run."""

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import curves
from benchmarks.markdown import DENSE_ORDER, dense_groups, device_sections, floor_words, times_the_floor
from benchmarks.peers.in_jax import COPY, KERAS, MATMULS, OPTAX, OPTAX_WIDE, OURS
from benchmarks.peers.in_torch import COMPILED, EAGER
from benchmarks.problems import GRADIENT
from benchmarks.report import DenseRow, DeviceRow
from benchmarks.scoreboard.divergences import ROWS, Row, by_function, not_positive

# Colours that colour-blind people can tell apart (Okabe and Ito), each with a marker.
_STYLES = {
    OURS: ("#d55e00", "o"),
    OPTAX: ("#0072b2", "s"),
    OPTAX_WIDE: ("#56b4e9", "s"),
    KERAS: ("#009e73", "^"),
    EAGER: ("#cc79a7", "D"),
    "PyTorch": ("#cc79a7", "D"),
    COMPILED: ("#000000", "x"),
    COPY: ("#999999", "|"),
    MATMULS: ("#999999", "+"),
}

_OKABE_AND_ITO = ("#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7")


def dense(rows: list[DenseRow], points: list[curves.Point], stem: Path) -> list[Path]:
    """Draw time, memory and error into one file each."""
    made = []
    for name, draw, data in (("time", _times, rows), ("memory", _memory, points), ("error", _errors, points)):
        figure = draw(data)
        if figure is not None:
            made.append(_saved(figure, stem, name, 110))
    return made


def device(title: str, rows: list[DeviceRow], stem: Path) -> list[Path]:
    """Draw bars of time and memory, one file for each kind of loss."""
    paths = []
    for (kind, what), mine in device_sections(rows).items():
        done = [row for row in mine if row.status == "done"]
        if not done:
            continue
        figure, (times, memory) = plt.subplots(2, 1, figsize=(11, 8), sharex=True, layout="constrained")
        _bars(times, memory, done)
        times.axhline(1, color="black", linewidth=0.8)
        times.set(ylabel=f"time / {floor_words(kind, what)}", title=f"{title}: {kind} loss, {what}")
        times.margins(y=0.35)
        times.legend(ncols=4, fontsize=8, loc="upper left")
        memory.set(ylabel="MiB in addition to the arguments")
        for axes in (times, memory):
            axes.grid(axis="y", alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        paths.append(_saved(figure, stem, f"{kind}-{what.replace(' ', '-')}", 120))
    return paths


def _saved(figure, stem, name, dpi):
    path = stem.with_name(f"{stem.name}-{name}.png")
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
    return path


def _bars(times, memory, rows):
    groups = list(dict.fromkeys((r.subject, r.dtype) for r in rows))
    people = list(dict.fromkeys(r.who for r in rows))
    found = {((r.subject, r.dtype), r.who): r for r in rows}
    colors = plt.get_cmap("tab10").colors
    for i, who in enumerate(people):
        places = [g + (i - (len(people) - 1) / 2) * 0.8 / len(people) for g in range(len(groups))]
        mine = [found.get((group, who)) for group in groups]
        options = {"width": 0.8 / len(people), "label": who, "color": colors[i % 10]}
        times.bar(places, [(r and times_the_floor(r, found)) or 0 for r in mine], **options)
        memory.bar(places, [float(r.held_mib) if r and r.held_mib else 0 for r in mine], **options)
    memory.set_xticks(range(len(groups)), ["\n".join(group) for group in groups], fontsize=8)


def _times(rows):
    groups = dense_groups([row for row in rows if row.what == GRADIENT])
    if not groups:
        return None
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(groups) + 1.6), layout="constrained")
    for place, group in enumerate(groups.values()):
        axes.axhline(place, color="#eeeeee", zorder=0)
        for name in DENSE_ORDER:
            if name in group and name != OPTAX:
                color, marker = _STYLES[name]
                ratio = float(group[name].median) / float(group[OPTAX].median)
                axes.plot(ratio, place, marker, color=color, label=name, ms=9 if name == OURS else 6)
    axes.axvline(1, color=_STYLES[OPTAX][0], label=OPTAX)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("time of value and gradient, divided by optax's time (less is better)")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = [name for name in DENSE_ORDER if name in handles]
    options = {"loc": "outside upper center", "ncols": len(names), "fontsize": 8, "frameon": False}
    figure.legend([handles[n] for n in names], names, **options)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _memory(points):
    lines = _lines(points, curves.MEMORY)
    if not lines:
        return None
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    colors, marks = iter(("#0072b2", "#e69f00", "#d55e00")), iter(("s-", "o:", "o-"))
    for who, (x, y) in lines.items():
        axes.plot(x, y, next(marks), color=next(colors), label=who)
    axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="MiB of temporaries (XLA's figure)")
    axes.set_xticks(x, [f"{v / 1024:g}k" for v in x], fontsize=8)
    axes.xaxis.minorticks_off()
    axes.set_title(f"Value and gradients, {curves.TOKENS} tokens x {curves.FEATURES} features, float32", fontsize=10)
    return _finish(figure, [axes])


def _errors(points):
    panels = [(curve, _lines(points, curve)) for curve in (curves.VALUE_ERROR, curves.GRADIENT_ERROR)]
    if not all(lines for _, lines in panels):
        return None
    figure, both = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for axes, (curve, lines) in zip(both, panels, strict=True):
        for size, (who, (x, y)) in enumerate(reversed(lines.items())):
            color, marker = _STYLES[who]
            options = {"color": color, "label": who, "ms": 7 - size, "mfc": color if who == OURS else "none"}
            axes.plot(x, [max(v, 2e-9) for v in y], marker, **options)
        axes.axhline(2**-24, color="#999999", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="the loss", title=curve, ylim=(1e-9, 5))
        axes.invert_xaxis()
    both[0].set_ylabel("relative error, float32")
    options = {"xytext": (0, -11), "textcoords": "offset points", "fontsize": 8, "color": "#666666"}
    both[0].annotate("half an ulp", (1e-15, 2**-24), **options)
    return _finish(figure, both)


def divergences(rows: list[Row], path: Path) -> None:
    """Draw the worst error of each function against the size of the divergence, large divergences first."""
    figure, both = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    groups = by_function(rows)
    panels = ("value_error", "error of the divergence"), ("gradient_error", "error of the student's gradient")
    for axes, (kind, title) in zip(both, panels, strict=True):
        ends = {}
        for (name, mine), color in zip(groups.items(), _OKABE_AND_ITO, strict=False):
            x, y = _worst_by_size(mine, kind)
            axes.plot(x, y, "o-", color=color, markersize=3, linewidth=2 if name == OURS else 1)
            ends[name] = x[-1], y[-1], color
        for (x, y, color), name, place in zip(
            ends.values(), ends, _apart([y for _, y, _ in ends.values()]), strict=True
        ):
            axes.annotate(name, (x, y), (x / 3, place), color=color, fontsize=8, va="center")
        for y, text, offset in ((1, "no correct digit", 3), (2**-24, "half an ulp", -11)):
            axes.axhline(y, color="#999999", linewidth=0.8, zorder=0)
            axes.annotate(text, (20, y), (0, offset), textcoords="offset points", color="#666666", fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel="the divergence", title=title, xlim=(30, 1e-21), ylim=(3e-9, 1e9))
        axes.set_xticks([10.0**k for k in range(0, -15, -2)])
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel(f"relative error, float32, worst of {ROWS} rows")
    signs = ", ".join(f"{name} {not_positive(mine)[0]}" for name, mine in groups.items())
    count = len(next(iter(groups.values())))
    figure.supxlabel(f"Negative values, of {count} (every exact divergence is positive): {signs}.", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _worst_by_size(rows, kind):
    """Return the mean divergence and the worst error of the rows of each size, from large to small."""
    sizes = {}
    for row in rows:
        sizes.setdefault(row.size, []).append(row)
    points = [
        (statistics.fmean(float(r.divergence) for r in same), max(float(getattr(r, kind)) for r in same))
        for same in sizes.values()
    ]
    return zip(*sorted(points, reverse=True), strict=True)


def _apart(heights, factor=4.0):
    """Return places for labels near these heights on a logarithmic axis, each at least `factor` from the next."""
    places, last = {}, 0.0
    for i in sorted(range(len(heights)), key=heights.__getitem__):
        places[i] = last = max(heights[i], last * factor)
    return [places[i] for i in range(len(heights))]


def _lines(points, curve):
    lines = {}
    for p in points:
        if p.curve == curve:
            x, y = lines.setdefault(p.who, ([], []))
            x.append(float(p.x))
            y.append(float(p.y))
    return lines


def _finish(figure, all_axes):
    for axes in all_axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].legend(fontsize=8, frameon=False)
    return figure
