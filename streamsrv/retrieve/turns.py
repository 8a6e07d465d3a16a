"""Turns of long texts that Python makes while they are sent: pages, XML and cut metadata.

Each thread that computes makes the event loop wait 5 ms for the interpreter lock, several times in a request.
With 40 such threads a search waited for ten seconds. So at most AT_A_TIME threads of a worker compute; the
others wait for their turn, one chunk long. A thread never waits longer than TURN seconds: an answer without a
turn yields an empty chunk, which says that nothing is ready, and its thread is free.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

AT_A_TIME = 2
TURN = 0.1  # seconds


class Turns:
    """Thread-safe. `turn` is the longest wait in seconds."""

    def __init__(self, at_a_time: int = AT_A_TIME, turn: float = TURN) -> None:
        self._free = threading.BoundedSemaphore(at_a_time)
        self._turn = turn

    def of(self, chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
        """The chunks, each made in its turn; an empty one while there is no turn."""
        while True:
            while not self._free.acquire(timeout=self._turn):
                yield b""
            try:
                chunk = next(chunks, None)
            finally:
                self._free.release()
            if chunk is None:
                return
            yield chunk
