"""The write transaction of an index whose segments are objects.

Strategy: the transaction that stores instances also makes their object complete, and the one that removes the
last instance of an object condemns it. So index and table of objects never differ.

Rules of this file
- An object whose intent is gone was removed: its node was silent for too long. The transaction is refused.
- The transaction that removes instances writes their tombstone (tombstone_table.py). A record id that lives
  elsewhere has none: copies have the id of their original.
- A decision was made without locks. If an instance has come or gone since, CommitConflict is raised, and
  nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from streamsrv.errors import CommitConflict, StreamsrvError, UploadExpired
from streamsrv.store.index import Gone, PackedRow, Prepared, record_id_of, segment_key, triple
from streamsrv.store.objects.layout import fresh_stem
from streamsrv.store.ordered_map import Transaction
from streamsrv.store.postgresql.batches import TableBatch
from streamsrv.store.postgresql.object_table import BEGIN
from streamsrv.store.postgresql.tables import Table
from streamsrv.store.postgresql.tombstone_table import ADD
from streamsrv.store.rows import InstanceKey, InstanceRow, Location, SegmentRow

_COMPLETE = (
    "WITH done AS (UPDATE objects SET state = 'complete', length = $1, until = NULL WHERE segment = $2 "
    "AND state IN ('intent', 'complete', 'condemned') RETURNING 1) SELECT count(*) FROM done"
)
_CONDEMN = (
    "WITH done AS (UPDATE objects SET state = 'condemned', until = now() + $1 * interval '1 second' "
    "WHERE segment = ANY($2) AND state = 'complete' RETURNING 1) SELECT count(*) FROM done"
)

_MOVED = (
    "WITH done AS (UPDATE objects SET moved = now() WHERE segment = ANY($1) AND moved IS NULL RETURNING 1) "
    "SELECT count(*) FROM done"
)


class ObjectBatch(TableBatch):
    """`grace` is in seconds: so long the bytes of a condemned object stay. `node` names this process."""

    def __init__(
        self,
        transaction: Transaction,
        handles: dict[str, Table],
        keep_changes: int = 0,
        *,
        grace: float,
        node: str,
    ) -> None:
        super().__init__(transaction, handles, keep_changes)
        self._grace = grace
        self._node = node
        self._emptied: set[int] = set()  # segments that have lost instances
        self._dead: list[bytes] = []  # ids of records
        self._dead_in: set[int] = set()  # the segments that have these records

    def store(
        self, new: Sequence[Prepared], segment: int, end: int, dead: int, replaced: Sequence[InstanceRow]
    ) -> None:
        self._read_before(new, segment, replaced)
        fresh = self._opened(segment)
        try:
            super().store(new, segment, end, dead, replaced)
        except StreamsrvError:
            if fresh:
                del self._segments[segment]
            raise
        self._complete(segment, end)

    def relocate(self, moves: Sequence[tuple[InstanceRow, Location]], segment: int, end: int) -> list[bool]:
        fresh = self._opened(segment)
        done = super().relocate(moves, segment, end)
        left = [row for (row, _), moved in zip(moves, done, strict=True) if not moved]
        # The trailer has them. Other slices may make the object complete.
        self._bury([row.record_id for row in left if not self._lives(row)], [segment])
        if any(done):
            self.writing = True
            left_by = {row.location.segment for (row, _), moved in zip(moves, done, strict=True) if moved}
            self._transaction.ask(_MOVED, [sorted(left_by)])
            self._complete(segment, end)
        elif fresh:
            del self._segments[segment]
        return done

    def _lives(self, row: InstanceRow) -> bool:
        value = self._get("instances", triple(row.key))
        return value is not None and record_id_of(value) == row.record_id

    def _remove(self, rows: Sequence[PackedRow]) -> Gone:
        gone = super()._remove(rows)
        self._bury(gone.ids, gone.freed)
        return gone

    def _bury(self, ids: Sequence[bytes], segments: Iterable[int]) -> None:
        if ids:
            self._dead += ids
            self._dead_in.update(segments)

    def add_segment(self) -> int:
        """Its object is an intent, which its node does not renew."""
        place = [fresh_stem(), "", self._grace]
        ((segment, _),) = self._transaction.ask(BEGIN, place)
        self._open_account(SegmentRow(segment))
        return int(segment)

    def _opened(self, segment: int) -> bool:
        """Begin the account of an object that the index does not have. Returns whether it is such."""
        known = segment in self._segments or self._get("segments", segment_key(segment)) is not None
        if not known:
            self._open_account(SegmentRow(segment, sealed=True))
        return not known

    def _complete(self, segment: int, length: int) -> None:
        self.writing = True
        ((count,),) = self._transaction.ask(_COMPLETE, [length, segment])
        if not count:
            raise UploadExpired("the upload was given up, because this node was silent for too long")
        self.writing = False

    def _check_new(self, prepared: Prepared, replaced: dict[InstanceKey, bytes]) -> bytes | None:
        value = self._get("instances", prepared.key)
        if (record_id_of(value) if value else None) != replaced.get(prepared.row.key):
            raise CommitConflict("an instance was stored or removed by another sender meanwhile")
        return value

    def _account(self, segment: int, *, end: int = 0, live: int = 0, dead: int = 0) -> None:
        super()._account(segment, end=end, live=live, dead=dead)
        if live < 0:
            self._emptied.add(segment)

    def finish(self) -> None:
        empty = [segment for segment in self._emptied if not self._segments[segment].live]
        for segment in empty:
            del self._segments[segment]
            self._transaction.delete(segment_key(segment), db=self._handles["segments"])
        super().finish()
        if empty:
            self._transaction.ask(_CONDEMN, [self._grace, empty])
        if self._dead:
            self._transaction.ask(ADD, [b"".join(self._dead), sorted(self._dead_in), self._node])
