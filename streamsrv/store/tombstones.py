"""Deleting: a tombstone record with the ids of the dead, synced, and then the index.

The records themselves stay where they are until compaction. `reindex` reads the tombstones, so what was
deleted stays deleted even when nothing but segments is left. What a replaced record dies of stands in its
successor's header (see records).

Rules of this file
- The keys are claimed as those of a store are: no instance is replaced between the look-up and the tombstone.
- No reserve of free space is asked for: deleting is what one does on a full disk.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

import xxhash

from streamsrv.store import failpoints
from streamsrv.store.borrowed import Borrowed
from streamsrv.store.records import ID_LENGTH, Header, Kind, RecordFormat, pack_ids
from streamsrv.store.rows import InstanceKey, InstanceRow
from streamsrv.store.segments import Segments
from streamsrv.store.transaction import CLOCK, SLICE_INSTANCES


class DeleteIndex(Protocol):
    """What a delete needs of the index."""

    def catch_up(self) -> None: ...
    def still(self, rows: Sequence[InstanceRow]) -> list[InstanceRow]: ...
    def lookup(
        self,
        study: str,
        series: str | None = None,
        instance: str | None = None,
        *,
        after: InstanceKey | None = None,
        limit: int = 1000,
    ) -> list[InstanceRow]: ...
    def delete(
        self, rows: Sequence[InstanceRow], *, segment: int, committed_end: int, dead_bytes: int
    ) -> list[InstanceRow]: ...


def bury(segment: Borrowed, form: RecordFormat, ids: Sequence[bytes]) -> int:
    """Append a tombstone, valid at once; returns its length in the segment."""
    payload = pack_ids(ids)
    header = Header(
        Kind.TOMBSTONE,
        secrets.token_bytes(ID_LENGTH),
        CLOCK.now(),
        len(payload),
        xxhash.xxh3_128_digest(payload),
        segment.began,
    )
    segment.doubt()
    head = form.pack(header, segment.segment, segment.end)
    segment.append([head, payload])
    return len(head) + len(payload)


class Deletion:
    """The delete of one target resource."""

    def __init__(self, segments: Segments, index: DeleteIndex, form: RecordFormat) -> None:
        self._segments = segments
        self._index = index
        self._form = form

    def run(self, study: str, series: str | None, instance: str | None) -> int:
        """How many instances were there and are gone, durably."""
        rows = self._index.lookup(study, series, instance, limit=SLICE_INSTANCES)
        if not rows:
            return 0
        removed = 0
        segment = self._segments.borrow()
        try:
            while rows:
                removed += self._slice(segment, rows)
                rows = self._index.lookup(study, series, instance, after=rows[-1].key, limit=SLICE_INSTANCES)
        finally:
            segment.give_back()
        return removed

    def _slice(self, segment: Borrowed, found: list[InstanceRow]) -> int:
        segment.claims.take([row.key for row in found])
        self._index.catch_up()
        self._segments.settle(segment)
        rows = self._index.still(found)
        if rows:
            dead = bury(segment, self._form, [row.record_id for row in rows])
            segment.sync()
            failpoints.hit("in-delete")
            rows = self._index.delete(
                rows, segment=segment.segment, committed_end=segment.end, dead_bytes=dead
            )
            segment.commit_up_to(segment.end)
        segment.claims.release()
        return len(rows)
