"""Print, for each function and dtype of the corpus, the number of runs and failures, and the largest errors of the loss and the gradient."""

import collections
import sys

from tests.support.golden import comparison


def main() -> int:
    rows = collections.defaultdict(lambda: [0, 0, 0.0, 0.0])
    failures = []
    for name, case in comparison.CASES.items():
        for jit in (False, True):
            got = comparison.evaluate(name, jit=jit)
            best = min(
                (
                    comparison.difference(name, got, comparison.recorded(name, reference))
                    for reference in comparison.references_to_meet(name)
                ),
                key=lambda result: result[0] is not None,
            )
            row = rows[case["function"], case["y_pred_dtype"]]
            row[0], row[1] = row[0] + 1, row[1] + (best[0] is not None)
            row[2], row[3] = max(row[2], best[1]), max(row[3], best[2])
            if best[0] is not None:
                failures.append(f"{name}{' (jit)' if jit else ''}: {best[0]}")
    print(f"{'function':42} {'dtype':8} {'runs':>5} {'failed':>6} {'loss error':>11} {'gradient error':>15}")
    for (function, dtype), (runs, failed, loss, grad) in sorted(rows.items()):
        print(f"{function:42} {dtype:8} {runs:5} {failed:6} {loss:11.1e} {grad:15.1e}")
    print(f"{len(comparison.CASES)} cases, eagerly and under jit: {len(failures)} failures", *failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
