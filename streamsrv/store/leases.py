"""Segments as readers see them: opened when an answer needs them, shared within the process, closed with the
last lease.

Rules of this file
- A lease outlives compaction: an unlinked file stays readable while it is open. A segment that cannot be
  opened any more is SegmentGone, and whoever wanted it looks the instances up again.
- Segments are never mapped: a read error on a mapping kills the process, and mapped pages count as its
  memory.
- Nothing is kept open for later: opening costs 5 us, and a descriptor too many keeps a compacted segment's
  bytes on the disk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

from streamsrv.errors import SegmentGone
from streamsrv.store.folder import Layout


class SegmentLease:
    """Open segments for reading, shared with every other reader of this process."""

    def __init__(self, owner: Readers, fds: dict[int, int]) -> None:
        self._owner = owner
        self._fds = fds

    def fd(self, segment: int) -> int:
        """A descriptor that stays open until `release`."""
        return self._fds[segment]

    def pread(self, segment: int, offset: int, length: int) -> bytes:
        return os.pread(self._fds[segment], length, offset)

    def release(self) -> None:
        """Safe to call twice."""
        fds, self._fds = self._fds, {}
        self._owner.close(fds)

    def __enter__(self) -> SegmentLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Readers:
    """The open segments of a process."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._open: dict[int, tuple[int, int]] = {}  # segment -> descriptor, leases

    def open(self, segments: Iterable[int]) -> SegmentLease:
        """SegmentGone if one has been unlinked: look the instances up again."""
        fds: dict[int, int] = {}
        try:
            for segment in segments:
                if segment not in fds:
                    fds[segment] = self._open_one(segment)
        except BaseException:
            self.close(fds)
            raise
        return SegmentLease(self, fds)

    def _open_one(self, segment: int) -> int:
        with self._lock:
            fd, leases = self._open.get(segment, (-1, 0))
            if fd < 0:
                try:
                    fd = os.open(self._layout.segment(segment), os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    raise SegmentGone(f"segment {segment} is gone") from None
            self._open[segment] = (fd, leases + 1)
            return fd

    def close(self, segments: Iterable[int]) -> None:
        """Give back one lease of each."""
        with self._lock:
            for segment in segments:
                fd, leases = self._open.pop(segment)
                if leases > 1:
                    self._open[segment] = (fd, leases - 1)
                else:
                    os.close(fd)
