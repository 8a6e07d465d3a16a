"""A store transaction: records appended to one segment, made valid together.

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
- A transaction may hold the instances of several bodies. Within a body the first of equal keys wins, for
  every `on_duplicate`. If two bodies share a key, the slice ends between them, so the second body sees the
  first as stored.
- An instance is refused as a duplicate only after its stored bytes have been read and are whole. If they are
  damaged or missing, the new bytes take their place for every `on_duplicate`. Stored bytes that the system
  cannot read now may be whole: they stay, unless they are registered as damaged.
- An instance outside the rule of its sender is refused before anything else about it is looked up. So the
  answer does not tell whether it is stored.
- A transaction is used by one thread at a time; only `sync_so_far` may run beside `write`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from streamsrv.errors import SegmentGone, StoreError
from streamsrv.query.rules import Rule
from streamsrv.store import failpoints
from streamsrv.store.fileops import Buffer
from streamsrv.store.index import Index, Prepared, prepare
from streamsrv.store.rows import (
    SLICE_BYTES,
    SLICE_INSTANCES,
    InstanceKey,
    InstanceRow,
    Location,
    NewInstance,
    OnDuplicate,
    Outcome,
)
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
from streamsrv.store.segments.verifying import MISSING_SEGMENT, damage_of, damaged_record, described

NONCE = 10  # a record id is a nonce of its transaction and the record's number in it

New: TypeAlias = NewInstance | Prepared

log = logging.getLogger("streamsrv.store")

COMPARE_WINDOW = 1 << 20


class Transaction:
    """Made by Store.begin. Ends with `commit`, else with `abort`, which is safe to call twice."""

    def __init__(self, segments: Segments, readers: Readers, index: Index, form: RecordFormat) -> None:
        self._segments = segments
        self._duplicates = Duplicates(readers, index, form)
        self._index = index
        self._form = form
        self._segment = segments.acquire(reserve=True)
        self._nonce = secrets.token_bytes(NONCE)
        self._number = 0
        self._body = 0
        self._rules: dict[int, Rule] = {}  # of bodies
        self._policies: dict[int, OnDuplicate] = {}
        self._open_at = -1  # where the open record begins, or -1
        self._gathered: list[Buffer] = []  # written by the next `write`
        self._gathered_length = 0
        self._digest = PayloadDigest()
        self._lost: dict[int, int] = {}  # end -> begin of ranges that were dropped or refused

    # Receiving

    @property
    def unsynced(self) -> int:
        """Bytes written since the last sync began."""
        return self._segment.unsynced

    def sync_so_far(self) -> None:
        """Sync the bytes written so far, so that the sync in `commit` is short."""
        self._segment.sync()

    def open_body(self, rule: Rule | None = None, on_duplicate: OnDuplicate | None = None) -> None:
        """Begin another body. An instance of it that its sender may not see, by this rule, is refused. Its
        `on_duplicate` replaces that of the commit."""
        self._body = self._number
        if rule is not None:
            self._rules[self._body] = rule
        if on_duplicate is not None:
            self._policies[self._body] = on_duplicate

    def open_record(self) -> None:
        if self._open_at >= 0:
            raise StoreError("a record is open already")
        self._open_at = self.end
        self._number += 1
        header = RecordHeader(RecordKind.PENDING, self._record_id(), 0, 0, NO_DIGEST, self._segment.committed)
        self._gathered.append(self._form.pack(header, self._segment.segment, self._open_at))
        self._gathered_length += HEADER
        self._digest = PayloadDigest()

    @property
    def end(self) -> int:
        """Offset of the next byte."""
        return self._segment.end + self._gathered_length

    def _record_id(self) -> bytes:
        return self._nonce + self._number.to_bytes(16 - NONCE, "big")

    def gather(self, piece: Buffer) -> None:
        """Append to the open record with the next `write`; until then the buffer must not change."""
        self._digest.update(piece)
        self._gathered.append(piece)
        self._gathered_length += len(piece)

    @property
    def gathered(self) -> tuple[int, int]:
        """Number and bytes of the pieces that wait for the next `write`."""
        return len(self._gathered), self._gathered_length

    def write(self, pieces: Sequence[Buffer] = (), *, keep: bool = True) -> None:
        """Append to the open record, gathered pieces first. Keeps no buffer. With `keep` the page cache keeps
        the bytes."""
        for piece in pieces:
            self.gather(piece)
        gathered, self._gathered, self._gathered_length = self._gathered, [], 0
        if gathered:
            self._segment.append(gathered, keep=keep)
            failpoints.hit("mid-body")

    def close_record(self) -> Record:
        """The record can be read after the gathered pieces have been written."""
        record, self._open_at = self.received(), -1
        return record

    def received(self) -> Record:
        """The open record so far. Only written bytes of it can be read."""
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
            self._segment.clock.now(),
            self._body,
        )

    def back_to(self, end: int) -> None:
        """Drop the bytes from `end` on, where a record ended: whole records, and an open one."""
        self._segment.end = end
        self._lost = {at: begin for at, begin in self._lost.items() if at <= end}
        self._open_at, self._gathered, self._gathered_length = -1, [], 0

    def drop_record(self, record: Record) -> None:
        """Drop the bytes of a record, at once if nothing was written behind it."""
        self._lose(record)
        if self._open_at < 0 and not self._gathered and self._segment.end in self._lost:
            self._segment.end = self._lost.pop(self._segment.end)

    def _lose(self, record: Record) -> None:
        """Neighbours become one range, so that a million refused parts take no memory."""
        self._lost[record.end] = self._lost.pop(record.begin, record.begin)

    # Ending

    def abort(self) -> None:
        """Remove everything that is not committed."""
        self._segment.release()

    def commit(
        self, instances: Iterable[tuple[Record, New]], on_duplicate: OnDuplicate = OnDuplicate.REFUSE
    ) -> list[Outcome]:
        """Make the instances durable and visible; returns an outcome for each. Ends the transaction."""
        return list(self.committing(instances, on_duplicate))

    def committing(
        self, instances: Iterable[tuple[Record, New]], on_duplicate: OnDuplicate = OnDuplicate.REFUSE
    ) -> Iterator[Outcome]:
        """Like `commit`, slice by slice: an instance is durable when its outcome is there. Call `abort`
        unless all outcomes are taken."""
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
        ruled = {new.row.key.study for record, new in portion if record.body in self._rules}
        # Two senders with rules must not store in a new study at the same time: both would lose sight of it.
        locks.lock([*(new.row.key for _, new in portion), *(InstanceKey(study, "", "") for study in ruled)])
        self._index.catch_up()
        self._segments.recover(self._segment)
        outside = self._outside(portion) if ruled else [False] * len(portion)
        existing = self._index.existing([new.row.key for _, new in portion])
        firsts: dict[InstanceKey, Record] = {}
        outcomes: list[Outcome] = []
        winners: list[tuple[Record, New]] = []
        replaced: list[InstanceRow] = []
        for (record, new), row, is_outside in zip(portion, existing, outside, strict=True):
            if is_outside:
                outcomes.append(Outcome.UNAUTHORIZED)
                self._lose(record)
                continue
            first = firsts.get(new.row.key) or self._own(record, row)
            policy = self._policies.get(record.body, on_duplicate)
            outcome = self._duplicates.outcome(record, first, row, policy)
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
        locks.release()
        return outcomes

    def _outside(self, portion: list[tuple[Record, New]]) -> list[bool]:
        variants = [each.variant_text for each in prepare([new for _, new in portion])]
        return self._index.outside(
            [
                (self._rules.get(record.body), new.row.key, variant)
                for (record, new), variant in zip(portion, variants, strict=True)
            ]
        )

    def _own(self, record: Record, row: InstanceRow | None) -> InstanceRow | None:
        """The row, if an earlier slice of this commit wrote it for the same body."""
        own = row is not None and row.record_id.startswith(self._nonce)
        return row if row and own and int.from_bytes(row.record_id[NONCE:], "big") > record.body else None

    def _make_valid(self, winners: list[tuple[Record, New]], replaced: list[InstanceRow]) -> None:
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
            replaced=replaced,
        )
        failpoints.hit("after-commit")
        segment.commit_up_to(end)
        for at in voids:
            del self._lost[at]

    def _winner(self, record: Record) -> bytes:
        return record.header(self._form, self._segment.committed, record.replaced)


def slices(instances: Iterable[tuple[Record, New]]) -> Iterator[list[tuple[Record, New]]]:
    """Portions of at most SLICE_INSTANCES, or about SLICE_BYTES of index entries. Bodies in one portion have
    no key in common."""
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


class Duplicates:
    """Decides between two records of one instance. The caller has locked its key, so the stored record is
    neither moved nor removed."""

    def __init__(self, readers: Readers, index: Index, form: RecordFormat) -> None:
        self._readers = readers
        self._index = index
        self._form = form

    def outcome(
        self,
        new: Record,
        first: Record | InstanceRow | None,
        row: InstanceRow | None,
        on_duplicate: OnDuplicate,
    ) -> Outcome:
        """`first` is a record of the same instance earlier in the request, `row` the instance as stored."""
        other = first or row
        if other is None:
            return Outcome.STORED
        if on_duplicate is OnDuplicate.ACCEPT_IDENTICAL and self._identical(new, other):
            return Outcome.IDENTICAL
        if first is not None or row is None:
            return Outcome.DUPLICATE
        replaces = on_duplicate is OnDuplicate.REPLACE or self._is_damaged(row)
        return Outcome.REPLACED if replaces else Outcome.DUPLICATE

    def _identical(self, new: Record, other: Record | InstanceRow) -> bool:
        """Compares digests first, then every byte."""
        segment, offset, length = other.location
        if other.digest != new.digest or length != new.location.length:
            return False
        try:
            with self._readers.open([segment]) as lease:
                return all(
                    new.pread(at, COMPARE_WINDOW)
                    == lease.pread(segment, offset + at, min(COMPARE_WINDOW, length - at))
                    for at in range(0, length, COMPARE_WINDOW)
                )
        except (SegmentGone, OSError):
            return False  # `_is_damaged` looks again

    def _is_damaged(self, row: InstanceRow) -> bool:
        found = self._index.damaged_among([row.record_id])
        if not found:
            reason = self._damage(row)
            found = [damaged_record(row, reason)] if reason else []
        for record in found:
            log.error("damaged, and stored again: %s", described(record))
        return bool(found)

    def _damage(self, row: InstanceRow) -> str:
        segment = row.location.segment
        try:
            with self._readers.open([segment]) as lease:
                return damage_of(self._form, lease, row)
        except SegmentGone:
            return MISSING_SEGMENT
        except OSError as error:
            log.error("instance %s cannot be read: %s", "/".join(row.key), error.strerror)
            return ""
