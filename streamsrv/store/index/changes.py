"""The rows of the database changes: what was stored, replaced and deleted, in commit order.

    sequence u64             -> kind u8, at u64, record id, study \\0 series \\0 instance
    sequence u64 of the last -> 255, at u64, count u32, length u16 of what all keys begin with, record ids,
                                that beginning, what follows it in each key (\\n between)

The database may be bounded: the oldest changes go, some at a time, and `about` has the sequence of the
first one that is there (first_change). The last change always stays, because the next sequence follows from
it.

The second form is that of instances that were deleted together: each has a sequence of its own, and a row for
each would be ten times as long, and as much work. Behind either stands a checksum (`index_rows`).
"""

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


# The log is looked at once in so many changes, and so many rows go at most: a commit stays short.
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
    """One row for several instances that were deleted together, in the order of their keys; `last` is the
    sequence of the last of them. A row for each would be ten times as long, and as much work."""
    first = keys[0]
    # They are in order: what the first and the last have in common all have.
    shared = sum(takewhile(bool, map(operator.eq, first, keys[-1])))
    head = _DELETIONS.pack(_SEVERAL, at, len(keys), shared)
    rest = b"\n".join([key[shared:] for key in keys])
    return with_sum(number_key(last), b"".join((head, *ids, first[:shared], rest)))


def unpack_changes(sequence: int, stored: bytes) -> list[Change]:
    """One, or the several of which `sequence` is the last."""
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
