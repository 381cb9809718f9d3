"""Compile the programs for a target. Print a line of JSON for each, with the memory and the passes that its compiler reports.

python -m tests.aot.measure v5e
python -m tests.aot.measure v6e --losses "integer" "optax integer" --shapes real
python -m tests.aot.measure v5p --for-tests
"""

import argparse
import json
import time

from tests.aot import ahead  # before programs: this module sets the environment that jax reads on import

# isort: split
from tests.aot import programs
from tests.support import passes


def figures(target, loss, what, shape, dtype):
    """Return the temporary memory, the passes over the logits and the largest array of one program, or the error of its compiler."""
    sizes = loss.shapes[shape]
    arguments = loss.arguments(sizes, dtype)
    start = time.process_time()
    try:
        compiled = ahead.compiled_for(target, loss.program(what), arguments)
    except Exception as error:  # any error of a compiler is a result
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    memory, text = compiled.memory_analysis(), compiled.as_text()
    logits = sizes[0] * sizes[-1]
    found = passes.passes(text, logits, {"bfloat16": "bf16", "float16": "f16"}.get(dtype))
    cost = compiled.cost_analysis() or {}
    return {
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "logits": logits,
        "largest": passes.largest(text),
        "multiplied": passes.multiplied(text),
        "reads": found.reads,
        "writes": found.writes,
        "made": found.made,
        "accessed_bytes": cost.get("bytes accessed"),
        "compile_cpu_seconds": round(time.process_time() - start, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=ahead.TARGETS)
    parser.add_argument("--losses", nargs="*")
    parser.add_argument("--shapes", nargs="*", default=list(programs.DENSE_SHAPES))
    parser.add_argument(
        "--for-tests", action="store_true", help="compile the programs that the tests need for this target"
    )
    options = parser.parse_args()
    losses = programs.LOSSES | programs.OTHERS
    if options.for_tests:
        cells = programs.cells_of(options.target)
    else:
        cells = ((name, *cell) for name in options.losses or losses for cell in losses[name].cells())
    for name, what, shape, dtype in cells:
        if shape in options.shapes:
            key = {"target": options.target, "loss": name, "what": what, "shape": shape, "dtype": dtype}
            print(json.dumps(key | figures(options.target, losses[name], what, shape, dtype)), flush=True)


if __name__ == "__main__":
    main()
