"""Scrub: reads the bytes of segments from the disk at a bounded rate and compares them with their digests.

Strategy: a segment is read from header to header, past the page cache, and each payload is hashed. A living
instance with wrong bytes is registered as damaged; a registered instance with right bytes is taken from the
register. Where a header is damaged, the rows of the index give the next instance; it is verified by its row.

The page cache is passed so that pages of clients stay in it, and the disk is read instead of the memory: with
O_DIRECT through one aligned window, else with RWF_DONTCACHE (Linux 6.14), else with plain reads whose pages
are dropped afterwards.

It runs beside a live server. Bytes before the committed end of a segment never change. If a segment is
compacted meanwhile, compaction verifies its records.

DATA/scrub.json says when each byte of each segment was last verified. Times are in seconds since 1970, UTC:

    {"segments": {"7": {"at": 1732940000.0, "end": 1073741824}},
     "current": {"segment": 8, "offset": 524288, "began": 1732950000.0},
     "next": 1732960000.0}

`at` is the start of the last whole walk of a segment. Bytes before `end` were verified after `at`. For a
segment that was never walked, `end` is 0 and `at` is when it was first seen. `current` is an interrupted
walk. `next` is the start of the next walk.

Rules of this file
- Damaged bytes of deleted records are a note, because nothing is lost.
- A read error is damage only if the third attempt fails too.
- Nothing depends on scrub.json: a missing or unreadable file means that nothing was verified yet.
- Segments are spread over the period, so that each is walked within a period after its last walk, or after it
  was first seen.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import orjson

from streamsrv.store.fileops import RWF_DONTCACHE, FileOps, write_all
from streamsrv.store.index import DamagedRecord
from streamsrv.store.maintenance.check import Finding, Severity, at, error
from streamsrv.store.rows import FIRST_RECORD, InstanceRow, SegmentRow
from streamsrv.store.segments.records import HEADER, HeaderDamaged, PayloadDigest, RecordHeader, RecordKind
from streamsrv.store.segments.verifying import (
    MISSING_SEGMENT,
    SHORT_SEGMENT,
    WRONG_DIGEST,
    damaged_record,
    described,
    register,
)
from streamsrv.store.store import Store

WINDOW = 1 << 20  # bytes of one read
ALIGNMENT = 4096  # of offsets and memory; no disk wants more
_NOT_KNOWN = frozenset((errno.EINVAL, errno.EOPNOTSUPP))
DAY = 86_400.0
STEP = WINDOW - ALIGNMENT  # bytes hashed at a time
ATTEMPTS, PAUSE = 3, 1.0  # of a read that fails; seconds between them
SAVE_EVERY = 10.0  # seconds: a crash loses at most so much of a walk
REGISTER_BATCH = 1_000


class UncachedFile:
    """A file, open for reading past the page cache. `loaded` gets the bytes of each read of the disk."""

    def __init__(self, path: Path, loaded: Callable[[int], None] = lambda _: None) -> None:
        self._loaded = loaded
        self._direct = True
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise
            self._direct = False
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead
        self._window = mmap.mmap(-1, WINDOW)  # page-aligned
        self._start = self._end = 0  # of the file: the bytes in the window

    def close(self) -> None:
        os.close(self.fd)
        self._window.close()

    @property
    def length(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, offset: int, length: int, *, ahead: bool = True) -> bytes:
        """At most WINDOW - ALIGNMENT bytes; fewer at the end of the file. Without `ahead`, reads only the
        blocks that hold these bytes."""
        if not self._start <= offset <= offset + length <= self._end:
            start = offset - offset % ALIGNMENT
            needed = offset + length - start
            self._load(start, WINDOW if ahead else needed + -needed % ALIGNMENT)
        start = offset - self._start
        return self._window[start : min(start + length, self._end - self._start)]

    def _load(self, start: int, length: int) -> None:
        self._start = self._end = start
        with memoryview(self._window) as whole, whole[:length] as view:
            count = self._read_into(view, start)
        self._end = start + count
        self._loaded(count)

    def _read_into(self, view: memoryview, start: int) -> int:
        if self._direct:
            return os.preadv(self.fd, [view], start)
        try:
            return os.preadv(self.fd, [view], start, RWF_DONTCACHE)
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise
        cached = self._is_cached(start)
        count = os.preadv(self.fd, [view], start)
        if not cached:
            os.posix_fadvise(self.fd, start, count, os.POSIX_FADV_DONTNEED)
        return count

    def _is_cached(self, start: int) -> bool:
        try:
            os.preadv(self.fd, [bytearray(1)], start, os.RWF_NOWAIT)
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Verified:
    at: float
    end: int = 0


@dataclass(frozen=True, slots=True)
class WalkPosition:
    """Records of the segment before `offset` are verified, in a walk that began at `began`."""

    segment: int
    offset: int
    began: float


@dataclass(slots=True)
class ScrubState:
    segments: dict[int, Verified] = field(default_factory=dict)
    current: WalkPosition | None = None
    next: float = 0.0

    @classmethod
    def load(cls, path: Path) -> ScrubState:
        try:
            stored = orjson.loads(path.read_bytes())
            segments = {
                int(number): Verified(float(each["at"]), int(each["end"]))
                for number, each in stored["segments"].items()
            }
            current = stored["current"]
            position = current and WalkPosition(
                int(current["segment"]), int(current["offset"]), float(current["began"])
            )
            return cls(segments, position, float(stored["next"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return cls()

    def save(self, ops: FileOps, path: Path) -> None:
        """Replace the file in one step. Raises OSError."""
        fresh = path.with_suffix(".new")
        if fresh.exists():
            ops.unlink(fresh)
        fd = ops.create(fresh)
        try:
            write_all(ops, fd, [orjson.dumps(self, option=orjson.OPT_NON_STR_KEYS)], 0)
            ops.sync(fd)
        finally:
            os.close(fd)
        ops.rename(fresh, path)

    def see(self, rows: Mapping[int, SegmentRow], now: float) -> None:
        """Add new segments, drop removed ones."""
        self.segments = {number: self.segments.get(number, Verified(now)) for number in rows}
        if self.current is not None and self.current.segment not in rows:
            self.current = None

    def walked(self, segment: int, began: float, end: int) -> None:
        self.segments[segment] = Verified(began, end)
        self.current = None

    def due(self, rows: Mapping[int, SegmentRow], now: float, period: float) -> tuple[int, float] | None:
        """The segment to walk next, and in how many seconds; None without segments. `period` in seconds."""
        waiting = [row for row in rows.values() if row.committed_end > FIRST_RECORD]
        if not waiting:
            return None
        waiting.sort(key=lambda row: self.segments[row.segment].at)
        if self.current is not None:
            return self.current.segment, 0.0
        # Bytes a second, so that each is walked within a period after its last walk.
        needed, total = 0.0, 0
        for row in waiting:
            total += row.committed_end
            left = self.segments[row.segment].at + period - now
            needed = max(needed, total / max(left, 0.001))
        share = waiting[0].committed_end / needed
        self.next = min(self.next or now + share, now + share)
        return waiting[0].segment, max(self.next - now, 0.0)


def verified_until(state: ScrubState, rows: Mapping[int, SegmentRow]) -> tuple[float | None, int]:
    """The oldest time of verification, or None; and the number of bytes never verified."""
    times: list[float] = []
    never = 0
    for number, row in rows.items():
        known = state.segments.get(number, Verified(0.0))
        never += max(row.committed_end - max(known.end, FIRST_RECORD), 0)
        times += [known.at] if known.end else []
    return (min(times) if times else None), never


class Pace:
    """Holds the reads of all threads to `rate` bytes a second, by sleeping; 0: no limit."""

    def __init__(
        self,
        rate: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self.sleep = sleep
        self._free_at = clock()
        self._lock = threading.Lock()

    def take(self, length: int) -> None:
        """Called after a read of `length` bytes."""
        if self._rate:
            with self._lock:
                now = self._clock()
                self._free_at = until = max(self._free_at, now) + length / self._rate
            self.sleep(until - now)


class ScannedBytes(NamedTuple):
    """A record, or other bytes, from `offset` to `end`. `row` is that of a living instance with damaged
    header."""

    offset: int
    end: int
    header: RecordHeader | None = None
    row: InstanceRow | None = None
    reason: str = ""


class Scrub:
    """Walks segments of one store. DamagedBytes is registered if the store is open for writing."""

    def __init__(self, store: Store, pace: Pace, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._index = store.index
        self._pace = pace
        self._now = now
        self._path = store.layout.scrub_state
        self._rows: list[InstanceRow] | None = None  # of the segment, once they were needed

    # Turns

    def due(self, period: float) -> tuple[int, float] | None:
        """The segment to walk next, and in how many seconds. All segments are walked in `period` seconds."""
        state, rows = self._state()
        found = state.due(rows, self._now(), period)
        self._save(state)
        return found

    def run(self, segment: int, *, resume: bool = True) -> Iterator[Finding]:
        """Walk one segment; with `resume` from its interrupted walk."""
        state, rows = self._state()
        row, current = rows.get(segment), state.current
        if row is None:
            return
        if not resume or current is None or current.segment != segment or current.offset > row.committed_end:
            current = WalkPosition(segment, FIRST_RECORD, self._now())
        self._rows = None
        yield from self._walk(row, current)
        state, _ = self._state()
        state.walked(segment, current.began, row.committed_end)
        state.next = 0.0
        self._save(state)

    def _state(self) -> tuple[ScrubState, dict[int, SegmentRow]]:
        state, rows = ScrubState.load(self._path), self._index.segments()
        state.see(rows, self._now())
        return state, rows

    def _save(self, state: ScrubState) -> None:
        """A failure costs only a second walk."""
        if not self._store.read_only:
            with contextlib.suppress(OSError):
                state.save(self._store.ops, self._path)

    def _save_position(self, position: WalkPosition) -> None:
        state, _ = self._state()
        state.current = position
        self._save(state)

    # One segment

    def _walk(self, row: SegmentRow, begin: WalkPosition) -> Iterator[Finding]:
        registered = {each.record_id for each in self._index.damage()}
        try:
            file = UncachedFile(self._store.layout.segment(row.segment), self._pace.take)
        except FileNotFoundError:
            yield from self._missing(row)
            return
        saved = self._now()
        with contextlib.closing(file):
            for stretch in self._stretches(file, row, begin.offset):
                yield from self._verify(file, row.segment, stretch, registered)
                if self._now() - saved >= SAVE_EVERY:
                    saved = self._now()
                    self._save_position(WalkPosition(row.segment, stretch.end, begin.began))

    def _missing(self, row: SegmentRow) -> Iterator[Finding]:
        current = self._index.segment(row.segment)
        if current is None or not current.live:
            return  # compacted away
        yield error(f"segment {row.segment}", "its file is missing")
        self._register(
            damaged_record(each, MISSING_SEGMENT) for each in self._index.instances_in([row.segment])
        )

    def _stretches(self, file: UncachedFile, row: SegmentRow, offset: int) -> Iterator[ScannedBytes]:
        while offset < row.committed_end:
            try:
                header = self._header(file, row.segment, offset, row.committed_end)
                stretch = ScannedBytes(offset, offset + HEADER + header.length, header)
            except (HeaderDamaged, OSError) as reason:
                stretch = _beside(self._living(row.segment), offset, row.committed_end, str(reason))
            yield stretch
            if stretch.header is not None and stretch.header.kind is RecordKind.PENDING:
                return
            offset = stretch.end

    def _header(self, file: UncachedFile, segment: int, offset: int, end: int) -> RecordHeader:
        raw = self._read(file, offset, HEADER)
        header = self._store.form.unpack(raw, segment, offset)
        if offset + HEADER + header.length > end:
            raise HeaderDamaged(f"its payload of {header.length} bytes runs past the end")
        return header

    def _living(self, segment: int) -> list[InstanceRow]:
        """Found by reading the whole index."""
        if self._rows is None:
            self._rows = sorted(self._index.instances_in([segment]), key=lambda row: row.location.offset)
        return self._rows

    # One record

    def _verify(
        self, file: UncachedFile, segment: int, stretch: ScannedBytes, registered: set[bytes]
    ) -> Iterator[Finding]:
        header, row = stretch.header, stretch.row
        if header is None:
            what = f"record header: {stretch.reason}; "
            yield error(at(segment, stretch.offset), what + _after(stretch))
            if row is None:
                return
        expected = row or header
        assert expected is not None
        if header is not None and header.kind is RecordKind.PENDING:
            yield error(at(segment, stretch.offset), "record header: pending, before the committed end")
        if header is not None and header.kind not in (RecordKind.INSTANCE, RecordKind.TOMBSTONE):
            return
        payload = stretch.offset + HEADER
        reason = self._damage(file, payload, stretch.end - payload, expected.digest)
        if reason:
            yield self._damaged(segment, stretch, reason)
        elif expected.record_id in registered:
            self._forget(expected.record_id)

    def _damage(self, file: UncachedFile, offset: int, length: int, digest: bytes) -> str:
        running = PayloadDigest()
        try:
            for start in range(offset, offset + length, STEP):
                running.update(self._read(file, start, min(STEP, offset + length - start)))
        except OSError as failure:
            return f"it cannot be read: {failure.strerror}"
        if running.digest() == digest:
            return ""
        return SHORT_SEGMENT if file.length < offset + length else WRONG_DIGEST

    def _read(self, file: UncachedFile, offset: int, length: int) -> bytes:
        """Read again without readahead, so that a bad block does not affect the records beside it."""
        for attempt in range(ATTEMPTS - 1):
            try:
                return file.read(offset, length, ahead=not attempt)
            except OSError:
                self._pace.sleep(PAUSE)
        return file.read(offset, length, ahead=False)

    def _damaged(self, segment: int, stretch: ScannedBytes, reason: str) -> Finding:
        payload = stretch.offset + HEADER
        where, what = at(segment, payload), f"payload of {stretch.end - payload} bytes: {reason}"
        if stretch.header is not None and stretch.header.kind is RecordKind.TOMBSTONE:
            return error(where, f"tombstone, {what}")  # it has its ids twice; reindex reports losses
        living = [row for row in self._living(segment) if row.location.offset == payload]
        if not living:
            return Finding(Severity.NOTE, where, f"{what}; the index has no instance there")
        found = damaged_record(living[0], reason)
        self._register([found])
        return error(where, f"{what}; {described(found)}")

    def _register(self, records: Iterator[DamagedRecord] | list[DamagedRecord]) -> None:
        batch: list[DamagedRecord] = []
        for record in records:
            batch.append(record)
            if len(batch) == REGISTER_BATCH:
                register(self._index, batch)
                batch = []
        register(self._index, batch)

    def _forget(self, record_id: bytes) -> None:
        if not self._store.read_only:
            self._index.forget_damage([record_id])


def _beside(rows: list[InstanceRow], offset: int, end: int, reason: str) -> ScannedBytes:
    """The instance with the unreadable header, or the bytes up to the next instance."""
    for row in rows:
        begin = row.location.offset - HEADER
        if begin == offset:
            return ScannedBytes(offset, row.location.offset + row.location.length, None, row, reason)
        if begin > offset:
            return ScannedBytes(offset, begin, None, None, reason)
    return ScannedBytes(offset, end, None, None, reason)


def _after(stretch: ScannedBytes) -> str:
    if stretch.row is None:
        return f"no instance up to byte {stretch.end}"
    return f"it is that of instance {'/'.join(stretch.row.key)}; `streamsrv compact --all` writes a new one"


def check_segments(store: Store, pace: Pace) -> Iterator[Finding]:
    """Every segment once, from its beginning."""
    scrub = Scrub(store, pace)
    for segment in store.index.segments():
        yield from scrub.run(segment, resume=False)
