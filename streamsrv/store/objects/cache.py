"""Objects as readers see them: open files on the node's disk, filled from the bucket chunk by chunk.

Strategy: a lease gives descriptors, as that of local segments. Before bytes are used, `ensure` fetches the
chunks that are missing. Neighbours are one ranged GET of up to JOINED chunks, and AT_ONCE requests run at the
same time. A process fetches a chunk once, even if several threads want it. A span that is longer than WINDOW
is used window by window: the next one is fetched while this one is sent, and the last one may be evicted. So
a study may be larger than the cache.

The least recently used chunks of all files become holes when the folder is over its limit. The processes of a
node share the folder, and need not know each other.

Rules of this file
- A chunk is compared with its check before its first use by this process, and fetched again if it differs.
- The folder may be deleted at any moment: open files stay, and the next lease begins a new one.
- Ensured bytes are pinned until `release`, those of a window until the next one.
- An object stays open while a thread fetches or pins parts of it, also if its lease has ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from streamsrv.errors import NO_SPACE, SegmentGone, system_error
from streamsrv.store.fileops import Buffer
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.objects.cached_file import CHUNK, CachedFile, chunks_in, evict
from streamsrv.store.rows import Location
from streamsrv.store.segments.leases import FileRange

JOINED = 64  # chunks, a part of an object
AT_ONCE = 16
AHEAD = 64  # windows that are waited for at the same time
WINDOW = 16 << 20
# Objects without a lease that stay open: the next request usually wants one of them.
MOST_IDLE = 64
# The folder is measured when this process has fetched this share of the limit, and then cut back by TO_FREE.
LOOK = 1 / 32
TO_FREE = 1 / 10

log = logging.getLogger("streamsrv.store")

Result = TypeVar("Result")


class StoredObject(NamedTuple):
    """The place of a segment in the bucket."""

    key: str
    length: int


class ObjectLease:
    """Open objects for reading, shared with other readers of this process."""

    def __init__(self, owner: ObjectCache, objects: dict[int, OpenObject]) -> None:
        self._owner = owner
        self._objects = objects
        self._pinned: list[Pin] = []

    @property
    def fetcher(self) -> ObjectLease:
        return self

    def file_at(self, segment: int, offset: int) -> tuple[int, int]:
        return self.fd(segment), offset

    def fd(self, segment: int) -> int:
        """A descriptor that stays open until `release`. Only ensured bytes of it may be read."""
        return self._objects[segment].file.fd

    def ensure(self, segment: int, offset: int, length: int) -> None:
        """Fetch the bytes that are missing, and pin them. Blocks; raises SegmentGone, BucketUnreachable,
        StoreError."""
        self._pinned += self._owner.pinned([(self._objects[segment], offset, length)])

    def at_hand(self, place: Location) -> Callable[[], None] | None:
        return self._objects[place.segment].at_hand(place.offset, place.length)

    def read_here(self, place: Location) -> bytes | None:
        release = self.at_hand(place)
        if release is None:
            return None
        try:
            return os.pread(self.fd(place.segment), place.length, place.offset)
        finally:
            release()

    def hold(self, places: Iterable[Location]) -> Callable[[], None]:
        """As `ensure`, for many places at the same time, until the function that is returned is called."""
        pins = self._owner.pinned(
            [(self._objects[segment], offset, length) for segment, offset, length in places]
        )
        return partial(self._owner.unpin, pins)

    @property
    def is_crowded(self) -> bool:
        return self._owner.is_crowded

    def ahead(self, work: Callable[[], Result]) -> Future[Result]:
        """Run work that fetches bytes, in a thread. It has to end before `release`."""
        return self._owner.ahead(work)

    def windows(self, segment: int, offset: int, length: int) -> Iterator[FileRange]:
        """The parts of a span; each can be read until the next one is taken. To be closed before `release`,
        unless all parts are taken."""
        yield from self._owner.windows(self._objects[segment], offset, length)

    def pread(self, segment: int, offset: int, length: int) -> bytes:
        """Fetches missing bytes. Fewer at the end of the object."""
        opened = self._objects[segment]
        length = min(length, opened.file.length - offset)
        if length <= 0:
            return b""
        parts = [os.pread(fd, size, at) for fd, at, size in self.windows(segment, offset, length)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def release(self) -> None:
        """Safe to call twice."""
        pinned, self._pinned = self._pinned, []
        self._owner.unpin(pinned)
        objects, self._objects = self._objects, {}
        self._owner.close_all(objects.values())

    def __enter__(self) -> ObjectLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class OpenObject:
    """An object that this process has open."""

    def __init__(self, segment: int, file: CachedFile, key: str) -> None:
        self.segment = segment
        self.file = file
        self.key = key
        self.leases = 0
        self.flights: dict[int, Future[None]] = {}  # of chunks that are being fetched
        self.verified: dict[int, bytes] = {}  # chunk -> check that its bytes had
        self.guard = threading.Lock()
        self._pins: Counter[int] = Counter()

    def pin(self, first: int, count: int) -> None:
        with self.guard:
            for chunk in range(first, first + count):
                self._pins[chunk] += 1
            self.file.pin(first, count)

    def unpin(self, first: int, count: int) -> None:
        with self.guard:
            free = []
            for chunk in range(first, first + count):
                self._pins[chunk] -= 1
                if not self._pins[chunk]:
                    del self._pins[chunk]
                    free.append(chunk)
            for run in joined(free, count):
                self.file.unpin(run.start, len(run))

    def at_hand(self, offset: int, length: int) -> Callable[[], None] | None:
        """Pins chunks that are there, and were compared with their checks; returns how to end it. None if one
        is not there."""
        first = offset // CHUNK
        number = (offset + max(length, 1) - 1) // CHUNK - first + 1
        self.pin(first, number)
        for chunk, check in enumerate(self.file.checks(first, number), first):
            if not check or self.verified.get(chunk) != check:
                self.unpin(first, number)
                return None
        return partial(self.unpin, first, number)


class Pin(NamedTuple):
    """Chunks that nothing evicts."""

    opened: OpenObject
    first: int
    number: int

    @property
    def chunks(self) -> range:
        return range(self.first, self.first + self.number)


class ObjectCache:
    """The cache of one process in a folder of the node, of `limit` bytes. `find` gives the places of
    segments, those that are gone left out."""

    def __init__(
        self,
        folder: Path,
        limit: int,
        bucket: Bucket,
        find: Callable[[Sequence[int]], Mapping[int, StoredObject]],
        window: int = WINDOW,
    ) -> None:
        self._folder = folder
        self._limit = limit
        self._bucket = bucket
        self._find = find
        self._window = window
        self._lock = threading.Lock()
        self._open: dict[int, OpenObject] = {}
        self._idle: dict[int, OpenObject] = {}  # of the open ones; the longest first
        self._fetched = 0  # bytes since the folder was measured
        self._pinned = 0  # chunks, those of several answers several times
        self._evicting = threading.Lock()
        self._fetchers = ThreadPoolExecutor(AT_ONCE, "fetch")
        self._reading = threading.BoundedSemaphore(AT_ONCE)
        # Windows ahead wait for fetchers, so they have threads of their own.
        self._waiters = ThreadPoolExecutor(AHEAD, "window")

    def open(self, segments: Iterable[int]) -> ObjectLease:
        """Raises SegmentGone if a segment was removed: look the instances up again."""
        objects: dict[int, OpenObject] = {}
        wanted = list(dict.fromkeys(segments))
        places = self._find(wanted)
        try:
            for segment in wanted:
                if segment not in places:
                    raise SegmentGone(f"segment {segment} is gone")
                objects[segment] = self._open_one(segment, places[segment])
        except BaseException:
            self.close_all(objects.values())
            raise
        return ObjectLease(self, objects)

    def _open_one(self, segment: int, place: StoredObject) -> OpenObject:
        with self._lock:
            opened = self._open.get(segment)
            if opened is not None and (opened.file.removed or opened.key != place.key):
                self._forget(opened)
                opened = None
            if opened is None:
                opened = self._open[segment] = OpenObject(segment, self._file(place), place.key)
            self._idle.pop(segment, None)
            opened.leases += 1
            return opened

    def _forget(self, opened: OpenObject) -> None:
        """The next lease opens another file."""
        del self._open[opened.segment]
        if self._idle.pop(opened.segment, None):
            opened.file.close()

    def _file(self, place: StoredObject) -> CachedFile:
        name = hashlib.blake2b(place.key.encode(), digest_size=16).hexdigest()
        try:
            return CachedFile(self._folder / name[:2] / name, place.key, place.length)
        except OSError as error:
            raise system_error(error, "opening a file of the cache") from error

    def close_all(self, objects: Iterable[OpenObject]) -> None:
        """Release one lease of each."""
        with self._lock:
            for opened in objects:
                opened.leases -= 1
                if opened.leases:
                    continue
                if self._open.get(opened.segment) is opened:
                    self._idle[opened.segment] = opened
                else:
                    opened.file.close()
            while len(self._idle) > MOST_IDLE:
                self._forget(next(iter(self._idle.values())))

    def close(self) -> None:
        """After the last lease."""
        self._waiters.shutdown()
        self._fetchers.shutdown()
        with self._lock:
            for opened in list(self._idle.values()):
                self._forget(opened)

    # Pinning

    def pinned(self, ranges: Iterable[tuple[OpenObject, int, int]]) -> list[Pin]:
        """Fetch and pin the chunks of ranges (object, offset, length). The objects stay open until
        `unpin`."""
        wanted: dict[OpenObject, set[int]] = {}
        for opened, offset, length in ranges:
            if length:
                last = (offset + length - 1) // CHUNK
                wanted.setdefault(opened, set()).update(range(offset // CHUNK, last + 1))
        pins: list[Pin] = []
        try:
            for opened, chunks in wanted.items():
                for run in joined(sorted(chunks), len(chunks)):
                    pins.append(self._pin(opened, run))
            self._fill(pins)
        except BaseException:
            self.unpin(pins)
            raise
        return pins

    def _pin(self, opened: OpenObject, run: range) -> Pin:
        with self._lock:
            opened.leases += 1
        try:
            opened.pin(run.start, len(run))
        except BaseException:
            self.close_all([opened])
            raise
        with self._lock:
            self._pinned += len(run)
        return Pin(opened, run.start, len(run))

    def unpin(self, pins: Sequence[Pin]) -> None:
        for pin in pins:
            pin.opened.unpin(pin.first, pin.number)
        with self._lock:
            self._pinned -= sum(pin.number for pin in pins)
        self.close_all([pin.opened for pin in pins])

    @property
    def is_crowded(self) -> bool:
        """Whether answers of this process have pinned half of the limit."""
        return self._pinned * CHUNK > self._limit // 2

    def ahead(self, work: Callable[[], Result]) -> Future[Result]:
        return self._waiters.submit(work)

    def windows(self, opened: OpenObject, offset: int, length: int) -> Iterator[FileRange]:
        end = offset + length
        ahead: Future[list[Pin]] | None = None
        try:
            while offset < end:
                size = min(self._window, end - offset)
                pins = ahead.result() if ahead else self.pinned([(opened, offset, size)])
                ahead = None
                try:
                    following = offset + size
                    if following < end:
                        ahead = self._pinned_ahead(opened, following, min(self._window, end - following))
                    yield FileRange(opened.file.fd, offset, size)
                finally:
                    self.unpin(pins)
                offset = following
        finally:
            if ahead is not None:
                ahead.cancel()
                ahead.add_done_callback(self._unpin_unused)

    def _pinned_ahead(self, opened: OpenObject, offset: int, length: int) -> Future[list[Pin]]:
        """The object stays open until the future has ended."""
        with self._lock:
            opened.leases += 1
        ahead = self.ahead(lambda: self.pinned([(opened, offset, length)]))
        ahead.add_done_callback(lambda _: self.close_all([opened]))
        return ahead

    def _unpin_unused(self, ahead: Future[list[Pin]]) -> None:
        if not ahead.cancelled() and ahead.exception() is None:
            self.unpin(ahead.result())

    # Filling

    def _fill(self, pins: Sequence[Pin]) -> None:
        """Fetch the chunks that are not there or not whole. They are pinned."""
        missing: list[tuple[OpenObject, int, bytes | None]] = []
        try:
            for pin in pins:
                before = {chunk: pin.opened.verified.get(chunk) for chunk in pin.chunks}
                missing += [(pin.opened, chunk, before[chunk]) for chunk in _missing(pin)]
        except OSError as error:
            raise system_error(error, "reading the cache") from error
        waits: list[Future[None]] = []
        own: dict[OpenObject, list[int]] = {}
        for opened, chunk, check in missing:
            with opened.guard:
                flight = opened.flights.get(chunk)
                if flight is None:
                    if opened.verified.get(chunk) is not check:
                        continue  # another thread has fetched it since this one looked
                    flight = opened.flights[chunk] = Future()
                    own.setdefault(opened, []).append(chunk)
            waits.append(flight)
        runs = [(opened, run) for opened, chunks in own.items() for run in joined(chunks, JOINED)]
        for each in runs[1:]:
            self._fetchers.submit(self._fetch, *each)
        if runs:
            self._fetch(*runs[0])
        wait(waits)
        for flight in waits:
            flight.result()

    def _fetch(self, opened: OpenObject, run: range) -> None:
        """Fetch neighbours, and end their flights."""
        error: BaseException | None = None
        try:
            offset = run.start * CHUNK
            length = min(run.stop * CHUNK, opened.file.length) - offset
            with self._reading:
                content = self._bucket.read(opened.key, offset, length)
            self._make_room(length)
            opened.verified.update(zip(run, self._put(opened.file, run.start, content), strict=True))
        except SegmentGone:
            error = SegmentGone(f"the object of segment {opened.segment} is not in the bucket")
        except BaseException as failure:
            error = failure
        with opened.guard:
            flights = [opened.flights.pop(chunk) for chunk in run]
        for flight in flights:
            if error is None:
                flight.set_result(None)
            else:
                flight.set_exception(error)

    def _put(self, file: CachedFile, first: int, content: Buffer) -> list[bytes]:
        """On a full disk half of the cache is evicted."""
        try:
            return file.put(first, content)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise system_error(error, "writing to the cache") from error
        self._evict(self.used() // 2)
        try:
            return file.put(first, content)
        except OSError as error:
            raise system_error(error, "writing to the cache") from error

    # The limit

    def used(self) -> int:
        """Bytes that the folder takes on the disk."""
        total = 0
        for path in self._paths():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_blocks * 512
        return total

    def _paths(self) -> Iterator[Path]:
        return (path for path in self._folder.glob("??/*") if path.is_file())

    def _make_room(self, length: int) -> None:
        with self._lock:
            self._fetched += length
            if self._fetched < self._limit * LOOK:
                return
            self._fetched = 0
            for opened in [each for each in self._idle.values() if each.file.removed]:
                self._forget(opened)  # it keeps bytes on the disk
        used = self.used()
        if used > self._limit:
            self._evict(used - int(self._limit * (1 - TO_FREE)))

    def _evict(self, length: int) -> None:
        """Make holes of the least recently used chunks, `length` bytes in all. A failure is logged: the
        answer goes on."""
        with self._evicting:
            try:
                uses = sorted(use for path in self._paths() for use in chunks_in(path))
                by_file: dict[Path, list[int]] = {}
                while uses and length > 0:
                    portion, uses = uses[: max(1, length // CHUNK)], uses[max(1, length // CHUNK) :]
                    by_file.clear()
                    for _, path, chunk in portion:
                        by_file.setdefault(path, []).append(chunk)
                    length -= sum(evict(path, chunks) for path, chunks in by_file.items())
            except OSError as error:
                log.error("the cache cannot be cut back: %s", error.strerror)


def _missing(pin: Pin) -> list[int]:
    """The chunks that are not there or not whole."""
    opened, first, number = pin
    checks = opened.file.checks(first, number)
    return [chunk for chunk, check in enumerate(checks, first) if not _is_there(opened, chunk, check)]


def _is_there(opened: OpenObject, chunk: int, check: bytes) -> bool:
    if not check:
        return False
    if opened.verified.get(chunk) != check:
        if not opened.file.is_whole(chunk, check):
            log.warning("a chunk of the cache is damaged, and is fetched again")
            return False
        opened.verified[chunk] = check
    return True


def joined(chunks: Sequence[int], most: int) -> Iterator[range]:
    """Neighbours, at most `most` together. `chunks` are in ascending order."""
    begin = 0
    for at in range(1, len(chunks) + 1):
        if at == len(chunks) or chunks[at] != chunks[at - 1] + 1 or at - begin == most:
            yield range(chunks[begin], chunks[at - 1] + 1)
            begin = at
