"""Removing instances: every row that belongs to them, in all databases.

Strategy: the rows of a study lie side by side, and so do those that are found by the serials of what was
stored at once. One cursor a database deletes its way through them: behind a row that is deleted it stands on
the next. Nothing of an instance's row is unpacked but what its removal needs, once, and `index_levels` hears
of it once a series.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from streamsrv.errors import StoreCorrupt
from streamsrv.store.index.environment import Cursor, Transaction
from streamsrv.store.index.levels import Leaving, Levels
from streamsrv.store.index.metadata_blobs import remove_texts
from streamsrv.store.index.rows import (
    UIDS_AT,
    UNREADABLE,
    VARIANT_AT,
    PackedRow,
    number_key,
    record_id_of,
    sop_class_in,
)

_BY_SERIAL = ("frames", "bulk")
# Serial, segment, (offset,) length, record id, stored at, ..., variant: an instance's row begins with them.
_PLACED = struct.Struct("<QI8xQ16sQ")
_FACTS = struct.Struct(f"{_PLACED.format}{VARIANT_AT - _PLACED.size}x16s")


class Gone(NamedTuple):
    """Instances that were removed."""

    keys: Sequence[bytes]
    ids: Sequence[bytes]  # of their records
    freed: Mapping[int, int]  # bytes of their payloads by segment


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

    def remove(self, rows: Sequence[PackedRow]) -> Gone:
        """Instances that are there, one at least, in the order of their keys."""
        keys, values = zip(*rows, strict=True)
        try:
            facts = [_FACTS.unpack_from(value) for value in values]
            serials, segments, lengths, ids, times, variants = zip(*facts, strict=True)
            self._tell_levels(keys, values, list(zip(variants, times, ids, strict=True)))
        except (struct.error, IndexError) as error:
            raise StoreCorrupt(UNREADABLE) from error
        self._delete_instances(keys)
        for series, start, end in _by_series(keys):
            self._delete_uids(series, keys[start:end])
        ordered = sorted(serials)
        remove_texts(self._cursor("metadata"), ordered)
        for name in _BY_SERIAL:
            self._delete_owned(name, ordered)
        freed: dict[int, int] = defaultdict(int)
        for segment, length in zip(segments, lengths, strict=True):
            freed[segment] += length
        return Gone(keys, ids, freed)

    def _tell_levels(self, keys: Sequence[bytes], values: Sequence[bytes], leaving: list[Leaving]) -> None:
        for series, start, end in _by_series(keys):
            self._levels.remove(series, leaving[start:end], _classes(values[start:end]))

    def _delete_instances(self, keys: Sequence[bytes]) -> None:
        cursor = self._cursor("instances")
        for key in keys:
            if cursor.key() != key:
                cursor.set_key(key)
            cursor.delete()

    def _delete_uids(self, series: bytes, keys: Sequence[bytes]) -> None:
        """Of instances of one series (study \\0 series)."""
        cursor, begin = self._cursor("uids"), len(series) + 1
        for key in keys:
            pair = b"i" + key[begin:], series
            if cursor.item() == pair or cursor.set_key_dup(*pair):
                cursor.delete()

    def _delete_owned(self, name: str, serials: Sequence[int]) -> None:
        """The rows of these serials, in their order; each has any number of them."""
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
    """Of keys in order: study \\0 series, where its instances begin and where they end."""
    start = 0
    while start < len(keys):
        series, _, _ = keys[start].rpartition(b"\0")
        end = bisect_left(keys, series + b"\1", start)
        yield series, start, end
        start = end


def _classes(values: Sequence[bytes]) -> Mapping[bytes, int]:
    """How many instances have each SOP class. Those of a series mostly have one."""
    first = sop_class_in(values[0])
    begin, end = UIDS_AT - 2, UIDS_AT + len(first)  # lengths of SOP class and syntax stand before them
    if len({value[begin:end] for value in values}) == 1:
        return {first: len(values)}
    return Counter([sop_class_in(value) for value in values])


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of numbers that follow one another, in ascending order."""
    if not numbers:
        return
    first = last = numbers[0]
    for number in numbers:
        if number > last + 1:
            yield first, last
            first = number
        last = number
    yield first, last
