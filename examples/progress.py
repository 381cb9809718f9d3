"""Progress bars of the examples and the benchmarks: tqdm's bars in a terminal, a line now and then in a file or a pipe."""

import sys
import time

from tqdm import tqdm

SECONDS = 10  # between two lines
write = tqdm.write  # print a line above the bar


class Lines:
    """A file for tqdm, which writes every state of a bar, and a line end after the last. Only states that are due are printed."""

    def __init__(self):
        self.state, self.printed = "", time.monotonic()

    def write(self, text: str) -> None:
        self.state = text.strip() or self.state
        if self.state and (text.endswith("\n") or time.monotonic() >= self.printed + SECONDS):
            sys.stdout.flush()  # keeps the order of the lines if both go to one file
            print(self.state, file=sys.stderr, flush=True)
            self.state, self.printed = "", time.monotonic()


def bar(iterable, name: str | None = None, **options) -> tqdm:
    """Return the iterable with a bar on the standard error. The options are those of tqdm."""
    in_file = {} if sys.stderr.isatty() else {"file": Lines(), "leave": True, "position": 0}
    return tqdm(iterable, name, **options | in_file)
