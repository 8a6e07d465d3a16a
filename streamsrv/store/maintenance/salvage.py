"""Copies the instances of segments and objects, without the identity of their store and without an index.

    OUT/instances/STUDY/SERIES/INSTANCE.dcm        whole, and not deleted as far as the segments tell
    OUT/deleted/STUDY/SERIES/INSTANCE.RECORD.dcm   deleted or replaced
    OUT/damaged/SEGMENT-OFFSET.dcm                 the payload has not the digest of its arrival
    OUT/manifest.csv                               one line a file of the first two
    OUT/salvage.sqlite                             the same, and the deleted record ids

Rules of this file
- An instance is on the disk before its row is. A run that is repeated copies only instances without a row or
  a file, so it goes on where the last one ended.
- Which instances are deleted is decided in the end, because any segment may have the tombstone.
- A store has one instance of a study, series and SOP Instance UID. So the older of two is deleted, too.
- An object that was copied without a finding is not read again, while its files are there.
- One piece of an instance, one tombstone and one page of the database are in memory.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from streamsrv.run_table import open_table
from streamsrv.store.maintenance.check import Finding, Severity
from streamsrv.store.rows import FIRST_RECORD, InstanceKey, Location
from streamsrv.store.segments.records import (
    FORMAT_VERSION,
    HEADER,
    NO_ID,
    PAGE,
    DamagedBytes,
    FoundRecord,
    PayloadDigest,
    Record,
    RecordKind,
    TombstoneDamaged,
    marker_in,
    unpack_ids,
    unproved,
)
from streamsrv.store.segments.unkeyed import KINDS, UnkeyedRecord, UnkeyedWalk, agree

PIECE = 1 << 20
BATCH = 1_000  # instances of one commit
# Bytes of a tombstone: a server deletes 1,000 instances with each.
MOST_TOMBSTONE = 64 << 20

SCHEMA = """
CREATE TABLE IF NOT EXISTS instances (
    record_id BLOB PRIMARY KEY, study TEXT, series TEXT, instance TEXT, stored_at INTEGER, place TEXT,
    length INTEGER, sha256 TEXT, segment TEXT, offset INTEGER, found_by TEXT, deleted INTEGER DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS instances_by_key ON instances (study, series, instance);
CREATE INDEX IF NOT EXISTS instances_by_segment ON instances (segment);
CREATE TABLE IF NOT EXISTS deleted (record_id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS done (segment TEXT PRIMARY KEY) WITHOUT ROWID;
"""
COLUMNS = "place, sha256, length, study, series, instance, stored_at, segment, offset, found_by, deleted"
HEAD = (
    *("path", "sha256", "bytes", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
    *("stored_at_microseconds", "segment", "offset", "found_by", "deleted"),
)


@dataclass(slots=True)
class SegmentDescriptor:
    fd: int


@dataclass(slots=True)
class SalvageCounts:
    """Files in each folder, and bytes of segments that are no record."""

    instances: int = 0
    deleted: int = 0
    damaged: int = 0
    lost_bytes: int = 0


class SegmentSource(NamedTuple):
    """`name` is that of its file, or the key of its object."""

    name: str
    file: SegmentDescriptor
    size: int

    def finding(self, severity: Severity, offset: int, what: str) -> Finding:
        return Finding(severity, f"{self.name}, byte {offset}", what)

    def record(self, found: FoundRecord) -> Record:
        location = Location(0, found.payload, found.header.length)
        header = found.header
        return Record(self.file, 0, location, header.record_id, header.digest, header.stored_at)


class Salvage:
    """One run in the folder OUT. Raises StreamsrvError if another run works there. `report` is called with
    each finding."""

    def __init__(
        self,
        out: Path,
        report: Callable[[Finding], None],
        key_of: Callable[[Record], InstanceKey | None],
        name_of: Callable[[str], str],
    ) -> None:
        """`key_of` returns None if the bytes are no instance. `name_of` makes a file name of a UID."""
        self._key_of = key_of
        self._name_of = name_of
        self._out = out
        self._report_to = report
        self._reported = 0
        self._waiting = 0  # instances behind the last commit
        self._markers = set[bytes]()  # of segments with a whole header
        self.counts = SalvageCounts()
        self._rows = open_table(out / "salvage.sqlite", SCHEMA, "run")

    def __enter__(self) -> Salvage:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def _report(self, finding: Finding) -> None:
        self._reported += 1
        self._report_to(finding)

    def look_at(self, path: Path) -> None:
        """Remembers the marker of a segment, for segments of its store with a damaged header."""
        with path.open("rb") as stream:
            self._remember(stream.read(FIRST_RECORD))

    def _remember(self, head: bytes) -> None:
        marker = marker_in(head)
        self._markers |= {marker} if marker else set()

    def take_file(self, path: Path, progress: Callable[[int], None]) -> None:
        """As `take`, of a segment file."""
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            self.take(SegmentSource(path.name, SegmentDescriptor(stream.fileno()), size), progress)

    def take_object(
        self, key: str, fd: int, size: int, progress: Callable[[int], None], *, lists: bool
    ) -> None:
        """As `take`, of a file with the bytes of an object. `lists`: it should have a trailer."""
        before = self._reported
        self._remember(os.pread(fd, FIRST_RECORD, 0))
        self.take(SegmentSource(key, SegmentDescriptor(fd), size), progress, lists=lists)
        if self._reported == before:
            self._rows.execute("INSERT OR IGNORE INTO done VALUES (?)", (key,))

    def is_done(self, key: str) -> bool:
        """Whether an earlier run has copied an object, and all of its files are there."""
        if self._rows.execute("SELECT 1 FROM done WHERE segment = ?", (key,)).fetchone() is None:
            return False
        select = "SELECT place, length FROM instances WHERE segment = ?"
        return all(self._has_file(*row) for row in self._rows.execute(select, (key,)))

    def take(self, source: SegmentSource, progress: Callable[[int], None], *, lists: bool = False) -> None:
        """Copies the instances of a segment, and remembers the deleted record ids. `progress` gets the bytes
        of the segment that are done."""
        marker = self._marker(source)
        if marker is None:
            return
        walk = UnkeyedWalk(source.file.fd, source.size, marker)
        if lists and not walk.is_listed:
            what = "the list of its records is damaged: refused instances may be among the others"
            self._report(source.finding(Severity.ERROR, source.size, what))
        for step in walk.steps():
            if isinstance(step, DamagedBytes):
                self._lost(source, step)
                progress(step.end)
            else:
                self._take(source, step)
                progress(step.found.end)

    def finish(self) -> None:
        """Puts deleted instances aside and writes the manifest."""
        dead = "SELECT record_id FROM instances WHERE NOT deleted AND record_id IN deleted LIMIT ?"
        while page := self._rows.execute(dead, (BATCH,)).fetchall():
            for (record_id,) in page:
                self._put_aside(record_id)
            self._commit()
        self._commit()
        for deleted, count in self._rows.execute("SELECT deleted, count(*) FROM instances GROUP BY deleted"):
            setattr(self.counts, "deleted" if deleted else "instances", count)
        self._write_manifest()

    # Segments

    def _marker(self, source: SegmentSource) -> bytes | None:
        """The marker of the records; None if there is no record."""
        raw = os.pread(source.file.fd, FIRST_RECORD + HEADER, 0)
        if len(raw) < FIRST_RECORD + HEADER:
            return None  # it was never used
        marker = marker_in(raw)
        if marker is not None:
            return marker
        first = unproved(raw[FIRST_RECORD:])
        what = "the header of the file is damaged"
        if len(self._markers) == 1:
            self._report(source.finding(Severity.ERROR, 0, f"{what}: the marker of other segments counts"))
            return next(iter(self._markers))
        if first.version == FORMAT_VERSION and first.kind in KINDS and any(first.marker):
            self._report(source.finding(Severity.ERROR, 0, f"{what}: the marker of its first record counts"))
            return first.marker
        self._report(source.finding(Severity.ERROR, 0, f"{what}, and that of the first record: not read"))
        self.counts.lost_bytes += source.size
        return None

    def _lost(self, source: SegmentSource, step: DamagedBytes) -> None:
        what = f"record header: {step.reason}: no record up to byte {step.end}"
        self._report(source.finding(Severity.ERROR, step.offset, what))
        self.counts.lost_bytes += step.end - step.offset

    def _take(self, source: SegmentSource, step: UnkeyedRecord) -> None:
        header = step.found.header
        if step.fault:
            what = f"record header: {step.fault}: its payload is whole, but it may have been deleted"
            self._report(source.finding(Severity.ERROR, step.found.offset, what))
        if header.kind is RecordKind.TOMBSTONE:
            self._take_tombstone(source, step.found)
        elif header.kind is RecordKind.INSTANCE:
            self._take_instance(source, step)
        elif header.kind is RecordKind.PENDING:
            what = "a record that was being written: it was never acknowledged"
            self._report(source.finding(Severity.NOTE, step.found.offset, what))

    def _take_tombstone(self, source: SegmentSource, found: FoundRecord) -> None:
        try:
            if found.header.length > MOST_TOMBSTONE:
                raise TombstoneDamaged(f"its length of {found.header.length} bytes is wrong")
            ids = unpack_ids(os.pread(source.file.fd, found.header.length, found.payload))
        except (OSError, TombstoneDamaged) as fault:
            what = f"tombstone: {fault}: some deleted instances may be among the others"
            self._report(source.finding(Severity.ERROR, found.offset, what))
            ids = list(fault.certain) if isinstance(fault, TombstoneDamaged) else []
        self._rows.executemany("INSERT OR IGNORE INTO deleted VALUES (?)", ((each,) for each in ids))

    # Instances

    def _take_instance(self, source: SegmentSource, step: UnkeyedRecord) -> None:
        header = step.found.header
        if header.replaced != NO_ID:
            self._rows.execute("INSERT OR IGNORE INTO deleted VALUES (?)", (header.replaced,))
        if self._is_there(header.record_id, header.length):
            return
        key = self._key_of(source.record(step.found))
        part = self._out / "part"
        whole, sha256 = copy_payload(source.file.fd, step.found, part)
        if whole and key is not None:
            self._put(source, step, key, part, sha256)
            return
        self.counts.damaged += 1
        place = f"damaged/{self._name_of(Path(source.name).stem)}-{step.found.offset}.dcm"
        self._move("part", place)
        what = f"{' '.join(key) if key else 'an instance'}: its bytes are not those that arrived: see {place}"
        self._report(source.finding(Severity.ERROR, step.found.payload, what))

    def _is_there(self, record_id: bytes, length: int) -> bool:
        row = self._rows.execute("SELECT place FROM instances WHERE record_id = ?", (record_id,)).fetchone()
        if row is None:
            return False
        return self._has_file(row[0], length)

    def _has_file(self, place: str, length: int) -> bool:
        try:
            return (self._out / place).stat().st_size == length
        except FileNotFoundError:
            return False

    def _put(
        self, source: SegmentSource, step: UnkeyedRecord, key: InstanceKey, part: Path, sha256: str
    ) -> None:
        header = step.found.header
        same_key = "SELECT record_id, stored_at FROM instances WHERE (study, series, instance) = (?, ?, ?)"
        others = self._rows.execute(
            f"{same_key} AND NOT deleted AND record_id != ?", (*key, header.record_id)
        )
        newest = True
        for other, stored_at in others.fetchall():
            if stored_at <= header.stored_at:
                self._put_aside(other)
            else:
                newest = False
        place = self._place_of(key) if newest else self._aside_of(key, header.record_id)
        self._move(part.name, place)
        where = source.name, step.found.offset, step.proof.value
        about = header.stored_at, place, header.length, sha256
        values = header.record_id, *key, *about, *where, int(not newest)
        self._rows.execute(f"INSERT OR REPLACE INTO instances VALUES ({', '.join('?' * 12)})", values)
        self._waiting += 1
        if self._waiting >= BATCH:
            self._commit()

    def _put_aside(self, record_id: bytes) -> None:
        select = "SELECT study, series, instance, place FROM instances WHERE record_id = ?"
        *key, place = self._rows.execute(select, (record_id,)).fetchone()
        aside = self._aside_of(InstanceKey(*key), record_id)
        if (self._out / place).exists():  # else a run ended between the two steps
            self._move(place, aside)
        update = "UPDATE instances SET place = ?, deleted = 1 WHERE record_id = ?"
        self._rows.execute(update, (aside, record_id))

    def _place_of(self, key: InstanceKey) -> str:
        return f"instances/{'/'.join(map(self._name_of, key))}.dcm"

    def _aside_of(self, key: InstanceKey, record_id: bytes) -> str:
        return f"deleted/{'/'.join(map(self._name_of, key))}.{record_id.hex()}.dcm"

    def _move(self, source: str, place: str) -> None:
        target = self._out / place
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.replace(self._out / source, target)

    def _commit(self) -> None:
        """Rows follow their files to the disk."""
        os.sync()
        self._rows.execute("COMMIT")
        self._rows.execute("BEGIN EXCLUSIVE")
        self._waiting = 0

    def _write_manifest(self) -> None:
        part = self._out / "part"
        with part.open("w", encoding="utf-8", newline="") as stream:
            lines = csv.writer(stream)
            lines.writerow(HEAD)
            lines.writerows(self._rows.execute(f"SELECT {COLUMNS} FROM instances ORDER BY place"))
        self._move("part", "manifest.csv")


def copy_payload(fd: int, found: FoundRecord, target: Path) -> tuple[bool, str]:
    """Whether the bytes have the digest of their record, and their sha256. Pages that cannot be read are
    zeros."""
    digest, sha256, offset = PayloadDigest(), hashlib.sha256(), found.payload
    with target.open("wb") as stream:
        while offset < found.end:
            piece = read_piece(fd, min(PIECE, found.end - offset), offset)
            digest.update(piece)
            sha256.update(piece)
            stream.write(piece)
            offset += len(piece)
    return agree(digest.digest(), found.header.digest), sha256.hexdigest()


def read_piece(fd: int, length: int, offset: int) -> bytes:
    """At least a byte. Zeros for the rest of a page that cannot be read."""
    with contextlib.suppress(OSError):
        piece = os.pread(fd, length, offset)
        if piece:
            return piece
    page = min(length, PAGE - offset % PAGE)
    with contextlib.suppress(OSError):
        piece = os.pread(fd, page, offset)
        if piece:
            return piece
    return bytes(page)
