"""The index: which SOP instances there are, where their bytes lie, and what is known of them (facade).

Strategy: an ordered map under a few verbs, in batches. Writing verbs block until durable and may be called
from any thread; reading verbs see everything that was acknowledged, by any process. The rows are drawn in
`index_rows`, how writes are grouped is told in `index_writer`, how studies and series follow their instances
in `index_levels`.

Rules of this file: no transaction, cursor or view of the map outlives a call, or between two batches of an
iterator. No word of the map underneath is in a signature: another database can stand behind the same verbs.

One process opens a folder once; several processes may have it open at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from streamsrv.query.attributes import Level, QueryAttribute
from streamsrv.query.budget import Budget, Parsing
from streamsrv.query.conditions import Query
from streamsrv.query.terms import term_prefix
from streamsrv.query.values import cut
from streamsrv.store.fileops import FileOps
from streamsrv.store.index.batch import Batch, Prepared, prepare
from streamsrv.store.index.changes import unpack_changes
from streamsrv.store.index.damage import DamagedRecord
from streamsrv.store.index.environment import Environment
from streamsrv.store.index.reading import ROWS_A_BATCH, Reading
from streamsrv.store.index.rewrite import dump, rewrite
from streamsrv.store.index.rows import (
    LevelRow,
    PackedRow,
    number_key,
    segment_key,
    unpack_segment,
    without_sum,
)
from streamsrv.store.index.walk import Hit, Search
from streamsrv.store.index.writer import Writer
from streamsrv.store.rows import Change, InstanceRow, Location, NewInstance, SegmentRow


class Index(Reading):
    def __init__(self, environment: Environment, keep_changes: int = 0) -> None:
        super().__init__(environment)
        self._writer = Writer(environment, keep_changes)
        self.parsing = Parsing()  # of all searches

    @classmethod
    def open(
        cls, folder: Path, *, read_only: bool = False, store: bytes = b"", keep_changes: int = 0
    ) -> Index:
        """A folder without an index gets an empty one, unless opened for reading only. `store` is the
        fingerprint of the store that it belongs to; WrongStore if it belongs to another. Writing keeps so
        many of the latest changes, 0: all."""
        return cls(Environment(folder, read_only=read_only, store=store), keep_changes)

    @property
    def read_only(self) -> bool:
        return self._environment.read_only

    def close(self) -> None:
        """Waiting writes are finished first."""
        self._writer.close()
        self._environment.close()

    # -- writing

    def commit(
        self,
        new: Sequence[NewInstance | Prepared],
        *,
        segment: int,
        committed_end: int,
        dead_bytes: int = 0,
        replaced: Sequence[InstanceRow] = (),
    ) -> None:
        """All of `new` or nothing, in one transaction: callers come with at most some 1,000. `dead_bytes` are
        those of `segment` that never lived (voids); what was replaced is counted as dead here."""
        prepared = prepare(new)
        self._writer.submit(
            lambda batch: batch.store(prepared, segment, committed_end, dead_bytes, replaced),
            instances=len(prepared),
            size=sum(each.size for each in prepared),
        )

    def delete(self, rows: Sequence[PackedRow], *, segment: int, committed_end: int, dead_bytes: int) -> int:
        """Delete instances; returns how many of them were still there. `rows` are what `packed` found, in its
        order; `segment` holds their tombstone."""
        return self._writer.submit(
            lambda batch: batch.delete(rows, segment, committed_end, dead_bytes), instances=len(rows)
        )

    def relocate(
        self, moves: Sequence[tuple[InstanceRow, Location]], *, segment: int, committed_end: int
    ) -> list[bool]:
        """Compare and set: False where an instance does not lie any more where its row says."""
        return self._writer.submit(
            lambda batch: batch.relocate(moves, segment, committed_end), instances=len(moves)
        )

    def register_damage(self, records: Sequence[DamagedRecord]) -> list[bool]:
        """Durably: from here on no process serves their bytes. True for each that is new; a record that has
        been replaced or deleted meanwhile is left out."""
        return self._writer.submit(lambda batch: batch.damage.register(records), instances=len(records))

    def forget_damage(self, ids: Sequence[bytes]) -> int:
        """Their bytes are whole. Returns how many of them were registered."""
        return self._writer.submit(lambda batch: batch.damage.forget(ids), instances=len(ids))

    def catch_up(self) -> None:
        """See all that was ever committed. Readers may miss the last commit of a process that was killed in
        the middle of it; whoever decides by what there is asks for this first."""
        self._writer.catch_up()

    def add_segment(self) -> int:
        return self._writer.submit(Batch.add_segment)

    def put_segment(self, row: SegmentRow) -> None:
        """For a rebuild: the segment is there already, with this number."""
        self._writer.submit(lambda batch: batch.put_segment(row))

    def seal(self, segment: int, *, committed_end: int = 0, dead_bytes: int = 0) -> None:
        """It takes no more records. With a SEAL record at its end, its new end and those dead bytes."""
        self._writer.submit(lambda batch: batch.seal(segment, committed_end, dead_bytes))

    def drop_segment(self, segment: int) -> None:
        """StoreError while instances still live in it."""
        self._writer.submit(lambda batch: batch.drop_segment(segment))

    # -- searching

    def search(self, query: Query, budget: Budget | None = None) -> Iterator[Hit]:
        """What matches, newest study first. ContentTooLarge when the budget is spent."""
        return Search(self._environment, query, budget or Budget(), self.parsing).hits()

    def listed(self, attribute: QueryAttribute, form: str, most: int) -> list[tuple[str, LevelRow]] | None:
        """The studies that stand in the list of a study attribute under one normal form, by UID, in one look;
        None if there are more. Of long values the list tells the beginning only: the row decides."""
        with self._environment.reading("looking up studies by a value") as transaction:
            cursor = transaction.cursor(db=self._handles["attributes"])
            if not cursor.set_key(term_prefix(attribute) + cut(form)):
                return []
            if cursor.count() > most:
                return None
            studies = self._handles["studies"]
            found = [(study, transaction.get(study, db=studies)) for study in cursor.iternext_dup()]
        return [(study.decode(), LevelRow.unpack(value)) for study, value in found if value is not None]

    def total(self, query: Query) -> int | None:
        """How many there are of what the query asks for, where that is known without looking: no
        conditions."""
        if query.conditions or query.uids:
            return None
        if query.study is None:
            return self._entries_of(("studies", "series", "instances")[query.level])
        if query.level is Level.INSTANCE:
            return self.count(query.study, query.series)
        row = self._level_row("studies", query.study)
        return row.series if row else 0

    def _entries_of(self, name: str) -> int:
        with self._environment.reading("counting") as transaction:
            entries: int = transaction.stat(self._handles[name])["entries"]
        return entries

    # -- segments, changes, the index itself

    def segments(self) -> dict[int, SegmentRow]:
        with self._environment.reading("listing segments") as transaction:
            rows = [
                unpack_segment(key, value) for key, value in transaction.cursor(db=self._handles["segments"])
            ]
        return {row.segment: row for row in rows}

    def segment(self, segment: int) -> SegmentRow | None:
        key = segment_key(segment)
        with self._environment.reading("looking up a segment") as transaction:
            value = transaction.get(key, db=self._handles["segments"])
        return unpack_segment(key, value) if value else None

    def changes(self, after: int = 0, limit: int = ROWS_A_BATCH) -> list[Change]:
        """In commit order, from sequence `after` + 1 on. Those before `first_change` are not there any
        more."""
        found: list[Change] = []
        with self._environment.reading("reading changes") as transaction:
            cursor = transaction.cursor(db=self._handles["changes"])
            more = cursor.set_range(number_key(after + 1))
            while more and len(found) < limit:
                several = unpack_changes(int.from_bytes(cursor.key(), "big"), cursor.value())
                found += [change for change in several if change.sequence > after]
                more = cursor.next()
        return found[:limit]

    def probe(self) -> None:
        """Read one row in a transaction. Raises IndexFailed, or another StoreError, if that fails."""
        with self._environment.reading("reading the schema") as transaction:
            stored = transaction.get(b"schema", db=self._handles["about"])
        without_sum("about", b"schema", stored or b"")

    def first_change(self) -> int:
        """The sequence of the oldest change that is kept. A reader of changes that has seen less has missed
        some. It asks after it has read them, because they may go at any time."""
        return int(self.about()["first_change"])

    def about(self) -> dict[str, str]:
        """format (of the file), schema, table (of attributes), epoch, next_segment, first_change, store (its
        fingerprint). Sequences of changes count within an epoch; a rebuilt index has another."""
        with self._environment.reading("reading about the index") as transaction:
            rows = list(transaction.cursor(db=self._handles["about"]))
        return {key.decode(): without_sum("about", key, value).decode() for key, value in rows}

    def dump(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Every raw key and value of a database (`index_rows` draws them), in order; in batches, beside
        writers. For checks: an index of the same instances has equal rows in instances (but for the serial,
        the first eight bytes of a value), variants, studies, series, attributes and uids."""
        return dump(self._environment, name)

    def rewrite(self, fileops: FileOps | None = None) -> None:
        """Into a new file, which holds nothing of what was deleted. No other thread may use the index
        meanwhile; StoreLocked if another process has it open."""
        rewrite(self._environment, fileops or FileOps())

    def statistics(self) -> dict[str, int]:
        """Rows in each database, and the bytes of the index file in use and in all."""
        with self._environment.reading("measuring the index") as transaction:
            rows = {name: transaction.stat(handle) for name, handle in self._handles.items()}
        info, page = self._environment.lmdb.info(), self._environment.lmdb.stat()["psize"]
        pages = sum(
            stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in rows.values()
        )
        counts: dict[str, int] = {name: stat["entries"] for name, stat in rows.items()}
        return counts | {"bytes_used": pages * page, "bytes_file": (info["last_pgno"] + 1) * page}
