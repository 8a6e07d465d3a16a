"""A store transaction of segment files: records appended to one segment, made valid together.

Strategy: the socket's own buffers go to the running digest and are gathered, headers between them, until one
`write` hands them to the kernel; nothing is copied. Records stay PENDING until `commit`, which goes through
the instances in slices. It locks their keys, looks up which of them exist, rewrites each header as INSTANCE
or VOID, syncs, and commits to the index. So of two requests for one key exactly one wins, and a segment never
has two living records of one key.

    append headers and payloads            PENDING
    lock keys; see commits of writers that died, recover their segments; look up
    set the dirty flag; rewrite headers    INSTANCE, or VOID
    sync the segment
    commit to the index                    acknowledged from here on
    clear the dirty flag; release keys

Rules of this file
- The instances of a commit come in the order of their records.
- Records that were refused or dropped are cut off behind the last winner. In front of it they become VOID.
- A transaction is used by one thread at a time; only `sync_so_far` may run beside `write`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence

from streamsrv.errors import StoreError
from streamsrv.query.rules import Rule
from streamsrv.store import failpoints
from streamsrv.store.fileops import Buffer
from streamsrv.store.index import Index
from streamsrv.store.rows import InstanceRow, Location, OnDuplicate, Outcome
from streamsrv.store.segments.leases import Readers
from streamsrv.store.segments.records import (
    HEADER,
    NO_DIGEST,
    NO_ID,
    PayloadDigest,
    Record,
    RecordFormat,
    RecordHeader,
    RecordKind,
)
from streamsrv.store.segments.segments import Segments
from streamsrv.store.transaction import NONCE, Decider, Decision, New, Transaction, slices


class SegmentTransaction(Transaction):
    def __init__(self, segments: Segments, readers: Readers, index: Index, form: RecordFormat) -> None:
        self._segments = segments
        self._index = index
        self._form = form
        self._segment = segments.acquire(reserve=True)
        self._nonce = secrets.token_bytes(NONCE)
        self._decider = Decider(readers, index, form, self._nonce)
        self._number = 0
        self._body = 0
        self._open_at = -1  # where the open record begins, or -1
        self._gathered: list[Buffer] = []  # written by the next `write`
        self._gathered_length = 0
        self._digest = PayloadDigest()
        self._original: InstanceRow | None = None  # of the open record
        self._lost: dict[int, int] = {}  # end -> begin of ranges that were dropped or refused

    # Receiving

    @property
    def unsynced(self) -> int:
        return self._segment.unsynced

    def sync_so_far(self) -> None:
        self._segment.sync()

    def open_body(self, rule: Rule | None = None, on_duplicate: OnDuplicate | None = None) -> None:
        self._body = self._number
        self._decider.open_body(self._body, rule, on_duplicate)

    def open_record(self, original: InstanceRow | None = None) -> None:
        if self._open_at >= 0:
            raise StoreError("a record is open already")
        self._open_at = self.end
        self._number += 1
        self._original = original
        header = RecordHeader(RecordKind.PENDING, self._record_id(), 0, 0, NO_DIGEST, self._segment.committed)
        self._gathered.append(self._form.pack(header, self._segment.segment, self._open_at))
        self._gathered_length += HEADER
        self._digest = PayloadDigest()

    @property
    def end(self) -> int:
        return self._segment.end + self._gathered_length

    def _record_id(self) -> bytes:
        if self._original is not None:
            return self._original.record_id
        return self._nonce + self._number.to_bytes(16 - NONCE, "big")

    def gather(self, piece: Buffer) -> None:
        self._digest.update(piece)
        self._gathered.append(piece)
        self._gathered_length += len(piece)

    @property
    def gathered(self) -> tuple[int, int]:
        return len(self._gathered), self._gathered_length

    def write(self, pieces: Sequence[Buffer] = (), *, keep: bool = True) -> None:
        for piece in pieces:
            self.gather(piece)
        gathered, self._gathered, self._gathered_length = self._gathered, [], 0
        if gathered:
            self._segment.append(gathered, keep=keep)
            failpoints.hit("mid-body")

    def close_record(self) -> Record:
        record, self._open_at = self.received(), -1
        return record

    def received(self) -> Record:
        if self._open_at < 0:
            raise StoreError("no record is open")
        payload = self._open_at + HEADER
        location = Location(self._segment.segment, payload, self.end - payload)
        return Record(
            self._segment,
            self._number,
            location,
            self._record_id(),
            self._digest.digest(),
            self._original.stored_at if self._original else self._segment.clock.now(),
            self._body,
        )

    def back_to(self, end: int) -> None:
        self._segment.end = end
        self._lost = {at: begin for at, begin in self._lost.items() if at <= end}
        self._open_at, self._gathered, self._gathered_length = -1, [], 0

    def drop_record(self, record: Record) -> None:
        """At once if nothing was written behind it."""
        self._lose(record)
        if self._open_at < 0 and not self._gathered and self._segment.end in self._lost:
            self._segment.end = self._lost.pop(self._segment.end)

    def _lose(self, record: Record) -> None:
        """Neighbours become one range, so that a million refused parts take no memory."""
        self._lost[record.end] = self._lost.pop(record.begin, record.begin)

    # Ending

    def abort(self) -> None:
        self._segment.release()

    def committing(
        self, instances: Iterable[tuple[Record, New]], on_duplicate: OnDuplicate = OnDuplicate.REFUSE
    ) -> Iterator[Outcome]:
        try:
            if self._open_at >= 0:
                raise StoreError("a record is still open")
            self.write()
            for portion in slices(instances):
                yield from self._commit_slice(portion, on_duplicate)
        finally:
            self._segment.release()

    def _commit_slice(self, portion: list[tuple[Record, New]], on_duplicate: OnDuplicate) -> list[Outcome]:
        locks = self._segment.locks
        locks.lock([new.row.key for _, new in portion])
        self._index.catch_up()
        self._segments.recover(self._segment)
        decision = self._decider.decide(portion, on_duplicate)
        for record in decision.losers:
            self._lose(record)
        if decision.winners:
            self._make_valid(decision)
        locks.release()
        return decision.outcomes

    def _make_valid(self, decision: Decision) -> None:
        winners = decision.winners
        end = winners[-1][0].end
        voids = {at: begin for at, begin in self._lost.items() if at < end}
        segment = self._segment
        segment.mark_dirty()
        for record, _ in winners:
            segment.overwrite(self._winner(record), record.begin)
        for at, begin in voids.items():
            void = RecordHeader(RecordKind.VOID, NO_ID, 0, at - begin - HEADER, NO_DIGEST, segment.committed)
            segment.overwrite(self._form.pack(void, segment.segment, begin), begin)
        failpoints.hit("before-data-sync")
        segment.sync()
        failpoints.hit("after-data-sync")
        self._index.commit(
            [new for _, new in winners],
            segment=segment.segment,
            committed_end=end,
            dead_bytes=sum(at - begin for at, begin in voids.items()),
            replaced=decision.replaced,
        )
        failpoints.hit("after-commit")
        segment.commit_up_to(end)
        for at in voids:
            del self._lost[at]

    def _winner(self, record: Record) -> bytes:
        return record.header(self._form, self._segment.committed, record.replaced)
