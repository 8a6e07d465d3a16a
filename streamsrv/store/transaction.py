"""A store transaction, as the rooms above see it, and the decisions that are the same for each engine.

Rules of this file
- A transaction may hold the instances of several bodies. Within a body the first of equal keys wins, for
  every `on_duplicate`. If two bodies share a key, the slice ends between them, so the second body sees the
  first as stored.
- An instance is refused as a duplicate only after its stored bytes have been read and are whole. If they are
  damaged or missing, the new bytes take their place for every `on_duplicate`. Stored bytes that the system
  cannot read now may be whole: they stay, unless they are registered as damaged.
- An instance outside the rule of its sender is refused before anything else about it is looked up. So the
  answer does not tell whether it is stored.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from streamsrv.errors import SegmentGone, StoreCorrupt
from streamsrv.query.rules import Rule
from streamsrv.store.fileops import Buffer
from streamsrv.store.index import Index, Prepared, prepare
from streamsrv.store.rows import (
    SLICE_BYTES,
    SLICE_INSTANCES,
    InstanceKey,
    InstanceRow,
    NewInstance,
    OnDuplicate,
    Outcome,
)
from streamsrv.store.segments.leases import SegmentLease
from streamsrv.store.segments.records import NO_ID, Record, RecordFormat
from streamsrv.store.segments.verifying import (
    SHORT_OBJECT,
    damage_of,
    damaged_record,
    described,
)

NONCE = 10  # a record id is a nonce of its transaction and the record's number in it

New: TypeAlias = NewInstance | Prepared

log = logging.getLogger("streamsrv.store")

COMPARE_WINDOW = 1 << 20


class Transaction(ABC):
    """Made by Store.begin. Ends with `commit`, else with `abort`, which is safe to call twice."""

    # Receiving

    @property
    @abstractmethod
    def unsynced(self) -> int:
        """Bytes written since the last sync began."""

    @abstractmethod
    def sync_so_far(self) -> None:
        """Bring the bytes written so far to where they will stay, so that `commit` is short. May run beside
        `write`."""

    @abstractmethod
    def open_body(self, rule: Rule | None = None, on_duplicate: OnDuplicate | None = None) -> None:
        """Begin another body. An instance of it that its sender may not see, by this rule, is refused. Its
        `on_duplicate` replaces that of the commit."""

    @abstractmethod
    def open_record(self, original: InstanceRow | None = None) -> None:
        """The record is a copy of `original`, if that is given: it has the same id and time."""

    @property
    @abstractmethod
    def end(self) -> int:
        """Offset of the next byte."""

    @abstractmethod
    def gather(self, piece: Buffer) -> None:
        """Append to the open record with the next `write`; until then the buffer must not change."""

    @property
    @abstractmethod
    def gathered(self) -> tuple[int, int]:
        """Number and bytes of the pieces that wait for the next `write`."""

    @abstractmethod
    def write(self, pieces: Sequence[Buffer] = (), *, keep: bool = True) -> None:
        """Append to the open record, gathered pieces first. Keeps no buffer. With `keep` the page cache keeps
        the bytes."""

    @abstractmethod
    def close_record(self) -> Record:
        """The record can be read after the gathered pieces have been written."""

    @abstractmethod
    def received(self) -> Record:
        """The open record so far. Only written bytes of it can be read."""

    @abstractmethod
    def back_to(self, end: int) -> None:
        """Drop the bytes from `end` on, where a record ended: whole records, and an open one."""

    @abstractmethod
    def drop_record(self, record: Record) -> None:
        """Drop the bytes of a record."""

    # Ending

    @abstractmethod
    def abort(self) -> None:
        """Remove everything that is not committed."""

    def commit(
        self, instances: Iterable[tuple[Record, New]], on_duplicate: OnDuplicate = OnDuplicate.REFUSE
    ) -> list[Outcome]:
        """Make the instances durable and visible; returns an outcome for each. Ends the transaction."""
        return list(self.committing(instances, on_duplicate))

    @abstractmethod
    def committing(
        self, instances: Iterable[tuple[Record, New]], on_duplicate: OnDuplicate = OnDuplicate.REFUSE
    ) -> Iterator[Outcome]:
        """Like `commit`, slice by slice: an instance is durable when its outcome is there. Call `abort`
        unless all outcomes are taken."""


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


class SegmentReaders(Protocol):
    """The segments of a store, as one process reads them."""

    def open(self, segments: Iterable[int]) -> SegmentLease: ...


class Decision(NamedTuple):
    """The outcome of each instance of a slice; the instances that are to be stored, the rows that these
    replace, and the records that go."""

    outcomes: list[Outcome]
    winners: list[tuple[Record, New]]
    replaced: list[InstanceRow]
    losers: list[Record]


class Decider:
    """Decides about the instances of one transaction. `nonce` begins the ids of its records."""

    def __init__(self, readers: SegmentReaders, index: Index, form: RecordFormat, nonce: bytes) -> None:
        self._duplicates = Duplicates(readers, index, form)
        self._index = index
        self._nonce = nonce
        self._rules: dict[int, Rule] = {}  # of bodies
        self._policies: dict[int, OnDuplicate] = {}

    def open_body(self, body: int, rule: Rule | None, on_duplicate: OnDuplicate | None) -> None:
        if rule is not None:
            self._rules[body] = rule
        if on_duplicate is not None:
            self._policies[body] = on_duplicate

    def decide(self, portion: Sequence[tuple[Record, New]], on_duplicate: OnDuplicate) -> Decision:
        """Looks up which instances exist. Sets `replaced` of the records."""
        ruled = any(record.body in self._rules for record, _ in portion)
        outside = self._outside(portion) if ruled else [False] * len(portion)
        existing = self._index.existing([new.row.key for _, new in portion])
        firsts: dict[InstanceKey, Record] = {}
        decision = Decision([], [], [], [])
        for (record, new), row, is_outside in zip(portion, existing, outside, strict=True):
            if is_outside:
                decision.outcomes.append(Outcome.UNAUTHORIZED)
                decision.losers.append(record)
                continue
            first = firsts.get(new.row.key) or self._own(record, row)
            policy = self._policies.get(record.body, on_duplicate)
            outcome = self._duplicates.outcome(record, first, row, policy)
            decision.outcomes.append(outcome)
            if outcome not in (Outcome.STORED, Outcome.REPLACED):
                decision.losers.append(record)
                continue
            firsts[new.row.key] = record
            decision.winners.append((record, new))
            record.replaced = NO_ID if row is None else row.record_id
            if row is not None:
                decision.replaced.append(row)
        return decision

    def _outside(self, portion: Sequence[tuple[Record, New]]) -> list[bool]:
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


class Duplicates:
    """Decides between two records of one instance. While it does, the stored record is neither moved nor
    removed, or the commit finds out."""

    def __init__(self, readers: SegmentReaders, index: Index, form: RecordFormat) -> None:
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
        if other.record_id == new.record_id:  # it is a copy, and there already
            return Outcome.IDENTICAL
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
        except (SegmentGone, StoreCorrupt, OSError):
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
        except SegmentGone as gone:
            return gone.lost
        except StoreCorrupt:
            return SHORT_OBJECT
        except OSError as error:
            log.error("instance %s cannot be read: %s", "/".join(row.key), error.strerror)
            return ""
