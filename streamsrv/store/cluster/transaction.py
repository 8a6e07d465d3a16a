"""A store transaction whose records go into one object.

Strategy: the intent of the object is durable before the first byte leaves. Bytes go into a file of the node,
and `sync_so_far` sends the parts that are full. `commit` decides slice by slice, without locks. Before the
first slice is committed the object is complete. The index refuses a slice whose decision is no longer right;
then it is decided again.

    intent: segment and key                      a row of the table of objects
    append headers and payloads; send parts
    look up which instances exist; decide
    complete the object                          once, before the first winner
    commit to the index                          in one transaction: instances, and the intent is complete
    the next slice

Rules of this file
- A transaction that ends otherwise gives its intent up, and a sweeper removes the object. An intent is never
  given up if the index has named the object: the database compares.
- Nothing is guessed: a commit whose fate is not known leaves the intent as it is.
- A transaction is used by one thread at a time; only `sync_so_far` may run beside `write`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamsrv.errors import CommitConflict, IndexUnreachable, Overloaded, StoreError, UploadExpired
from streamsrv.query.rules import Rule
from streamsrv.store import failpoints
from streamsrv.store.cluster.leases import IntentKeeper
from streamsrv.store.cluster.tombstones import TombstoneWriter
from streamsrv.store.fileops import Buffer, FileOps
from streamsrv.store.folder import Reserve
from streamsrv.store.index import Index
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.objects.cache import ObjectCache
from streamsrv.store.objects.writer import ObjectWriter
from streamsrv.store.postgresql.object_table import ObjectTable
from streamsrv.store.rows import InstanceRow, OnDuplicate, Outcome
from streamsrv.store.segments.records import Record, RecordFormat
from streamsrv.store.segments.segments import SPACE_CHECK, Clock
from streamsrv.store.transaction import Decider, Decision, New, Transaction, slices

log = logging.getLogger("streamsrv.store")

# A slice is decided so often. Each time another sender was faster with one of its instances.
ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class ObjectRooms:
    """The parts of a store that its transactions use. Uploads wait in files of `folder`."""

    bucket: Bucket
    table: ObjectTable
    intents: IntentKeeper
    tombstones: TombstoneWriter
    readers: ObjectCache
    form: RecordFormat
    clock: Clock
    folder: Path
    ops: FileOps
    reserve: Reserve


class ObjectTransaction(Transaction):
    def __init__(self, rooms: ObjectRooms, index: Index) -> None:
        rooms.reserve.require()
        self._rooms = rooms
        self._index = index
        self._segment, key = rooms.table.begin(rooms.intents.seconds)
        self._writer = ObjectWriter(
            rooms.bucket, rooms.form, self._segment, key, rooms.folder, rooms.clock, rooms.ops
        )
        rooms.intents.hold(self._segment)
        self._decider = Decider(rooms.readers, index, rooms.form, self._writer.nonce)
        self._records: dict[int, Record] = {}  # those that are not dropped, by number
        self._length = 0  # of the complete object
        self._open = False
        self._named = False  # whether the index has the object, or may have it
        self._ended = False
        self._buried = False  # whether refused records wait for the bucket
        self._next_space_check = SPACE_CHECK

    # Receiving

    @property
    def unsynced(self) -> int:
        return self._writer.unsent

    def sync_so_far(self) -> None:
        self._writer.send()

    def open_body(self, rule: Rule | None = None, on_duplicate: OnDuplicate | None = None) -> None:
        self._decider.open_body(self._writer.open_body(), rule, on_duplicate)

    def open_record(self, original: InstanceRow | None = None) -> None:
        self._writer.open_record(original)
        self._open = True

    @property
    def end(self) -> int:
        return self._writer.end

    def gather(self, piece: Buffer) -> None:
        self._writer.gather(piece)

    @property
    def gathered(self) -> tuple[int, int]:
        return self._writer.gathered

    def write(self, pieces: Sequence[Buffer] = (), *, keep: bool = True) -> None:
        """The page cache keeps the bytes: they are read again when they leave."""
        self._writer.write(pieces)
        failpoints.hit("mid-body")
        if self._writer.end >= self._next_space_check:
            self._next_space_check = self._writer.end + SPACE_CHECK
            self._rooms.reserve.require()

    def close_record(self) -> Record:
        record, self._open = self._writer.close_record(), False
        self._records[record.number] = record
        return record

    def received(self) -> Record:
        return self._writer.received()

    def back_to(self, end: int) -> None:
        self._writer.back_to(end)
        self._open = False
        self._records = {number: each for number, each in self._records.items() if each.end <= end}

    def drop_record(self, record: Record) -> None:
        """Its bytes stay in the object if others follow, and no tool finds them."""
        del self._records[record.number]
        if not self._open and self._writer.end == record.end:
            self._writer.back_to(record.begin)

    # Ending

    def abort(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._writer.abort()
        self._rooms.intents.let_go(self._segment)
        if not self._named:
            with contextlib.suppress(StoreError):  # the lease of the intent ends
                self._rooms.table.give_up(self._segment, uploading=self._writer.uploading)

    def committing(
        self, instances: Iterable[tuple[Record, New]], on_duplicate: OnDuplicate = OnDuplicate.REFUSE
    ) -> Iterator[Outcome]:
        try:
            if self._open:
                raise StoreError("a record is still open")
            self._writer.write()
            for portion in slices(instances):
                yield from self._commit_slice(portion, on_duplicate)
        finally:
            self.abort()

    def _commit_slice(self, portion: list[tuple[Record, New]], on_duplicate: OnDuplicate) -> list[Outcome]:
        decision = self._committed(portion, on_duplicate)
        if decision.replaced or self._buried:
            self._rooms.tombstones.write_own()
            self._buried = False
        return decision.outcomes

    def _committed(self, portion: list[tuple[Record, New]], on_duplicate: OnDuplicate) -> Decision:
        """A replacement is announced when all else is done, and then decided again: it has waited."""
        announced = False
        with contextlib.ExitStack() as held:
            for _ in range(ATTEMPTS):
                decision = self._decided(portion, on_duplicate)
                if decision.replaced and not announced:
                    held.enter_context(self._index.removing())
                    announced = True
                    decision = self._decided(portion, on_duplicate)
                try:
                    self._bury(portion, decision)
                    if decision.winners:
                        self._commit(decision)
                    return decision
                except CommitConflict as conflict:
                    log.info("segment %d: %s", self._segment, conflict)
        raise Overloaded("other senders store the same instances at the same time: try again")

    def _decided(self, portion: list[tuple[Record, New]], on_duplicate: OnDuplicate) -> Decision:
        decision = self._decider.decide(portion, on_duplicate)
        if decision.winners:
            self._complete(decision)
        return decision

    def _complete(self, decision: Decision) -> None:
        """Make the object durable. Records that were refused before are left out. Raises Overloaded if one of
        them wins now: no trailer has it."""
        if self._length:
            if any(record.number not in self._records for record, _ in decision.winners):
                raise Overloaded("other senders delete the same instances at the same time: try again")
            return
        for record in decision.losers:
            self._records.pop(record.number, None)
        failpoints.hit("before-data-sync")
        self._length = self._writer.complete(list(self._records.values()))
        failpoints.hit("after-data-sync")

    def _bury(self, portion: Sequence[tuple[Record, New]], decision: Decision) -> None:
        """The trailer has records that are refused now, if the object was complete before. None of them may
        win later. A copy of a record that lives has its id, and no tombstone."""
        refused = [each for each in decision.losers if self._length and each.number in self._records]
        if not refused:
            return
        rows = self._index.existing([new.row.key for _, new in portion])
        living = {row.record_id for row in rows if row is not None}
        living |= {record.record_id for record, _ in decision.winners}
        listed = [record.record_id for record in refused if record.record_id not in living]
        if listed:
            self._rooms.tombstones.table.add(listed, self._segment)
            self._buried = True
        for record in refused:
            del self._records[record.number]

    def _commit(self, decision: Decision) -> None:
        try:
            self._index.commit(
                [new for _, new in decision.winners],
                segment=self._segment,
                committed_end=self._length,
                replaced=decision.replaced,
            )
        except IndexUnreachable:
            self._named = True  # perhaps
            raise
        except UploadExpired:
            with contextlib.suppress(StoreError):  # a sweeper removes it once more
                self._rooms.bucket.remove(self._writer.key)
            raise
        self._named = True
        failpoints.hit("after-commit")
