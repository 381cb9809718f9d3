"""The markdown pages of the rows of a run."""

from benchmarks import curves
from benchmarks.machine import table
from benchmarks.measure import OUT_OF_TIME
from benchmarks.peers.in_jax import COPY, KERAS, MATMULS, OPTAX, OPTAX_WIDE, OURS, SUM
from benchmarks.peers.in_torch import COMPILED, EAGER
from benchmarks.problems import GRADIENT, VALUE
from benchmarks.report import DENSE, FORWARD, GRADIENTS, NUMERICS, TIMING, DenseRow, DeviceRow, LinearRow

# The columns of the dense page, and the order of its plot.
DENSE_ORDER = (OURS, OPTAX, OPTAX_WIDE, KERAS, EAGER, COMPILED, COPY, MATMULS)


def number(text: str, form: str) -> str:
    """Format a number of a CSV. An empty cell stays empty."""
    return format(float(text), form) if text else ""


def dense(about: str, rows: list[DenseRow], points: list[curves.Point], import_ms: str) -> str:
    """Return a table of ratios for value and gradient, a table for the value alone, and a table of memory and worst errors."""
    parts = [
        "# Losses on a CPU",
        f"{about}. Mean loss, float32 and bfloat16, all programs in turns in one process.",
        "Each cell has the median time divided by optax's median time for the same logits, in brackets the quartiles divided by optax's median, "
        "and then the ratio of CPU-seconds. `target` is the ratio that jaxce should reach. For bfloat16 logits optax returns a bfloat16 loss; "
        f'"{OPTAX_WIDE}" converts the logits first, so its loss is float32 like jaxce\'s; PyTorch returns bfloat16. XLA reports the temporaries.',
    ]
    if import_ms:
        parts.append(f"`import jaxce` after `import jax`: {float(import_ms):.0f} ms (target 60).")
    for what in (GRADIENT, VALUE):
        mine = [row for row in rows if row.what == what]
        if mine:
            parts += [f"## {what[0].upper()}{what[1:]}", _dense_table(dense_groups(mine))]
    failed = [row for row in rows if row.status != "done"]
    if failed:
        parts += ["## Not timed", "\n".join(f"- {_title(r)}, {r.what}, {r.program}: {r.status}" for r in failed)]
    if points:
        parts += ["## Memory and errors", _curves_table(points)]
    return "\n\n".join(parts) + "\n"


def dense_groups(rows: list[DenseRow]) -> dict[str, dict[str, DenseRow]]:
    """Return {title: {program: row}} of the problems for which optax was timed too."""
    groups = {}
    for row in rows:
        if row.status == "done":
            groups.setdefault(_title(row), {})[row.program] = row
    return {title: group for title, group in groups.items() if OPTAX in group}


def _title(row):
    return f"{row.loss} {row.shape} {row.dtype}"


def _dense_table(groups):
    names = [n for n in DENSE_ORDER if n != OPTAX and any(n in group for group in groups.values())]
    rows = []
    for title, group in groups.items():
        base = group[OPTAX]
        memory = ", ".join(number(group[n].temporary_mib, ",.1f") if n in group else "" for n in (OURS, OPTAX))
        target = group[OURS].target if OURS in group else ""
        cells = [_dense_cell(group.get(n), base) for n in names]
        rows.append([title, *cells, target, f"{float(base.median) * 1e3:.3g}", memory])
    return table(["", *names, "target", "optax, ms", "temporaries, MiB: jaxce, optax"], rows)


def _dense_cell(row, base):
    if row is None:
        return ""
    ratio, lower, upper = (float(x) / float(base.median) for x in (row.median, row.lower_quartile, row.upper_quartile))
    text = f"{ratio:.2f} ({lower:.2f} to {upper:.2f}), {float(row.cpu_median) / float(base.cpu_median):.2f}"
    return f"**{text}**" if row.program == OURS else text


def _curves_table(points):
    memory = [p for p in points if p.curve == curves.MEMORY]
    rows = [[p.who, f"{p.x} classes", f"{float(p.y):,.0f} MiB of temporaries"] for p in memory]
    worst = {}
    for p in points:
        if p.curve != curves.MEMORY:
            worst[p.who, p.curve] = max(worst.get((p.who, p.curve), 0.0), float(p.y))
    rows += [[who, f"worst relative {curve}", f"{y:.1g}"] for (who, curve), y in worst.items()]
    return table(["", "", ""], rows)


