"""Checks that the disk holds the bytes that were written: hashes every record and derives every index row
again.

Strategy: (1) read each segment up to its committed end and hash every payload. Derive every living instance
from its bytes, compare it with the index, and add it to a scratch index. (2) A whole record without index row
must have been deleted: look for its tombstone. (3) Compare the index with the scratch index (see
index/audit.py), and the byte counts of segments.

It runs beside a live server. Bytes before a committed end never change. Every other surprise is looked up
again before it is reported, because the server may have changed it. Compaction waits until the check is done.

Rules of this file
- The store is not changed. A finding names its place (segment and byte, or database and row) and its kind,
  and no value of a patient.
- `derive` makes the index entry of a record from its bytes: the reader of DICOM is in a higher room.
"""

from __future__ import annotations

import contextlib
import enum
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from streamsrv.errors import InstanceError, SegmentGone, StoreCorrupt, StoreLocked
from streamsrv.store.folder import FolderLock
from streamsrv.store.index import Audit
from streamsrv.store.locks import Locks
from streamsrv.store.rows import InstanceKey, InstanceRow, Location, NewInstance, SegmentRow
from streamsrv.store.segments.leases import FileLease
from streamsrv.store.segments.records import (
    HEADER,
    NO_ID,
    DamagedBytes,
    FoundRecord,
    Record,
    RecordKind,
    Step,
    TombstoneDamaged,
    unpack_ids,
)
from streamsrv.store.segments.verifying import digest_of
from streamsrv.store.store import Store, problems

Derive: TypeAlias = Callable[[Record], NewInstance]

# Bytes that a scratch index may take beyond the real one.
SCRATCH_ROOM = 1 << 20
WHOLE_SEGMENT = 1 << 62


class Severity(enum.StrEnum):
    ERROR = "error"
    NOTE = "note"  # nothing is lost and nothing needs to be done


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what}"


def error(where: str, what: str) -> Finding:
    return Finding(Severity.ERROR, where, what)


def at(segment: int, offset: int) -> str:
    return f"segment {segment}, byte {offset}"


def wrong_payload(location: Location) -> str:
    return f"payload of {location.length} bytes: its checksum is not that of its arrival"


@dataclass(slots=True)
class Descriptor:
    """The file of a Record."""

    fd: int


def stored_record(fd: int, segment: int, found: FoundRecord) -> Record:
    """A record of a segment, for `derive`."""
    header = found.header
    location = Location(segment, found.payload, header.length)
    return Record(Descriptor(fd), 0, location, header.record_id, header.digest, header.stored_at)


def check(store: Store, derive: Derive) -> Iterator[Finding]:
    """Yields findings; none means that all is well. Raises StoreLocked during a compaction or another
    check."""
    with contextlib.ExitStack() as held:
        held.enter_context(contextlib.closing(_undisturbed(store)))
        scratch = held.enter_context(scratch_folder(store))
        audit = held.enter_context(contextlib.closing(Audit(store.index, scratch)))
        yield from Checker(store, derive, audit).run()


def _undisturbed(store: Store) -> Locks | FolderLock:
    """Excludes compaction, which moves records. A read-only folder has none."""
    if not os.access(store.layout.root, os.W_OK):
        return FolderLock(-1)
    locks = Locks(store.manifest)
    if locks.try_lock_compaction():
        return locks
    locks.close()
    raise StoreLocked("a compaction or another check is running on this store")


@contextlib.contextmanager
def scratch_folder(store: Store) -> Iterator[Path]:
    """A folder for the scratch index: beside the real index if that has room, else among temporary files."""
    beside = store.layout.scratch_index
    free, _ = store.ops.space(store.layout.root)
    room = free > store.index.statistics()["bytes_file"] + SCRATCH_ROOM
    if not room or not os.access(store.layout.root, os.W_OK):
        with tempfile.TemporaryDirectory(prefix="streamsrv-") as folder:
            yield Path(folder)
        return
    store.ops.remove_folder(beside)
    store.ops.make_folder(beside)
    try:
        yield beside
    finally:
        store.ops.remove_folder(beside)


