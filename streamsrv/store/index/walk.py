"""Searching: from a query to the matching studies, series or instances, in a stable order.

Strategy: studies come newest StudyDate first, then by UID; everything below a study in the order of its UIDs.
If a UID is given, or the inverted list of a condition is short, only those studies are read. Else the list of
study dates is read backwards until the caller has enough results: a condition that most studies meet needs no
list, and a condition that few studies meet has a short one. The stored row decides about every candidate, so
a list may hold too many.

Rules of this file: each batch has its own read transaction, and the next one continues behind the last key.
All reads are charged to a budget. A search that would cost more ends with an error (413, PS3.18 10.6.3: the
query was too broad), never with fewer results."""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from streamsrv.dicom.instance import JsonDataset
from streamsrv.query.attributes import BY_TAG, ORDERING, Level, term_prefix
from streamsrv.query.budget import Budget, Parsing
from streamsrv.query.conditions import Condition, Query
from streamsrv.query.matching import Probe
from streamsrv.query.values import NORMAL_BYTES, cut, date_form
from streamsrv.store.index.answers import instance_attributes, reader_of
from streamsrv.store.index.environment import Cursor, Environment
from streamsrv.store.index.metadata_blobs import SearchedMetadata
from streamsrv.store.index.rows import LevelRow, prefix, serial_of

