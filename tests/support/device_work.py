"""What one device stores, multiplies and sends, read from a compiled program. The body of a loop counts once for each iteration."""

import math
import re
from typing import NamedTuple

from tests.support import communication, passes

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")


class Figures(NamedTuple):
    temporaries: int  # bytes
    products: float  # the number of multiplications of matmuls
    sent: float  # bytes, outside of loops
    sent_in_loops: float  # bytes


def figures(compiled) -> Figures:
    """Return the figures of one device."""
    text = compiled.as_text()
    computations, entry = passes.parse(text)
    texts = _texts(text)
    products, sent, in_loops = 0.0, 0.0, 0.0
    for name, trips, is_in_loop in _run(computations, entry):
        size = {i.name: sum(n for _, n, _ in i.arrays) for i in computations[name]}
        for i in computations[name]:
            if i.opcode == "dot":
                a, b = (size[operand] for operand in i.operands)
                products += trips * math.sqrt(a * b * size[i.name])  # of matrices: m k, k n and m n
        total = trips * sum(one.bytes for one in communication.sent(texts[name]))
        sent, in_loops = (sent, in_loops + total) if is_in_loop else (sent + total, in_loops)
    return Figures(compiled.memory_analysis().temp_size_in_bytes, products, sent, in_loops)


def _run(computations, name, trips=1.0, is_in_loop=False):
    """Yield every computation that runs, how often it runs in an iteration of all loops around it, and whether it runs in a loop."""
    yield name, trips, is_in_loop
    for i in computations[name]:
        is_loop = i.opcode == "while"
        for kind, called in i.called.items():
            if kind != "to_apply" or i.opcode == "call":
                for other in called:
                    yield from _run(computations, other, trips * (i.trips if is_loop else 1), is_in_loop or is_loop)


def _texts(text):
    """Return the text of each computation by its name."""
    found, name = {}, None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[1]
            found[name] = []
        elif name is not None:
            found[name].append(line)
    return {name: "\n".join(lines) for name, lines in found.items()}