def readable_ids(payload: bytes) -> Sequence[bytes]:
    """The ids of a tombstone that can be read."""
    try:
        return unpack_ids(payload)
    except TombstoneDamaged as reason:
        return reason.certain


class Checker:
    """A check of segment files. Objects have a subclass (maintenance/objects/check.py)."""

    def __init__(self, store: Store, derive: Derive, audit: Audit) -> None:
        self._store = store
        self._index = store.index
        self._derive = derive
        self._audit = audit
        # Whole records without index row: id -> place and key. They must have been deleted.
        self._suspects: dict[bytes, tuple[Location, InstanceKey]] = {}
        # Records with damaged payload: id -> place. Nothing is lost if they have been deleted.
        self._damaged: dict[bytes, Location] = {}
        self._payloads: dict[int, int] = {}  # segment -> bytes of its instances' payloads, dead or alive
        self._others: dict[int, int] = {}  # segment -> bytes of its voids and tombstones

    def run(self) -> Iterator[Finding]:
        for difference in self._audit.sums():
            yield error(f"index database {difference.database}, {difference.row}", difference.what)
        rows = self._segments()
        yield from self._places(rows)
        for row in rows.values():
            self._audit.segment(row)
            yield from self._segment(row)
        yield from self._lost()
        for difference in self._audit.differences():
            yield error(f"index database {difference.database}, {difference.row}", difference.what)
        yield from self._counts(rows)

    # Segments

    def _segments(self) -> dict[int, SegmentRow]:
        """The segments whose rows can be read; the others are left out of the comparison."""
        rows, damaged = self._index.readable_segments()
        for segment in damaged:
            self._audit.unreadable(segment, 0, WHOLE_SEGMENT)
        return rows

    def _places(self, rows: dict[int, SegmentRow]) -> Iterator[Finding]:
        """Compare the index with names and lengths of the segments."""
        store = self._store
        for problem in problems(store.layout, store.form, store.manifest, self._index):
            yield error(*problem)
        for segment, path in self._store.layout.segment_files().items():
            if segment not in rows and not self._known(segment) and path.stat().st_size:
                what = "its file is not in the index, which may be an older one: run reindex"
                yield error(f"segment {segment}", what)

    def _known(self, segment: int) -> bool:
        try:
            return self._index.segment(segment) is not None
        except StoreCorrupt:
            return True  # and reported

    def _segment(self, row: SegmentRow) -> Iterator[Finding]:
        try:
            with self._opened(row) as (fd, steps):
                self._payloads[row.segment] = self._others[row.segment] = 0
                for step in steps:
                    yield from self._step(fd, row.segment, step)
        except SegmentGone:
            return  # reported, if it should exist

    @contextlib.contextmanager
    def _opened(self, row: SegmentRow) -> Iterator[tuple[int, Iterator[Step]]]:
        """The bytes of a segment, and its records."""
        with self._store.readers.open([row.segment]) as lease:
            fd = lease.fd(row.segment)
            length = min(row.committed_end, os.fstat(fd).st_size)
            yield fd, self._store.form.walk(fd, row.segment, length)

    def _step(self, fd: int, segment: int, step: FoundRecord | DamagedBytes) -> Iterator[Finding]:
        if isinstance(step, DamagedBytes):
            yield error(
                at(segment, step.offset), f"record header: {step.reason}; no record up to byte {step.end}"
            )
            self._unreadable(segment, step.offset, step.end)
            return
        kind = step.header.kind
        counted = self._payloads if kind is RecordKind.INSTANCE else self._others
        if segment in counted:
            counted[segment] += step.header.length + (0 if kind is RecordKind.INSTANCE else HEADER)
        if kind is RecordKind.PENDING:
            yield error(at(segment, step.offset), "record header: pending, before the committed end")
        if kind in (RecordKind.INSTANCE, RecordKind.TOMBSTONE):
            try:
                digest = digest_of(fd, step.payload, step.header.length)
            except OSError as reason:
                what = f"payload of {step.header.length} bytes: it cannot be read: {reason.strerror}"
                yield error(at(segment, step.payload), what)
                self._unreadable(segment, step.offset, step.end)
                return
            if digest != step.header.digest:
                yield from self._wrong(segment, step)
            elif kind is RecordKind.INSTANCE:
                yield from self._instance(fd, segment, step)

    def _wrong(self, segment: int, found: FoundRecord) -> Iterator[Finding]:
        """A damaged payload. For an instance it is reported later."""
        self._unreadable(segment, found.offset, found.end)
        location = Location(segment, found.payload, found.header.length)
        if found.header.kind is RecordKind.INSTANCE:
            self._damaged[found.header.record_id] = location
        else:
            yield error(at(segment, found.payload), wrong_payload(location))

    def _unreadable(self, segment: int, begin: int, end: int) -> None:
        self._audit.unreadable(segment, begin, end)
        self._payloads.pop(segment, None)

    def _instance(self, fd: int, segment: int, found: FoundRecord) -> Iterator[Finding]:
        try:
            new = self._derive(stored_record(fd, segment, found))
            row = self._index.existing([new.row.key])[0]
        except InstanceError as reason:
            yield error(at(segment, found.payload), f"instance cannot be read: {reason.detail}")
            self._unreadable(segment, found.offset, found.end)
            return
        except StoreCorrupt as reason:
            yield error(f"index database instances, {'/'.join(new.row.key)}", reason.detail)
            return
        if row is None or row.record_id != found.header.record_id:
            self._suspects[found.header.record_id] = (new.row.location, new.row.key)
        elif row.location == new.row.location:
            yield from self._compare(row, new)

    def _compare(self, row: InstanceRow, new: NewInstance) -> Iterator[Finding]:
        self._audit.add(new)
        for database, what in self._audit.compare(row, new):
            yield error(f"index database {database}, of {'/'.join(row.key)}", what)

    def _counts(self, rows: dict[int, SegmentRow]) -> Iterator[Finding]:
        """Live and dead bytes of the segments without changes since the check began."""
        for segment, row in self._segments().items():
            if segment not in self._payloads or rows.get(segment) != row:
                continue
            live = self._audit.live.get(segment, 0)
            dead = self._payloads[segment] - live + self._others[segment]
            if (row.live, row.dead) != (live, dead):
                yield error(
                    f"index database segments, segment {segment}",
                    f"live and dead bytes are {row.live} and {row.dead}, should be {live} and {dead}",
                )

    # Records without a row

    def _lost(self) -> Iterator[Finding]:
        damaged = dict(self._damaged)
        if self._suspects or damaged:
            for segment in list(self._store.layout.segment_files()):
                self._drop_deleted(segment)
        for record_id, location in damaged.items():
            if record_id in self._damaged:
                yield error(at(*location[:2]), wrong_payload(location))
            else:
                what = f"{wrong_payload(location)}; it was deleted or stored again"
                yield Finding(Severity.NOTE, at(*location[:2]), what)
        for record_id, (location, key) in self._suspects.items():
            row = self._index.existing([key])[0]
            indexed = row is not None and row.record_id == record_id
            if not indexed and self._known(location.segment):
                yield error(
                    f"index database instances, {'/'.join(key)}",
                    f"the record at {at(*location[:2])} is whole, not deleted or replaced, and has no row",
                )

    def _drop_deleted(self, segment: int) -> None:
        """Records that this segment deletes are expected to have no row."""
        try:
            with self._store.readers.open([segment]) as lease:
                for record_id in self._deleted(lease, segment):
                    self._suspects.pop(record_id, None)
                    self._damaged.pop(record_id, None)
        except SegmentGone:
            return

    def _deleted(self, lease: FileLease, segment: int) -> Iterator[bytes]:
        fd = lease.fd(segment)
        for step in self._store.form.walk(fd, segment, os.fstat(fd).st_size):
            if isinstance(step, DamagedBytes):
                continue
            if step.header.kind is RecordKind.TOMBSTONE:
                yield from readable_ids(os.pread(fd, step.header.length, step.payload))
            elif step.header.kind is RecordKind.INSTANCE and step.header.replaced != NO_ID:
                yield step.header.replaced
