"""Deleting: a tombstone record with the ids of the deleted records is synced, then the index forgets them.

The deleted records stay in their segments until compaction. `reindex` reads the tombstones, so deletions hold
even if only the segments are left. The header of a replacing record names the record that it replaces.

Rules of this file
- Keys are locked as a store locks them: no instance is replaced between the look-up and the tombstone.
- A delete does not ask for the reserve of free space: it must work on a full disk.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TypeAlias

from streamsrv.store import failpoints
from streamsrv.store.index import Index, PackedRow, record_ids_of, split_triple
from streamsrv.store.rows import SLICE_INSTANCES, InstanceKey
from streamsrv.store.segments.records import (
    ID_LENGTH,
    PayloadDigest,
    RecordFormat,
    RecordHeader,
    RecordKind,
    pack_ids,
)
from streamsrv.store.segments.segments import Segments, SegmentWriter

Target: TypeAlias = tuple[str, str | None, str | None]  # study, series, instance


def write_tombstone(segment: SegmentWriter, form: RecordFormat, ids: Sequence[bytes]) -> int:
    """Append a tombstone, valid at once; returns its length in the segment."""
    payload = pack_ids(ids)
    header = RecordHeader(
        RecordKind.TOMBSTONE,
        secrets.token_bytes(ID_LENGTH),
        segment.clock.now(),
        len(payload),
        PayloadDigest(payload).digest(),
        segment.committed,
    )
    segment.mark_dirty()
    head = form.pack(header, segment.segment, segment.end)
    segment.append([head, payload])
    return len(head) + len(payload)


def delete(segments: Segments, index: Index, form: RecordFormat, target: Target) -> int:
    """Delete a target resource durably; returns the number of instances."""
    if not index.packed(*target, limit=1):
        return 0
    removed, more = 0, True
    after: InstanceKey | None = None
    with index.removing():
        segment = segments.acquire(tombstones=True)
        try:
            while more:
                rows, after, more = _locked(segments, index, segment, target, after)
                if rows:
                    removed += _delete(index, form, segment, rows)
                segment.locks.release()
        finally:
            segment.release()
    return removed


def _locked(
    segments: Segments, index: Index, segment: SegmentWriter, target: Target, after: InstanceKey | None
) -> tuple[list[PackedRow], InstanceKey | None, bool]:
    """The next slice of the target resource, locked; its last key, and whether more may follow."""
    whole = target[2] is None and segment.locks.try_lock_study(target[0])
    if whole:
        index.catch_up()
        segments.recover(segment)
    rows = index.packed(*target, after=after, limit=SLICE_INSTANCES)
    keys = [split_triple(key) for key, _ in rows]
    if rows and not whole:
        segment.locks.lock(keys)
        index.catch_up()
        segments.recover(segment)
        rows = index.packed_rows(keys)
    return rows, keys[-1] if keys else None, len(keys) == SLICE_INSTANCES


def _delete(index: Index, form: RecordFormat, segment: SegmentWriter, rows: list[PackedRow]) -> int:
    dead = write_tombstone(segment, form, record_ids_of(rows))
    segment.sync()
    failpoints.hit("in-delete")
    count = index.delete(rows, segment=segment.segment, committed_end=segment.end, dead_bytes=dead)
    segment.commit_up_to(segment.end)
    return count
