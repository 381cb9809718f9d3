"""Print the answers of each library, and write them to `benchmarks/results/others.md` and `.json`.

python -m benchmarks.others

If a library is not installed, its column is kept from the last run that had the library, if the questions are the same. Each library is called as
its documentation says. An answer is right if it equals the number in the column "right" up to rounding. These numbers are computed by hand or with
NumPy in float64, never with jaxce. If no number is right, an answer is right if the library returns NaN or raises.
"""

import argparse
import json
import platform
from pathlib import Path

import jax

from benchmarks.machine import RESULTS, table
from benchmarks.others import dense, linear
from benchmarks.others.answers import Case
from benchmarks.peers import libraries
from examples import progress


def column(cases: list[Case], asked, version: str) -> dict:
    """Return the answers of one library. An answer is None if the library has no such function."""
    return {"version": version, "answers": [case.ask(asked) for case in cases]}


def kept(path: Path, asked: dict[str, list[Case]]) -> dict[str, dict]:
    """Return the columns of the last run, if its questions are the current questions."""
    last = json.loads(path.read_text()) if path.exists() else {}
    same = {name: last.get(name, {}).get("questions") == [[c.question, c.right] for c in asked[name]] for name in asked}
    return {name: last[name]["columns"] if same[name] else {} for name in asked}


def answers_table(cases: list[Case], columns: dict[str, dict]) -> str:
    """Return the answers as markdown. Wrong answers are bold."""
    rows = []
    for place, case in enumerate(cases):
        answers = (column["answers"][place] for column in columns.values())
        cells = (
            "" if answer is None else f"**{answer[0]}**" if answer[1] is False else answer[0] for answer in answers
        )
        rows.append([case.question, case.right, *cells])
    of = [[answer for answer in column["answers"] if answer and answer[1] is not None] for column in columns.values()]
    rows.append(["right", "", *(f"{sum(right for _, right in answers)} of {len(answers)}" for answers in of)])
    return table(["", "right", *columns], rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cases = {"dense": dense.CASES, "linear": linear.CASES}
    on_jax = f" (jax {jax.__version__})"
    record = kept(RESULTS / "others.json", cases)
    for library in progress.bar(list(libraries.installed()), "dense", leave=False):
        record["dense"][library.name] = column(
            dense.CASES, library, library.version + on_jax * (library.name != "PyTorch")
        )
    for name, version, loss in progress.bar(list(linear.libraries()), "linear", leave=False):
        record["linear"][name] = column(linear.CASES, loss, version + on_jax)
    parts = []
    for name, columns in record.items():
        versions = (f"{library} {x['version']}" for library, x in columns.items())
        parts.append(
            f"{', '.join(versions)}; CPU, {platform.machine()}. Wrong answers are bold.\n\n{answers_table(cases[name], columns)}\n"
        )
    text = "\n".join(parts)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "others.md").write_text(text)
    stored = {
        name: {"questions": [[case.question, case.right] for case in cases[name]], "columns": columns}
        for name, columns in record.items()
    }
    (RESULTS / "others.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
