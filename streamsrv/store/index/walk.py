"""Searching: from a query to the matching studies, series or instances, in a stable order.

Strategy: studies come in the order of a list, usually that of study dates, the newest first; equal ones and
everything below a study in the order of UIDs. If a UID is given, or the inverted list of a condition is
short, only those studies are read. Else the list of the order is read until the caller has enough results: a
condition that most studies meet needs no list, and a condition that few studies meet has a short one. The
stored row decides about every candidate, so a list may hold too many.

A condition on parts of text has to read its whole list. So some studies are read in order before: if many
match, these are enough.

Rules of this file: each batch has its own read transaction, and the next one continues behind the last key.
All reads are charged to a budget. A search that would cost more ends with an error (413, PS3.18 10.6.3: the
query was too broad), never with fewer results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from streamsrv.query.attributes import ORDERING, Level, Position
from streamsrv.query.budget import Budget, Parsing
from streamsrv.query.conditions import Condition, Query
from streamsrv.store.index.answers import instance_json, texts_of
from streamsrv.store.index.few_studies import FewStudies
from streamsrv.store.index.levels import StudyPart
from streamsrv.store.index.lists import Lists
from streamsrv.store.index.metadata_blobs import SearchedMetadata
from streamsrv.store.index.ordered import (
    ALL_FORMS,
    FormRange,
    OrderedStudies,
    StudyRow,
    batch_sizes,
    value_reader,
)
from streamsrv.store.index.rows import LevelRow, json_object, prefix, serial_of
from streamsrv.store.index.visibility import Visibility
from streamsrv.store.ordered_map import OrderedMap, Pair, Transaction, UnderEach

FEW = 200  # a list of at most so many is used at once
CANDIDATES = 5_000  # a longer list is not used: reading in order is as fast
GUESSED = 8  # So many times the wanted rows are read before a list that must be scanned, at most.
TOGETHER, LONG = 128, 64  # studies at most whose series are read together, and series of each.
AHEAD = 20  # studies that a remote index reads behind the wanted ones, for the caller to count.
REMEMBERED = 16  # values that a search has compared: often all are equal.
LEVELS = tuple(Level)  # iterating an enumeration takes a microsecond


@dataclass(slots=True)
class Hit:
    """A match, with the rows that were read for it. Below the level of the query it also names the first
    series or instance that met the conditions there."""

    study: str
    study_row: LevelRow
    series: str | None = None
    series_row: LevelRow | None = None
    instance: str | None = None
    instance_row: bytes | None = None


class Search:
    """One search. With a `view` it finds only visible studies."""

    def __init__(
        self,
        environment: OrderedMap,
        query: Query,
        budget: Budget,
        parsing: Parsing | None = None,
        view: Visibility | None = None,
    ) -> None:
        self._environment = environment
        self._handles = environment.handles
        self._query = query
        self._budget = budget
        self._view = view
        self._lists = Lists(environment, budget, view)
        ahead = AHEAD if environment.remote and query.conditions and query.counted_by is None else 0
        self._ordered = OrderedStudies(environment, budget, query.order, query.wanted + ahead, view)
        self._value = value_reader(query.order)
        self.total: int | None = None  # matches, if the search came to know their number
        self._conditions: dict[Level, list[Condition]] = {level: [] for level in LEVELS}
        on_metadata: list[Condition] = []
        for condition in query.conditions:
            known = self._conditions[condition.row.level] if condition.row else on_metadata
            known.append(condition)
        self._metadata = SearchedMetadata(environment, budget, parsing or Parsing(), on_metadata)
        self._texts = {level: self._texts_of(level) for level in LEVELS if self._conditions[level]}
        self._decided: dict[Level, dict[bytes, bool]] = {level: {} for level in self._texts}
        at_instances = self._conditions[Level.INSTANCE] or on_metadata
        instances = bool(at_instances or Level.INSTANCE in query.uids)
        series = bool(instances or self._conditions[Level.SERIES] or Level.SERIES in query.uids)
        # The deepest level of conditions and target.
        reach = Level.INSTANCE if instances else Level.SERIES if series else Level.STUDY
        self._depth = max(reach, query.level)
        self._series_read: dict[str, list[Pair]] = {}  # of the studies that come next

    def hits(self) -> Iterator[Hit]:
        for study, row in self._with_series(self._studies()):
            if self._budget.spent:
                return
            if self._accepts(Level.STUDY, row):
                hit = Hit(study, row)
                if self._depth > Level.STUDY:
                    yield from self._once(Level.STUDY, self._series(hit))
                else:
                    yield hit

    def _series(self, above: Hit) -> Iterator[Hit]:
        for series, row in self._series_rows(above.study):
            if self._accepts(Level.SERIES, row):
                hit = Hit(above.study, above.study_row, series, row)
                if self._depth > Level.SERIES:
                    yield from self._once(Level.SERIES, self._instances(hit))
                else:
                    yield hit

    def _instances(self, above: Hit) -> Iterator[Hit]:
        for instance, value in self._instance_rows(above.study, above.series or ""):
            if self._accepts(Level.INSTANCE, value) and self._metadata.accept(serial_of(value)):
                yield Hit(above.study, above.study_row, above.series, above.series_row, instance, value)

    def _once(self, level: Level, below: Iterator[Hit]) -> Iterator[Hit]:
        """If the query asks for this level, one match below it is enough."""
        return below if self._query.level > level else itertools.islice(below, 1)

    # -- deciding

    def _texts_of(self, level: Level) -> Callable[[Any], bytes]:
        """Finds the attributes of a row that the conditions at its level need, as a JSON object."""
        if level is Level.INSTANCE:
            return instance_json
        return texts_of(level, (tag for condition in self._conditions[level] for tag in condition.tags))

    def _accepts(self, level: Level, row: Any) -> bool:
        conditions = self._conditions[level]
        if not conditions:
            return True
        if self._budget.optional and not self._budget.spend(rows=1):  # the rows may have been read before
            return False
        text = self._texts[level](row)
        known = self._decided[level]
        accepted = known.get(text)
        if accepted is None:
            found = json_object(text)
            accepted = all(condition.accepts(found) for condition in conditions)
            if len(known) < REMEMBERED:
                known[text] = accepted
        return accepted

    # -- studies

    def _studies(self) -> Iterator[StudyRow]:
        # An earlier page may have had the study of the cursor, although its value has changed since.
        past = self._query.after if self._query.level is Level.STUDY else None
        if past is None:
            return self._in_order()
        return (each for each in self._in_order() if each[0] != past.study)

    def _in_order(self) -> Iterator[StudyRow]:
        query = self._query
        conditions = [each for condition in query.conditions for each in condition.listed]
        candidates = self._named()
        few = self._few() if candidates is None else None
        if self._budget.spent:
            return
        total = 0
        if conditions and candidates is None:
            total = few.totals[Level.STUDY] if few else self._lists.studies()
        if candidates is None and conditions:
            candidates = self._listed(conditions, total)
        if candidates is not None:
            yield from self._sorted(candidates, query.after, inside=True)
            return
        if self._view is not None and few is not None and not few.hidden:
            self._ordered.few = self._view.in_order(few, query.order, self._budget)
            if self._budget.spent:
                return
        walked = self._ordered.walk(self._forms(), query.after, inside=query.level > Level.STUDY)
        if any(map(_scans, conditions)) and not self._scans_first(total):
            scan = total // self._environment.scanned
            self._ordered.soon = first = min(query.wanted * GUESSED, scan)
            last: StudyRow | None = None
            for count, last in enumerate(itertools.islice(walked, first), 1):  # noqa: B007  # used below
                yield last
            if last is None or count < first:
                return
            candidates = self._in_lists(conditions, self._longest(conditions, total), scan)
            if candidates is not None:
                yield from self._sorted(candidates, Position(self._value(last[1]), last[0]), inside=False)
                return
        yield from walked

    def _few(self) -> FewStudies | None:
        """The visible or hidden studies, if they are few. If few are visible, the search reads no others."""
        few = self._view.few(self._budget) if self._view else None
        if self._view is not None and few is not None:
            self._lists = Lists(self._environment, self._budget, self._view, few)
        return few

    def _sorted(self, studies: set[str], after: Position | None, *, inside: bool) -> Iterator[StudyRow]:
        """The studies behind a position, in order; with `inside` also that of the position."""
        order = self._query.order
        rows = [(self._value(row), study, row) for study, row in self._lists.rows(sorted(studies))]
        for value, study, row in order.sorted(rows):
            if after is None or order.is_ahead(value, study, after) or (inside and study == after.study):
                yield study, row

    def _named(self) -> set[str] | None:
        """The studies that match the UIDs in path and parameters; None without UIDs."""
        query = self._query
        sets = [{query.study}] if query.study is not None else []
        if Level.STUDY in query.uids:
            sets.append(set(query.uids[Level.STUDY]))
        for level, kind in ((Level.SERIES, b"s"), (Level.INSTANCE, b"i")):
            if level in query.uids and query.study is None:
                sets.append(self._lists.studies_of(kind, query.uids[level]))
        return set.intersection(*sets) if sets else None

    def _listed(self, conditions: Sequence[Condition], total: int) -> set[str] | None:
        """The studies that all short lists have in common; None if reading in order may be less work."""
        first, *others = conditions
        in_order = first.row is not None and first.row.tag == self._query.order.tag
        if in_order and not others and not all(probe.exact for probe in first.probes()):
            return None
        scanned = self._scans_first(total)
        chosen = [each for each in conditions if scanned or not _scans(each)]
        scan = total // self._environment.scanned
        found = self._in_lists(chosen, self._longest(conditions, total), scan)
        return None if found is not None and len(found) > self._short(total) else found

    def _in_lists(self, conditions: Sequence[Condition], most: int, scan: int) -> set[str] | None:
        """The studies that lists with at most `most` entries have in common; None without such a list. `scan`
        is the number of rows that cost as much as a list that is read completely."""
        found: set[str] | None = None
        for condition in sorted(conditions, key=_scans):
            if found is not None and len(found) <= max(FEW, scan if _scans(condition) else 0):
                break
            counting = self._view is None and self._query.counted_by is condition
            listed = self._lists.collect(condition, most, counting=counting)
            if counting and listed is None:
                self.total = self._lists.counted or None
            if listed is not None:
                found = listed if found is None else found & listed
        return found

    def _longest(self, conditions: Sequence[Condition], total: int) -> int:
        """The length of a list that is read: several long ones may have few studies in common."""
        return CANDIDATES if len(conditions) > 1 else min(CANDIDATES, self._short(total))

    def _short(self, total: int) -> int:
        """The length of a list at which reading in order costs the same: it stops after the wanted number of
        rows, while a list is read completely."""
        return max(math.isqrt(self._query.wanted * total), FEW)

    def _scans_first(self, total: int) -> bool:
        """Whether to read a list completely costs no more than to read a page of rows."""
        return total // self._environment.scanned <= self._query.wanted

    def _forms(self) -> FormRange:
        """The forms in the list of the order that may match."""
        for condition in self._conditions[Level.STUDY]:
            if condition.row is not None and condition.row.tag == self._query.order.tag:
                (probe, *others) = condition.probes()
                if condition.row.tag == ORDERING:
                    return FormRange(probe.low, probe.high, rest=not probe.low)
                if condition.listed and not others and not probe.scans:
                    return FormRange(probe.low, probe.low if probe.exact else probe.high, rest=False)
        return ALL_FORMS

    # -- series and instances

    def _with_series(self, studies: Iterator[StudyRow]) -> Iterator[StudyRow]:
        """The same studies. Where a question is a round trip, the series of several are read together. A rule
        has to decide in the transaction that reads, so with a view each study has its own."""
        each = self._environment.under_each
        if each is None or self._view or self._depth is Level.STUDY or Level.SERIES in self._query.uids:
            return studies
        return self._read_together(each, studies)

    def _read_together(self, each: UnderEach, studies: Iterator[StudyRow]) -> Iterator[StudyRow]:
        usual = min(self._query.wanted, TOGETHER)
        while some := list(self._with_wanted_series(itertools.islice(studies, usual))):
            usual = TOGETHER
            named = [study for study, row in some if self._accepts(Level.STUDY, row)]
            with self._environment.reading("reading series") as transaction:
                found = each(transaction, "series", list(map(prefix, named)), LONG) if len(named) > 1 else []
            self._series_read = {
                study: rows for study, rows in zip(named, found, strict=False) if len(rows) < LONG
            }
            yield from some

    def _with_wanted_series(self, studies: Iterator[StudyRow]) -> Iterator[StudyRow]:
        """The next ones, until they have the wanted series. Conditions below may accept the half of them."""
        chosen = self._conditions[Level.SERIES] or self._depth > self._query.level
        series, most = 0, self._query.wanted * (2 if chosen else 1)
        for study, row in studies:
            yield study, row
            series += row.series
            if series >= most:
                return

    def _series_rows(self, study: str) -> Iterator[tuple[str, LevelRow]]:
        begin, after = len(study) + 1, self._query.after
        rows: Iterable[Pair] = ()
        read = self._series_read.get(study)
        if read is None or (after is not None and after.study == study):
            only = _allowed(self._query.series, self._query.uids.get(Level.SERIES))
            start = prefix(study)
            rows = self._under("series", start, only, self._behind(Level.SERIES, start))
        elif not self._budget.spent and self._budget.spend(rows=len(read)):
            rows = read
        for key, value in rows:
            yield key[begin:].decode(), LevelRow.unpack(value)

    def _instance_rows(self, study: str, series: str) -> Iterator[tuple[str, bytes]]:
        start = prefix(study, series)
        only = self._query.uids.get(Level.INSTANCE)
        for key, value in self._under("instances", start, only, self._behind(Level.INSTANCE, start)):
            yield key[len(start) :].decode(), value

    def _behind(self, level: Level, start: bytes) -> bytes:
        """The first key under `start` that is behind `after`."""
        after = self._query.after
        if after is None:
            return start
        *above, uid = (after.study, after.series, after.instance)[: level + 1]
        if uid is None or prefix(*(each or "" for each in above)) != start:
            return start
        return start + uid.encode() + (b"\0" if level is self._query.level else b"")

    def _under(
        self, name: str, start: bytes, only: frozenset[str] | None, first: bytes
    ) -> Iterator[tuple[bytes, bytes]]:
        """The rows whose keys begin with `start`, from `first` on; with `only`, the named ones."""
        if self._budget.spent:
            return
        if only is not None:
            keys = [key for key in (start + uid.encode() for uid in sorted(only)) if key >= first]
            if not self._budget.spend(rows=len(keys)):
                return
            with self._environment.reading("reading rows by UID") as transaction:
                seen = self._sees(transaction, start)
                rows = transaction.cursor(db=self._handles[name]).getmulti(keys) if seen else []
                rows = list(seen.only(rows)) if isinstance(seen, StudyPart) else rows
            yield from rows
            return
        at, under = first, self._environment.under if self._view is None else self._visible_under
        for usual in batch_sizes(self._query.wanted):
            size = self._budget.portion(usual)
            with self._environment.reading("paging through rows") as transaction:
                batch = under(transaction, name, start, at, size)
            if not self._budget.spend(rows=len(batch)):
                return
            yield from batch
            if len(batch) < size:
                return
            at = batch[-1][0] + b"\0"

    def _visible_under(
        self, transaction: Transaction, name: str, start: bytes, first: bytes, size: int
    ) -> list[Pair]:
        read = partial(self._environment.under, transaction, name, start)
        seen = self._sees(transaction, start)
        if isinstance(seen, StudyPart):
            return seen.under(read, first, size)
        return read(first, size) if seen else []

    def _sees(self, transaction: Transaction, start: bytes) -> StudyPart | bool:
        """The visible part of the study of these keys, or whether it is visible, in this version."""
        return self._view is None or self._view.sees(transaction, start.partition(b"\0")[0].decode())


def _scans(condition: Condition) -> bool:
    """Whether its list must be read completely."""
    return any(probe.scans for probe in condition.probes())


def _allowed(one: str | None, several: frozenset[str] | None) -> frozenset[str] | None:
    if one is None:
        return several
    return frozenset((one,)) if several is None else several & {one}
