"""The arrays that a compiled program sends between devices, read from its HLO. Uses only the standard library, so that any program can import it."""

import math
import re
from typing import NamedTuple

BITS = {
    "pred": 8,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "f16": 16,
    "bf16": 16,
    "s32": 32,
    "u32": 32,
    "f32": 32,
    "s64": 64,
    "f64": 64,
}
_OPERATIONS = (
    "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast|ragged-all-to-all"
)
# `%name = type operation(`, where the type is an array or a tuple of arrays. An asynchronous operation is counted at its start.
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (\(.*?\)|\S+) ({_OPERATIONS})(-start)?\(", re.MULTILINE)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


class Sent(NamedTuple):
    """One array in a collective operation, with its size on one device."""

    operation: str
    dtype: str
    size: int

    @property
    def bytes(self):
        return self.size * BITS[self.dtype] // 8


def sent(hlo: str) -> list[Sent]:
    """Return every result array of the collective operations of a program. An operation in the body of a loop counts once."""
    found = []
    for kind, operation, start in _INSTRUCTION.findall(hlo):
        arrays = [(dtype, math.prod(map(int, filter(None, dims.split(","))))) for dtype, dims in _ARRAY.findall(kind)]
        if start and operation != "all-reduce":
            arrays = arrays[len(arrays) // 2 :]  # the type of these operations has the operands before the results
        found += [Sent(operation, dtype, size) for dtype, size in arrays if dtype in BITS]
    return found
