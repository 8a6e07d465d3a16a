"""The sources of a reindex: all segments, scanned for torn and damaged ranges, deleted records and places of
instances, and the index that it replaces.

The *acknowledged end* of a segment separates torn from damaged ranges. It is the greatest of the end in the
manifest, the end in the old index, and the `began` of each valid header (see records). Behind it, a power
loss may have torn records before they were synced. They were never acknowledged, so they are left out. Before
it, wrong bytes are damage: they stay where they are and are reported.

Segments are read first, and they decide. Where they are damaged, the old index still has the instance, its
metadata and its place. So nothing in it is dropped without a finding.

Rules of this file
- Nothing is written here. `headers` and `payloads` of a segment are written later.
- A header with one wrong byte is mended. A destroyed header is made again if the old index has the record and
  its payload is whole.
- Damage may hide a tombstone, or a header that names a replaced record. Then `hidden` is true.
- A damaged LMDB file may kill the process that reads it. So a child process reads every row of the old index
  first. If a row cannot be read, only its key counts.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from streamsrv.dicom.instance import BulkValue, FrameKind, JsonDataset
from streamsrv.errors import StoreCorrupt, StoreError, StreamsrvError, WrongStore
from streamsrv.query.attributes import KEEP
from streamsrv.store.fileops import FileOps
from streamsrv.store.folder import Layout
from streamsrv.store.index import Index, compressed
from streamsrv.store.maintenance.check import Derive, Finding, Severity, at
from streamsrv.store.rows import (
    FIRST_RECORD,
    METADATA_CHUNK,
    SHORT_TEXT,
    InstanceKey,
    InstanceRow,
    NewInstance,
    SegmentRow,
)
from streamsrv.store.segments.manifest import Slot, Slots
from streamsrv.store.segments.records import (
    HEADER,
    NO_ID,
    DamagedBytes,
    FoundRecord,
    RecordFormat,
    RecordHeader,
    RecordKind,
    Step,
    TombstoneDamaged,
    pack_ids,
    unpack_ids,
)
from streamsrv.store.segments.verifying import digest_of
from streamsrv.store.store import require_no_move

FOREIGN = 2  # exit code of the child
ENTRIES_AT_ONCE = 10_000

MOST_OPEN = 64


class OldIndex:
    """The index that a reindex replaces, open for reading. Close it."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.segments = index.segments()
        self._by_place: dict[int, dict[int, InstanceRow]] = {}

    @classmethod
    def open(cls, folder: Path, fingerprint: bytes) -> OldIndex | None:
        """None if it is missing or cannot be read. Raises WrongStore if it is another store's."""
        if not folder.exists() or not _is_readable(folder, fingerprint):
            return None
        index = Index.open(folder, read_only=True, store=fingerprint)
        try:
            return cls(index)
        except StreamsrvError:
            index.close()
            return None

    def close(self) -> None:
        self._index.close()

    def require_no_move(self) -> None:
        """Raises StoreError if its store is the target of a move that has not ended."""
        require_no_move(self._index)

    def end(self, segment: int) -> int:
        """Its committed end, 0 for an unknown segment."""
        row = self.segments.get(segment)
        return row.committed_end if row else 0

    def known(self, segment: int) -> SegmentRow | None:
        return self.segments.get(segment)

    def rows(self) -> Iterator[tuple[InstanceKey, InstanceRow | None]]:
        return self._index.all_rows()

    def has(self, key: InstanceKey, record_id: bytes) -> bool:
        (row,) = self._index.existing([key])
        return row is not None and row.record_id == record_id

    def placed(self, segment: int) -> dict[int, InstanceRow]:
        """The instances of a segment by the offset of their payloads, in ascending order."""
        if segment not in self._by_place:
            rows = sorted(self._index.instances_in([segment]), key=lambda row: row.location.offset)
            self._by_place[segment] = {row.location.offset: row for row in rows}
        return self._by_place[segment]

    def taken_over(self, row: InstanceRow) -> NewInstance:
        """The whole entry of an instance. Raises StoreError if it cannot be read."""
        text = b"".join(self._index.metadata([row]))
        if len(text) <= SHORT_TEXT:
            chunks, short = [], text
        else:
            starts = range(0, len(text), METADATA_CHUNK)
            chunks, short = [compressed(text[at : at + METADATA_CHUNK]) for at in starts], b""
        return NewInstance(row, chunks, self._frame_table(row), self._bulk(row), attributes_in(text), short)

    def _frame_table(self, row: InstanceRow) -> bytes:
        if row.frame_kind is not FrameKind.TABLE:
            return b""
        table = bytearray()
        for start in range(0, row.number_of_frames, ENTRIES_AT_ONCE):
            stop = min(start + ENTRIES_AT_ONCE, row.number_of_frames)
            for offset, length in self._index.frame_entries(row, range(start, stop)):
                table += offset.to_bytes(8, "little") + length.to_bytes(8, "little")
        return bytes(table)

    def _bulk(self, row: InstanceRow) -> list[BulkValue]:
        found: list[BulkValue] = []
        while page := self._index.bulk_values(row, after=found[-1].path if found else None):
            found += page
        return found


