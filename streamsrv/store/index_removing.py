"""Instances that go: every row that belongs to them, in all databases.

Strategy: the rows of a study lie side by side, and so do those that are found by the serials of what was
stored at once. One cursor a database deletes its way through them: behind a row that is deleted it stands on
the next. Nothing of an instance's row is unpacked but what its removal needs, and `index_levels` hears of it
once a series.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, NamedTuple

import xxhash

from streamsrv.errors import StoreCorrupt
from streamsrv.store.index_environment import Cursor, Transaction
from streamsrv.store.index_levels import Levels
from streamsrv.store.index_rows import (
    CHANGE,
    UIDS_AT,
    UNREADABLE,
    PackedRow,
    number_key,
    record_id_of,
)
from streamsrv.store.rows import ChangeKind

_BY_SERIAL = ("metadata", "frames", "bulk")
_PLACED = struct.Struct("<QI8xQ")  # what an instance's row begins with: serial, segment, (offset,) length


class Removal(NamedTuple):
    """What has to be known of an instance to remove everything that belongs to it."""

    series: bytes  # study \0 series
    instance: bytes
    serial: int
    segment: int
    length: int
    sop_class: bytes
    value: bytes


def removals(rows: Iterable[PackedRow]) -> list[Removal]:
    """Of each row, in order."""
    found = []
    try:
        for key, value in rows:
            series, _, instance = key.rpartition(b"\0")
            serial, segment, length = _PLACED.unpack_from(value)
            sop_class = value[UIDS_AT : UIDS_AT + value[UIDS_AT - 2]]
            found.append(Removal(series, instance, serial, segment, length, sop_class, value))
    except (struct.error, IndexError) as error:
        raise StoreCorrupt(UNREADABLE) from error
    return found


def pack_deletions(first: int, at: int, rows: Iterable[PackedRow]) -> list[PackedRow]:
    """Changes, with their keys, that say of each row that it was deleted; `first` is the sequence of the
    first of them."""
    number, pack, digest = number_key, CHANGE.pack, xxhash.xxh32_digest
    kind, found = int(ChangeKind.DELETED), []
    for sequence, (key, value) in enumerate(rows, first):
        change, head = pack(kind, at, record_id_of(value)) + key, number(sequence)
        found.append((head, change + digest(head + change)))
    return found


class Removing:
    """Within the writer's transaction."""

    def __init__(self, transaction: Transaction, handles: dict[str, Any], levels: Levels) -> None:
        self._transaction = transaction
        self._handles = handles
        self._levels = levels

    def still(self, rows: Sequence[PackedRow]) -> Sequence[PackedRow]:
        """Those whose record is the same, as they are now. Mostly nothing has changed, and one walk tells."""
        if not rows:
            return rows
        cursor = self._cursor("instances")
        if cursor.set_key(rows[0][0]) and list(islice(cursor.iternext(), len(rows))) == rows:
            return rows
        now = [(key, cursor.get(key), record_id_of(value)) for key, value in rows]
        return [(key, value) for key, value, record in now if value and record_id_of(value) == record]

    def remove(self, rows: Sequence[PackedRow]) -> dict[int, int]:
        """Instances that are there, in the order of their keys. Returns the bytes of their payloads by
        segment."""
        gone = removals(rows)
        self._delete_instances([key for key, _ in rows])
        self._delete_uids(gone)
        serials = [number_key(serial) for serial in sorted(each.serial for each in gone)]
        for name in _BY_SERIAL:
            self._delete_owned(name, serials)
        lengths: dict[int, int] = defaultdict(int)
        for each in gone:
            lengths[each.segment] += each.length
        for series, group in groupby(gone, key=attrgetter("series")):
            parts = list(group)
            classes = Counter(each.sop_class for each in parts)
            self._levels.remove(series, [each.value for each in parts], classes)
        return lengths

    def _delete_instances(self, keys: Sequence[bytes]) -> None:
        cursor = self._cursor("instances")
        for key in keys:
            if cursor.key() != key:
                cursor.set_key(key)
            cursor.delete()

    def _delete_uids(self, gone: Sequence[Removal]) -> None:
        uids = self._handles["uids"]
        for each in gone:
            self._transaction.delete(b"i" + each.instance, each.series, db=uids)

    def _delete_owned(self, name: str, serials: Sequence[bytes]) -> None:
        """The rows of these serials, in their order; each has any number of them."""
        cursor = self._cursor(name)
        for serial in serials:
            if cursor.key() < serial and not cursor.set_range(serial):
                return
            while cursor.key().startswith(serial):
                cursor.delete()

    def _cursor(self, name: str) -> Cursor:
        return self._transaction.cursor(db=self._handles[name])
