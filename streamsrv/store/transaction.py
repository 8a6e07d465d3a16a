"""A store transaction: records appended to one borrowed segment, made valid together.

Strategy: the socket's own views go to the running digest and are gathered, headers between them, until one
`write` hands them all to the kernel; nothing is copied.
Records stay PENDING until `commit`, which goes through the instances in slices: claim their keys, see which
of them exist, rewrite each header as INSTANCE or VOID, sync, commit to the index. So of two requests that
race for a key exactly one wins, and a segment never holds two living records of one key.

    append headers and payloads            PENDING
    claim keys; see the dead's commits, settle their doubts; look up
    set doubt; rewrite headers             INSTANCE, or VOID
    sync the segment
    commit to the index                    acknowledged from here on
    clear doubt; release keys

Rules of this file
- The instances of a commit come in the order of their records.
- Records that lost or were dropped cost nothing behind the last winner: they are cut off. In front of it they
  become VOID.
- A transaction may hold the instances of several bodies. Within a body the first of equal keys wins, whatever
  `on_duplicate` says. Of two bodies with a key in common the second one meets the first as stored: the slice
  ends between them.
- A transaction is used by one thread at a time, but for `sync_so_far`, which may run beside `write`.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

import xxhash

from streamsrv.errors import StoreError
from streamsrv.store import failpoints
from streamsrv.store.duplicates import Duplicates
from streamsrv.store.fileops import Buffer
from streamsrv.store.index.batch import Prepared
from streamsrv.store.index.damage import DamagedRecord
from streamsrv.store.rows import InstanceKey, InstanceRow, Location, NewInstance, OnDuplicate, Outcome
from streamsrv.store.segments.leases import Readers
from streamsrv.store.segments.records import HEADER, NO_DIGEST, NO_ID, Header, Kind, RecordFormat
from streamsrv.store.segments.segments import Segments

# A commit's slice: what one index transaction takes, and how long others may wait for a key.
SLICE_INSTANCES = 1_000
SLICE_BYTES = 16 << 20
NONCE = 10  # a record id is a nonce of its transaction and the record's number in it


New: TypeAlias = NewInstance | Prepared


class CommitIndex(Protocol):
    """What a commit needs of the index."""

    def catch_up(self) -> None: ...
    def existing(self, keys: Sequence[InstanceKey]) -> list[InstanceRow | None]: ...
    def damaged_among(self, ids: Iterable[bytes]) -> list[DamagedRecord]: ...
    def commit(
        self,
        new: Sequence[New],
        *,
        segment: int,
        committed_end: int,
        dead_bytes: int = 0,
        replaced: Sequence[InstanceRow] = (),
    ) -> None: ...


class Source(Protocol):
    """An open file that may be closed under a record: its descriptor is negative then."""

    fd: int


class Record:
    """A record that has been received whole. It can be read until its transaction ends."""

    __slots__ = ("_source", "body", "digest", "location", "number", "record_id", "replaced", "stored_at")

    def __init__(
        self,
        source: Source,
        number: int,
        location: Location,
        record_id: bytes,
        digest: bytes,
        stored_at: int,
        body: int = 0,
    ) -> None:
        self._source = source
        self.number = number
        self.body = body  # the records of a body have higher numbers than this
        self.location = location
        self.record_id = record_id
        self.digest = digest
        self.stored_at = stored_at
        self.replaced = NO_ID

    @property
    def begin(self) -> int:
        return self.location.offset - HEADER

    @property
    def end(self) -> int:
        return self.location.offset + self.location.length

    def pread(self, offset: int, length: int) -> bytes:
        """Bytes of the payload, fewer at its end."""
        length = min(length, self.location.length - offset)
        if length <= 0:
            return b""
        if self._source.fd < 0:
            raise StoreError("the record's transaction has ended")
        return os.pread(self._source.fd, length, self.location.offset + offset)


class Clock:
    """Microseconds since 1970, never twice the same in a process."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def now(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1_000)
            return self._last


CLOCK = Clock()


