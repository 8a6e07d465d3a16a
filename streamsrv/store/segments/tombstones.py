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
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import xxhash

from streamsrv.store import failpoints
from streamsrv.store.index.rows import PackedRow, record_ids_of, split_triple
from streamsrv.store.rows import InstanceKey
from streamsrv.store.segments.borrowed import Borrowed
from streamsrv.store.segments.records import ID_LENGTH, Header, Kind, RecordFormat, pack_ids
from streamsrv.store.segments.segments import Segments
from streamsrv.store.transaction import CLOCK, SLICE_INSTANCES


class DeleteIndex(Protocol):
    """What a delete needs of the index."""

    def catch_up(self) -> None: ...
    def packed(
        self,
        study: str,
        series: str | None = None,
        instance: str | None = None,
        *,
        after: InstanceKey | None = None,
        limit: int = 1000,
    ) -> list[PackedRow]: ...
    def packed_rows(self, keys: Iterable[InstanceKey]) -> list[PackedRow]: ...
    def delete(
        self, rows: Sequence[PackedRow], *, segment: int, committed_end: int, dead_bytes: int
    ) -> int: ...


def bury(segment: Borrowed, form: RecordFormat, ids: Sequence[bytes]) -> int:
    """Append a tombstone, valid at once; returns its length in the segment."""
    payload = pack_ids(ids)
    header = Header(
        Kind.TOMBSTONE,
        secrets.token_bytes(ID_LENGTH),
        CLOCK.now(),
        len(payload),
        xxhash.xxh3_128_digest(payload),
        segment.committed,
    )
    segment.doubt()
    head = form.pack(header, segment.segment, segment.end)
    segment.append([head, payload])
    return len(head) + len(payload)


class Target(NamedTuple):
    """A study, series or instance."""

    study: str
    series: str | None
    instance: str | None


class Deletion:
    """The delete of one target resource."""

    def __init__(self, segments: Segments, index: DeleteIndex, form: RecordFormat) -> None:
        self._segments = segments
        self._index = index
        self._form = form

    def run(self, study: str, series: str | None, instance: str | None) -> int:
        """How many instances were there and are gone, durably."""
        target = Target(study, series, instance)
        if not self._index.packed(*target, limit=1):
            return 0
        removed, more = 0, True
        after: InstanceKey | None = None
        segment = self._segments.borrow(tombstones=True)
        try:
            while more:
                rows, after, more = self._locked(segment, target, after)
                if rows:
                    removed += self._delete(segment, rows)
                segment.claims.release()
        finally:
            segment.give_back()
        return removed

    def _locked(
        self, segment: Borrowed, target: Target, after: InstanceKey | None
    ) -> tuple[list[PackedRow], InstanceKey | None, bool]:
        """The next slice of the target resource, which no other writer changes until its keys are released;
        its last key, and whether there may be another slice behind it."""
        whole = target.instance is None and segment.claims.take_study(target.study)
        if whole:
            self._settle(segment)
        rows = self._index.packed(*target, after=after, limit=SLICE_INSTANCES)
        keys = [split_triple(key) for key, _ in rows]
        if rows and not whole:
            segment.claims.take(keys)
            self._settle(segment)
            rows = self._index.packed_rows(keys)
        return rows, keys[-1] if keys else None, len(keys) == SLICE_INSTANCES

    def _settle(self, segment: Borrowed) -> None:
        self._index.catch_up()
        self._segments.settle(segment)

    def _delete(self, segment: Borrowed, rows: list[PackedRow]) -> int:
        dead = bury(segment, self._form, record_ids_of(rows))
        segment.sync()
        failpoints.hit("in-delete")
        count = self._index.delete(rows, segment=segment.segment, committed_end=segment.end, dead_bytes=dead)
        segment.commit_up_to(segment.end)
        return count
