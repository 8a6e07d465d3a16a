"""One write transaction of the index: stores, deletions, moves, segments.

Strategy: several requests share a transaction (see writer). So each request first checks everything that
could refuse it, then writes. Studies, series and segments are collected during the requests, and written
once, in `finish`.

A deletion uses one cursor a database: the rows of a study, and those of serials that were stored together,
lie side by side. Only the facts that removal needs are unpacked, and `Levels` is called once a series.

Rules of this file: a request that raises while `writing` is False has written nothing. Otherwise the whole
transaction must be aborted.
"""

from __future__ import annotations

import struct
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, NamedTuple

from streamsrv.dicom.instance import BulkValue
from streamsrv.errors import StoreCorrupt, StoreError
from streamsrv.store.index import answers as index_answers
from streamsrv.store.index.damage import DamageWriter
from streamsrv.store.index.levels import Levels, Removed
from streamsrv.store.index.metadata_blobs import BlobPlace, compressed, remove_metadata, share_blobs
from streamsrv.store.index.rows import (
    FACTS_BYTES,
    UIDS_AT,
    UNREADABLE,
    VARIANT_AT,
    PackedRow,
    bulk_path_key,
    change_time,
    chunk_key,
    frame_chunks,
    moved,
    number_key,
    order_of,
    pack_bulk,
    pack_change,
    pack_deletions,
    pack_instance,
    pack_segment,
    record_id_of,
    segment_key,
    sop_class_in,
    triple,
    unpack_instance,
    unpack_segment,
    with_serial,
    with_sum,
    without_sum,
)
from streamsrv.store.ordered_map import Announcement, Cursor, Transaction
from streamsrv.store.rows import (
    NO_SEGMENT,
    ChangeKind,
    InstanceKey,
    InstanceRow,
    Location,
    NewInstance,
    SegmentRow,
)

NEXT_SEGMENT = b"next_segment"
FIRST_CHANGE = b"first_change"
# The log is cut once in FORGET_EVERY changes, by at most FORGET_ROWS rows, so that a commit stays short.
FORGET_EVERY = 1024
FORGET_ROWS = 2048


@dataclass(slots=True)
class Prepared:
    """A NewInstance packed for the index, in the thread of its request: the commit only writes it. It takes a
    tenth of the memory, because its attributes are bytes."""

    row: InstanceRow
    metadata: list[bytes]
    place: BlobPlace | None  # of the text, if it shares a row with its neighbours
    frame_table: bytes
    bulk: list[BulkValue]
    key: bytes
    variant: bytes
    variant_text: bytes
    packed: bytes
    size: int


def prepare(new: Sequence[NewInstance | Prepared]) -> list[Prepared]:
    """Pack instances; short texts of neighbours share a row. Prepared instances stay unchanged."""
    places = share_blobs([b"" if isinstance(each, Prepared) else each.text for each in new])
    return [
        each if isinstance(each, Prepared) else _prepared(each, place)
        for each, place in zip(new, places, strict=True)
    ]


def _prepared(new: NewInstance, place: BlobPlace | None) -> Prepared:
    text, digest = index_answers.variant_of(new.attributes, new.row.sop_class_uid)
    packed = pack_instance(new.row, digest, index_answers.instance_text(new.row, new.attributes))
    metadata = [compressed(new.text)] if new.text and place is None else new.metadata
    key, size = triple(new.row.key), new.size
    return Prepared(new.row, metadata, place, new.frame_table, new.bulk, key, digest, text, packed, size)


def metadata_rows(new: Sequence[Prepared]) -> Iterator[list[bytes]]:
    """The rows under the serial of each instance: its own chunks, or a row with its text and the next ones,
    or none if an earlier row has its text."""
    for texts, sharing in groupby(new, lambda each: each.place and each.place.texts):
        if texts is None:
            yield from (each.metadata for each in sharing)
            continue
        numbers = [each.place.number for each in sharing if each.place]
        yield [texts.of(numbers)]
        yield from ([] for _ in numbers[1:])


@dataclass(slots=True)
class _Account:
    """The row of a segment while the transaction changes it."""

    end: int
    live: int
    dead: int
    sealed: bool


