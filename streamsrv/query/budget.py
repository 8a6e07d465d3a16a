"""Limits of one search: rows and metadata that it reads. They are counted, never timed.

Each reader of rows asks for a portion and then spends it. `Budget` ends a search that would keep a core busy
for seconds: 413, the query is too broad (PS3.18 8.3.4.4, 10.6.3). `BriefBudget` is for a search in the event
loop. It is spent after about half a millisecond, or when the thread has waited for the disk.

One unit is a row that is read and matched, about 5 us. Cheaper steps count as an eighth, dearer ones as
several.
"""

from __future__ import annotations

import contextlib
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from streamsrv.errors import ContentTooLarge, Overloaded

BRIEF_ROWS = 64
# Rows between two checks for a page fault: each may lie on a page that is not in memory.
BRIEF_PORTION = 16
# Rows in one read transaction of a search that may see few of them: some milliseconds.
HIDDEN_PORTION = 1_000
# Bytes of JSON text that a worker holds parsed. As Python objects they take up to 24 times as much.
PARSED_BYTES = 16 << 20
PARSED_WAIT = 5.0  # seconds that a search waits for others
# Searches of a worker that read long metadata at once, and those that may wait for them. Each keeps a core
# busy: more of them would gain nothing and delay the event loop.
READING, READING_WAIT = 2, 16


@dataclass(slots=True)
class Budget:
    """Allows some seconds of one core."""

    rows: int = 1_000_000
    metadata: int = 256 << 20  # bytes of JSON text
    used: int = field(default=0, init=False)  # rows
    spent: bool = field(default=False, init=False)
    starved: bool = field(default=False, init=False)  # spent on rows that the client may not see
    optional: bool = field(default=False, init=False)

    def allow_only(self, rows: int) -> None:
        """From now on the search may read so many rows and no metadata. Then it ends without an error, and
        the results that it has yielded are valid."""
        self.rows, self.metadata, self.optional = rows, 0, True

    def portion(self, rows: int) -> int:
        """The number of rows to read next, at least 1. The row after the last paid one shows that there are
        more."""
        return min(rows, max(self.rows, 1) if self.optional else max(self.rows, 0) + 1)

    def reach(self, rows: int) -> int:
        """The number of rows to look at in one step, to find so many visible ones."""
        return max(rows, HIDDEN_PORTION)

    def spend(self, *, rows: int = 0, metadata: int = 0, hidden: int = 0) -> bool:
        """Returns False if the search must end: `spent` is then set and its results are void. A `Budget`
        raises ContentTooLarge instead. It ignores `hidden` work, on rows that the client may not see: the
        answer would depend on them."""
        self.rows -= rows
        self.used += rows
        self.metadata -= metadata
        if self.rows < 0 or self.metadata < 0:
            self.spent = True
            if self.optional:
                return False
            raise ContentTooLarge(
                "this search would have to look at too much: "
                "narrow it by StudyDate, PatientID, AccessionNumber or a UID"
            )
        return True


def major_faults() -> int:
    """Returns how often this thread has waited for a page of a file."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


@dataclass(slots=True)
class BriefBudget(Budget):
    """Allows a few rows, no metadata and no wait for the disk."""

    rows: int = BRIEF_ROWS
    metadata: int = 0
    hidden: int = BRIEF_ROWS
    faults: Callable[[], int] = major_faults
    faults_before: int = field(init=False)

    def __post_init__(self) -> None:
        self.faults_before = self.faults()

    def portion(self, rows: int) -> int:
        return min(Budget.portion(self, rows), BRIEF_PORTION)

    def reach(self, rows: int) -> int:
        return self.portion(rows)

    def spend(self, *, rows: int = 0, metadata: int = 0, hidden: int = 0) -> bool:
        self.rows -= rows
        self.metadata -= metadata
        self.hidden -= hidden
        self.starved = self.hidden < 0
        over = self.rows < 0 or self.metadata < 0
        self.spent = self.spent or over or self.starved or self.faults() != self.faults_before
        return not self.spent


class Parsing:
    """Limits the metadata that the searches of a worker read and parse at once. Thread-safe."""

    def __init__(self, most: int = PARSED_BYTES, wait: float = PARSED_WAIT) -> None:
        """`most` is in bytes of JSON text, `wait` in seconds."""
        self.most = most
        self._wait = wait
        self._free = most
        self._reading = self._waiting = 0
        self._turn = threading.Condition()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Allows one thread to read long metadata. Raises Overloaded if too many searches wait, or after
        `wait` seconds."""
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
        """Reserves so many bytes, at most all. Raises Overloaded if others do not free them in time."""
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
