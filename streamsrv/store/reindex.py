"""The index, built anew from nothing but segments.

Strategy: walk all segments for what kills (tombstones, replacements) and where instances are; sort those by
the time they were stored; derive each from its bytes and commit it to a new index beside the old one; then
let the two change places.

What may be torn: only records of the last request in a segment, if the power failed before they were synced
(see records). Such a record, told by its checksum, was never acknowledged: it is left out and becomes VOID.
Damage anywhere else is decay of what was acknowledged: a payload with a wrong checksum is kept as long as it
can be read, and a header with one wrong byte is mended.

Rules of this file
- Nobody else has the store open, not even to read.
- Segments change only after the new index is complete, and only in headers of records that it does not point
  to, or that it mended.
- The old index goes when the new one has its name. A crash in between leaves one of the two in place.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy

from streamsrv.errors import InstanceError, StoreError, WrongStore
from streamsrv.store import folder as folders
from streamsrv.store import segment_header
from streamsrv.store.check import Derive, Finding, Severity, at, stored_record
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.folder import Identity, Layout
from streamsrv.store.index import Index
from streamsrv.store.manifest import Manifest, Slot, State
from streamsrv.store.records import (
    HEADER,
    NO_DIGEST,
    NO_ID,
    Damage,
    Found,
    Header,
    Kind,
    RecordFormat,
    Step,
    unpack_ids,
)
from streamsrv.store.rows import FIRST_RECORD, InstanceKey, InstanceRow, NewInstance, SegmentRow
from streamsrv.store.segment_header import damaged_headers
from streamsrv.store.transaction import SLICE_BYTES, SLICE_INSTANCES
from streamsrv.store.verifying import digest_of


@dataclass(slots=True)
class Reindexing:
    """What a reindex found. Findings are errors where something acknowledged may have been lost."""

    instances: int = 0
    segments: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass(slots=True)
class _Segment:
    """One segment as its walk left it."""

    fd: int
    last: int  # where its last request began
    end: int = FIRST_RECORD
    dead: int = 0  # bytes of voids and tombstones, and of instances that do not live
    damaged: bool = False
    sealed: bool = False
    new_header: bool = False  # that of the file is damaged
    headers: dict[int, Header] = field(default_factory=dict)  # to be written in the end, by offset


def reindex(folder: Path, derive: Derive, *, fileops: FileOps | None = None) -> Reindexing:
    """Build the index of a store anew. StoreLocked while anything has the store open."""
    ops, layout = fileops or FileOps(), Layout(folder)
    identity = folders.identity_of(layout)
    with folders.lock(layout, ops), folders.use(layout, exclusive=True):
        _refuse_index_of_another_store(layout, identity)
        form = RecordFormat(identity.secret, identity.fingerprint)
        builder = _Builder(layout, form, derive, ops)
        try:
            return builder.run()
        finally:
            builder.close()


def _refuse_index_of_another_store(layout: Layout, identity: Identity) -> None:
    """WrongStore says so. An index that is damaged or of another version is no reason not to rebuild it."""
    if not layout.index.exists():
        return
    try:
        Index.open(layout.index, read_only=True, store=identity.fingerprint).close()
    except WrongStore:
        raise
    except StoreError:
        return


class _Builder:
    def __init__(self, layout: Layout, form: RecordFormat, derive: Derive, ops: FileOps) -> None:
        self._layout = layout
        self._form = form
        self._derive = derive
        self._ops = ops
        self._report = Reindexing()
        self._segments: dict[int, _Segment] = {}
        self._killed: set[bytes] = set()
        # stored at, segment, offset of the header: 24 bytes an instance
        self._order = array("Q")

    def close(self) -> None:
        for segment in self._segments.values():
            os.close(segment.fd)

    def run(self) -> Reindexing:
        files = self._layout.segment_files()
        damaged = dict(damaged_headers(files, self._form))  # raises if a file is foreign, before any change
        for number, path in files.items():
            self._open(number, path)
            if number in damaged:
                self._find(Severity.NOTE, at(number, 0), f"{damaged[number]}: written again")
                self._segments[number].new_header = True
            self._scan(number)
        self._ops.remove_folder(self._layout.new_index)
        index = Index.open(self._layout.new_index, store=self._form.fingerprint)
        try:
            self._fill(index)
        finally:
            index.close()
        self._rewrite_headers()
        self._exchange()
        self._write_manifest()
        self._report.segments = len(self._segments)
        return self._report

    def _find(self, severity: Severity, where: str, what: str) -> None:
        self._report.findings.append(Finding(severity, where, what))

    # Walking

    def _open(self, number: int, path: Path) -> None:
        segment = self._segments[number] = _Segment(self._ops.open(path), FIRST_RECORD)
        for found in self._walk(number):
            if isinstance(found, Found):
                segment.last = found.header.began

    def _walk(self, number: int) -> Iterator[Step]:
        fd = self._segments[number].fd
        return self._form.walk(fd, number, os.fstat(fd).st_size, mend=True)

    def _scan(self, number: int) -> None:
        """Whom this segment kills, where its instances are, and where it ends."""
        segment = self._segments[number]
        torn: list[tuple[int, int]] = []
        for step in self._walk(number):
            found = self._mended(number, step) if isinstance(step, Damage) else step
            if found is None:
                self._damaged(number, step.offset, step.end, torn)
            elif found.header.kind is Kind.PENDING:
                break
            elif self._whole(number, found):
                segment.end = found.end
                self._take(number, found)
            else:
                self._damaged(number, found.offset, found.end, torn)
        for begin, end in torn:
            if end <= segment.end:  # what lies behind the end is cut off anyway
                segment.headers[begin] = _void(begin, end, segment.last)
                segment.dead += end - begin

    def _mended(self, number: int, damage: Damage) -> Found | None:
        if damage.mended is None:
            return None
        self._find(Severity.NOTE, at(number, damage.offset), "record header: one wrong byte, mended")
        self._segments[number].headers[damage.offset] = damage.mended
        return Found(damage.offset, damage.mended)

    def _whole(self, number: int, found: Found) -> bool:
        """An older instance is hashed when its turn comes: a wrong checksum does not cost it its place."""
        segment, header = self._segments[number], found.header
        if header.kind in (Kind.VOID, Kind.SEAL) or (
            header.kind is Kind.INSTANCE and found.offset < segment.last
        ):
            return True
        return digest_of(segment.fd, found.payload, header.length) == header.digest

    def _damaged(self, number: int, begin: int, end: int, torn: list[tuple[int, int]]) -> None:
        segment = self._segments[number]
        if begin >= segment.last and end - begin >= HEADER:
            torn.append((begin, end))
            what = f"no whole record up to byte {end}, in the last request of the segment: left out"
            self._find(Severity.NOTE, at(number, begin), what)
        else:
            segment.damaged = True
            self._find(Severity.ERROR, at(number, begin), f"no whole record up to byte {end}: lost")

    def _take(self, number: int, found: Found) -> None:
        segment, header = self._segments[number], found.header
        if header.kind is Kind.INSTANCE:
            self._order.extend((header.stored_at, number, found.offset))
            if header.replaced != NO_ID:
                self._killed.add(header.replaced)
            return
        segment.dead += found.end - found.offset
        segment.sealed |= header.kind is Kind.SEAL
        if header.kind is Kind.TOMBSTONE:
            self._killed.update(unpack_ids(os.pread(segment.fd, header.length, found.payload)))

    # Filling

    def _fill(self, index: Index) -> None:
        for number, segment in self._segments.items():
            index.put_segment(SegmentRow(number, segment.end, sealed=segment.damaged or segment.sealed))
        batch = _Batch(index)
        for number, offset in self._in_stored_order():
            segment = self._segments[number]
            header = segment.headers.get(offset)
            found = Found(offset, header or self._form.header_at(segment.fd, number, offset, segment.end))
            self._instance(number, found, batch)
        batch.flush()
        for number, segment in self._segments.items():
            if segment.dead:
                index.delete((), segment=number, committed_end=segment.end, dead_bytes=segment.dead)
        self._report.instances = index.statistics()["instances"]

    def _in_stored_order(self) -> Iterator[tuple[int, int]]:
        table = numpy.frombuffer(self._order, dtype=numpy.uint64).reshape(-1, 3)
        for row in numpy.lexsort((table[:, 2], table[:, 1], table[:, 0])):
            yield int(table[row, 1]), int(table[row, 2])

    def _instance(self, number: int, found: Found, batch: _Batch) -> None:
        new = None if found.header.record_id in self._killed else self._read(number, found)
        if new is None:
            self._segments[number].dead += found.header.length
            return
        other = batch.existing(new.row.key)
        if other is None:
            batch.add(new)
        elif other.record_id == new.row.record_id:  # a compaction's copy
            self._segments[number].dead += found.header.length
        else:
            self._succeed(new, other, batch)

    def _read(self, number: int, found: Found) -> NewInstance | None:
        fd, header = self._segments[number].fd, found.header
        older = found.offset < self._segments[number].last
        if older and digest_of(fd, found.payload, header.length) != header.digest:
            self._find(Severity.ERROR, at(number, found.payload), "payload: its checksum is wrong")
        try:
            return self._derive(stored_record(fd, number, found))
        except InstanceError as reason:
            what = f"instance cannot be read: {reason.detail}: left out"
            self._find(Severity.ERROR, at(number, found.payload), what)
            return None

    def _succeed(self, new: NewInstance, other: InstanceRow, batch: _Batch) -> None:
        """Two records of one key, which only a disk that lies can leave: the later one wins, the other
        becomes void."""
        self._find(Severity.NOTE, f"instance {'/'.join(new.row.key)}", "stored twice: the later one is kept")
        batch.replace(other, new)
        number, payload, length = other.location
        begin, segment = payload - HEADER, self._segments[number]
        segment.headers[begin] = _void(begin, payload + length, segment.last)
        segment.dead += HEADER

    # Taking its place

    def _rewrite_headers(self) -> None:
        for number, segment in self._segments.items():
            for offset, header in segment.headers.items():
                write_all(self._ops, segment.fd, [self._form.pack(header, number, offset)], offset)
            if segment.new_header:
                write_all(self._ops, segment.fd, [segment_header.pack(self._form, number)], 0)
            if segment.headers or segment.new_header:
                self._ops.sync(segment.fd)

    def _exchange(self) -> None:
        """New index in, old one out; opening a store undoes an exchange that was cut short."""
        layout, ops = self._layout, self._ops
        ops.sync_folder(layout.new_index)
        if layout.index.exists():
            ops.remove_folder(layout.old_index)
            ops.rename(layout.index, layout.old_index)
        ops.rename(layout.new_index, layout.index)
        ops.sync_folder(layout.root)
        ops.remove_folder(layout.old_index)

    def _write_manifest(self) -> None:
        slots = {
            number: Slot(State.SEALED if segment.damaged or segment.sealed else State.GROWING, segment.end)
            for number, segment in self._segments.items()
        }
        Manifest(self._layout.manifest, self._ops, self._form.fingerprint).replace(slots)


class _Batch:
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
        """Where segments end is in the index already."""
        segment = new[0].row.location.segment
        self._index.commit(new, segment=segment, committed_end=0, replaced=replaced)


def _void(begin: int, end: int, began: int) -> Header:
    return Header(Kind.VOID, NO_ID, 0, end - begin - HEADER, NO_DIGEST, began)
