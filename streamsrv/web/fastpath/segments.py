"""Segments that cached frames are read from: open for a while, because the next frame is usually in them.

Strategy: a segment stays open until it was not used for `linger` seconds, at most twice that. Where its bytes
are parts in the cache of this node, a part from which a frame was read is held as long. So nothing is opened
and nothing is locked for a frame.

Rules of this file
- All is called in the event loop, and nothing waits for the disk or for another machine.
- A segment of a store on other machines is opened by a thread, which hands its lease over (`keep`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from streamsrv.retrieve.cached_frames import CachedInstance
from streamsrv.store import Location, SegmentLease
from streamsrv.web.sending.sources import read_warm
from streamsrv.wire.answers import Span

Release = Callable[[], None]

# Parts that are held, of all segments: a part that the cache has removed keeps its bytes on the disk.
MOST_HELD = 32


class OpenSegments:
    """Those of one worker. At most `most` are open, and bytes of up to `longest` are read."""

    def __init__(self, most: int, linger: float, longest: int) -> None:
        self._most = most
        self._linger = linger
        self._leases: dict[int, SegmentLease] = {}
        self._idle: set[int] = set()  # segments that were not read since the last sweep
        self._held: dict[tuple[int, int], Release] = {}  # segment and part
        self._timer: asyncio.TimerHandle | None = None
        self._buffer = memoryview(bytearray(longest))

    def read(self, frames: CachedInstance, span: Span) -> memoryview | None:
        """The bytes of a small frame, if they are in memory. They are valid until the next call."""
        lease = self._leases.get(span.segment) or self._opened(frames, span.segment)
        if lease is None or not self._is_at_hand(lease, span):
            return None
        self._idle.discard(span.segment)
        view = self._buffer[: span.length]
        fd, offset = lease.file_at(span.segment, span.offset)
        return view if read_warm(fd, view, offset) else None

    def hold(self, frames: CachedInstance, span: Span) -> tuple[SegmentLease, Release] | None:
        """For a longer frame, which may be read until the function is called. None if it is not here."""
        kept = self._leases.get(span.segment)
        if kept is None or kept.fetcher is None:
            lease = None if frames.remote and kept is None else frames.lease(span.segment)
            return None if lease is None else (lease, lease.release)
        self._idle.discard(span.segment)
        release = kept.fetcher.at_hand(Location(span.segment, span.offset, span.length))
        return None if release is None else (kept, release)

    def _opened(self, frames: CachedInstance, segment: int) -> SegmentLease | None:
        lease = None if frames.remote else frames.lease(segment)
        if lease is not None:
            self.keep(segment, lease)
        return lease

    def _is_at_hand(self, lease: SegmentLease, span: Span) -> bool:
        fetcher = lease.fetcher
        if fetcher is None:
            return True
        release = fetcher.at_hand(Location(span.segment, span.offset, span.length))
        if release is None:
            return False
        key = span.segment, span.offset // fetcher.part
        if key in self._held:
            release()
            return True
        while len(self._held) >= MOST_HELD:
            self._held.pop(next(iter(self._held)))()
        self._held[key] = release
        return True

    def keep(self, segment: int, lease: SegmentLease) -> None:
        """Use this lease for the segment, and release it later. Each instance is looked up by a thread before
        its segment is read here, so a segment number that another server of the database gave again is never
        read by an older lease."""
        if segment in self._leases:
            self._release(segment)
        while len(self._leases) >= self._most:
            self._release(next(iter(self._leases)))
        self._leases[segment] = lease
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._linger, self._sweep)

    def _release(self, segment: int) -> None:
        self._idle.discard(segment)
        for key in [key for key in self._held if key[0] == segment]:
            self._held.pop(key)()
        self._leases.pop(segment).release()

    def _sweep(self) -> None:
        for segment in list(self._idle):
            self._release(segment)
        self._idle = set(self._leases)
        self._timer = None
        if self._leases:
            self._timer = asyncio.get_running_loop().call_later(self._linger, self._sweep)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        while self._leases:
            self._release(next(iter(self._leases)))