def linear(rows: list[LinearRow]) -> str:
    """Return a table for each machine, shape and dtype."""
    parts = [
        "# The linear losses, value and gradients with respect to hidden and classifier",
        f'Medians of runs in turns in one process, divided by the median of "{MATMULS}", the three matmuls that value and gradients need at least. '
        f"XLA reports the temporaries; PyTorch reports none on a CPU. A program whose loss or gradients differ from those of `{SUM}` is not timed.",
    ]
    for machine in dict.fromkeys(row.machine for row in rows):
        parts.append(f"## {machine}")
        here = [row for row in rows if row.machine == machine]
        for shape, dtype in dict.fromkeys((row.shape, row.dtype) for row in here):
            mine = sorted((r for r in here if (r.shape, r.dtype) == (shape, dtype)), key=lambda r: r.status != "done")
            header = ["", "times the floor", "seconds", "runs", "temporaries, MiB", "loss"]
            parts.append(f"{shape} {dtype}\n\n{table(header, [_linear_cells(row) for row in mine])}")
    return "\n\n".join(parts) + "\n"


def _linear_cells(row):
    if row.status != "done":
        return [row.program, row.status, "", "", "", row.loss]
    seconds = f"{float(row.median):.3f} ({float(row.least):.3f} to {float(row.most):.3f})"
    return [
        *(row.program, number(row.times_the_floor, ".2f"), seconds, row.runs),
        *(number(row.temporary_mib, ",.0f"), row.loss),
    ]


def device(title: str, machine: str, rows: list[DeviceRow]) -> str:
    """Return the machine, a summary of the numerics, and a table for each kind of loss."""
    parts = [f"# {title}", machine, _numerics([row for row in rows if row.part == NUMERICS])]
    parts += [_device_table(kind, what, mine) for (kind, what), mine in device_sections(rows).items()]
    return "\n\n".join(parts) + "\n"


def device_sections(rows: list[DeviceRow]) -> dict[tuple[str, str], list[DeviceRow]]:
    """Return {(kind, what): rows} of the problems to be timed."""
    sections = {}
    for row in rows:
        if row.part == TIMING:
            sections.setdefault((row.kind, row.what), []).append(row)
    return sections


def times_the_floor(row: DeviceRow, found: dict) -> float | None:
    """Return the time divided by the floor, below which no implementation can go: reading and writing the logits, or the bare matmuls."""
    floor = found.get(((row.subject, row.dtype), COPY if row.kind == DENSE else MATMULS))
    if floor is None or not floor.milliseconds:
        return None
    copies = {FORWARD: 0.5, GRADIENTS: 1.5}[row.what] if row.kind == DENSE else 1.0  # a copy is a read and a write
    return float(row.milliseconds) / (float(floor.milliseconds) * copies)


def floor_words(kind: str, what: str) -> str:
    """Return the name of the floor."""
    if kind != DENSE:
        return "bare matmul" if what == FORWARD else "three bare matmuls"
    return "one read of the logits" if what == FORWARD else "two reads and a write of the logits"


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
    cells = [
        [subject, *(f"{worst[subject, dtype]:.2g}" if (subject, dtype) in worst else "" for dtype in dtypes)]
        for subject in dict.fromkeys(row.subject for row in rows)
    ]
    good = f"Numerics: {len(rows) - len(failed)} of {len(rows)} within the limit."
    parts = [f"{good} Worst error in ulps, values and gradients:", table(["", *dtypes], cells)]
    parts += ["There was no time for the rest of the checks."] if cut else []
    parts += [f"Beyond the limit: {r.subject}, {r.what}, {r.dtype}, {r.shape}: {r.ulps} ulps." for r in failed]
    return "\n\n".join(parts)


def _device_table(kind, what, rows):
    ours = OURS if kind == DENSE else SUM
    found = {((r.subject, r.dtype), r.who): r for r in rows if r.status == "done"}
    cut, cells = [r for r in rows if r.status == OUT_OF_TIME], []
    for r in rows:
        title = f"{r.subject} {r.shape} {r.dtype}"
        if r.status != "done":
            cells += [] if r in cut else [[title, r.who, r.status, "", "", "", ""]]
            continue
        by_floor, our = times_the_floor(r, found), found.get(((r.subject, r.dtype), ours))
        by_floor = f"{by_floor:.2f}" if by_floor else ""
        by_ours = f"{float(r.milliseconds) / float(our.milliseconds):.2f}" if our else ""
        figures = number(r.milliseconds, ".3f"), by_floor, by_ours, number(r.held_mib, ",.1f")
        cells.append([title, r.who, *figures, r.loss])
    header = ["", "", "ms", f"x {floor_words(kind, what)}", f"x {ours}", "MiB held", "loss"]
    parts = [f"## {kind} loss, {what}", table(header, cells)]
    if cut:
        problems = "; ".join(dict.fromkeys(f"{r.subject} {r.dtype}" for r in cut))
        parts.append(f"There was no time for {len(cut)} programs of {problems}.")
    return "\n\n".join(parts)
