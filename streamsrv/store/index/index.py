"""The index: which SOP instances there are, where their bytes are, and their attributes.

Strategy: an ordered map behind few calls, in batches. Writing calls return when the write is durable, and may
come from any thread. Reading calls see everything that any process has acknowledged. docs/store-contract.md
is the contract of each call.

Rules of this file: no transaction, cursor or view of the map outlives a call, or lasts between two batches of
an iterator. No signature names the map: another database can stand behind the same calls.

A process opens a folder once; several processes may have it open at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from streamsrv.errors import AnnouncementLost, StoreCorrupt
from streamsrv.query.attributes import Level, QueryAttribute, term_prefix
from streamsrv.query.budget import Budget, Parsing
from streamsrv.query.conditions import Query
from streamsrv.query.rules import Rule
from streamsrv.query.values import cut
from streamsrv.store.fileops import FileOps
from streamsrv.store.index.batch import Batch, Prepared, prepare
from streamsrv.store.index.damage import DamagedRecord
from streamsrv.store.index.environment import DATABASES, Environment, dump
from streamsrv.store.index.few_studies import RuleMemory
from streamsrv.store.index.levels import StudyPart, facts_under
from streamsrv.store.index.lists import Lists
from streamsrv.store.index.reading import ROWS_A_BATCH, Reading
from streamsrv.store.index.rows import (
    OTHER_FACTS_BYTES,
    LevelRow,
    PackedRow,
    apart,
    change_time,
    number_key,
    segment_key,
    split_triple,
    unpack_changes,
    unpack_instance,
    unpack_segment,
    without_sum,
)
from streamsrv.store.index.visibility import Visibility
from streamsrv.store.index.walk import Hit, Search
from streamsrv.store.index.writer import BatchFactory, Writer
from streamsrv.store.ordered_map import OrderedMap, Transaction
from streamsrv.store.rows import Change, InstanceKey, InstanceRow, Location, NewInstance, SegmentRow

Result = TypeVar("Result")
# A removal whose announcement is lost is announced again so often.
ANNOUNCED = 2


class Index(Reading):
    def __init__(self, environment: OrderedMap, keep_changes: int = 0, batch: BatchFactory = Batch) -> None:
        super().__init__(environment)
        self._writer = Writer(environment, keep_changes, batch)
        self.parsing = Parsing()  # shared by all searches
        self.rules = RuleMemory()  # shared by all views

    @classmethod
    def open(
        cls, folder: Path, *, read_only: bool = False, store: bytes = b"", keep_changes: int = 0
    ) -> Index:
        """Open the index of a folder; makes an empty one unless `read_only`. `store` is the fingerprint of
        its store: raises WrongStore if the index has another. `keep_changes` bounds the change log, 0: no
        bound."""
        return cls(Environment(folder, read_only=read_only, store=store), keep_changes)

    @property
    def read_only(self) -> bool:
        return self._environment.read_only

    def close(self) -> None:
        """Waiting writes are finished first."""
        self._writer.close()
        self._environment.close()

    def restricted(self, rule: Rule) -> Index:
        """This index as if it held only the studies that the rule shows. Not to be closed."""
        return RestrictedIndex(self, rule)

    # -- writing

    def removing(self) -> AbstractContextManager[object]:
        """Announces the deletions and replacements of this thread within the block, so that they wait for
        other processes only once. Blocks; raises StoreError."""
        return self._environment.removing()

    def _submit(
        self, apply: Callable[[Batch], Result], *, removes: bool, instances: int, size: int = 0
    ) -> Result:
        if not removes:
            return self._writer.submit(apply, instances=instances, size=size)
        with self._environment.removing() as announcement:
            if announcement is None:
                return self._writer.submit(apply, instances=instances, size=size)

            def announced(batch: Batch) -> Result:
                batch.require_announced(announcement)
                return apply(batch)

            for _ in range(ANNOUNCED):
                with suppress(AnnouncementLost):
                    return self._writer.submit(announced, instances=instances, size=size)
                announcement.announce()
            return self._writer.submit(announced, instances=instances, size=size)

    def commit(
        self,
        new: Sequence[NewInstance | Prepared],
        *,
        segment: int,
        committed_end: int,
        dead_bytes: int = 0,
        replaced: Sequence[InstanceRow] = (),
    ) -> None:
        """Store all of `new` or none, at most about SLICE_INSTANCES. `dead_bytes` are bytes of `segment` that
        never lived (voids); bytes of `replaced` instances are counted as dead here."""
        prepared = prepare(new)
        self._submit(
            lambda batch: batch.store(prepared, segment, committed_end, dead_bytes, replaced),
            removes=bool(replaced),
            instances=len(prepared),
            size=sum(each.size for each in prepared),
        )

    def delete(self, rows: Sequence[PackedRow], *, segment: int, committed_end: int, dead_bytes: int) -> int:
        """Delete instances; returns how many of them were still there. `rows` are a result of `packed`, in
        its order; `segment` holds their tombstone of `dead_bytes`. NO_SEGMENT: there is no tombstone."""
        return self._submit(
            lambda batch: batch.delete(rows, segment, committed_end, dead_bytes),
            removes=bool(rows),
            instances=len(rows),
        )

    def relocate(
        self, moves: Sequence[tuple[InstanceRow, Location]], *, segment: int, committed_end: int
    ) -> list[bool]:
        """Compare and set: False where an instance is no longer where its row says. The bytes at its new
        place are counted as dead then."""
        return self._writer.submit(
            lambda batch: batch.relocate(moves, segment, committed_end), instances=len(moves)
        )

    def register_damage(self, records: Sequence[DamagedRecord]) -> list[bool]:
        """From this commit on no process serves their bytes. True for each new record; a record that has been
        replaced or deleted is left out."""
        return self._submit(
            lambda batch: batch.damage.register(records), removes=bool(records), instances=len(records)
        )

    def forget_damage(self, ids: Sequence[bytes]) -> int:
        """The bytes of these records are whole. Returns how many of them were registered."""
        return self._writer.submit(lambda batch: batch.damage.forget(ids), instances=len(ids))

    def catch_up(self) -> None:
        """Make every commit visible, also the last one of a process that was killed in the middle of it. Call
        this before a decision that depends on the content."""
        self._writer.catch_up()

    def add_segment(self) -> int:
        return self._writer.submit(lambda batch: batch.add_segment())

    def put_segment(self, row: SegmentRow) -> None:
        """For a rebuild: the segment exists already, with this number."""
        self._writer.submit(lambda batch: batch.put_segment(row))

    def seal(self, segment: int, *, committed_end: int = 0, dead_bytes: int = 0) -> None:
        """It takes no more records. A SEAL record at its end gives a new end, and dead bytes."""
        self._writer.submit(lambda batch: batch.seal(segment, committed_end, dead_bytes))

    def note(self, name: str, text: str) -> None:
        """Write a row of `about`; an empty text removes it."""
        self._writer.submit(lambda batch: batch.note(name.encode(), text.encode()))

    def drop_segment(self, segment: int) -> None:
        """Raises StoreError while instances live in it."""
        self._writer.submit(lambda batch: batch.drop_segment(segment))

    # -- searching

    def search(self, query: Query, budget: Budget | None = None) -> Iterator[Hit]:
        """Matches, newest study first. Raises ContentTooLarge when the budget is spent."""
        return self.searching(query, budget or Budget()).hits()

    def searching(self, query: Query, budget: Budget) -> Search:
        """A search that has not begun."""
        return Search(self._environment, query, budget, self.parsing)

    def listed(self, attribute: QueryAttribute, form: str, most: int) -> list[tuple[str, LevelRow]] | None:
        """The studies under one normal form of a study attribute, by UID; None if there are more than `most`.
        Long values are listed by their beginning only: the caller compares the rows."""
        keys = self._terms(term_prefix(attribute) + cut(form))
        with self._reading("looking up studies by a value") as transaction:
            for key in keys:
                self._environment.expect_list(transaction, key, most)
            cursor = transaction.cursor(db=self._handles["attributes"])
            found: list[tuple[str, bytes]] = []
            for key in keys:
                if not cursor.set_key(key):
                    continue
                if cursor.count() > most:
                    return None
                found += self._listed(transaction, cursor.iternext_dup(), key)
        return [(study, LevelRow.unpack(value)) for study, value in found]

    def _terms(self, term: bytes) -> Sequence[bytes]:
        """The terms under which studies are looked up that have this one."""
        return (term,)

    def _listed(
        self, transaction: Transaction, studies: Iterable[bytes], term: bytes
    ) -> Iterator[tuple[str, bytes]]:
        """The packed rows of those studies under a term that are visible."""
        for study in studies:
            if value := self._get(transaction, "studies", study):
                yield study.decode(), value

    @property
    def counts(self) -> bool:
        """Whether totals are known. A view does not know those of a rule that shows many studies and hides
        many."""
        return True

    def least(self, query: Query) -> int:
        """The number of matches at least of a query without conditions, if `total` does not know it; else
        0."""
        return 0

    def total(self, query: Query, most: int = 0) -> int | None:
        """Number of matches, if it is known without a search: the query has no conditions, or up to `most`
        values of an inverted list tell it."""
        if query.conditions and most:
            return Lists(self._environment, Budget()).count(query, most)
        if query.conditions or query.uids:
            return None
        if query.study is None:
            name = ("studies", "series", "instances")[query.level]
            with self._reading("counting") as transaction:
                entries: int = transaction.stat(self._handles[name])["entries"]
            return entries
        if query.level is Level.INSTANCE:
            return self.count(query.study, query.series)
        row = self._level_row(query.study)
        return row.series if row else 0

    # -- segments, changes, the index itself

    def segments(self) -> dict[int, SegmentRow]:
        with self._reading("listing segments") as transaction:
            rows = [
                unpack_segment(key, value) for key, value in transaction.cursor(db=self._handles["segments"])
            ]
        return {row.segment: row for row in rows}

    def readable_segments(self) -> tuple[dict[int, SegmentRow], list[int]]:
        """The segments whose rows can be read, and the numbers of the others."""
        rows, damaged = dict[int, SegmentRow](), list[int]()
        for key, value in self.dump("segments"):
            try:
                row = unpack_segment(key, value)
            except StoreCorrupt:
                damaged.append(int.from_bytes(key, "big"))
            else:
                rows[row.segment] = row
        return rows, damaged

    def segment(self, segment: int) -> SegmentRow | None:
        key = segment_key(segment)
        with self._reading("looking up a segment") as transaction:
            value = self._get(transaction, "segments", key)
        return unpack_segment(key, value) if value else None

    def changes(self, after: int = 0, limit: int = ROWS_A_BATCH) -> list[Change]:
        """Changes in commit order, from sequence `after` + 1 on. Those before `first_change` are gone."""
        found: list[Change] = []
        with self._reading("reading changes") as transaction:
            cursor = transaction.cursor(db=self._handles["changes"])
            more = cursor.set_range(number_key(after + 1))
            while more and len(found) < limit:
                several = unpack_changes(int.from_bytes(cursor.key(), "big"), cursor.value())
                found += [change for change in several if change.sequence > after]
                more = cursor.next()
        return found[:limit]

    def latest_change(self) -> Change | None:
        """The last change in commit order."""
        with self._reading("reading the last change") as transaction:
            cursor = transaction.cursor(db=self._handles["changes"])
            more = cursor.last()
            while more:
                several = unpack_changes(int.from_bytes(cursor.key(), "big"), cursor.value())
                for change in reversed(several):
                    if self._tells(transaction, change):
                        return change
                more = cursor.prev()
        return None

    def _tells(self, transaction: Transaction, change: Change) -> bool:
        """Whether the reader may know of a change."""
        return True

    def changes_before(self, at: int) -> int:
        """The sequence of the last change before a time in microseconds since 1970, 0 if there is none. Times
        never decrease in commit order."""
        with self._reading("looking for a time in the log of changes") as transaction:
            cursor = transaction.cursor(db=self._handles["changes"])
            if not cursor.last():
                return 0
            last = int.from_bytes(cursor.key(), "big")
            if change_time(last, cursor.value()) < at:
                return last
            cursor.first()
            before, low, high = 0, int.from_bytes(cursor.key(), "big"), last
            while low <= high:  # the answer is `before`, or a row whose last sequence is in this range
                cursor.set_range(number_key((low + high) // 2))
                found = int.from_bytes(cursor.key(), "big")
                if change_time(found, cursor.value()) < at:
                    before, low = found, found + 1
                else:
                    high = (low + high) // 2 - 1
        return before

    def probe(self) -> None:
        """Read one row. Raises a StoreError if that fails."""
        with self._reading("reading the schema") as transaction:
            stored = self._get(transaction, "about", b"schema")
        without_sum("about", b"schema", stored or b"")

    def first_change(self) -> int:
        """The sequence of the oldest change that is kept. Ask after reading changes: old ones may go at any
        time."""
        return int(self.about()["first_change"])

    def about(self) -> dict[str, str]:
        """format (of the file), schema, table (of attributes), epoch, next_segment, first_change, store (its
        fingerprint). Sequences of changes count within an epoch; a rebuilt index has another."""
        with self._reading("reading about the index") as transaction:
            rows = list(transaction.cursor(db=self._handles["about"]))
        return {key.decode(): without_sum("about", key, value).decode() for key, value in rows}

    def all_rows(self) -> Iterator[tuple[InstanceKey, InstanceRow | None]]:
        """Every instance in the order of keys; None where its row cannot be read."""
        for packed, value in self.dump("instances"):
            key = split_triple(packed)
            try:
                yield key, unpack_instance(key, value)
            except StoreCorrupt:
                yield key, None

    def dump(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Every raw row of a database (see rows), in order and in batches. An index of the same instances has
        equal rows in instances (but for the serial, the first eight bytes), variants, studies, series,
        attributes and uids."""
        return dump(self._environment, name)

    def read_all(self) -> None:
        """Read every row of every database. Raises StoreError; a damaged file may end the process."""
        for name in DATABASES:
            for _ in self.dump(name):
                pass

    def rewrite(self, fileops: FileOps | None = None) -> None:
        """Copy all rows to a new file, which holds nothing of deleted rows. No other thread may use the index
        meanwhile. Raises StoreLocked if another process has it open."""
        self._environment.rewrite(fileops or FileOps())

    def statistics(self) -> dict[str, int]:
        """Number of rows in each database, and bytes of the index file in use and in all."""
        with self._reading("measuring the index") as transaction:
            rows = {name: transaction.stat(handle) for name, handle in self._handles.items()}
        counts: dict[str, int] = {name: stat["entries"] for name, stat in rows.items()}
        return counts | dict(self._environment.sizes())


