"""The progress of a verb on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

REDRAW = 0.2  # seconds between two lines


class ProgressLine:
    """One line on standard error, if that is a terminal. Not for several threads at once."""

    def __init__(self, stream: TextIO, *, shown: bool = True) -> None:
        self._stream = stream
        self._shown = shown and stream.isatty()
        self._next = 0.0
        self._width = 0  # of the last line

    def draw(self, done: int, total: int) -> None:
        """Show the bytes done, and of all."""
        self.show(lambda: f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB  {done / max(total, 1):4.0%}")

    def show(self, line: Callable[[], str]) -> None:
        """Show this line, unless the last one is younger than REDRAW."""
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + REDRAW
            self._print(line())

    def _print(self, line: str) -> None:
        """Blanks cover the end of a longer line."""
        print(f"\r{line:<{self._width}}", end="", file=self._stream, flush=True)
        self._width = len(line)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            self._print("")
            self._print("")
