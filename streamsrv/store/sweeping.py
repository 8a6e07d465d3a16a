"""Sweeping behind deletions, by a thread that has time.

A deletion is answered when nobody sees any more what it deleted; the rows that nobody sees are removed from
the index a moment later, together with those of the next ones. The moment lets the answer go out, and the
next request in, before this thread wants the interpreter and the disk.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from streamsrv.errors import StreamsrvError

log = logging.getLogger("streamsrv.store")

PAUSE = 0.05  # seconds


class Sweeper:
    """`sweep` blocks. What it fails to do is tried again when it is told the next time."""

    def __init__(self, sweep: Callable[[], None], pause: float = PAUSE) -> None:
        self._sweep = sweep
        self._pause = pause
        self._told = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._thread.start()

    def tell(self) -> None:
        """There is something to sweep. Does not block."""
        self._told.set()

    def close(self) -> None:
        """Waits until a sweep that has begun is over; safe to call twice."""
        self._closed.set()
        self._told.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._told.wait()
            if self._closed.wait(self._pause):
                return  # closing the store sweeps
            self._told.clear()
            try:
                self._sweep()
            except StreamsrvError as error:
                log.warning("what was deleted is not swept from the index: %s", error.detail)