def attributes_in(text: bytes) -> JsonDataset:
    """The attributes that searches use, from metadata with slots. Raises StoreCorrupt."""
    try:
        whole: JsonDataset = orjson.loads(text.replace(b"\0", b""))
        return {tag: element for tag, element in whole.items() if tag in KEEP}
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise StoreCorrupt("the metadata of an instance cannot be read") from error


def _is_readable(folder: Path, fingerprint: bytes) -> bool:
    child = os.fork()
    if child == 0:
        _read_all(folder, fingerprint)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == FOREIGN:
        Index.open(folder, read_only=True, store=fingerprint).close()  # raises WrongStore
    return status == 0


def _read_all(folder: Path, fingerprint: bytes) -> None:
    """Ends this process, with exit code 0 if every row can be read."""
    code = 1
    try:
        Index.open(folder, read_only=True, store=fingerprint).read_all()
        code = 0
    except WrongStore:
        code = FOREIGN
    except (StoreError, UnicodeDecodeError):
        pass
    finally:
        os._exit(code)


@dataclass(slots=True)
class Sources:
    """The inputs of a reindex, and its findings. `slots` are those of the manifest, None if it is missing."""

    layout: Layout
    form: RecordFormat
    ops: FileOps
    derive: Derive
    slots: Slots | None
    old: OldIndex | None
    findings: list[Finding] = field(default_factory=list)

    @property
    def known_slots(self) -> dict[int, Slot]:
        return self.slots.known if self.slots else {}

    def find(self, severity: Severity, where: str, what: str) -> None:
        self.findings.append(Finding(severity, where, what))


@dataclass(slots=True)
class Scanned:
    """The result of the scan of one segment."""

    acknowledged: int  # bytes before it are not torn
    end: int = FIRST_RECORD
    dead: int = 0  # bytes of voids and tombstones, and of instances that do not live
    sealed: bool = False
    damaged: bool = False
    new_header: bool = False  # that of the file is damaged
    headers: dict[int, RecordHeader] = field(default_factory=dict)  # to be written in the end, by offset
    payloads: dict[int, bytes] = field(default_factory=dict)  # likewise
    torn: list[tuple[int, int]] = field(default_factory=list)  # ranges before the end: they become VOID


def is_whole(fd: int, offset: int, length: int, digest: bytes) -> bool:
    """Whether bytes of a segment can be read and have this digest."""
    try:
        return digest_of(fd, offset, length) == digest
    except OSError:
        return False


