"""The markdown and the three plots that are made from a run's rows."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.cpu import curves
from benchmarks.cpu.in_jax import COPY, KERAS, MATMULS, OPTAX, OPTAX_WIDE, OURS
from benchmarks.cpu.in_torch import COMPILED, EAGER
from benchmarks.cpu.problems import GRADIENT, VALUE
from benchmarks.cpu.timing import Row

# Colours that people who see few of them can tell apart (Okabe and Ito), and a marker each.
_STYLES = {
    OURS: ("#d55e00", "o"),
    OPTAX: ("#0072b2", "s"),
    OPTAX_WIDE: ("#56b4e9", "s"),
    KERAS: ("#009e73", "^"),
    EAGER: ("#cc79a7", "D"),
    COMPILED: ("#000000", "x"),
    COPY: ("#999999", "|"),
    MATMULS: ("#999999", "+"),
}
_ORDER = list(_STYLES)


def markdown(about: str, rows: list[Row], points: list[curves.Point], import_ms: str) -> str:
    """A table of ratios for value and gradient, one for the value alone."""
    parts = [
        "# Losses on a CPU",
        f"{about}. Mean loss, float32 and bfloat16, each program in its turn in one process.",
        "Times over that of optax called on the same logits: of medians, in brackets the quartiles of the program itself over that median, "
        "then the ratio of CPU-seconds. `target` is what jaxce is meant to reach. optax's loss of bfloat16 logits is a bfloat16 number; "
        f'"{OPTAX_WIDE}" converts them first, so that its loss is float32, as ours is; PyTorch has bfloat16. Temporaries by XLA\'s own figure.',
    ]
    if import_ms:
        parts.append(f"`import jaxce` after `import jax`: {float(import_ms):.0f} ms (target 60).")
    for what in (GRADIENT, VALUE):
        mine = [row for row in rows if row.what == what]
        if mine:
            parts += [f"## {what[0].upper()}{what[1:]}", _table(mine)]
    failed = [row for row in rows if row.status != "done"]
    if failed:
        parts += ["## Not timed", "\n".join(f"- {_title(r)}, {r.what}, {r.program}: {r.status}" for r in failed)]
    if points:
        parts += ["## Memory and errors", _curves_table(points)]
    return "\n\n".join(parts) + "\n"


def plot(rows: list[Row], points: list[curves.Point], stem: Path) -> list[Path]:
    """Time, memory and error, each in a file of its own."""
    made = []
    for name, draw, data in (
        ("time", _draw_times, rows),
        ("memory", _draw_memory, points),
        ("error", _draw_errors, points),
    ):
        figure = draw(data)
        if figure is not None:
            made.append(stem.with_name(f"{stem.name}-{name}.png"))
            figure.savefig(made[-1], dpi=110)
            plt.close(figure)
    return made


def _title(row):
    return f"{row.loss} {row.shape} {row.dtype}"


def _groups(rows):
    """{title: {program: row}} of what was timed."""
    groups = {}
    for row in rows:
        if row.status == "done":
            groups.setdefault(_title(row), {})[row.program] = row
    return {title: group for title, group in groups.items() if OPTAX in group}


def _ratio(row, base, field="median"):
    return float(getattr(row, field)) / float(getattr(base, field))


def _table(rows):
    groups = _groups(rows)
    names = [name for name in _ORDER if name != OPTAX and any(name in group for group in groups.values())]
    lines = [
        f"| | {' | '.join(names)} | target | optax, ms | temporaries, MiB: jaxce, optax |",
        "|---|" + "---|" * (len(names) + 3),
    ]
    for title, group in groups.items():
        base = group[OPTAX]
        cells = [_cell(group.get(name), base) for name in names]
        memory = [f"{float(group[name].temporary_mib):,.1f}" if name in group else "" for name in (OURS, OPTAX)]
        target = group[OURS].target if OURS in group else ""
        lines.append(
            f"| {title} | {' | '.join(cells)} | {target} | {float(base.median) * 1e3:.3g} | {', '.join(memory)} |"
        )
    return "\n".join(lines)


def _cell(row, base):
    if row is None:
        return ""
    ratio, lower, upper = (
        float(getattr(row, f)) / float(base.median) for f in ("median", "lower_quartile", "upper_quartile")
    )
    text = f"{ratio:.2f} ({lower:.2f} to {upper:.2f}), {_ratio(row, base, 'cpu_median'):.2f}"
    return f"**{text}**" if row.program == OURS else text


def _curves_table(points):
    lines = ["| | | |", "|---|---|---|"]
    memory = [p for p in points if p.curve == curves.MEMORY]
    lines += [f"| {p.who} | {p.x} classes | {float(p.y):,.0f} MiB of temporaries |" for p in memory]
    worst = {}
    for p in points:
        if p.curve != curves.MEMORY:
            worst[p.who, p.curve] = max(worst.get((p.who, p.curve), 0.0), float(p.y))
    lines += [f"| {who} | worst relative {curve} | {y:.1g} |" for (who, curve), y in worst.items()]
    return "\n".join(lines)


def _draw_times(rows):
    groups = _groups([row for row in rows if row.what == GRADIENT])
    if not groups:
        return None
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(groups) + 1.6), layout="constrained")
    for place, group in enumerate(groups.values()):
        axes.axhline(place, color="#eeeeee", zorder=0)
        for name in _ORDER:
            if name in group and name != OPTAX:
                color, marker = _STYLES[name]
                axes.plot(
                    _ratio(group[name], group[OPTAX]),
                    place,
                    marker,
                    color=color,
                    label=name,
                    ms=9 if name == OURS else 6,
                )
    axes.axvline(1, color=_STYLES[OPTAX][0], label=OPTAX)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("time of value and gradient over that of optax (less is better)")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = [name for name in _ORDER if name in handles]
    figure.legend(
        [handles[n] for n in names], names, loc="outside upper center", ncols=len(names), fontsize=8, frameon=False
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _draw_memory(points):
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


def _draw_errors(points):
    panels = [(curve, _lines(points, curve)) for curve in (curves.VALUE_ERROR, curves.GRADIENT_ERROR)]
    if not all(lines for _, lines in panels):
        return None
    figure, both = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    styles = {
        "jaxce": _STYLES[OURS],
        "optax": _STYLES[OPTAX],
        "Keras on JAX": _STYLES[KERAS],
        "PyTorch": _STYLES[EAGER],
    }
    for axes, (curve, lines) in zip(both, panels, strict=True):
        for size, (who, (x, y)) in enumerate(reversed(lines.items())):
            color, marker = styles[who]
            axes.plot(
                x,
                [max(v, 2e-9) for v in y],
                marker,
                color=color,
                label=who,
                ms=7 - size,
                mfc="none" if who != "jaxce" else color,
            )
        axes.axhline(2**-24, color="#999999", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="the loss", title=curve, ylim=(1e-9, 5))
        axes.invert_xaxis()
    both[0].set_ylabel("relative error, float32")
    both[0].annotate(
        "half an ulp", (1e-15, 2**-24), xytext=(0, -11), textcoords="offset points", fontsize=8, color="#666666"
    )
    return _finish(figure, both)


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
