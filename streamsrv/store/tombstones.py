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
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import xxhash

from streamsrv.store import failpoints
from streamsrv.store.borrowed import Borrowed
from streamsrv.store.index_rows import PackedRow, record_id_of, split_triple
from streamsrv.store.records import ID_LENGTH, Header, Kind, RecordFormat, pack_ids
from streamsrv.store.rows import InstanceKey
from streamsrv.store.segments import Segments
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
        self,
        rows: Sequence[PackedRow],
        *,
        segment: int,
        committed_end: int,
        dead_bytes: int,
        before_commit: Callable[[], None],
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
        segment.began,
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
        removed = 0
        after: InstanceKey | None = None
        segment = self._segments.borrow()
        try:
            while rows := self._claimed(segment, target, after):
                removed += self._bury(segment, rows)
                segment.claims.release()
                after = split_triple(rows[-1][0])
        finally:
            segment.give_back()
        return removed

    def _claimed(self, segment: Borrowed, target: Target, after: InstanceKey | None) -> list[PackedRow]:
        """The next slice of the target resource. Nobody replaces any of it until the claims are released."""
        if target.instance is None and segment.claims.take_study(target.study):
            self._settle(segment)
            return self._rows(target, after)
        while page := self._rows(target, after):
            keys = [split_triple(key) for key, _ in page]
            segment.claims.take(keys)
            self._settle(segment)
            if rows := self._index.packed_rows(keys):
                return rows
            segment.claims.release()
            after = keys[-1]
        return []

    def _rows(self, target: Target, after: InstanceKey | None) -> list[PackedRow]:
        return self._index.packed(*target, after=after, limit=SLICE_INSTANCES)

    def _settle(self, segment: Borrowed) -> None:
        self._index.catch_up()
        self._segments.settle(segment)

    def _bury(self, segment: Borrowed, rows: list[PackedRow]) -> int:
        dead = bury(segment, self._form, [record_id_of(value) for _, value in rows])
        syncing = _Syncing(segment)
        count = self._index.delete(
            rows,
            segment=segment.segment,
            committed_end=segment.end,
            dead_bytes=dead,
            before_commit=syncing.wait,
        )
        segment.commit_up_to(segment.end)
        return count


class _Syncing:
    """A sync in a thread, while the rows of the dead are removed."""

    def __init__(self, segment: Borrowed) -> None:
        self._segment = segment
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tombstone-sync")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._segment.sync()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Until the tombstone is on the disk; raises what the sync raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        failpoints.hit("in-delete")
