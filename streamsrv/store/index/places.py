"""What plans read from rows that stay packed: where each record lies, which one it is, its transfer syntax,
and how long its metadata are. Unpacking a row takes ten times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from streamsrv.errors import StoreCorrupt
from streamsrv.store.index.rows import (
    METADATA_AT,
    UIDS_AT,
    UNREADABLE,
    PackedRow,
    split_triple,
    unpack_instance,
    with_serial,
)
from streamsrv.store.rows import InstanceRow

# Segment, offset and length of the record, and its id: they stand behind the serial.
PLACE = struct.Struct("<IQQ16s")
_START = len(with_serial(0, b""))
_END = _START + PLACE.size
_METADATA = struct.Struct("<QI")


def places_in(rows: Sequence[PackedRow]) -> bytes:
    """One PLACE of each row behind the other."""
    places = b"".join([value[_START:_END] for _, value in rows])
    if len(places) != PLACE.size * len(rows):
        raise StoreCorrupt(UNREADABLE)
    return places


def metadata_in(rows: Sequence[PackedRow]) -> list[tuple[int, int]]:
    """Of each row metadata_length and metadata_slots."""
    try:
        return [_METADATA.unpack_from(value, METADATA_AT) for _, value in rows]
    except struct.error as error:
        raise StoreCorrupt(UNREADABLE) from error


def syntax_in(row: PackedRow) -> str:
    """The transfer syntax."""
    value = row[1]
    try:
        start = UIDS_AT + value[UIDS_AT - 2]
        return value[start : start + value[UIDS_AT - 1]].decode()
    except (LookupError, ValueError) as error:
        raise StoreCorrupt(UNREADABLE) from error


def unpacked(row: PackedRow) -> InstanceRow:
    """All of it."""
    return unpack_instance(split_triple(row[0]), row[1])
