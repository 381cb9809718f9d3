"""The work of a compiled program and the time that a device needs for it, from its optimised HLO.

Each instruction outside fusions is a launch. A matmul takes the longer of its multiplications at the device's peak and its bytes at the bandwidth;
any other launch takes its bytes at the bandwidth. Nothing overlaps. So the time misses what a small matmul loses, and what one kernel can hide
behind another.
"""

import math
import re
from typing import NamedTuple

from tests.support import passes
from tests.support.passes import Instruction

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8, "c64": 8}


class Device(NamedTuple):
    """Multiplications and additions per second of bfloat16 matmuls, and bytes per second."""

    peak: float
    bandwidth: float


class Work(NamedTuple):
    """What a program does, without what it could do at once."""

    launches: float
    matmul_seconds: float  # of the matmuls, at the peak or at the bandwidth
    fused_sums: float  # how many matmuls add their product to an array in the same launch
    bytes_beside: float  # of the launches that are not matmuls
    seconds: float


def work(text: str, device: Device) -> Work:
    """Return the work of a program from its optimised HLO."""
    computations, entry = passes.parse(_with_turns(text))
    launches = matmul_seconds = fused_sums = beside = 0.0
    for name, times in passes.runs(computations, entry):
        by_name = {i.name: i for i in computations[name]}
        for i in computations[name]:
            if not passes.is_work(i) or (i.opcode == "custom-call" and not i.operands):  # this one allocates an array
                continue
            body = _body(i, computations)
            moved, flops = _moved(i, by_name, body, computations), _flops(i, by_name, body)
            launches += times
            if flops:
                matmul_seconds += times * max(flops / device.peak, moved / device.bandwidth)
                fused_sums += times * _adds(body)
            else:
                beside += times * moved
    return Work(launches, matmul_seconds, fused_sums, beside, matmul_seconds + beside / device.bandwidth)


def _with_turns(text: str) -> str:
    """Return the program with the number of turns in every loop. Some compilers leave it out where a loop counts from 0 to a constant."""
    conditions = re.findall(r"^%?([\w.\-]+) \([^\n]*-> pred\[\] \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    turns = {name: re.findall(r" s32\[\]\S* constant\((\d+)\)", body) for name, body in conditions}

    def completed(found):
        line, condition = found[0], found[1]
        if "known_trip_count" in line or len(turns.get(condition, ())) != 1:
            return line
        return f'{line}, "known_trip_count":{{"n":"{turns[condition][0]}"}}'

    return re.sub(r"^.* while\(.*condition=%?([\w.\-]+).*$", completed, text, flags=re.MULTILINE)


def _moved(i: Instruction, by_name, body, computations) -> float:
    """Return the bytes that an instruction reads from and writes to main memory. Of an array of which it accesses a part, that part."""
    if i.opcode == "slice-start":  # a copy of a part, while others work; the first of its results is the whole array
        part = i.arrays[1]
        return _bytes(part) * (1 + part[2])
    names, written = dict.fromkeys(i.operands), _size(i)
    if passes.updates_in_place(i, body) and i.opcode != "scatter":
        root = next(x for x in body if x.is_root) if body else i
        inside = {x.name: x for x in body} if body else by_name
        updated, written = inside[root.operands[0]], _size(inside[root.operands[1]])
        names.pop(i.operands[updated.position] if body else updated.name, None)
    return written + sum(min(_size(by_name[n]), _read(n, i, body, computations)) for n in names if n in by_name)


def _read(operand: str, i: Instruction, body, computations) -> float:
    """Return the bytes that an instruction reads of an operand: what it picks, also inside of nested fusions, or infinity for all of it."""
    if body is None:
        return sum(_bytes(array) for array in i.arrays) if passes.only_picked(i, None, operand) else math.inf
    positions = [n for n, name in enumerate(i.operands) if name == operand]
    names = {x.name for x in body if x.opcode == "parameter" and x.position in positions}
    uses = [(x, name) for x in body for name in names.intersection(x.operands)]
    return sum(_read(name, x, _body(x, computations), computations) for x, name in uses)


def _body(i: Instruction, computations):
    """Return the instructions of a fusion; None for any other instruction."""
    return computations.get(i.called.get("calls", ("",))[0])


def _size(i: Instruction) -> float:
    return sum(_bytes(array) for array in i.arrays if array[2])


def _bytes(array) -> float:
    dtype, elements, _ = array
    return elements * BYTES.get(dtype, 4)


def _flops(i: Instruction, by_name, body) -> float:
    """Return the multiplications and additions of the matmuls of an instruction: with `m k`, `k n` and `m n` elements, `2 m k n`."""
    inside = {x.name: x for x in body} if body else by_name
    matmuls = [
        x
        for x in (body or [i])
        if x.opcode in ("dot", "convolution") or ("gemm" in x.name and x.opcode == "custom-call")
    ]
    found = 0.0
    for x in matmuls:
        left, right = (inside[o].arrays[0][1] for o in x.operands[:2])
        found += 2 * math.sqrt(float(left) * right * x.arrays[0][1])
    return found


def _adds(body) -> bool:
    """Whether a fusion with a matmul also adds an array of its parameters to the product."""
    return bool(body) and any(x.opcode == "add" and x.arrays[0][1] > 1 for x in body)
