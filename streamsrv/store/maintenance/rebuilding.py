"""Fills the new index of a reindex: instances of the segments in stored order, then those that only the old
index has.

Rules of this file
- An instance that the old index has and that was not deleted is in the new index, too. If its bytes are not
  whole, it is registered as damaged, so that a client gets an error instead of a missing instance.
- Where damage may hide a tombstone, an instance that the old index does not have stays deleted, and gets a
  new tombstone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import numpy

from streamsrv.errors import InstanceError, StoreCorrupt, StoreError
from streamsrv.store.fileops import write_all
from streamsrv.store.index import DamagedRecord, Index
from streamsrv.store.maintenance.check import Severity, at, stored_record
from streamsrv.store.maintenance.portions import portions
from streamsrv.store.maintenance.scanning import Scan, Sources, is_whole
from streamsrv.store.rows import (
    FIRST_RECORD,
    SLICE_BYTES,
    SLICE_INSTANCES,
    InstanceKey,
    InstanceRow,
    NewInstance,
    SegmentRow,
)
from streamsrv.store.segments.records import (
    HEADER,
    NO_DIGEST,
    NO_ID,
    FoundRecord,
    HeaderDamaged,
    PayloadDigest,
    RecordHeader,
    RecordKind,
    pack_file_header,
    pack_ids,
)
from streamsrv.store.segments.verifying import WRONG_DIGEST, damaged_record


class Rebuild:
    """`missing` are segments without a file, with their acknowledged ends."""

    def __init__(self, sources: Sources, scan: Scan, missing: dict[int, int]) -> None:
        self._sources = sources
        self._form = sources.form
        self._old = sources.old
        self._find = sources.find
        self.scan = scan
        self.missing = missing
        self._damaged: list[DamagedRecord] = []
        self._deleted: list[bytes] = []  # stay so, although no tombstone can be read

    def fill(self, index: Index) -> None:
        """Commit every living instance; `index` is empty."""
        for number, segment in self.scan.segments.items():
            sealed = segment.damaged or segment.sealed
            index.put_segment(SegmentRow(number, segment.end, sealed=sealed))
        for number, end in self.missing.items():
            index.put_segment(SegmentRow(number, end, sealed=True))
        self._use_up_numbers(index)
        batch = _PendingRows(index)
        for number, offset in self._in_stored_order():
            self._instance(number, self._found(number, offset), batch)
        batch.flush()
        self._compare(index, batch)
        for number, segment in self.scan.segments.items():
            if segment.dead:
                index.delete((), segment=number, committed_end=segment.end, dead_bytes=segment.dead)
        self._write_tombstones(index)
        for portion in portions(self._damaged):
            index.register_damage(portion)

    def _use_up_numbers(self, index: Index) -> None:
        """Numbers of removed segments are not used again."""
        last = max((*self._sources.known_slots, *(self._old.segments if self._old else ())), default=0)
        if last not in index.segments() and last:
            index.put_segment(SegmentRow(last))
            index.drop_segment(last)

    def _in_stored_order(self) -> Iterator[tuple[int, int]]:
        table = numpy.frombuffer(self.scan.order, dtype=numpy.uint64).reshape(-1, 3)
        for row in numpy.lexsort((table[:, 2], table[:, 1], table[:, 0])):
            yield int(table[row, 1]), int(table[row, 2])

    def _found(self, number: int, offset: int) -> FoundRecord:
        segment = self.scan.segments[number]
        header = segment.headers.get(offset)
        fd = self.scan.files.fd(number)
        try:
            return FoundRecord(offset, header or self._form.header_at(fd, number, offset, segment.end))
        except HeaderDamaged as reason:  # the scan has read it before
            raise StoreCorrupt(f"segment {number}: the record at byte {offset}: {reason}") from reason

    def _instance(self, number: int, found: FoundRecord, batch: _PendingRows) -> None:
        segment = self.scan.segments[number]
        new = None if found.header.record_id in self.scan.deleted else self._read(number, found)
        if new is not None and self._stays_dead(number, found, new):
            self._deleted.append(found.header.record_id)
            new = None
        if new is None:
            segment.dead += found.header.length
            return
        other = batch.existing(new.row.key)
        if other is None:
            batch.add(new)
        elif other.record_id == new.row.record_id:  # a compaction's copy
            segment.dead += found.header.length
        else:
            self._succeed(new, other, batch)

    def _stays_dead(self, number: int, found: FoundRecord, new: NewInstance) -> bool:
        """True if the old index has the segment this far without this instance: its tombstone may be
        unreadable."""
        if self._old is None or not self.scan.hidden or found.offset >= self._old.end(number):
            return False
        if self._old.has(new.row.key, new.row.record_id):
            return False
        what = "a damaged record may have deleted it, and the old index does not have it: it stays deleted"
        self._find(Severity.NOTE, f"instance {'/'.join(new.row.key)}", what)
        return True

    def _read(self, number: int, found: FoundRecord) -> NewInstance | None:
        fd, header = self.scan.files.fd(number), found.header
        whole = is_whole(fd, found.payload, header.length, header.digest)
        if not whole:
            self._find(
                Severity.ERROR,
                at(number, found.payload),
                "payload: its checksum is wrong, or it cannot be read",
            )
            if new := self._old_row(number, found):
                self._register(new.row, WRONG_DIGEST)
                return new
        try:
            new = self._sources.derive(stored_record(fd, number, found))
        except (InstanceError, OSError) as reason:
            what = f"instance cannot be read: {reason}"
            self._find(Severity.ERROR, at(number, found.payload), what)
            return self._old_row(number, found)
        if not whole:
            self._register(new.row, WRONG_DIGEST)
        return new

    def _old_row(self, number: int, found: FoundRecord) -> NewInstance | None:
        """The entry of a record in the old index."""
        row = self._old.placed(number).get(found.payload) if self._old else None
        return self._taken_over(row) if row and row.record_id == found.header.record_id else None

    def _succeed(self, new: NewInstance, other: InstanceRow, batch: _PendingRows) -> None:
        """Two records of one key, left by a disk that lost a sync: the later one wins, the other becomes
        void."""
        self._find(Severity.NOTE, f"instance {'/'.join(new.row.key)}", "stored twice: the later one is kept")
        batch.replace(other, new)
        number, payload, length = other.location
        begin, segment = payload - HEADER, self.scan.segments[number]
        segment.headers[begin] = void(begin, payload + length)
        segment.dead += HEADER

    # Instances of the old index

    def _compare(self, index: Index, batch: _PendingRows) -> None:
        """An instance that only the old index has is not dropped without a word."""
        for portion in portions(self._old.rows() if self._old else ()):
            current = index.existing([key for key, _ in portion])
            for (key, row), new in zip(portion, current, strict=True):
                if new is None and (row is None or row.record_id not in self.scan.deleted):
                    self._keep(index, batch, key, row)
        batch.flush()

    def _keep(self, index: Index, batch: _PendingRows, key: InstanceKey, row: InstanceRow | None) -> None:
        where = f"instance {'/'.join(key)}"
        what = "its record is missing or cannot be read"
        new = self._taken_over(row) if row else None
        if new is None:
            self._find(Severity.ERROR, where, f"{what}, nor can its row in the old index: it is lost")
            return
        self._find(Severity.ERROR, where, f"{what}: it stays in the index and cannot be retrieved")
        if index.segment(new.row.location.segment) is None:
            index.put_segment(SegmentRow(new.row.location.segment, sealed=True))
        self._register(new.row, what)
        batch.add(new)

    def _taken_over(self, row: InstanceRow) -> NewInstance | None:
        assert self._old is not None
        try:
            return self._old.taken_over(row)
        except StoreError:
            return None

    def _register(self, row: InstanceRow, reason: str) -> None:
        self._damaged.append(damaged_record(row, reason))

    # Instances that must stay deleted

    def _write_tombstones(self, index: Index) -> None:
        """In a segment of its own, before the new index takes its place."""
        if not self._deleted:
            return
        number = index.add_segment()
        body = bytearray(pack_file_header(self._form, number))
        for ids in portions(self._deleted):
            body += self._tombstone(number, len(body), ids)
        fd = self._sources.ops.create(self._sources.layout.segment(number))
        try:
            write_all(self._sources.ops, fd, [body], 0)
            self._sources.ops.sync(fd)
        finally:
            os.close(fd)
        self._sources.ops.sync_folder(self._sources.layout.segments)
        index.delete((), segment=number, committed_end=len(body), dead_bytes=len(body) - FIRST_RECORD)
        self.missing[number] = len(body)

    def _tombstone(self, number: int, offset: int, ids: Sequence[bytes]) -> bytes:
        payload = pack_ids(ids)
        record_id, digest = os.urandom(len(NO_ID)), PayloadDigest(payload).digest()
        header = RecordHeader(
            RecordKind.TOMBSTONE, record_id, time.time_ns() // 1_000, len(payload), digest, offset
        )
        return self._form.pack(header, number, offset) + payload


class _PendingRows:
    """Instances on their way into the new index, committed together."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._waiting: dict[InstanceKey, NewInstance] = {}
        self._size = 0

    def existing(self, key: InstanceKey) -> InstanceRow | None:
        waiting = self._waiting.get(key)
        return waiting.row if waiting else self._index.existing([key])[0]

    def add(self, new: NewInstance) -> None:
        self._waiting[new.row.key] = new
        self._size += new.size
        if len(self._waiting) == SLICE_INSTANCES or self._size >= SLICE_BYTES:
            self.flush()

    def replace(self, old: InstanceRow, new: NewInstance) -> None:
        self.flush()
        self._commit([new], [old])

    def flush(self) -> None:
        if self._waiting:
            self._commit(list(self._waiting.values()), [])
        self._waiting, self._size = {}, 0

    def _commit(self, new: list[NewInstance], replaced: list[InstanceRow]) -> None:
        """The ends of segments are in the index already."""
        segment = new[0].row.location.segment
        self._index.commit(new, segment=segment, committed_end=0, replaced=replaced)


def void(begin: int, end: int) -> RecordHeader:
    """A VOID header. Its `began` proves nothing."""
    return RecordHeader(RecordKind.VOID, NO_ID, 0, end - begin - HEADER, NO_DIGEST, FIRST_RECORD)