class RestrictedIndex(Index):
    """Shares everything with its index. Each reading call decides in its own transaction. Values of rows that
    a caller has got this way (frame tables, metadata) need no further decision."""

    def __init__(self, index: Index, rule: Rule) -> None:
        self.__dict__.update(index.__dict__)
        self.rule = rule
        self._visibility = Visibility(self._environment, rule, self.rules)

    def _visible(self, transaction: Transaction, rows: Iterable[PackedRow]) -> Iterator[PackedRow]:
        for study, group in groupby(rows, lambda row: row[0].partition(b"\0")[0]):
            seen = self._visibility.sees(transaction, study.decode())
            if isinstance(seen, StudyPart):
                yield from seen.only(group)
            elif seen:
                yield from group

    def _under(self, transaction: Transaction, start: bytes, first: bytes, limit: int) -> list[PackedRow]:
        if not start:  # for maintenance, which is not restricted
            return super()._under(transaction, start, first, limit)
        study, _, series = start[:-1].decode().partition("\0")
        seen = self._visibility.sees(transaction, study)
        if not seen or (isinstance(seen, StudyPart) and series and series not in seen.series):
            return []
        read = partial(super()._under, transaction, start)
        return seen.under(read, first, limit) if isinstance(seen, StudyPart) else read(first, limit)

    def _instance_in(self, transaction: Transaction, key: bytes) -> bytes | None:
        value = self._get(transaction, "instances", key)
        return value if value is not None and self._visibility.shows(transaction, key, value) else None

    def _level(self, transaction: Transaction, study: str, series: str | None, value: bytes) -> bytes | None:
        seen = self._visibility.sees(transaction, study)
        if isinstance(seen, StudyPart):
            return seen.row if series is None else seen.series.get(series)
        return value if seen else None

    def _terms(self, term: bytes) -> Sequence[bytes]:
        return term, apart(term)

    def _listed(
        self, transaction: Transaction, studies: Iterable[bytes], term: bytes
    ) -> Iterator[tuple[str, bytes]]:
        view = self._visibility
        for study, whole in super()._listed(transaction, studies, term):
            value = view.row(transaction, study, whole)
            if value and view.lists(transaction, study.encode(), term):
                yield study, value

    def searching(self, query: Query, budget: Budget) -> Search:
        return Search(self._environment, query, budget, self.parsing, self._visibility)

    @property
    def counts(self) -> bool:
        return self._visibility.latest is not None

    def least(self, query: Query) -> int:
        known = self.counts or query.conditions or query.uids or query.study is not None
        return 0 if known else self._visibility.least()

    def total(self, query: Query, most: int = 0) -> int | None:
        """None also if the rule shows many studies and hides many."""
        few = self._visibility.latest
        if query.conditions and most and few is not None:
            return Lists(self._environment, Budget(), self._visibility, few).count(query, most)
        if query.conditions or query.uids:
            return None
        if query.study is None:
            return few.totals[query.level] if few is not None else None
        if query.level is Level.INSTANCE:
            return self.count(query.study, query.series)
        row = self._level_row(query.study)
        return row.series if row else 0

    def changes(self, after: int = 0, limit: int = ROWS_A_BATCH) -> list[Change]:
        """Those of instances with the facts of a visible one of their study, except for the modality if the
        rule does not name it: not the deletion of a whole study."""
        found: list[Change] = []
        while len(found) < limit and (page := super().changes(after, limit)):
            after = page[-1].sequence
            with self._reading("looking for visible studies") as transaction:
                told = {study: self._facts(transaction, study) for study in {each.key.study for each in page}}
            found += [change for change in page if self._compared(change.facts) in told[change.key.study]]
        return found[:limit]

    def _tells(self, transaction: Transaction, change: Change) -> bool:
        return self._compared(change.facts) in self._facts(transaction, change.key.study)

    def _facts(self, transaction: Transaction, study: str) -> set[bytes]:
        """The digests of the facts of the visible instances of a study."""
        seen = self._visibility.sees(transaction, study)
        if isinstance(seen, StudyPart):
            return set(map(self._compared, seen.facts))
        return set(map(self._compared, facts_under(transaction, self._handles, study))) if seen else set()

    def _compared(self, facts: bytes) -> bytes:
        return facts if self.rule.names_modality else facts[:OTHER_FACTS_BYTES]
