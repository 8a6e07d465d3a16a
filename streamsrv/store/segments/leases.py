"""Segments as readers see them: opened when an answer needs them, shared in the process, closed after the
last lease.

Rules of this file
- A lease outlives compaction: an unlinked file can be read while it is open. A segment that cannot be opened
  any more is SegmentGone, and the reader looks the instances up again.
- Segments are never mapped: a read error on a mapping kills the process, and mapped pages count as its
  memory.
- After its last lease a segment stays open for LINGER seconds. The next request usually wants it, and opening
  costs as much as finding a frame. A descriptor keeps the bytes of a compacted segment on the disk, so it
  does not stay open longer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import NamedTuple, Protocol, Self, TypeVar

from streamsrv.errors import SegmentGone
from streamsrv.store.folder import Layout
from streamsrv.store.rows import Location

LINGER = 0.5
MOST_LINGERING = 64


Result = TypeVar("Result")


class FileRange(NamedTuple):
    """Bytes of an open file."""

    fd: int
    offset: int
    length: int


class Fetcher(Protocol):
    """Brings bytes of open segments to this machine, into files of `part` bytes of a segment."""

    @property
    def part(self) -> int: ...

    def at_hand(self, place: Location) -> Callable[[], None] | None:
        """As `hold`, for bytes that are on this machine and were compared with their checks; else None. Reads
        nothing from the disk. None also for bytes of two files."""

    def read_here(self, place: Location) -> bytes | None:
        """These bytes, if they are on this machine. Waits for the disk alone."""

    def hold(self, places: Iterable[Location]) -> Callable[[], None]:
        """These bytes can be read until the function that is returned is called. Any thread may call it,
        before the lease is released. Blocks for bytes that are fetched; raises SegmentGone, StoreError."""

    @property
    def is_crowded(self) -> bool:
        """Whether answers hold so many bytes that each should hold few."""

    def ahead(self, work: Callable[[], Result]) -> Future[Result]:
        """Run work that blocks for bytes, in a thread. It has to end before the lease is released."""


class SegmentLease(Protocol):
    """Open segments for reading. Bytes that are not on this machine are fetched from where they are."""

    @property
    def fetcher(self) -> Fetcher | None:
        """None if all bytes are on this machine."""

    def file_at(self, segment: int, offset: int) -> tuple[int, int]:
        """Descriptor and offset of a byte. If there is a `fetcher`, it has to hold the byte."""

    def windows(self, segment: int, offset: int, length: int) -> Iterator[FileRange]:
        """The parts of a span; each can be read until the next one is taken. Blocks and raises as `hold`. To
        be closed before `release`, unless all parts are taken."""

    def pread(self, segment: int, offset: int, length: int) -> bytes:
        """Fewer bytes at the end of the segment. Blocks and raises as `hold`; raises OSError."""

    def release(self) -> None:
        """Safe to call twice."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class FileLease:
    """Open segment files, shared with other readers of this process."""

    fetcher = None

    def __init__(self, owner: Readers, fds: dict[int, int]) -> None:
        self._owner = owner
        self._fds = fds

    def fd(self, segment: int) -> int:
        return self._fds[segment]

    def file_at(self, segment: int, offset: int) -> tuple[int, int]:
        return self._fds[segment], offset

    def windows(self, segment: int, offset: int, length: int) -> Iterator[FileRange]:
        """The whole span."""
        if length:
            yield FileRange(self._fds[segment], offset, length)

    def pread(self, segment: int, offset: int, length: int) -> bytes:
        return os.pread(self._fds[segment], length, offset)

    def release(self) -> None:
        """Safe to call twice."""
        fds, self._fds = self._fds, {}
        self._owner.close(fds)

    def __enter__(self) -> FileLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Readers:
    """The open segments of a process."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._open: dict[int, tuple[int, int]] = {}  # segment -> descriptor, leases
        self._lingering: dict[int, tuple[int, float]] = {}  # segment -> descriptor, since; the longest first
        self._unlinked: set[int] = set()  # of the open ones
        self._timer: threading.Timer | None = None
        self._ended = False

    def open(self, segments: Iterable[int]) -> FileLease:
        """Raises SegmentGone if a segment was removed: look the instances up again."""
        fds: dict[int, int] = {}
        try:
            for segment in segments:
                if segment not in fds:
                    fds[segment] = self._open_one(segment)
        except BaseException:
            self.close(fds)
            raise
        return FileLease(self, fds)

    def _open_one(self, segment: int) -> int:
        with self._lock:
            fd, leases = self._open.get(segment, (-1, 0))
            if fd < 0:
                fd, _ = self._lingering.pop(segment, (-1, 0.0))
            if fd < 0:
                try:
                    fd = os.open(self._layout.segment(segment), os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    raise SegmentGone(f"segment {segment} is gone") from None
            self._open[segment] = (fd, leases + 1)
            return fd

    def close(self, segments: Iterable[int]) -> None:
        """Release one lease of each."""
        with self._lock:
            for segment in segments:
                fd, leases = self._open.pop(segment)
                if leases > 1:
                    self._open[segment] = (fd, leases - 1)
                else:
                    self._linger(segment, fd)

    def _linger(self, segment: int, fd: int) -> None:
        if self._ended or segment in self._unlinked or len(self._lingering) >= MOST_LINGERING:
            self._unlinked.discard(segment)
            os.close(fd)
            return
        self._lingering[segment] = fd, time.monotonic()
        if self._timer is None:
            self._wait(LINGER)

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._sweep)
        self._timer.daemon = True
        self._timer.start()

    def _sweep(self) -> None:
        """Close files after LINGER seconds; set the timer for the rest."""
        with self._lock:
            if self._timer is not threading.current_thread():
                return  # forgotten
            self._timer, now = None, time.monotonic()
            for segment, (fd, since) in list(self._lingering.items()):
                if now - since < LINGER:
                    self._wait(since + LINGER - now)
                    return
                del self._lingering[segment]
                os.close(fd)

    def gone(self, segment: int) -> None:
        """Its file has been removed."""
        with self._lock:
            if segment in self._open:
                self._unlinked.add(segment)
            elif segment in self._lingering:
                os.close(self._lingering.pop(segment)[0])

    def end(self) -> None:
        """From now on files close at once. A timer must not start while the interpreter shuts down."""
        with self._lock:
            self._ended = True
        self.forget()

    def forget(self) -> None:
        """Close all files without a lease."""
        with self._lock:
            timer, self._timer = self._timer, None
            for fd, _ in self._lingering.values():
                os.close(fd)
            self._lingering.clear()
        if timer is not None:
            timer.cancel()
            timer.join()
