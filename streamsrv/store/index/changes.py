"""The rows of the database changes: stored, replaced and deleted instances, in commit order.

    sequence u64             -> kind u8, at u64, record id, study \\0 series \\0 instance
    sequence u64 of the last -> 255, at u64, count u32, length u16 of the common beginning of all keys, record
                                ids, that beginning, the rest of each key (\\n between)

The log may be bounded: the oldest changes go, some at a time, and `about` has the sequence of the first
change that is kept. The last change always stays, because the next sequence follows from it.

The second form is for instances that were deleted together. Each has a sequence; a row for each would take
ten times the bytes and the work. A checksum follows either form (see rows)."""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence
from itertools import takewhile

from streamsrv.errors import StoreCorrupt
from streamsrv.store.index.environment import Cursor
from streamsrv.store.index.rows import number_key, split_triple, with_sum, without_sum
from streamsrv.store.rows import Change, ChangeKind
from streamsrv.store.segments.records import ID_LENGTH

_CHANGE = struct.Struct("<BQ16s")
_DELETIONS = struct.Struct("<BQIH")
_SEVERAL = 255


# The log is cut once in FORGET_EVERY changes, by at most FORGET_ROWS rows, so that a commit stays short.
FORGET_EVERY = 1024
FORGET_ROWS = 2048


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


def pack_change(sequence: int, kind: ChangeKind, at: int, record_id: bytes, key: bytes) -> bytes:
    return with_sum(number_key(sequence), _CHANGE.pack(kind, at, record_id) + key)


def pack_deletions(last: int, at: int, ids: Sequence[bytes], keys: Sequence[bytes]) -> bytes:
    """One row for instances that were deleted together, in the order of their keys; `last` is the sequence of
    the last one."""
    first = keys[0]
    # The keys are in order: all have the common beginning of the first and the last.
    shared = sum(takewhile(bool, map(operator.eq, first, keys[-1])))
    head = _DELETIONS.pack(_SEVERAL, at, len(keys), shared)
    rest = b"\n".join([key[shared:] for key in keys])
    return with_sum(number_key(last), b"".join((head, *ids, first[:shared], rest)))


def unpack_changes(sequence: int, stored: bytes) -> list[Change]:
    """The changes of a row; `sequence` is that of the last one."""
    value = without_sum("changes", number_key(sequence), stored)
    try:
        if value[0] == _SEVERAL:
            return _unpack_deletions(sequence, value)
        kind, at, record_id = _CHANGE.unpack_from(value)
        return [Change(sequence, ChangeKind(kind), split_triple(value[_CHANGE.size :]), record_id, at)]
    except (struct.error, ValueError, TypeError, LookupError) as error:
        raise StoreCorrupt(f"change {sequence} cannot be read") from error


def _unpack_deletions(last: int, value: bytes) -> list[Change]:
    _, at, count, rest = _DELETIONS.unpack_from(value)
    begin = _DELETIONS.size + count * ID_LENGTH
    ids = (value[place : place + ID_LENGTH] for place in range(_DELETIONS.size, begin, ID_LENGTH))
    common, keys = value[begin : begin + rest], value[begin + rest :].split(b"\n")
    return [
        Change(sequence, ChangeKind.DELETED, split_triple(common + key), record_id, at)
        for sequence, (record_id, key) in enumerate(zip(ids, keys, strict=True), last - count + 1)
    ]