class Batch:
    """`keep_changes` bounds the log of changes; 0: no bound."""

    def __init__(self, transaction: Transaction, handles: dict[str, Any], keep_changes: int = 0) -> None:
        self._keep_changes = keep_changes
        self._transaction = transaction
        self._handles = handles
        self._levels = Levels(transaction, handles)
        self._removal = Removal(transaction, handles, self._levels)
        self.damage = DamageWriter(transaction, handles)
        self._segments: dict[int, _Account] = {}
        self._sequence, last = self._last_change()
        # Readers ask for changes by time, so that it never decreases, also if the clock steps back.
        self._at = max(time.time_ns() // 1000, last)
        self._began = self._sequence
        self.writing = False

    def finish(self) -> None:
        self._levels.flush()
        for segment, found in self._segments.items():
            row = SegmentRow(segment, found.end, found.live, found.dead, found.sealed)
            self._put("segments", segment_key(segment), pack_segment(row))
        self._segments = {}
        if self._keep_changes and self._began // FORGET_EVERY != self._sequence // FORGET_EVERY:
            self._forget_changes()

    def require_announced(self, announcement: Announcement) -> None:
        """Raises AnnouncementLost."""
        announcement.confirm(self._transaction)

    # -- requests

    def store(
        self, new: Sequence[Prepared], segment: int, end: int, dead: int, replaced: Sequence[InstanceRow]
    ) -> None:
        expected = {row.key: row.record_id for row in replaced}
        self._segment(segment)
        old = [self._check_new(prepared, expected) for prepared in new]
        if len({prepared.key for prepared in new}) != len(new):
            raise StoreCorrupt("an instance occurs twice in one commit")
        self.writing = True
        gone = sorted((each.key, value) for each, value in zip(new, old, strict=True) if value)
        if gone:
            self._remove(gone)
        for prepared, value, chunks in zip(new, old, metadata_rows(new), strict=True):
            self._store_one(prepared, ChangeKind.REPLACED if value else ChangeKind.STORED, chunks)
        self._account(segment, end=end, dead=dead)
        self.writing = False

    def delete(self, rows: Sequence[PackedRow], segment: int, end: int, dead: int) -> int:
        """`rows` in the order of their keys."""
        if segment != NO_SEGMENT:
            self._segment(segment)
        there = self._removal.still(rows)
        self.writing = True
        if there:
            gone = self._remove(there)
            self._sequence += len(there)
            value = pack_deletions(self._sequence, self._at, gone.ids, gone.facts, gone.keys)
            self._append("changes", number_key(self._sequence), value)
        if segment != NO_SEGMENT:
            self._account(segment, end=end, dead=dead)
        self.writing = False
        return len(there)

    def relocate(self, moves: Sequence[tuple[InstanceRow, Location]], segment: int, end: int) -> list[bool]:
        """An instance moves only if it still is where the caller saw it. Else its copy is dead."""
        self._segment(segment)
        self.writing = True
        done = []
        for row, location in moves:
            key = triple(row.key)
            value = self._get("instances", key)
            current = unpack_instance(row.key, value) if value else None
            same = current is not None and (current.record_id, current.location) == (
                row.record_id,
                row.location,
            )
            if same and value:
                self._put("instances", key, moved(value, location))
                self._account(row.location.segment, live=-row.location.length, dead=row.location.length)
                self._account(location.segment, live=location.length)
            else:
                self._account(location.segment, dead=location.length)
            done.append(same)
        self._account(segment, end=end)
        self.writing = False
        return done

    def add_segment(self) -> int:
        """Numbers are never used again: a location always names the same bytes."""
        number = self._next_segment()
        if number is None:
            raise StoreCorrupt("the index does not say which segment comes next: run reindex")
        self.put_segment(SegmentRow(number))
        return number

    def put_segment(self, row: SegmentRow) -> None:
        self._open_account(row)
        following = max(self._next_segment() or 1, row.segment + 1)
        self._put("about", NEXT_SEGMENT, with_sum(NEXT_SEGMENT, b"%d" % following))

    def _open_account(self, row: SegmentRow) -> None:
        self._segments[row.segment] = _Account(row.committed_end, row.live, row.dead, row.sealed)

    def _next_segment(self) -> int | None:
        stored = self._get("about", NEXT_SEGMENT)
        return int(without_sum("about", NEXT_SEGMENT, stored)) if stored else None

    def seal(self, segment: int, end: int = 0, dead: int = 0) -> None:
        self._account(segment, end=end, dead=dead)
        self._segment(segment).sealed = True

    def drop_segment(self, segment: int) -> None:
        if self._segment(segment).live:
            raise StoreError(f"segment {segment} still holds indexed instances")
        del self._segments[segment]
        self._transaction.delete(segment_key(segment), db=self._handles["segments"])

    def note(self, name: bytes, text: bytes) -> None:
        if text:
            self._put("about", name, with_sum(name, text))
        else:
            self._transaction.delete(name, db=self._handles["about"])

    # -- one instance

    def _check_new(self, prepared: Prepared, replaced: dict[InstanceKey, bytes]) -> bytes | None:
        value = self._get("instances", prepared.key)
        if value is not None and replaced.get(prepared.row.key) != record_id_of(value):
            raise StoreCorrupt("an instance to be stored is in the index already")
        return value

    def _store_one(self, prepared: Prepared, kind: ChangeKind, chunks: Sequence[bytes]) -> None:
        row = prepared.row
        self._change(kind, prepared)
        serial = self._sequence
        self._put("instances", prepared.key, with_serial(serial, prepared.packed))
        for chunk, frame in enumerate(chunks):
            key = chunk_key(serial, chunk)
            self._append("metadata", key, with_sum(key, frame))
        for chunk, pairs in enumerate(frame_chunks(prepared.frame_table)):
            self._append("frames", chunk_key(serial, chunk), pairs)
        bulk = {bulk_path_key(value.path): pack_bulk(value) for value in prepared.bulk}
        for path in sorted(bulk):
            self._append("bulk", number_key(serial) + path, bulk[path])
        self._put("uids", b"i" + row.key.instance.encode(), f"{row.key.study}\0{row.key.series}".encode())
        self._levels.add(row.key, order_of(row), prepared.variant, prepared.variant_text, row.sop_class_uid)
        self._account(row.location.segment, live=row.location.length)

    def _remove(self, rows: Sequence[PackedRow]) -> Gone:
        """Remove existing instances, in the order of their keys."""
        gone = self._removal.remove(rows)
        for segment, length in gone.freed.items():
            self._account(segment, live=-length, dead=length)
        self.damage.forget(gone.ids)
        return gone

    def _change(self, kind: ChangeKind, new: Prepared) -> None:
        self._sequence += 1
        facts = new.variant[:FACTS_BYTES]
        value = pack_change(self._sequence, kind, self._at, new.row.record_id, facts, new.key)
        self._append("changes", number_key(self._sequence), value)

    def _forget_changes(self) -> None:
        changes = self._transaction.cursor(self._handles["changes"])
        first = forget_changes(changes, self._sequence - self._keep_changes)
        if first is not None:
            self._put("about", FIRST_CHANGE, with_sum(FIRST_CHANGE, b"%d" % first))

    def _last_change(self) -> tuple[int, int]:
        """Its sequence and time. A damaged row has no time: `check` names it, and stores go on."""
        row = self._last_change_row()
        if row is None:
            return 0, 0
        sequence = int.from_bytes(row[0], "big")
        try:
            return sequence, change_time(sequence, row[1])
        except StoreCorrupt:
            return sequence, 0

    def _last_change_row(self) -> PackedRow | None:
        cursor = self._transaction.cursor(db=self._handles["changes"])
        return cursor.item() if cursor.last() else None

    # -- segments

    def _segment(self, segment: int) -> _Account:
        found = self._segments.get(segment)
        if found is None:
            key = segment_key(segment)
            value = self._get("segments", key)
            if value is None:
                raise StoreCorrupt(f"segment {segment} is not in the index")
            row = unpack_segment(key, value)
            found = _Account(row.committed_end, row.live, row.dead, row.sealed)
            self._segments[segment] = found
        return found

    def _account(self, segment: int, *, end: int = 0, live: int = 0, dead: int = 0) -> None:
        found = self._segment(segment)
        found.end = max(found.end, end)
        found.live = max(found.live + live, 0)
        found.dead += dead

    def _get(self, name: str, key: bytes) -> bytes | None:
        value: bytes | None = self._transaction.get(key, db=self._handles[name])
        return value

    def _put(self, name: str, key: bytes, value: bytes) -> None:
        self._transaction.put(key, value, db=self._handles[name])

    def _append(self, name: str, key: bytes, value: bytes) -> None:
        """Put a key behind all others, which keeps pages full: keys begin with a new serial."""
        self._transaction.put(key, value, append=True, db=self._handles[name])


_BY_SERIAL = ("frames", "bulk")
# Serial, segment, (offset,) length, record id, stored at, ..., variant: an instance's row begins with them.
_PLACED = struct.Struct("<QI8xQ16sQ")
_FACTS = struct.Struct(f"{_PLACED.format}{VARIANT_AT - _PLACED.size}x16s")


class Gone(NamedTuple):
    """Instances that were removed."""

    keys: Sequence[bytes]
    ids: Sequence[bytes]  # of their records
    facts: Sequence[bytes]  # their digests
    freed: Mapping[int, int]  # bytes of their payloads by segment


class Removal:
    """Within the writer's transaction."""

    def __init__(self, transaction: Transaction, handles: dict[str, Any], levels: Levels) -> None:
        self._transaction = transaction
        self._handles = handles
        self._levels = levels

    def still(self, rows: Sequence[PackedRow]) -> Sequence[PackedRow]:
        """The current rows of those instances that still have the same record. Usually none has changed."""
        if not rows:
            return rows
        cursor = self._cursor("instances")
        if cursor.set_key(rows[0][0]) and list(islice(cursor.iternext(), len(rows))) == rows:
            return rows
        now = [(key, cursor.get(key), record_id_of(value)) for key, value in rows]
        return [(key, value) for key, value, record in now if value and record_id_of(value) == record]

    def remove(self, rows: Sequence[PackedRow]) -> Gone:
        """Remove existing instances, at least one, in the order of their keys."""
        keys, values = zip(*rows, strict=True)
        try:
            facts = [_FACTS.unpack_from(value) for value in values]
            serials, segments, lengths, ids, times, variants = zip(*facts, strict=True)
            self._update_levels(keys, values, list(zip(variants, times, ids, strict=True)))
        except (struct.error, IndexError) as error:
            raise StoreCorrupt(UNREADABLE) from error
        self._delete_instances(keys)
        for series, start, end in _by_series(keys):
            self._delete_uids(series, keys[start:end])
        ordered = sorted(serials)
        remove_metadata(self._cursor("metadata"), ordered)
        for name in _BY_SERIAL:
            self._delete_owned(name, ordered)
        freed: dict[int, int] = defaultdict(int)
        for segment, length in zip(segments, lengths, strict=True):
            freed[segment] += length
        return Gone(keys, ids, [each[:FACTS_BYTES] for each in variants], freed)

    def _update_levels(self, keys: Sequence[bytes], values: Sequence[bytes], removed: list[Removed]) -> None:
        for series, start, end in _by_series(keys):
            self._levels.remove(series, removed[start:end], _classes(values[start:end]))

    def _delete_instances(self, keys: Sequence[bytes]) -> None:
        cursor = self._cursor("instances")
        for key in keys:
            if cursor.key() != key:
                cursor.set_key(key)
            cursor.delete()

    def _delete_uids(self, series: bytes, keys: Sequence[bytes]) -> None:
        """`series` is study \\0 series."""
        cursor, begin = self._cursor("uids"), len(series) + 1
        for key in keys:
            pair = b"i" + key[begin:], series
            if cursor.item() == pair or cursor.set_key_dup(*pair):
                cursor.delete()

    def _delete_owned(self, name: str, serials: Sequence[int]) -> None:
        """Delete all rows of these serials, which are ascending."""
        cursor = self._cursor(name)
        for first, last in runs(serials):
            start, end = number_key(first), number_key(last + 1)
            if cursor.key() < start and not cursor.set_range(start):
                return
            while b"" < cursor.key() < end:
                cursor.delete()

    def _cursor(self, name: str) -> Cursor:
        return self._transaction.cursor(db=self._handles[name])


def _by_series(keys: Sequence[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """For ordered keys: study \\0 series, and the range of its instances."""
    start = 0
    while start < len(keys):
        series, _, _ = keys[start].rpartition(b"\0")
        end = bisect_left(keys, series + b"\1", start)
        yield series, start, end
        start = end


def _classes(values: Sequence[bytes]) -> Mapping[bytes, int]:
    """Number of instances of each SOP class. A series usually has one."""
    first = sop_class_in(values[0])
    begin, end = UIDS_AT - 2, UIDS_AT + len(first)  # behind the lengths of SOP class and syntax
    if len({value[begin:end] for value in values}) == 1:
        return {first: len(values)}
    return Counter([sop_class_in(value) for value in values])


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers; `numbers` are ascending."""
    if not numbers:
        return
    first = last = numbers[0]
    for number in numbers:
        if number > last + 1:
            yield first, last
            first = number
        last = number
    yield first, last


def forget_changes(changes: Cursor, until: int) -> int | None:
    """Remove rows from the oldest on, up to sequence `until`, FORGET_ROWS at most. Returns the sequence
    behind the last one that went, None if none did."""
    first = None
    there = changes.first()
    for _ in range(FORGET_ROWS):
        last = int.from_bytes(changes.key(), "big") if there else 0
        if not 0 < last <= until:
            break
        first = last + 1
        changes.delete()
        there = bool(changes.key())
    return first
