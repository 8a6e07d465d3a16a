"""Compares the index with a scratch index that was made from the records themselves.

Strategy: every living record that a check has read is stored in a scratch index, by the same calls. Metadata,
frame tables and bulk values are compared at once instead. At the end the two indexes are merged, database by
database: each must have exactly the rows of the other. Only the serial in front of an instance's row may
differ.

A server may store meanwhile. Every study in the change log since the audit began is left out: a difference
there is not damage.

Rules of this file
- Both sides are read in pages, beside writers.
- A report has no normalized value of an attribute: it may be a patient's name.
"""

from __future__ import annotations

import contextlib
import operator
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, starmap
from pathlib import Path
from typing import TypeAlias

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.errors import SegmentGone, StoreCorrupt
from streamsrv.store.index.environment import ABOUT
from streamsrv.store.index.index import Index
from streamsrv.store.index.metadata_blobs import BlobReader, numbers_in, texts_in_row
from streamsrv.store.index.rows import (
    record_id_of,
    row_name,
    serial_of,
    split_triple,
    triple,
    unpack_changes,
    unpack_instance,
    without_sum,
)
from streamsrv.store.rows import ChangeKind, InstanceRow, NewInstance, SegmentRow

Pair: TypeAlias = tuple[bytes, bytes]

PAGE = 1_000
ENTRIES_AT_ONCE = 10_000
# Differences kept until touched studies are known. An index with more of them is rebuilt anyway.
MOST_DIFFERENCES = 10_000
SERIAL = 8  # bytes in front of an instance's row that differ between two indexes

# The part of a row that names its study: 0 the key, 1 the value.
COMPARED = {"instances": 0, "variants": 0, "studies": 0, "series": 0, "attributes": 1, "uids": 1}

BY_SERIAL = ("metadata", "frames", "bulk")


@dataclass(frozen=True, slots=True)
class Difference:
    database: str
    row: str
    what: str
    study: str


class Audit:
    """One comparison. `folder` is for the scratch index; the caller removes it."""

    def __init__(self, index: Index, folder: Path) -> None:
        self._index = index
        self._began = last_change(index)
        self._scratch = Index.open(folder)
        self._waiting: list[NewInstance] = []
        self.live: dict[int, int] = {}  # segment -> bytes of living payloads
        self._unreadable: list[tuple[int, int, int]] = []
        self._unknown: set[str] = set()

    def close(self) -> None:
        self._scratch.close()

    def segment(self, row: SegmentRow) -> None:
        self._scratch.put_segment(replace(row, live=0))

    def add(self, new: NewInstance) -> None:
        """Add a living record to the scratch index."""
        segment, _, length = new.row.location
        self.live[segment] = self.live.get(segment, 0) + length
        self._waiting.append(replace(new, metadata=[], text=b"", frame_table=b"", bulk=[]))
        if len(self._waiting) >= PAGE:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            segment = self._waiting[0].row.location.segment
            self._scratch.commit(self._waiting, segment=segment, committed_end=0)
        self._waiting = []

    # One instance

    def compare(self, row: InstanceRow, new: NewInstance) -> Iterator[tuple[str, str]]:
        """(database, reason) for metadata, frame table and bulk values that differ from the record."""
        checks = {"metadata": self._metadata, "frames": self._frames, "bulk": self._bulk}
        for database, check in checks.items():
            try:
                equal = check(row, new)
            except SegmentGone:
                return  # replaced or deleted since
            except StoreCorrupt as reason:
                yield database, reason.detail
                continue
            if not equal:
                yield database, "differs from the record"

    def _metadata(self, row: InstanceRow, new: NewInstance) -> bool:
        expected = new.text or b"".join(map(BlobReader().frame, new.metadata))
        return b"".join(self._index.metadata([row])) == expected

    def _frames(self, row: InstanceRow, new: NewInstance) -> bool:
        if row.frame_kind is not FrameKind.TABLE:
            return True
        for start in range(0, row.number_of_frames, ENTRIES_AT_ONCE):
            stop = min(start + ENTRIES_AT_ONCE, row.number_of_frames)
            entries = self._index.frame_entries(row, range(start, stop))
            packed = b"".join(a.to_bytes(8, "little") + b.to_bytes(8, "little") for a, b in entries)
            if packed != new.frame_table[start * 16 : stop * 16]:
                return False
        return True

    def _bulk(self, row: InstanceRow, new: NewInstance) -> bool:
        found: list[BulkValue] = []
        while page := self._index.bulk_values(row, after=found[-1].path if found else None):
            found += page
        by_path = operator.attrgetter("path")
        return sorted(found, key=by_path) == sorted(new.bulk, key=by_path)

    def unreadable(self, segment: int, begin: int, end: int) -> None:
        """A range that the check could not read: rows of its instances, and their studies, are not
        compared."""
        self._unreadable.append((segment, begin, end))

    # The whole

    def differences(self) -> Iterator[Difference]:
        """Rows that only one index has, in studies without changes since the audit began."""
        self._flush()
        found = list(islice(self._merged(), MOST_DIFFERENCES))
        touched = touched_since(self._index, self._began) | self._unknown
        yield from (each for each in found if each.study not in touched)
        yield from self._gaps()
        serials = array("Q")
        yield from self._origins(serials)
        for database in BY_SERIAL:
            yield from self._owned(database, serials)

    def _merged(self) -> Iterator[Difference]:
        for database, place in COMPARED.items():
            ours, theirs = rows_of(self._index, database), rows_of(self._scratch, database)
            for row, only_ours in unequal(ours, theirs):
                study = study_of(row[place])
                if only_ours and database == "instances" and self._lies_unreadable(row):
                    self._unknown.add(study)
                what = "no record proves it" if only_ours else "is missing, or has another value"
                yield Difference(database, printable(database, row), what, study)

    def _lies_unreadable(self, row: Pair) -> bool:
        try:
            location = unpack_instance(split_triple(row[0]), bytes(SERIAL) + row[1]).location
        except (StoreCorrupt, TypeError, UnicodeDecodeError):  # not the row of an instance
            return False
        return any(
            segment == location.segment and begin <= location.offset < end
            for segment, begin, end in self._unreadable
        )

    def _owned(self, database: str, serials: array[int]) -> Iterator[Difference]:
        """Rows keyed by serial: each must have its instance, and its chunks no gap."""
        owners = iter(sorted(serials))
        owner, expected = next(owners, -1), 0
        rows = rows_of(self._index, database)
        texts = chain.from_iterable(starmap(texts_in_row, rows))
        for serial, chunk in texts if database == "metadata" else (numbers_in(key) for key, _ in rows):
            while 0 <= owner < serial:
                owner, expected = next(owners, -1), 0
            if serial != owner and serial <= self._began:
                yield Difference(database, f"serial {serial}", "belongs to no instance", "")
            elif database != "bulk" and serial == owner:
                if chunk != expected:
                    yield Difference(database, f"serial {serial}, chunk {chunk}", "is out of order", "")
                expected = chunk + 1

    def sums(self) -> Iterator[Difference]:
        """Rows that only their checksum proves; changes and metadata are reported later."""
        missing = ABOUT - {key.decode("ascii", "replace") for key, _ in rows_of(self._index, "about")}
        for name in sorted(missing):
            yield Difference("about", name, "is missing", "")
        for database in ("about", "damage", "segments"):
            for key, value in rows_of(self._index, database):
                try:
                    without_sum(database, key, value)
                except StoreCorrupt:
                    yield Difference(database, row_name(database, key), "its checksum is wrong", "")

    def _gaps(self) -> Iterator[Difference]:
        """Changes that are damaged or missing. The oldest ones may go while they are read."""
        expected = self._first_change()
        for key, value in rows_of(self._index, "changes"):
            sequence = int.from_bytes(key, "big")
            try:
                first = unpack_changes(sequence, value)[0].sequence
            except StoreCorrupt as reason:
                yield Difference("changes", f"change {sequence}", reason.detail, "")
            else:
                if first != expected and first != self._first_change():
                    yield Difference("changes", f"change {expected}", "is missing", "")
            expected = sequence + 1

    def _first_change(self) -> int:
        """1 if it cannot be read; `sums` reports that."""
        try:
            return self._index.first_change()
        except (StoreCorrupt, KeyError):
            return 1

    def _origins(self, serials: array[int]) -> Iterator[Difference]:
        """Each instance must have the change that stored it, if it is kept. Collects the serials."""
        oldest = self._first_change()
        for key, value in rows_of(self._index, "instances", whole=True):
            if len(value) < SERIAL:
                continue  # reported already
            serial = serial_of(value)
            serials.append(serial)
            if 0 < serial < oldest:
                continue
            try:
                changes = self._index.changes(serial - 1, 1) if serial else []
            except StoreCorrupt:
                continue  # reported by _gaps
            origin = changes[0] if changes and changes[0].sequence == serial else None
            same = origin is not None and (triple(origin.key), origin.record_id) == (key, record_id_of(value))
            if not same and 0 < serial < (oldest := self._first_change()):
                continue  # removed meanwhile
            if not same or (origin is not None and origin.kind is ChangeKind.DELETED):
                what = f"change {serial}, in index database changes, did not store it"
                yield Difference("instances", printable("instances", (key, value)), what, "")


