"""Copies instances from one store to another. A copy has the id, the time and the digest of its original.

Strategy: a portion of instances is one transaction of the target. The bytes come from the segments of the
source. The row of the index is derived from them, as a server of the target would do it.

Rules of this file
- The digest of the arrival is compared with the bytes that are written. A damaged instance is copied as it
  is, with the row that the index of the source has, and is registered as damaged.
- An instance that cannot be read is left out.
- A copy that is there is never stored again (transaction.py). So a portion may be repeated.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from streamsrv.errors import InstanceError, SegmentGone, ServerError, StoreCorrupt, StoreError
from streamsrv.store.maintenance.check import Derive
from streamsrv.store.maintenance.scanning import OldIndex
from streamsrv.store.rows import InstanceKey, InstanceRow, NewInstance, OnDuplicate
from streamsrv.store.segments.records import Record
from streamsrv.store.segments.verifying import (
    SHORT_SEGMENT,
    WRONG_DIGEST,
    damaged_record,
    header_of,
)
from streamsrv.store.store import Store
from streamsrv.store.transaction import Transaction

PIECE = 1 << 20
UNSYNCED = 32 << 20
ATTEMPTS = 5  # to read an instance that compaction moves
BUSY = 503
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds before an engine that does not answer is asked again
BEFORE_THE_MOVE = f"{WRONG_DIGEST}, before it was moved"
MOST_REASONS = 10_000


class MoveReport(Protocol):
    """Thread-safe."""

    def add(self, name: str, count: int = 1) -> None: ...

    def count_bytes(self, count: int) -> None: ...

    def fail(self, text: str) -> None: ...


class Unreadable(Exception):
    """The bytes of an instance cannot be read."""


class StagedCopy(NamedTuple):
    """On its way to the target."""

    record: Record
    new: NewInstance
    is_damaged: bool


def patiently(work: Callable[[], None], stopped: threading.Event) -> None:
    """Call `work`, again and again while an engine does not answer and `stopped` is not set."""
    for pause in PAUSES:
        try:
            work()
            return
        except ServerError as error:
            if error.status != BUSY or stopped.wait(pause):
                raise
    work()


class InstanceCopier:
    """Threads share it. `reasons` are those of instances that could not be copied."""

    def __init__(self, source: Store, target: Store, derive: Derive, report: MoveReport) -> None:
        self._source = source
        self._target = target
        self._derive = derive
        self._report = report
        self._rows_of = OldIndex(source.index)
        self.stopped = threading.Event()
        self.reasons: dict[InstanceKey, str] = {}

    def copy(self, rows: Sequence[InstanceRow]) -> None:
        """Copy instances, or those that have taken their places meanwhile. Raises StreamsrvError."""
        patiently(lambda: self._copy(self._left(rows)), self.stopped)

    def _left(self, rows: Sequence[InstanceRow]) -> list[InstanceRow]:
        """Those that are not in the target: a commit may have happened without an answer."""
        there = self._target.index.existing([row.key for row in rows])
        pairs = zip(rows, there, strict=True)
        return [row for row, other in pairs if other is None or other.record_id != row.record_id]

    def _copy(self, rows: Sequence[InstanceRow]) -> None:
        if not rows:
            return
        transaction = self._target.begin()
        try:
            copies = [copy for row in rows if (copy := self._taken(transaction, row)) is not None]
            transaction.commit([(record, new) for record, new, _ in copies], OnDuplicate.REPLACE)
        finally:
            transaction.abort()
        damaged = [damaged_record(new.row, BEFORE_THE_MOVE) for _, new, is_damaged in copies if is_damaged]
        if damaged:
            self._target.index.register_damage(damaged)
        self._report.add("copied", len(copies))

    def _taken(self, transaction: Transaction, row: InstanceRow) -> StagedCopy | None:
        """None if the instance was deleted, or cannot be read."""
        found: InstanceRow | None = row
        lost = ""
        try:
            for _ in range(ATTEMPTS):
                if found is None:
                    return None
                begin = transaction.end
                try:
                    return self._record(transaction, found)
                except (SegmentGone, StoreCorrupt, OSError, Unreadable) as reason:
                    transaction.back_to(begin)
                    if isinstance(reason, StoreCorrupt):  # a short object
                        raise Unreadable(reason.detail) from reason
                    if not isinstance(reason, SegmentGone):
                        raise
                    lost = reason.lost
                found = self._current(row.key)
            raise Unreadable(lost)
        except OSError as error:
            self._note(row.key, f"its bytes cannot be read: {error.strerror}")
        except Unreadable as reason:
            self._note(row.key, str(reason))
        return None

    def _current(self, key: InstanceKey) -> InstanceRow | None:
        (row,) = self._source.index.existing([key])
        return row

    def _note(self, key: InstanceKey, reason: str) -> None:
        if len(self.reasons) < MOST_REASONS:
            self.reasons[key] = reason

    def _record(self, transaction: Transaction, row: InstanceRow) -> StagedCopy:
        transaction.open_record(row)
        segment, offset, length = row.location
        with self._source.open_segments([segment]) as lease:
            for fd, begin, size in lease.windows(segment, offset, length):
                self._write(transaction, fd, begin, begin + size)
            record = transaction.close_record()
            is_damaged = record.digest != row.digest
            if is_damaged:  # or the row is wrong
                header = header_of(self._source.form, lease, row)
                is_damaged = header is None or header.digest != record.digest
        if is_damaged:
            record.digest = row.digest
        return StagedCopy(record, self._entry(record, row, is_damaged), is_damaged)

    def _write(self, transaction: Transaction, fd: int, begin: int, end: int) -> None:
        for at in range(begin, end, PIECE):
            wanted = min(PIECE, end - at)
            piece = os.pread(fd, wanted, at)
            if len(piece) < wanted:
                raise Unreadable(SHORT_SEGMENT)
            transaction.write([piece])
            self._report.count_bytes(wanted)
            if transaction.unsynced >= UNSYNCED:
                transaction.sync_so_far()

    def _entry(self, record: Record, row: InstanceRow, is_damaged: bool) -> NewInstance:
        """The entry of the index. Raises Unreadable if neither bytes nor index tell it."""
        if not is_damaged:
            try:
                new = self._derive(record)
                if new.row.key == row.key:
                    return new
            except InstanceError:
                pass  # an older version took it
        try:
            new = self._rows_of.taken_over(row)
        except SegmentGone:
            raise
        except StoreError as error:
            raise Unreadable(f"the index of the source cannot tell it: {error.detail}") from error
        new.row = row._replace(location=record.location, digest=record.digest, damaged=False)
        return new
