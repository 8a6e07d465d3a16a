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
from concurrent.futures import ThreadPoolExecutor
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
    def moment(self) -> int: ...
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
        as_of: int,
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


# To start a thread for each sync takes as long as half of the sync.
SYNCING = ThreadPoolExecutor(8, thread_name_prefix="tombstone-sync")


class Target(NamedTuple):
    """A study, series or instance."""

    study: str
    series: str | None
    instance: str | None


class Claimed(NamedTuple):
    """A slice of a target resource, of which nobody replaces anything until its claims are released."""

    rows: list[PackedRow]
    moment: int  # of the index, before they were read
    last: InstanceKey | None  # the next slice lies behind it
    more: bool  # there may be one


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
                claimed = self._claimed(segment, target, after)
                if claimed.rows:
                    removed += self._bury(segment, claimed)
                segment.claims.release()
                after, more = claimed.last, claimed.more
        finally:
            segment.give_back()
        return removed

    def _claimed(self, segment: Borrowed, target: Target, after: InstanceKey | None) -> Claimed:
        """The next slice of the target resource."""
        whole = target.instance is None and segment.claims.take_study(target.study)
        if whole:
            self._settle(segment)
        moment = self._index.moment()
        rows = self._index.packed(*target, after=after, limit=SLICE_INSTANCES)
        last, more = split_triple(rows[-1][0]) if rows else None, len(rows) == SLICE_INSTANCES
        if rows and not whole:
            keys = [split_triple(key) for key, _ in rows]
            segment.claims.take(keys)
            self._settle(segment)
            moment, rows = self._index.moment(), self._index.packed_rows(keys)
        return Claimed(rows, moment, last, more)

    def _settle(self, segment: Borrowed) -> None:
        self._index.catch_up()
        self._segments.settle(segment)

    def _bury(self, segment: Borrowed, claimed: Claimed) -> int:
        dead = bury(segment, self._form, record_ids_of(claimed.rows))
        begun = threading.Lock()
        begun.acquire()

        def sync() -> None:
            begun.release()
            segment.sync()

        syncing = SYNCING.submit(sync)  # while the rows of the dead are removed
        begun.acquire()  # else it might wait for the interpreter until they are

        def synced() -> None:
            syncing.result()
            failpoints.hit("in-delete")

        count = self._index.delete(
            claimed.rows,
            segment=segment.segment,
            committed_end=segment.end,
            dead_bytes=dead,
            before_commit=synced,
            as_of=claimed.moment,
        )
        segment.commit_up_to(segment.end)
        return count
