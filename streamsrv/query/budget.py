"""What one search may look at, counted and never timed.

Strategy: whatever reads rows asks for a portion of them, and spends it. A Budget ends a search that would
keep a core busy for seconds (413, PS3.18 10.6.3: the query was too broad). A Brief is for a search in the
loop, where everybody waits meanwhile: what is more than about half a millisecond, or has to wait for the
disk, says WouldBlock and is done again in a thread, with a Budget.

Rules of this file: one unit is a row that is read and decided on, some 5 us. What is cheaper is counted in
eighths, what is dearer several times.
"""

from __future__ import annotations

import contextlib
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from streamsrv.errors import ContentTooLarge, Overloaded, WouldBlock

BRIEF_ROWS = 64
# Read before the disk is asked about: each may lie on a page that is not in memory.
BRIEF_PORTION = 16
# JSON text that is parsed at the same time in a worker, in bytes: as Python objects up to 24 times as much.
PARSED_BYTES = 16 << 20
PARSED_WAIT = 5.0  # seconds that a search waits for others
# Searches of a worker that read long metadata at once, and those that may wait for a turn. Each keeps a
# core busy. More of them would gain nothing, and the event loop would wait for each of their threads.
READING, READING_WAIT = 2, 16


@dataclass(slots=True)
class Budget:
    """What one search may look at: some seconds of one core."""

    rows: int = 1_000_000
    metadata: int = 256 << 20  # bytes of JSON text

    def portion(self, rows: int) -> int:
        """Of so many rows those to read next: one more than can be paid for tells that there are more."""
        return min(rows, self.rows + 1)

    def spend(self, *, rows: int = 0, metadata: int = 0) -> None:
        self.rows -= rows
        self.metadata -= metadata
        if self.rows < 0 or self.metadata < 0:
            raise ContentTooLarge(
                "this search would have to look at too much: "
                "narrow it by StudyDate, PatientID, AccessionNumber or a UID"
            )


def waits_for_disk() -> int:
    """How often this thread has waited for a page of a file that was not in memory."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


@dataclass(slots=True)
class Brief(Budget):
    """For a search in the loop: a few rows, no metadata, nothing from the disk."""

    rows: int = BRIEF_ROWS
    metadata: int = 0
    waits: Callable[[], int] = waits_for_disk
    waited: int = field(init=False)

    def __post_init__(self) -> None:
        self.waited = self.waits()

    def portion(self, rows: int) -> int:
        return min(rows, self.rows + 1, BRIEF_PORTION)

    def spend(self, *, rows: int = 0, metadata: int = 0) -> None:
        self.rows -= rows
        self.metadata -= metadata
        if self.rows < 0 or self.metadata < 0:
            raise WouldBlock("this search looks at more than a few rows")
        if self.waits() != self.waited:
            raise WouldBlock("this search waits for the disk")


class Parsing:
    """Limits the parsed metadata that the searches of a worker hold at once. Any thread may use it."""

    def __init__(self, most: int = PARSED_BYTES, wait: float = PARSED_WAIT) -> None:
        """`most` bytes of JSON text; a search waits at most `wait` seconds for others."""
        self.most = most
        self._wait = wait
        self._free = most
        self._reading = self._waiting = 0
        self._turn = threading.Condition()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Read long metadata of one instance. Raises Overloaded if too many searches wait, or if there is no
        turn in time."""
        with self._turn:
            if self._reading >= READING and not self._wait_for_turn():
                raise Overloaded("too many searches read metadata at the same time", retry_after=5)
            self._reading += 1
        try:
            yield
        finally:
            with self._turn:
                self._reading -= 1
                self._turn.notify()

    def _wait_for_turn(self) -> bool:
        if self._waiting >= READING_WAIT:
            return False
        self._waiting += 1
        try:
            return self._turn.wait_for(lambda: self._reading < READING, self._wait)
        finally:
            self._waiting -= 1

    @contextlib.contextmanager
    def hold(self, length: int) -> Iterator[None]:
        """Keep room for so many bytes, at most for all there is. Overloaded if others do not leave in
        time."""
        length = min(length, self.most)
        with self._changed:
            if not self._changed.wait_for(lambda: self._free >= length, self._wait):
                raise Overloaded("too many searches read long metadata at the same time", retry_after=5)
            self._free -= length
        try:
            yield
        finally:
            with self._changed:
                self._free += length
                self._changed.notify_all()