FEW = 200  # a list of at most so many is used at once
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
    def __init__(
        self, environment: Environment, query: Query, budget: Budget, parsing: Parsing | None = None
    ) -> None:
        self._environment = environment
        self._handles = environment.handles
        self._query = query
        self._budget = budget
        self._lists = Lists(environment, budget)
        self._conditions: dict[Level, list[Condition]] = {level: [] for level in LEVELS}
        on_metadata: list[Condition] = []
        for condition in query.conditions:
            known = self._conditions[condition.row.level] if condition.row else on_metadata
            known.append(condition)
        self._metadata = SearchedMetadata(environment, budget, parsing or Parsing(), on_metadata)
        self._read = {level: self._reader(level) for level in LEVELS if self._conditions[level]}
        at_instances = self._conditions[Level.INSTANCE] or on_metadata
        instances = bool(at_instances or Level.INSTANCE in query.uids)
        series = bool(instances or self._conditions[Level.SERIES] or Level.SERIES in query.uids)
        # The deepest level of conditions and target.
        reach = Level.INSTANCE if instances else Level.SERIES if series else Level.STUDY
        self._depth = max(reach, query.level)

    def hits(self) -> Iterator[Hit]:
        for study, row in self._studies():
            if self._accepts(Level.STUDY, row):
                hit = Hit(study, row)
                yield from self._once(Level.STUDY, self._series(hit)) if self._depth > Level.STUDY else (hit,)

    def _series(self, above: Hit) -> Iterator[Hit]:
        for series, row in self._series_rows(above.study):
            if self._accepts(Level.SERIES, row):
                hit = Hit(above.study, above.study_row, series, row)
                yield from (
                    self._once(Level.SERIES, self._instances(hit)) if self._depth > Level.SERIES else (hit,)
                )

    def _instances(self, above: Hit) -> Iterator[Hit]:
        for instance, value in self._instance_rows(above.study, above.series or ""):
            if self._accepts(Level.INSTANCE, value) and self._metadata.accept(serial_of(value)):
                yield Hit(above.study, above.study_row, above.series, above.series_row, instance, value)

    def _once(self, level: Level, below: Iterator[Hit]) -> Iterator[Hit]:
        """If the query asks for this level, one match below it is enough."""
        if self._query.level > level:
            yield from below
        else:
            yield from (hit for hit, _ in zip(below, range(1), strict=False))

    # -- deciding

    def _reader(self, level: Level) -> Callable[[Any], JsonDataset]:
        """Reads the attributes of a row that the conditions at its level need."""
        if level is Level.INSTANCE:
            return instance_attributes
        return reader_of(level, (tag for condition in self._conditions[level] for tag in condition.tags))

    def _accepts(self, level: Level, row: Any) -> bool:
        conditions = self._conditions[level]
        if not conditions:
            return True
        if self._budget.optional and not self._budget.spend(rows=1):  # the rows may have been read before
            return False
        found = self._read[level](row)
        return all(condition.accepts(found) for condition in conditions)

    # -- studies

    def _studies(self) -> Iterator[tuple[str, LevelRow]]:
        candidates = self._named()
        if candidates is None:
            candidates = self._listed()
        if candidates is None:
            walked = self._lists.walk(*self._days(), self._resume(), self._query.wanted)
            yield from ((study, row) for study, row in walked if not self._is_past(study))
            return
        rows = list(self._lists.rows(sorted(candidates)))
        rows.sort(key=lambda found: study_date(found[1]), reverse=True)  # stable: by UID within a day
        yield from ((study, row) for study, row in rows if self._lies_ahead(study, row))

    def _resume(self) -> tuple[bytes, bytes] | None:
        """The day and the first study behind `after`; it may have more series or instances."""
        after = self._query.after
        if after is None:
            return None
        inside = self._query.level > Level.STUDY
        return ALL_DAYS[0] + cut(after.date), after.study.encode() + (b"" if inside else b"\0")

    def _is_past(self, study: str) -> bool:
        """Whether an earlier page had it, although its date may have changed."""
        after = self._query.after
        return after is not None and study == after.study and self._query.level is Level.STUDY

    def _lies_ahead(self, study: str, row: LevelRow) -> bool:
        after = self._query.after
        if after is None or study == after.study:
            return not self._is_past(study)
        date = study_date(row)
        return date < after.date or (date == after.date and study > after.study)

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

    def _listed(self) -> set[str] | None:
        """The studies that all short inverted lists have in common; None if reading in order is less work."""
        conditions = [each for condition in self._query.conditions for each in condition.listed]
        if not conditions or [each.row.tag for each in conditions if each.row] == [ORDERING]:
            return None
        if len(conditions) == 1 and all(probe.exact for probe in conditions[0].probes()):
            few = self._lists.collect(conditions[0], FEW)
            if few is not None:
                return few
        total = self._lists.studies()
        # Reading in order stops after the wanted number of rows; a list is read completely.
        short = max(math.isqrt(self._query.wanted * total), FEW)
        # Several long lists may have few studies in common.
        most = CANDIDATES if len(conditions) > 1 else min(CANDIDATES, short)
        found: set[str] | None = None
        for scans in (False, True):
            # Reading a value of a list costs an eighth of reading a row.
            if scans and found is not None and len(found) <= max(FEW, total // 8):
                break
            for condition in conditions:
                if any(probe.scans for probe in condition.probes()) is scans:
                    listed = self._lists.collect(condition, most)
                    found = listed if found is None else found & (found if listed is None else listed)
                if found is not None and len(found) <= FEW:
                    return found
        return None if found is not None and len(found) > short else found

    def _days(self) -> tuple[bytes, bytes]:
        """The first and the last key of the study date list that may match."""
        for condition in self._conditions[Level.STUDY]:
            if condition.row is not None and condition.row.tag == ORDERING:
                (probe,) = condition.probes()
                return ALL_DAYS[0] + probe.low, ALL_DAYS[0] + probe.high
        return ALL_DAYS

    # -- series and instances

    def _series_rows(self, study: str) -> Iterator[tuple[str, LevelRow]]:
        only = _allowed(self._query.series, self._query.uids.get(Level.SERIES))
        start = prefix(study)
        for key, value in self._under("series", start, only, self._behind(Level.SERIES, start)):
            yield key[len(study) + 1 :].decode(), LevelRow.unpack(value)

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
                values = [transaction.get(key, db=self._handles[name]) for key in keys]
            yield from ((key, value) for key, value in zip(keys, values, strict=True) if value is not None)
            return
        at = first
        for usual in batch_sizes(self._query.wanted):
            size = self._budget.portion(usual)
            batch: list[tuple[bytes, bytes]] = []
            with self._environment.reading("paging through rows") as transaction:
                cursor = transaction.cursor(db=self._handles[name])
                for row in itertools.islice(cursor.iternext(), size) if cursor.set_range(at) else ():
                    if not row[0].startswith(start):
                        break
                    batch.append(row)
            if not self._budget.spend(rows=len(batch)):
                return
            yield from batch
            if len(batch) < size:
                return
            at = batch[-1][0] + b"\0"


def _allowed(one: str | None, several: frozenset[str] | None) -> frozenset[str] | None:
    if one is None:
        return several
    return frozenset((one,)) if several is None else several & {one}


CANDIDATES = 5_000  # a longer list is not used: reading in order is as fast
ROWS_A_BATCH = 500
FIRST_KEYS = 64  # in the first batch, because most ranges are short
KEYS_A_BATCH = 5_000

_DATE_AT = re.compile(rb'"00080020":\{"vr":"DA","Value":\["([^"]*)"')
_BETWEEN = b"\xff" * 6  # in no key: forms are UTF-8, and before them are five bytes
ALL_DAYS = term_prefix(BY_TAG[ORDERING]), term_prefix(BY_TAG[ORDERING]) + cut("\uffff")


class Lists:
    def __init__(self, environment: Environment, budget: Budget) -> None:
        self._environment = environment
        self._handles = environment.handles
        self._budget = budget

    def studies_of(self, kind: bytes, uids: frozenset[str]) -> set[str]:
        found: set[str] = set()
        if not self._budget.spend(rows=len(uids)):
            return found
        with self._environment.reading("looking up UIDs") as transaction:
            cursor = transaction.cursor(db=self._handles["uids"])
            for uid in uids:
                if cursor.set_key(kind + uid.encode()):
                    if not self._budget.spend(rows=cursor.count()):
                        return found
                    found |= {value.split(b"\0")[0].decode() for value in cursor.iternext_dup()}
        return found

    def studies(self) -> int:
        with self._environment.reading("counting studies") as transaction:
            count: int = transaction.stat(self._handles["studies"])["entries"]
        return count

    def count(self, query: Query, most: int) -> int | None:
        """The number of matches, if the list of the only condition tells it: by one value, or by up to `most`
        study dates."""
        condition = query.conditions[0]
        row = condition.row
        if len(query.conditions) > 1 or not condition.certain or query.uids or query.study is not None:
            return None
        if row is None or row.level is not query.level:
            return None
        (probe,), start = condition.probes(), term_prefix(row)
        # A study may have several values in the list of any other attribute.
        most = most if row.tag == ORDERING else 1
        low, end = start + probe.low, start + (probe.low if probe.exact else probe.high + b"\xff")
        total = 0
        with self._environment.reading("counting entries") as transaction:
            cursor = transaction.cursor(db=self._handles["attributes"])
            more = cursor.set_range(low) and cursor.key() <= end
            while more and most:
                total, most = total + cursor.count(), most - 1
                more = cursor.next_nodup() and cursor.key() <= end
        return None if more else total

    def collect(self, condition: Condition, most: int) -> set[str] | None:
        """The studies that the probes of a condition find in the list of its attribute; None if there are
        more entries than `most`."""
        assert condition.row is not None
        start, found = term_prefix(condition.row), set[str]()
        for probe in condition.probes():
            for keys in [[start + probe.low]] if probe.exact else self._keys(start, probe):
                if not self._take(keys, condition.row.level, found, most):
                    return None
        return found

    def _take(self, keys: list[bytes], level: Level, found: set[str], most: int) -> bool:
        """Collect the studies under these keys; False if they are too many."""
        with self._environment.reading("reading a list of studies") as transaction:
            cursor = transaction.cursor(db=self._handles["attributes"])
            for key in keys:
                if cursor.set_key(key):
                    count = cursor.count()
                    if len(found) + count > most:
                        return False
                    if not self._budget.spend(rows=count // 8):
                        return False
                    found.update(_STUDIES[level](cursor.iternext_dup()))
        return self._budget.spend(rows=1 + len(keys) // 8)

    def _keys(self, start: bytes, probe: Probe) -> Iterator[list[bytes]]:
        """The keys that the probe accepts, in batches."""
        # Forms are UTF-8, which never holds 0xFF: behind all that begin with `high`.
        at, end, size = start + probe.low, start + probe.high + b"\xff", FIRST_KEYS
        more = True
        while more:
            size = min(size, self._budget.portion(size) * 8)
            with self._environment.reading("searching a list of values") as transaction:
                cursor = transaction.cursor(db=self._handles["attributes"])
                there = cursor.set_range(at)
                following = cursor.iternext_nodup(keys=True, values=False) if there else iter(())
                batch: list[bytes] = list(itertools.islice(following, size))
            more = len(batch) == size and batch[-1] < end
            at, size = batch[-1] + b"\0" if batch else at, KEYS_A_BATCH
            if not self._budget.spend(rows=len(batch) // 8):
                return
            yield _accepted(batch[: bisect.bisect(batch, end)], probe, len(start))

    def rows(self, studies: list[str]) -> Iterator[tuple[str, LevelRow]]:
        for first in range(0, len(studies), ROWS_A_BATCH):
            batch = studies[first : first + ROWS_A_BATCH]
            if not self._budget.spend(rows=len(batch)):
                return
            with self._environment.reading("reading studies") as transaction:
                values = [transaction.get(study.encode(), db=self._handles["studies"]) for study in batch]
            yield from (
                (study, LevelRow.unpack(value))
                for study, value in zip(batch, values, strict=True)
                if value is not None
            )

    def walk(
        self, low: bytes, high: bytes, at: tuple[bytes, bytes] | None, wanted: int
    ) -> Iterator[tuple[str, LevelRow]]:
        """The studies with dates between two keys of their list, in order; from `at` on, a key and a study
        that may no longer exist."""
        at = at if at and at[0] <= high + b"\xff" else None
        sizes = batch_sizes(wanted)
        more = True
        while more:
            batch: list[tuple[str, LevelRow]] = []
            with self._environment.reading("walking through studies") as transaction:
                cursor = transaction.cursor(db=self._handles["attributes"])
                more = _begin(cursor, high) if at is None else _go_on(cursor, *at)
                more = more and cursor.key() >= low
                size = self._budget.portion(next(sizes))
                while more and len(batch) < size:
                    day, study = cursor.item()
                    at = day, study + b"\0"
                    value = transaction.get(study, db=self._handles["studies"])
                    if value is not None:
                        batch.append((study.decode(), LevelRow.unpack(value)))
                    more = _back(cursor) and cursor.key() >= low
            if not self._budget.spend(rows=len(batch)):
                return
            yield from batch


def batch_sizes(wanted: int) -> Iterator[int]:
    """The wanted number first; then more and more, because few rows match."""
    size = min(wanted, ROWS_A_BATCH)
    while True:
        yield size
        size = min(size * 4, ROWS_A_BATCH)


def study_date(row: LevelRow) -> str:
    """The study date in the form of the list of study dates, "" without date."""
    found = _DATE_AT.search(row.answer)
    return (date_form(found[1].decode()) or "") if found else ""


def _accepted(keys: list[bytes], probe: Probe, begin: int) -> list[bytes]:
    """The keys whose forms, from `begin` on, the probe accepts."""
    long = begin + NORMAL_BYTES - 3  # a form that may have been cut, perhaps within a character
    needle, accepts = probe.needle, probe.accepts
    if needle and max(map(len, keys), default=0) < long:
        keys = _holding(keys, needle, probe.caseless)
    if accepts:
        keys = [key for key in keys if accepts(key[begin:].decode("utf-8", "replace"))]
    return keys


def _holding(keys: list[bytes], needle: bytes, caseless: bool) -> list[bytes]:
    """The keys that hold the needle. Searching one joined text is ten times as fast."""
    whole = _BETWEEN.join([b"", *keys, b""])
    text = whole.lower() if caseless else whole  # of the same length
    if text.count(needle) > len(keys) // 8:
        return [key for key in keys if needle in (key.lower() if caseless else key)]
    found = []
    at = text.find(needle)
    while at >= 0:
        end = text.index(_BETWEEN, at)
        found.append(whole[text.rindex(_BETWEEN, 0, at) + len(_BETWEEN) : end])
        at = text.find(needle, end)
    return found


# From the entries of a list: a study, or a study and a series.
_STUDIES: dict[Level, Callable[[Iterable[bytes]], Iterable[str]]] = {
    Level.STUDY: partial(map, bytes.decode),
    Level.SERIES: lambda entries: {entry.partition(b"\0")[0].decode() for entry in entries},
}


# The list of study dates is read backwards by day, forwards within a day.


def _begin(cursor: Cursor, high: bytes) -> bool:
    """Move to the first study of the last day that begins with `high` or is before it."""
    # Behind every key that begins with `high`: forms are UTF-8, which never holds 0xFF.
    there = cursor.prev_nodup() if cursor.set_range(high + b"\xff") else cursor.last()
    return bool(there and cursor.first_dup())


def _go_on(cursor: Cursor, day: bytes, study: bytes) -> bool:
    """Move to the first study from `study` on."""
    if cursor.set_range_dup(day, study):
        return True
    return _begin_before(cursor, day)


def _begin_before(cursor: Cursor, day: bytes) -> bool:
    there = cursor.prev_nodup() if cursor.set_range(day) else cursor.last()
    return bool(there and cursor.first_dup())


def _back(cursor: Cursor) -> bool:
    return bool(cursor.next_dup() or (cursor.prev_nodup() and cursor.first_dup()))
