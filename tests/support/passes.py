"""Count the passes of a compiled program from its optimised HLO. A pass is a read or a write of an array as large as the logits in memory.

A fusion reads each of its operands once. So only the instructions outside fusions count.
"""

import dataclasses
import math
import re

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|called_computations|branch_computations)=\{?([^}\s]+(?:, [^}\s]+)*)\}?"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')

# Instructions that only name existing arrays.
_FREE = {
    "parameter",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "constant",
    "opt-barrier",
    "optimization-barrier",
    "after-all",
}
_CONTROL = {"while", "conditional", "call"}
_PICKING = {
    "gather",
    "dynamic-slice",
    "scatter",
    "dynamic-update-slice",
}  # they access few elements of their first operand
_GATHERING = {
    "reduce",
    "reduce-window",
    "dot",
    "convolution",
    "sort",
    "select-and-scatter",
    "scatter",
    "custom-call",
}  # one result element depends on many elements


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    arrays: tuple[tuple[str, int, bool], ...]  # dtype, size, whether it is in main memory
    operands: tuple[str, ...]
    called: dict[str, tuple[str, ...]]
    is_root: bool
    trips: float  # the number of iterations of a loop; infinite if the compiler does not know it
    position: int  # of a parameter


@dataclasses.dataclass(frozen=True)
class Passes:
    """The number of reads and writes of arrays of at least a given size, and the dtypes of such arrays that the program computes."""

    reads: dict[str, float]  # by the number of the program's parameter; "made" for arrays that the program computes
    writes: float
    made: tuple[str, ...]  # in any memory: an accelerator may store a large array in on-chip memory


def passes(text: str, size: int, dtype: str | None = None) -> Passes:
    """Return the passes of a program over arrays of at least `size` elements.

    `dtype` is a narrow dtype in the notation of the compiler. A program may read two such numbers as one 32-bit integer; they count as two numbers.
    """
    text = _unpacked(text, size, dtype) if dtype else text
    computations, entry = parse(text)
    reads: dict[str, float] = {}
    writes, made = 0.0, []
    for computation, times in runs(computations, entry):
        by_name = {i.name: i for i in computations[computation]}
        origins = {}  # name -> the parameter of the program that the name refers to
        for i in computations[computation]:
            if i.opcode in _FREE:
                if i.opcode == "parameter" and computation == entry and _is_large(i, size):
                    origins[i.name] = str(i.position)
                elif _is_large(i, size):
                    # A tuple with one large array and small arrays refers to the large array.
                    sources = {origins[o] for o in i.operands if o in origins}
                    origins |= {i.name: sources.pop()} if len(sources) == 1 else {}
            elif is_work(i):
                body = computations.get(i.called.get("calls", ("",))[0])
                for name in dict.fromkeys(i.operands):
                    picked = _makes_little_of_little(i, body, size) or only_picked(i, body, name)
                    if _is_large(by_name[name], size, memory=True) and not picked:
                        origin = origins.get(name, "made")
                        reads[origin] = reads.get(origin, 0) + times
                if not updates_in_place(i, body):
                    results = i.arrays[:1] if i.opcode.endswith("-start") else i.arrays
                    large = [(dtype, in_memory) for dtype, elements, in_memory in results if elements >= size]
                    made.extend(dtype for dtype, _ in large)
                    if written := sum(in_memory for _, in_memory in large):
                        writes += times * written
    return Passes(reads, writes, tuple(made))


def _unpacked(text, size, dtype):
    """Rewrite the types of a program: arrays of 32-bit integers that hold two numbers each become arrays of these numbers."""
    return re.sub(
        r"\bu32\[([\d,]+)\]",
        lambda found: f"{dtype}[{found[1]},2]" if math.prod(map(int, found[1].split(","))) * 2 == size else found[0],
        text,
    )


def largest(text: str) -> int:
    """Return the size of the largest array that the program computes, including its results."""
    computations, entry = parse(text)
    made = (i for name, _ in runs(computations, entry) for i in computations[name] if is_work(i))
    return max(elements for i in made for _, elements, _ in i.arrays)


def multiplied(text: str) -> list[str]:
    """Return the dtypes of the operands of all matmuls in the program."""
    computations, _ = parse(text)
    return sorted(
        {
            dtype
            for body in computations.values()
            for by_name in [{i.name: i for i in body}]
            for i in body
            if i.opcode == "dot"
            for name in i.operands
            for dtype, _, _ in by_name[name].arrays
        }
    )


def runs(computations, name, times=1.0):
    """Yield the computations that run outside fusions, and how often each runs."""
    yield name, times
    for i in computations[name]:
        if i.opcode in _CONTROL or (i.opcode.endswith("-start") and i.called):
            for kind, called in i.called.items():
                if kind != "to_apply" or i.opcode == "call":
                    for other in called:
                        yield from runs(computations, other, times * (i.trips if i.opcode == "while" else 1))


def is_work(instruction):
    """Whether an instruction counts as a read and a write. Of an asynchronous pair only the start counts, unless it calls a computation."""
    opcode = instruction.opcode
    runs = opcode in _CONTROL or (opcode.endswith("-start") and instruction.called)
    return not (opcode in _FREE or runs or opcode.endswith(("-done", "-update")))


def _is_large(instruction, size, *, memory=False):
    return any(elements >= size and (in_memory or not memory) for _, elements, in_memory in instruction.arrays)


def only_picked(instruction, body, operand):
    """Whether the instruction accesses only a few elements of this operand."""
    positions = [n for n, name in enumerate(instruction.operands) if name == operand]
    if body is None:
        return instruction.opcode in _PICKING and positions == [0]
    names = {i.name for i in body if i.opcode == "parameter" and i.position in positions}
    uses = [(i, o) for i in body for o in i.operands if o in names]
    return bool(uses) and all(i.opcode in _PICKING and i.operands[0] == o for i, o in uses)


def _makes_little_of_little(instruction, body, size):
    """Whether the instruction is a fusion with few result elements, each computed from a few elements of the operands."""
    return body is not None and not _is_large(instruction, size) and _GATHERING.isdisjoint(i.opcode for i in body)


def updates_in_place(instruction, body):
    roots = [i for i in body if i.is_root] if body is not None else [instruction]
    return all(i.opcode in ("scatter", "dynamic-update-slice") for i in roots)


def parse(text: str):
    """Return the instructions of each computation by its name, and the name of the computation that the program starts with."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(_instruction(line, found))
    return computations, entry


def _instruction(line, found):
    root, name, type_, opcode = found.groups()
    depth, end = 1, found.end()
    while depth:
        depth += {"(": 1, ")": -1}.get(line[end], 0)
        end += 1
    inside, attributes = line[found.end() : end - 1], line[end:]
    operands = () if opcode in ("parameter", "constant") else tuple(re.findall(r"%([\w.\-]+)", inside))
    called = {
        m[1]: tuple(n.strip().lstrip("%").rstrip(",") for n in m[2].split(",") if n.strip())
        for m in _CALLED.finditer(attributes)
    }
    trips = _TRIPS.search(attributes)
    return Instruction(
        name,
        opcode,
        tuple(map(_array, _ARRAY.finditer(type_))),
        operands,
        called,
        is_root=bool(root),
        trips=float(trips[1]) if trips else math.inf,
        position=int(inside) if opcode == "parameter" else -1,
    )


def _array(found):
    dtype, dimensions, layout = found.groups()
    return dtype, math.prod(int(n) for n in dimensions.split(",") if n), "S(" not in (layout or "")
