"""Compaction of objects: the living records of mostly dead objects are copied to new ones.

Strategy: the whole index is read once, in the order of keys, so that a study gets together. A copy keeps its
record id. When the new object is complete, its records are swapped in the index by compare-and-set. The
transaction that takes the last record from an object condemns it, and a sweeper removes it after the grace.
It runs on one node, beside all others. A node that dies leaves an intent, or copies without a row. At the
end tombstones go whose objects are gone.

Rules of this file
- A record whose bytes are damaged moves too, with the digest of its arrival.
- A record whose object ends before it stays, and is registered as damaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from streamsrv.errors import SegmentGone, StoreCorrupt
from streamsrv.store import failpoints
from streamsrv.store.cluster.store import ClusterStore
from streamsrv.store.objects.cache_folder import StoredObject
from streamsrv.store.objects.writer import ObjectWriter
from streamsrv.store.rows import SLICE_INSTANCES, InstanceRow, Location, SegmentRow
from streamsrv.store.segments.records import Record
from streamsrv.store.segments.verifying import SHORT_OBJECT, WRONG_DIGEST, damaged_record, register

# Objects that waste less are left as they are.
LEAST_WASTE = 64 << 10  # bytes
PIECE = 8 << 20


@dataclass(slots=True)
class ObjectCompaction:
    """The result. `freed` bytes leave the bucket after the grace."""

    objects: int = 0
    made: int = 0
    moved: int = 0
    damaged_instances: int = 0
    freed: int = 0


def compact(store: ClusterStore, everything: bool, size: int) -> ObjectCompaction:
    """Compact the objects that are mostly dead; with `everything` each one that has a dead instance. New
    objects are about `size` bytes. Raises StoreLocked during a check or another compaction."""
    with store.rooms.table.excluding_compactions():
        report = _ObjectCompactor(store, size).run(everything)
        store.rooms.tombstones.remove_idle()
        return report


def move(store: ClusterStore, rows: Sequence[InstanceRow], place: StoredObject) -> None:
    """Copy instances of one object to a new one."""
    places = {row.location.segment: place for row in rows}
    _ObjectCompactor(store, sum(row.location.length for row in rows)).fill(iter(rows), places)


class _ObjectCompactor:
    def __init__(self, store: ClusterStore, size: int) -> None:
        self._rooms = store.rooms
        self._index = store.index
        self._size = size
        self._report = ObjectCompaction()

    def run(self, everything: bool) -> ObjectCompaction:
        rows = self._index.segments()
        chosen = {each.segment for each in rows.values() if _is_chosen(each, everything)}
        places = {
            segment: StoredObject(key, length)
            for segment, key, length in self._rooms.table.complete()
            if segment in chosen
        }
        self.fill(self._index.instances_in(places.keys()), places)
        left = self._index.segments()
        gone = [rows[segment] for segment in places if segment not in left]
        self._report.objects = len(gone)
        self._report.freed = sum(row.committed_end - row.live for row in gone)
        return self._report

    def fill(self, rows: Iterator[InstanceRow], places: dict[int, StoredObject]) -> None:
        while self._fill_object(rows, places):
            pass

    def _fill_object(self, rows: Iterator[InstanceRow], places: dict[int, StoredObject]) -> bool:
        """Copy records to one new object; False if there are no more."""
        row = next(rows, None)
        if row is None:
            return False
        rooms = self._rooms
        segment, key = rooms.table.begin(rooms.intents.seconds)
        writer = ObjectWriter(rooms.bucket, rooms.form, segment, key, rooms.folder, rooms.clock, rooms.ops)
        rooms.intents.hold(segment)
        try:
            moves: list[tuple[InstanceRow, Record]] = []
            while row is not None:
                if (record := self._copied(writer, row, places[row.location.segment])) is not None:
                    moves.append((row, record))
                row = next(rows, None) if writer.end < self._size else None
            moved = self._swap(writer, moves) if moves else 0
        finally:
            writer.abort()
            rooms.intents.let_go(segment)
        if not moved:
            rooms.table.give_up(segment, uploading=writer.uploading)
        self._report.moved += moved
        self._report.made += bool(moved)
        return True

    def _copied(self, writer: ObjectWriter, row: InstanceRow, place: StoredObject) -> Record | None:
        """None if its object has been removed: so has the record. None too if its object was cut."""
        begin = writer.end
        _, offset, length = row.location
        writer.open_record(row)
        try:
            for at in range(offset, offset + length, PIECE):
                writer.write([self._rooms.bucket.read(place.key, at, min(PIECE, offset + length - at))])
                writer.send()
        except SegmentGone:
            writer.back_to(begin)
            return None
        except StoreCorrupt:
            writer.back_to(begin)
            self._register(row, SHORT_OBJECT)
            return None
        record = writer.close_record()
        if record.digest != row.digest:
            record.digest = row.digest
            self._register(row, WRONG_DIGEST)
        return record

    def _register(self, row: InstanceRow, reason: str) -> None:
        register(self._index, [damaged_record(row, reason)])
        self._report.damaged_instances += 1

    def _swap(self, writer: ObjectWriter, moves: list[tuple[InstanceRow, Record]]) -> int:
        """Returns how many records have moved. The others were deleted or replaced meanwhile."""
        end = writer.complete([record for _, record in moves])
        failpoints.hit("in-compaction")
        moved = 0
        for begin in range(0, len(moves), SLICE_INSTANCES):
            portion: list[tuple[InstanceRow, Location]] = [
                (row, record.location) for row, record in moves[begin : begin + SLICE_INSTANCES]
            ]
            moved += sum(self._index.relocate(portion, segment=writer.segment, committed_end=end))
        failpoints.hit("in-compaction")
        return moved


def _is_chosen(row: SegmentRow, everything: bool) -> bool:
    waste = row.committed_end - row.live
    return row.dead > 0 if everything else waste > max(row.live, LEAST_WASTE)
