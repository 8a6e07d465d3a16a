"""Segments that cached frames are read from: open for a while, because the next frame is usually in them.

Strategy: a segment stays open until it was not used for `linger` seconds, at most twice that. Where its bytes
are parts in the cache of this node, a part from which a frame was read is held as long. So nothing is opened
and nothing is locked for a frame that is read again.

Rules of this file
- All is called in the event loop, and nothing waits for the disk or for another machine.
- A segment of a store on other machines is opened by a thread, which hands its lease over (`keep`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from streamsrv.retrieve.cached_frames import CachedInstance
from streamsrv.store import FileRange, Location, SegmentLease, same_server
from streamsrv.web.sending.sources import read_warm
from streamsrv.wire.answers import Span

Release = Callable[[], None]

# Of one segment. A part that the cache has removed keeps its bytes on the disk.
MOST_HELD = 16
MOST_PLACES = 16_384


class FoundSpan(NamedTuple):
    """A span in a file. `rest` is in other files, one after the other, if its bytes are in several."""

    whole: int  # bytes
    fd: int
    offset: int
    rest: Sequence[FileRange]


class OpenSegment:
    """`places` are spans that can be read, by their offsets. `held` are parts of the segment, by number.
    `version` is that of the index before its lease."""

    __slots__ = ("held", "lease", "places", "version")

    def __init__(self, lease: SegmentLease, version: int) -> None:
        self.lease = lease
        self.version = version
        self.places: dict[int, FoundSpan] = {}
        self.held: dict[int, Release] = {}

    def find(self, span: Span) -> FoundSpan | None:
        """None if its bytes are not on this machine."""
        ranges = self._ranges(span)
        if not ranges:
            return None
        if len(self.places) >= MOST_PLACES:
            self.places.clear()
        (fd, offset, _), rest = ranges[0], ranges[1:]
        found = self.places[span.offset] = FoundSpan(span.length, fd, offset, rest)
        return found

    def _ranges(self, span: Span) -> Sequence[FileRange] | None:
        fetcher = self.lease.fetcher
        if fetcher is None:
            return [FileRange(*self.lease.file_at(span.segment, span.offset), span.length)]
        if len(self.held) >= MOST_HELD:
            self.places.clear()
            for oldest in list(self.held)[: MOST_HELD // 2]:
                self.held.pop(oldest)()
        ranges: list[FileRange] = []
        offset, end = span.offset, span.offset + span.length
        while offset < end:
            length = min(fetcher.part - offset % fetcher.part, end - offset)
            release = fetcher.at_hand(Location(span.segment, offset, length))
            if release is None:
                return None
            number = offset // fetcher.part
            if number in self.held:
                release()
            else:
                self.held[number] = release
            ranges.append(FileRange(*self.lease.file_at(span.segment, offset), length))
            offset += length
        return ranges

    def let_go(self) -> None:
        """Holds no part any more."""
        self.places.clear()
        while self.held:
            self.held.popitem()[1]()


class OpenSegments:
    """Those of one worker. At most `most` are open, and bytes of up to `longest` are read."""

    def __init__(self, most: int, linger: float, longest: int) -> None:
        self._most = most
        self._linger = linger
        self._open: dict[int, OpenSegment] = {}
        self._idle: set[int] = set()  # segments that were not read since the last sweep
        self._timer: asyncio.TimerHandle | None = None
        self._buffer = memoryview(bytearray(longest))

    def read(self, frames: CachedInstance, span: Span) -> memoryview | None:
        """The bytes of a small frame, if they are in memory. They are valid until the next call."""
        opened = self._open.get(span.segment) or self._opened(frames, span.segment)
        if opened is None:
            return None
        found = opened.places.get(span.offset)
        if found is None or found[0] != span.length:
            found = opened.find(span)
            if found is None:
                return None
        self._idle.discard(span.segment)
        view = self._buffer[: span.length]
        _, fd, offset, rest = found
        if rest:
            return view if _read_all(found, view) else None
        return view if read_warm(fd, view, offset) else None

    def _opened(self, frames: CachedInstance, segment: int) -> OpenSegment | None:
        lease = None if frames.remote else frames.lease(segment)
        return None if lease is None else self.keep(segment, lease, 0)

    def hold(self, frames: CachedInstance, span: Span) -> tuple[SegmentLease, Release] | None:
        """For a longer frame, which may be read until the function is called. None if it is not here."""
        opened = self._open.get(span.segment) if frames.remote else None
        if opened is None or opened.lease.fetcher is None:
            lease = None if frames.remote and opened is None else frames.lease(span.segment)
            return None if lease is None else (lease, lease.release)
        self._idle.discard(span.segment)
        release = opened.lease.fetcher.at_hand(Location(span.segment, span.offset, span.length))
        return None if release is None else (opened.lease, release)

    def keep(self, segment: int, lease: SegmentLease, version: int) -> OpenSegment:
        """Use this lease for the segment, and release it later, or now if the segment is open. After a
        failover another server of the database may give the number of a segment again. A thread looks each
        instance up then, before its segment is read here. So the lease of another server is never used."""
        opened = self._open.get(segment)
        if opened is not None and same_server(opened.version, version):
            lease.release()
            return opened
        if opened is not None:
            self._release(segment)
        while len(self._open) >= self._most:
            self._release(next(iter(self._open)))
        opened = self._open[segment] = OpenSegment(lease, version)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._linger, self._sweep)
        return opened

    def _release(self, segment: int) -> None:
        self._idle.discard(segment)
        opened = self._open.pop(segment)
        opened.let_go()
        opened.lease.release()

    def _sweep(self) -> None:
        for segment in list(self._idle):
            self._release(segment)
        self._idle = set(self._open)
        self._timer = None
        if self._open:
            self._timer = asyncio.get_running_loop().call_later(self._linger, self._sweep)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        while self._open:
            self._release(next(iter(self._open)))


def _read_all(found: FoundSpan, view: memoryview) -> bool:
    at = found.whole - sum(each.length for each in found.rest)
    if not read_warm(found.fd, view[:at], found.offset):
        return False
    for fd, offset, length in found.rest:
        if not read_warm(fd, view[at : at + length], offset):
            return False
        at += length
    return True
