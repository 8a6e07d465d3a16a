"""Compares the bytes of all objects with their digests, and registers damage. Writes lost tombstones again.

Strategy: each object is copied from the bucket into a file without a name, past the cache, while others are
compared. If all records of its trailer are whole, nothing else is looked up. Else the rows of the database
decide: each living instance of the object is compared with its digest, also where headers or trailer are
damaged.

It runs beside all nodes. An object that is removed meanwhile is passed over.

Rules of this file
- Damaged bytes of deleted and refused records are a note, because nothing is lost.
- Caches of nodes may have copied wrong bytes. So an instance whose bytes are whole again moves to a new
  object before its damage is forgotten. A lost object that has come back needs no move.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

from streamsrv.errors import StoreCorrupt
from streamsrv.store.cluster.store import ClusterStore
from streamsrv.store.index import DamagedRecord
from streamsrv.store.maintenance.check import Finding, Severity, at, error, wrong_payload
from streamsrv.store.maintenance.objects.compact import move
from streamsrv.store.maintenance.objects.reading import ObjectFile, copy_of, files_of
from streamsrv.store.maintenance.scrub import REGISTER_BATCH, Pace
from streamsrv.store.objects.cache_folder import StoredObject
from streamsrv.store.objects.layout import walk_object
from streamsrv.store.rows import InstanceRow, Location, SegmentRow
from streamsrv.store.segments.records import DamagedBytes, RecordKind
from streamsrv.store.segments.verifying import (
    MISSING_OBJECT,
    SHORT_OBJECT,
    WRONG_DIGEST,
    damaged_record,
    described,
    digest_of,
    register,
)


def check_segments(store: ClusterStore, pace: Pace) -> Iterator[Finding]:
    """Every object once."""
    yield from ObjectScrub(store, pace).run()


class ObjectScrub:
    def __init__(self, store: ClusterStore, pace: Pace) -> None:
        self._store = store
        self._index = store.index
        self._rooms = store.rooms
        self._pace = pace
        self._registered: dict[int, list[DamagedRecord]] = defaultdict(list)  # by segment
        self._missing: set[int] = set()

    def run(self) -> Iterator[Finding]:
        after = b""
        while page := self._index.damage(after):
            after = page[-1].record_id
            for record in page:
                self._registered[record.location.segment].append(record)
        places = {segment: StoredObject(key, size) for segment, key, size in self._rooms.table.complete()}
        there = [
            (row, places[segment])
            for segment, row in self._index.segments().items()
            if not row.empty and segment in places
        ]
        for (row, place), file in files_of(there, lambda item: self._copied(*item)):
            if file is None:
                self._missing.add(row.segment)
            else:
                yield from self._object(row, place, file)
        yield from self._lost()
        yield from self._lost_tombstones()

    def _lost_tombstones(self) -> Iterator[Finding]:
        tombstones = self._rooms.tombstones
        for key in tombstones.lost():
            if tombstones.table.again(key):
                tombstones.write_all(0)
                yield error(key, "the bucket has lost this tombstone: it is written again")

    def _object(self, row: SegmentRow, place: StoredObject, file: ObjectFile) -> Iterator[Finding]:
        size = os.fstat(file.fileno()).st_size
        findings = list(self._damage(file, row.segment, size))
        if size < row.committed_end:
            what = f"its object ends here, not at {row.committed_end}"
            findings.append(error(at(row.segment, size), what))
        if findings:
            yield from findings
            yield from self._living(file, row.segment, size)
        elif row.segment in self._registered:
            self._heal(self._registered[row.segment], place)

    def _copied(self, row: SegmentRow, place: StoredObject) -> ObjectFile:
        """A file with the bytes that the object has: fewer than it should, if it was cut."""
        folder, length = self._store.layout.root, row.committed_end
        try:
            return copy_of(self._rooms.bucket, place.key, length, folder, self._pace.take)
        except StoreCorrupt:
            length = min(self._rooms.bucket.length(place.key), length)
            return copy_of(self._rooms.bucket, place.key, length, folder, self._pace.take)

    def _damage(self, file: ObjectFile, segment: int, size: int) -> Iterator[Finding]:
        """Damage by headers and trailer. Wrong payloads are notes: `_living` finds those of instances."""
        for step in walk_object(self._store.form, file.fileno(), segment, size):
            if isinstance(step, DamagedBytes):
                what = f"record header: {step.reason}; `streamsrv compact --all` writes a new one"
                yield error(at(segment, step.offset), what)
            elif step.header.kind is RecordKind.INSTANCE:
                found = digest_of(file.fileno(), step.payload, step.header.length)
                if found != step.header.digest:
                    what = wrong_payload(Location(segment, step.payload, step.header.length))
                    yield Finding(Severity.NOTE, at(segment, step.payload), what)

    def _living(self, file: ObjectFile, segment: int, size: int) -> Iterator[Finding]:
        """Compare the instances of an object that has some damage."""
        registered = {record.record_id: record for record in self._registered[segment]}
        healed = []
        for row in list(self._index.instances_in([segment])):
            _, offset, length = row.location
            reason = "" if digest_of(file.fileno(), offset, length) == row.digest else WRONG_DIGEST
            if reason and offset + length > size:
                reason = SHORT_OBJECT
            if reason:
                found = damaged_record(row, reason)
                register(self._index, [found])
                yield error(at(segment, offset), described(found))
            elif row.record_id in registered:
                healed.append(registered[row.record_id])
        if healed:
            self._heal(healed, StoredObject(*self._rooms.table.find([segment])[0][1:]))

    def _heal(self, records: Sequence[DamagedRecord], place: StoredObject) -> None:
        """Their bytes are whole."""
        changed = [record for record in records if record.reason != MISSING_OBJECT and record.key]
        rows = self._index.existing([record.key for record in changed if record.key])
        ids = {record.record_id for record in changed}
        move(self._store, [row for row in rows if row is not None and row.record_id in ids], place)
        self._index.forget_damage([record.record_id for record in records])

    def _lost(self) -> Iterator[Finding]:
        """Objects that are not in the bucket, unless they were removed meanwhile."""
        there = {segment for segment, _, _ in self._rooms.table.find(list(self._missing))}
        gone = {segment for segment in self._missing & there if self._index.segment(segment) is not None}
        for segment in sorted(gone):
            yield error(f"segment {segment}", MISSING_OBJECT)
        batch: list[InstanceRow] = []
        for row in self._index.instances_in(gone) if gone else ():
            batch.append(row)
            if len(batch) == REGISTER_BATCH:
                self._register_missing(batch)
                batch = []
        self._register_missing(batch)

    def _register_missing(self, rows: Sequence[InstanceRow]) -> None:
        register(self._index, [damaged_record(row, MISSING_OBJECT) for row in rows])
