"""Objects as readers see them: files on the node's disk, each with a part of an object from the bucket.

Strategy: a lease holds the places that are to be read, and tells in which file they are. Chunks that are
missing are fetched: neighbours are one ranged GET of up to a part, and AT_ONCE requests run at the same time.
A process fetches a chunk once, even if several threads want it. A span that is longer than a part is used
window by window: the next one is fetched while this one is sent. So a study may be larger than the cache.

Rules of this file
- A chunk is compared with its check before its first use in an open file, and fetched again if it differs.
  From then on it is valid as long as the file is open, also if its name is gone.
- A file is open as long as a thread fetches or reads bytes of it, also if the lease has ended.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from streamsrv.errors import NO_SPACE, ObjectGone, SegmentGone, StoreCorrupt, system_error
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.objects.cache_folder import CacheFolder, PartKey, StoredObject
from streamsrv.store.objects.cached_file import CHUNK, CachedFile
from streamsrv.store.rows import Location
from streamsrv.store.segments.leases import FileRange

AT_ONCE = 16
# Windows that are waited for at the same time.
AHEAD = 64
# Chunks that are fetched with those that are wanted, if the chunk in front of these is there.
FOLLOWING = 3

Result = TypeVar("Result")


class ObjectLease:
    """Objects for reading. Files that are held are shared with other readers of this process."""

    def __init__(self, owner: ObjectCache, objects: Mapping[int, StoredObject]) -> None:
        self._owner = owner
        self._objects = objects
        self._lock = threading.Lock()
        self._files: dict[PartKey, CachedFile] = {}
        self._holds: Counter[PartKey] = Counter()  # of those files
        self.part = owner.part

    @property
    def fetcher(self) -> ObjectLease:
        return self

    @property
    def is_crowded(self) -> bool:
        return self._owner.folder.is_crowded

    def ahead(self, work: Callable[[], Result]) -> Future[Result]:
        """Run work that fetches bytes, in a thread."""
        return self._owner.ahead(work)

    def file_at(self, segment: int, offset: int) -> tuple[int, int]:
        number, at = divmod(offset, self.part)
        return self._files[segment, number].fd, at

    def hold(self, places: Iterable[Location]) -> Callable[[], None]:
        """Fetches the bytes that are missing. Blocks; raises SegmentGone, BucketUnreachable, StoreError."""
        wanted: dict[PartKey, set[int]] = {}
        for place in places:
            if place.offset + place.length > self._objects[place.segment].length:
                raise StoreCorrupt(f"segment {place.segment} ends before a record that the index knows")
            for key, chunks in _chunks_of(place, self.part):
                wanted.setdefault(key, set()).update(chunks)
        taken: dict[PartKey, CachedFile] = {}
        try:
            for key in wanted:
                taken[key] = self._take(key)
            self._owner.fill({file: sorted(wanted[key]) for key, file in taken.items()})
        except BaseException:
            self._give_back(taken)
            raise
        return partial(self._give_back, taken)

    def _take(self, key: PartKey) -> CachedFile:
        segment, number = key
        with self._lock:
            file = self._files.get(key)
            if file is None:
                file = self._files[key] = self._owner.folder.take(segment, self._objects[segment], number)
            self._holds[key] += 1
            return file

    def _give_back(self, keys: Iterable[PartKey]) -> None:
        with self._lock:
            for key in keys:
                self._holds[key] -= 1
                if not self._holds[key]:
                    del self._holds[key]
                    self._owner.folder.give_back(self._files.pop(key))

    def at_hand(self, place: Location) -> Callable[[], None] | None:
        number, at = divmod(place.offset, self.part)
        if at + place.length > self.part:
            return None
        key, chunks = (place.segment, number), chunks_in(at, place.length)
        with self._lock:
            file = self._files.get(key)
            if file is None:
                file = self._owner.folder.take_verified(
                    place.segment, self._objects[place.segment], number, chunks
                )
                if file is None:
                    return None
                self._files[key] = file
            elif not file.verified.issuperset(chunks):
                return None
            self._holds[key] += 1
        return partial(self._give_back, (key,))

    def read_here(self, place: Location) -> bytes | None:
        release = self.at_hand(place)
        if release is None:
            return None
        try:
            fd, offset = self.file_at(place.segment, place.offset)
            return os.pread(fd, place.length, offset)
        finally:
            release()

    def windows(self, segment: int, offset: int, length: int) -> Iterator[FileRange]:
        """The parts of a span; each can be read until the next one is taken. To be closed before `release`,
        unless all parts are taken."""
        end = offset + length
        ahead: Future[Callable[[], None]] | None = None
        try:
            while offset < end:
                place = self._window(segment, offset, end)
                release = ahead.result() if ahead else self.hold([place])
                ahead = None
                try:
                    offset += place.length
                    if offset < end:
                        ahead = self.ahead(partial(self.hold, [self._window(segment, offset, end)]))
                    yield FileRange(*self.file_at(segment, place.offset), place.length)
                finally:
                    release()
        finally:
            if ahead is not None:
                ahead.cancel()
                ahead.add_done_callback(_release_unused)

    def _window(self, segment: int, offset: int, end: int) -> Location:
        return Location(segment, offset, min(self.part - offset % self.part, end - offset))

    def pread(self, segment: int, offset: int, length: int) -> bytes:
        """Fetches missing bytes. Fewer at the end of the object."""
        length = min(length, self._objects[segment].length - offset)
        parts = [os.pread(fd, size, at) for fd, at, size in self.windows(segment, offset, length)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def release(self) -> None:
        """Nothing is open but the files that are held."""

    def __enter__(self) -> ObjectLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class ObjectCache:
    """The cache of one process in a folder of the node, of `limit` bytes. `find` gives the places of
    segments, those that are gone left out."""

    def __init__(
        self,
        folder: Path,
        limit: int,
        bucket: Bucket,
        find: Callable[[Sequence[int]], Mapping[int, StoredObject]],
    ) -> None:
        self._bucket = bucket
        self._find = find
        self.part = bucket.part
        self.folder = CacheFolder(folder, limit, bucket.part)
        self._lock = threading.Lock()  # of flights
        self._fetchers = ThreadPoolExecutor(AT_ONCE, "fetch")
        self._reading = threading.BoundedSemaphore(AT_ONCE)
        # Windows ahead wait for fetchers, so they have threads of their own.
        self._waiters = ThreadPoolExecutor(AHEAD, "window")

    def open(self, segments: Iterable[int]) -> ObjectLease:
        """Raises SegmentGone if a segment was removed: look the instances up again."""
        wanted = list(dict.fromkeys(segments))
        places = self._find(wanted)
        for segment in wanted:
            if segment not in places:
                raise ObjectGone(f"segment {segment} is gone")
        return ObjectLease(self, places)

    def close(self) -> None:
        """After the last lease."""
        self._waiters.shutdown()
        self._fetchers.shutdown()
        self.folder.close()

    def ahead(self, work: Callable[[], Result]) -> Future[Result]:
        return self._waiters.submit(work)

    # Filling

    def fill(self, wanted: Mapping[CachedFile, Sequence[int]]) -> None:
        """Fetch the chunks that are not there or not whole."""
        try:
            missing = {file: found for file, chunks in wanted.items() if (found := file.missing(chunks))}
        except OSError as error:
            raise system_error(error, "reading the cache") from error
        flights: set[Future[None]] = set()
        own: list[tuple[CachedFile, range]] = []
        with self._lock:
            for file, chunks in missing.items():
                flights |= {file.flights[chunk] for chunk in chunks if chunk in file.flights}
                # Another thread may have fetched some since this one looked.
                left = [chunk for chunk in chunks if chunk not in file.flights and chunk not in file.verified]
                for run in _with_following(file, list(_joined(left))):
                    flight = Future[None]()
                    flights.add(flight)
                    file.flights.update(dict.fromkeys(run, flight))
                    own.append((file, run))
        for each in own[1:]:
            self._fetchers.submit(self._fetch, *each)
        if own:
            self._fetch(*own[0])
        failures = [flight.exception() for flight in flights]  # waits for each: they use the files
        for failure in filter(None, failures):
            raise failure

    def _fetch(self, file: CachedFile, run: range) -> None:
        """Fetch neighbours, and end their flight."""
        error: BaseException | None = None
        try:
            length = min(run.stop * CHUNK, file.length) - run.start * CHUNK
            self.folder.make_room(length)
            with self._reading:
                self._put(file, run, length)
        except SegmentGone:
            error = ObjectGone(f"the object of segment {file.segment} is not in the bucket")
        except OSError as failure:
            error = system_error(failure, "measuring the cache")
        except BaseException as failure:
            error = failure
        with self._lock:
            (flight,) = {file.flights.pop(chunk) for chunk in run}
        if error is None:
            flight.set_result(None)
        else:
            flight.set_exception(error)

    def _put(self, file: CachedFile, run: range, length: int) -> None:
        """On a full disk half of the cache is removed, and the bytes are fetched again."""
        for is_last in (False, True):
            try:
                file.put(run, self._bucket.pieces(file.key, file.start + run.start * CHUNK, length))
                return
            except OSError as error:
                if is_last or error.errno not in NO_SPACE:
                    raise system_error(error, "writing to the cache") from error
            self.folder.free(self.folder.used() // 2)


def chunks_in(offset: int, length: int) -> range:
    """The chunks of a span of a file."""
    return range(offset // CHUNK, -(-(offset + length) // CHUNK))


def _chunks_of(place: Location, part: int) -> Iterator[tuple[PartKey, range]]:
    """The parts of a place, and the chunks of each that it touches."""
    segment, offset, length = place
    end = offset + length
    while offset < end:
        number, at = divmod(offset, part)
        size = min(part - at, end - offset)
        yield (segment, number), chunks_in(at, size)
        offset += size


def _joined(chunks: Sequence[int]) -> Iterator[range]:
    """Neighbours. `chunks` are in ascending order."""
    begin = 0
    for at in range(1, len(chunks) + 1):
        if at == len(chunks) or chunks[at] != chunks[at - 1] + 1:
            yield range(chunks[begin], chunks[at - 1] + 1)
            begin = at


def _with_following(file: CachedFile, runs: list[range]) -> list[range]:
    """The last run goes on, if the chunk in front of it is there: mostly the next one is wanted soon."""
    if runs and runs[-1].start - 1 in file.verified:
        start, stop = runs[-1].start, runs[-1].stop
        end = min(stop + FOLLOWING, file.chunks)
        while stop < end and stop not in file.verified and stop not in file.flights:
            stop += 1
        runs[-1] = range(start, stop)
    return runs


def _release_unused(ahead: Future[Callable[[], None]]) -> None:
    if not ahead.cancelled() and ahead.exception() is None:
        ahead.result()()