def last_change(index: Index) -> int:
    """The sequence of the latest change, by binary search."""

    def any_from(sequence: int) -> bool:
        try:
            return bool(index.changes(sequence - 1, 1))
        except StoreCorrupt:
            return True

    low, high = 0, 1
    while any_from(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if any_from(middle) else (low, middle)
    return low


def touched_since(index: Index, after: int) -> set[str]:
    """Studies that have changed since. Damaged changes are reported elsewhere."""
    studies: set[str] = set()
    with contextlib.suppress(StoreCorrupt):
        while page := index.changes(after, PAGE):
            studies.update(change.key.study for change in page)
            after = page[-1].sequence
    return studies


def rows_of(index: Index, database: str, *, whole: bool = False) -> Iterator[Pair]:
    """All rows of a database in order; rows of instances without the serial, unless `whole`."""
    cut = SERIAL if database == "instances" and not whole else 0
    return ((key, value[cut:]) for key, value in index.dump(database))


def unequal(ours: Iterator[Pair], theirs: Iterator[Pair]) -> Iterator[tuple[Pair, bool]]:
    """Rows that only one of two ordered streams has, and whether it is the first stream."""
    left, right = next(ours, None), next(theirs, None)
    while left is not None or right is not None:
        if left == right:
            left, right = next(ours, None), next(theirs, None)
        elif right is None or (left is not None and left < right):
            assert left is not None
            yield left, True
            left = next(ours, None)
        else:
            yield right, False
            right = next(theirs, None)


def study_of(part: bytes) -> str:
    return part.partition(b"\0")[0].decode("ascii", "replace")


def printable(database: str, row: Pair) -> str:
    """The place of a row, without values of a patient."""
    key, value = row
    if database == "attributes":
        owner = value.decode("ascii", "replace").replace("\0", "/")
        return f"level {key[0]}, attribute {key[1:5].hex().upper()}, of {owner}"
    return "/".join(
        part if part.isascii() and part.isprintable() else part.encode().hex()
        for part in key.decode("latin-1").split("\0")
    )