class SegmentFiles:
    """Descriptors of segments. Only the MOST_OPEN last used are open, because a store may have more segments
    than a process may have descriptors. Close it."""

    def __init__(self, ops: FileOps) -> None:
        self._ops = ops
        self._paths: dict[int, Path] = {}
        self._open: dict[int, int] = {}  # segment -> descriptor; the one used last is the last

    def add(self, number: int, path: Path) -> None:
        self._paths[number] = path

    def fd(self, number: int) -> int:
        """Valid until MOST_OPEN other segments were used. Raises OSError."""
        fd = self._open.pop(number, None)
        if fd is None:
            fd = self._ops.open(self._paths[number])
        self._open[number] = fd
        if len(self._open) > MOST_OPEN:
            os.close(self._open.pop(next(iter(self._open))))
        return fd

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class Scan:
    """Close it."""

    def __init__(self, sources: Sources) -> None:
        self._form = sources.form
        self.files = SegmentFiles(sources.ops)
        self._old = sources.old
        self._slots = sources.known_slots
        self._find = sources.find
        self.segments: dict[int, Scanned] = {}
        self.deleted: set[bytes] = set()
        self.hidden = False
        # stored at, segment, offset of the header: 24 bytes an instance
        self.order = array("Q")

    def close(self) -> None:
        self.files.close()

    def add(self, number: int, path: Path, damaged_header: str | None) -> None:
        self.files.add(number, path)
        fd = self.files.fd(number)
        segment = self.segments[number] = Scanned(FIRST_RECORD)
        segment.acknowledged = self._acknowledged(number)
        if damaged_header:
            self._find(Severity.NOTE, at(number, 0), f"{damaged_header}: written again")
            segment.new_header = True
        length = os.fstat(fd).st_size
        if length < segment.acknowledged > FIRST_RECORD:  # else its creator died
            what = f"the file ends here; {segment.acknowledged} bytes were acknowledged"
            self._find(Severity.ERROR, at(number, length), what)
            segment.damaged = self.hidden = True
        for step in self._steps(number):
            self._take_step(number, step)
        segment.end = max(segment.end, segment.acknowledged)
        segment.torn = [(begin, end) for begin, end in segment.torn if end <= segment.end]
        segment.dead += sum(end - begin for begin, end in segment.torn)

    # Steps

    def _acknowledged(self, number: int) -> int:
        slot = self._slots.get(number)
        found = [slot.end if slot else 0, self._old.end(number) if self._old else 0, FIRST_RECORD]
        fd = self.files.fd(number)
        for step in self._form.walk(fd, number, os.fstat(fd).st_size, mend=True):
            if isinstance(step, FoundRecord):
                found.append(step.header.began)
        return max(found)

    def _steps(self, number: int) -> Iterator[Step]:
        """Like RecordFormat.walk, but a PENDING record ends it only behind the acknowledged end."""
        segment, fd = self.segments[number], self.files.fd(number)
        start, length = FIRST_RECORD, os.fstat(fd).st_size
        while start < length:
            for step in self._form.walk(fd, number, length, start=start, mend=True):
                start = step.end
                if isinstance(step, FoundRecord) and step.header.kind is RecordKind.PENDING:
                    if step.offset >= segment.acknowledged:
                        return
                    start = self._form.resync(fd, number, step.offset + 1, length)
                    yield DamagedBytes(step.offset, start, "pending, before the acknowledged end")
                else:
                    yield step

    def _take_step(self, number: int, step: Step) -> None:
        segment = self.segments[number]
        if isinstance(step, DamagedBytes):
            if step.mended is None:
                self._unreadable(number, step.offset, step.end)
                return
            self._find(Severity.NOTE, at(number, step.offset), "record header: one wrong byte, mended")
            segment.headers[step.offset] = step.mended
            step = FoundRecord(step.offset, step.mended)
        if self._take(number, step):
            segment.end = max(segment.end, step.end)
        else:
            self._unreadable(number, step.offset, step.end)

    def _take(self, number: int, found: FoundRecord) -> bool:
        """False if the record is torn."""
        segment, header = self.segments[number], found.header
        if header.kind is RecordKind.INSTANCE:
            torn = found.offset >= segment.acknowledged and not self._is_whole(number, found)
            if not torn:
                self._take_instance(number, found)
            return not torn
        if header.kind is RecordKind.TOMBSTONE and not self._take_tombstone(number, found):
            return False
        segment.sealed |= header.kind is RecordKind.SEAL
        segment.dead += found.end - found.offset
        return True

    def _is_whole(self, number: int, found: FoundRecord) -> bool:
        header = found.header
        return is_whole(self.files.fd(number), found.payload, header.length, header.digest)

    def _take_instance(self, number: int, found: FoundRecord) -> None:
        self.order.extend((found.header.stored_at, number, found.offset))
        if found.header.replaced != NO_ID:
            self.deleted.add(found.header.replaced)

    def _take_tombstone(self, number: int, found: FoundRecord) -> bool:
        segment, whole = self.segments[number], self._is_whole(number, found)
        try:
            ids = unpack_ids(self._payload(number, found))
        except TombstoneDamaged as reason:
            torn = found.offset >= segment.acknowledged
            if not torn or not self._is_witnessed(number):
                what = f"tombstone: {reason}: instances that it deleted may be back"
                self._find(Severity.ERROR, at(number, found.payload), what)
            if torn:
                return False
            segment.damaged = self.hidden = True
            self.deleted.update(reason.certain)
            return True
        self.deleted.update(ids)
        if not whole:
            self._find(Severity.NOTE, at(number, found.payload), "tombstone: a wrong byte, mended")
            segment.payloads[found.payload] = pack_ids(ids)
        return True

    def _payload(self, number: int, found: FoundRecord) -> bytes:
        try:
            return os.pread(self.files.fd(number), found.header.length, found.payload)
        except OSError as error:
            raise TombstoneDamaged(f"it cannot be read: {error.strerror}") from error

    def _is_witnessed(self, number: int) -> bool:
        """Whether manifest or old index have an acknowledged end of the segment."""
        return self._old is not None or number in self._slots

    # Bytes that cannot be read

    def _unreadable(self, number: int, begin: int, end: int) -> None:
        segment = self.segments[number]
        if begin < segment.acknowledged < end:
            self._damaged(number, begin, segment.acknowledged)
            begin = segment.acknowledged
        if begin < segment.acknowledged:
            self._damaged(number, begin, end)
        elif end - begin < HEADER and end < os.fstat(self.files.fd(number)).st_size:
            self._damaged(number, begin, end)  # no room for a VOID record
        else:
            segment.torn.append((begin, end))
            what = f"no whole record up to byte {end}, never acknowledged: left out"
            self._find(Severity.NOTE, at(number, begin), what)

    def _damaged(self, number: int, begin: int, end: int) -> None:
        self.hidden = True
        for row in self._rows_between(number, begin, end):
            offset = row.location.offset - HEADER
            if offset > begin:
                self._lost(number, begin, offset)
            self._take_from_row(number, row)
            begin = row.location.offset + row.location.length
        if begin < end:
            self._lost(number, begin, end)

    def _rows_between(self, number: int, begin: int, end: int) -> Iterator[InstanceRow]:
        """Records of the old index with whole payloads."""
        for row in self._old.placed(number).values() if self._old else ():
            _, offset, length = row.location
            inside = begin + HEADER <= offset and offset + length <= end
            if inside and is_whole(self.files.fd(number), offset, length, row.digest):
                begin = offset + length
                yield row

    def _take_from_row(self, number: int, row: InstanceRow) -> None:
        """The new header has the smallest `began`: where the request began is not known."""
        offset, length = row.location.offset - HEADER, row.location.length
        header = RecordHeader(
            RecordKind.INSTANCE, row.record_id, row.stored_at, length, row.digest, FIRST_RECORD
        )
        what = "record header: damaged, made again from the old index"
        self._find(Severity.NOTE, at(number, offset), what)
        segment = self.segments[number]
        segment.headers[offset] = header
        segment.end = max(segment.end, offset + HEADER + length)
        self._take_instance(number, FoundRecord(offset, header))

    def _lost(self, number: int, begin: int, end: int) -> None:
        self.segments[number].damaged = True
        what = f"no whole record up to byte {end}: the bytes stay where they are"
        self._find(Severity.ERROR, at(number, begin), what)