class Transaction:
    """Made by Store.begin. Ends with `commit`, else call `abort`, which is safe to call twice and after a
    commit."""

    def __init__(self, segments: Segments, readers: Readers, index: CommitIndex, form: RecordFormat) -> None:
        self._segments = segments
        self._duplicates = Duplicates(readers, index, form)
        self._index = index
        self._form = form
        self._segment = segments.borrow(reserve=True)
        self._nonce = secrets.token_bytes(NONCE)
        self._number = 0
        self._body = 0
        self._open_at = -1  # where the open record begins, or -1
        self._gathered: list[Buffer] = []  # what the next write takes along
        self._gathered_length = 0
        self._hash = xxhash.xxh3_128()
        self._lost: dict[int, int] = {}  # end -> begin of ranges that were dropped or refused

    # Receiving

    @property
    def unsynced(self) -> int:
        """Bytes written since the last sync began."""
        return self._segment.unsynced

    def sync_so_far(self) -> None:
        """Bring what has been written to the disk, so that the sync at the end is short."""
        self._segment.sync()

    def open_body(self) -> None:
        """Begin another body: see `back_to`."""
        self._body = self._number

    def open_record(self) -> None:
        if self._open_at >= 0:
            raise StoreError("a record is open already")
        self._open_at = self.end
        self._number += 1
        header = Header(Kind.PENDING, self._record_id(), 0, 0, NO_DIGEST, self._segment.committed)
        self._gathered.append(self._form.pack(header, self._segment.segment, self._open_at))
        self._gathered_length += HEADER
        self._hash.reset()

    @property
    def end(self) -> int:
        """Where the next byte goes."""
        return self._segment.end + self._gathered_length

    def _record_id(self) -> bytes:
        return self._nonce + self._number.to_bytes(16 - NONCE, "big")

    def gather(self, piece: Buffer) -> None:
        """Append to the open record with the next `write`; until then the piece has to stay as it is."""
        self._hash.update(piece)
        self._gathered.append(piece)
        self._gathered_length += len(piece)

    @property
    def gathered(self) -> tuple[int, int]:
        """How many pieces wait for the next `write`, and their bytes."""
        return len(self._gathered), self._gathered_length

    def write(self, pieces: Sequence[Buffer] = (), *, keep: bool = True) -> None:
        """Append to the open record; what was gathered goes first. No view is kept. `keep`: in the page
        cache."""
        for piece in pieces:
            self.gather(piece)
        gathered, self._gathered, self._gathered_length = self._gathered, [], 0
        if gathered:
            self._segment.append(gathered, keep=keep)
            failpoints.hit("mid-body")

    def close_record(self) -> Record:
        """It can be read when what was gathered has been written."""
        record, self._open_at = self.received(), -1
        return record

    def received(self) -> Record:
        """The open record as it is; of that what has been written can be read."""
        if self._open_at < 0:
            raise StoreError("no record is open")
        payload = self._open_at + HEADER
        location = Location(self._segment.segment, payload, self.end - payload)
        return Record(
            self._segment,
            self._number,
            location,
            self._record_id(),
            self._hash.digest(),
            CLOCK.now(),
            self._body,
        )

    def back_to(self, end: int) -> None:
        """Forget what was written from `end` on, where a record ended: whole records, and an open one."""
        self._segment.set_back(end)
        self._lost = {at: begin for at, begin in self._lost.items() if at <= end}
        self._open_at, self._gathered, self._gathered_length = -1, [], 0

    def drop_record(self, record: Record) -> None:
        """The record is not wanted: its bytes go, at once if nothing was written behind it."""
        self._lose(record)
        if self._open_at < 0 and not self._gathered and self._segment.end in self._lost:
            self._segment.set_back(self._lost.pop(self._segment.end))

    def _lose(self, record: Record) -> None:
        """Neighbours become one range, so that a million refused parts weigh nothing."""
        self._lost[record.end] = self._lost.pop(record.begin, record.begin)

    # Ending

    def abort(self) -> None:
        """Leave nothing behind of what is not committed."""
        self._segment.give_back()

    def commit(
        self, instances: Iterable[tuple[Record, New]], on_duplicate: OnDuplicate = OnDuplicate.REFUSE
    ) -> list[Outcome]:
        """Make the instances durable and found; return the outcomes in their order. The transaction ends."""
        return list(self.committing(instances, on_duplicate))

    def committing(
        self, instances: Iterable[tuple[Record, New]], on_duplicate: OnDuplicate
    ) -> Iterator[Outcome]:
        """As `commit`, a slice at a time: an instance is durable when its outcome is there. Unless all of
        them are taken, call `abort`."""
        try:
            if self._open_at >= 0:
                raise StoreError("a record is still open")
            self.write()
            for portion in slices(instances):
                yield from self._commit_slice(portion, on_duplicate)
        finally:
            self._segment.give_back()

    def _commit_slice(self, portion: list[tuple[Record, New]], on_duplicate: OnDuplicate) -> list[Outcome]:
        claims = self._segment.claims
        claims.take(new.row.key for _, new in portion)
        self._index.catch_up()
        self._segments.settle(self._segment)
        existing = self._index.existing([new.row.key for _, new in portion])
        firsts: dict[InstanceKey, Record] = {}
        outcomes: list[Outcome] = []
        winners: list[tuple[Record, New]] = []
        replaced: list[InstanceRow] = []
        for (record, new), row in zip(portion, existing, strict=True):
            first = firsts.get(new.row.key) or self._own(record, row)
            outcome = self._duplicates.outcome(record, first, row, on_duplicate)
            outcomes.append(outcome)
            if outcome not in (Outcome.STORED, Outcome.REPLACED):
                self._lose(record)
                continue
            firsts[new.row.key] = record
            winners.append((record, new))
            if row is not None:
                record.replaced = row.record_id
                replaced.append(row)
        if winners:
            self._make_valid(winners, replaced)
        claims.release()
        return outcomes

    def _own(self, record: Record, row: InstanceRow | None) -> InstanceRow | None:
        """The row, if an earlier slice of this commit wrote it for the same body."""
        own = row is not None and row.record_id.startswith(self._nonce)
        return row if row and own and int.from_bytes(row.record_id[NONCE:], "big") > record.body else None

    def _make_valid(self, winners: list[tuple[Record, New]], replaced: list[InstanceRow]) -> None:
        end = winners[-1][0].end
        voids = {at: begin for at, begin in self._lost.items() if at < end}
        segment = self._segment
        segment.doubt()
        for record, _ in winners:
            segment.overwrite(self._winner(record), record.begin)
        for at, begin in voids.items():
            void = Header(Kind.VOID, NO_ID, 0, at - begin - HEADER, NO_DIGEST, segment.committed)
            segment.overwrite(self._form.pack(void, segment.segment, begin), begin)
        failpoints.hit("before-data-sync")
        segment.sync()
        failpoints.hit("after-data-sync")
        self._index.commit(
            [new for _, new in winners],
            segment=segment.segment,
            committed_end=end,
            dead_bytes=sum(at - begin for at, begin in voids.items()),
            replaced=replaced,
        )
        failpoints.hit("after-commit")
        segment.commit_up_to(end)
        for at in voids:
            del self._lost[at]

    def _winner(self, record: Record) -> bytes:
        header = Header(
            Kind.INSTANCE,
            record.record_id,
            record.stored_at,
            record.location.length,
            record.digest,
            self._segment.committed,
            record.replaced,
        )
        return self._form.pack(header, self._segment.segment, record.begin)


def slices(instances: Iterable[tuple[Record, New]]) -> Iterator[list[tuple[Record, New]]]:
    """Portions of at most SLICE_INSTANCES, or SLICE_BYTES of index entries, nearly. Bodies in one portion
    have no key in common."""
    portion: list[tuple[Record, New]] = []
    bodies: dict[InstanceKey, int] = {}
    size = 0
    for record, new in instances:
        shared = bodies.setdefault(new.row.key, record.body) != record.body
        if shared or len(portion) == SLICE_INSTANCES or size >= SLICE_BYTES:
            yield portion
            portion, bodies, size = [], {new.row.key: record.body}, 0
        portion.append((record, new))
        size += new.size
    if portion:
        yield portion
