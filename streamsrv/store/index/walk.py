"""Searching: from a query to the studies, series or instances that match, in a stable order.

Strategy: studies come newest StudyDate first, then by UID; below a study everything is in the order of its
UIDs. Where a UID is given, or where the inverted list of one condition is short, only those studies are
looked at. Else the list of study dates is walked backwards, and the walk ends as soon as the caller has
enough: a condition that most studies meet needs no list, and one that few meet has a short one. Every
candidate is decided on its stored row, so a list may offer too much.

Rules of this file: each batch has its own read transaction, and the next one goes on behind the last key.
Everything looked at is charged to a budget, and a search that would cost more ends in words (413, PS3.18
10.6.3: the query was too broad), never in fewer results.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from streamsrv.dicom.instance import JsonDataset
from streamsrv.query.attributes import Level
from streamsrv.query.budget import Budget, Parsing
from streamsrv.query.conditions import Condition, Query
from streamsrv.query.terms import ORDERING
from streamsrv.query.values import cut
from streamsrv.store.index.answers import instance_attributes, reader_of
from streamsrv.store.index.environment import Environment
from streamsrv.store.index.lists import ALL_DAYS, CANDIDATES, Lists, batch_sizes, study_date
from streamsrv.store.index.rows import LevelRow, prefix, serial_of
from streamsrv.store.index.searched_metadata import SearchedMetadata

FEW = 200  # a list that offers no more is used at once
LEVELS = tuple(Level)  # going through an enumeration takes a microsecond each time


@dataclass(slots=True)
class Hit:
    """What matched, with the rows that were read on the way. Below the level of the query the first series or
    instance that met the conditions there is named too, as a witness."""

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
        # How deep the conditions reach, or the target does.
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
        """Where the query asks for this level, one match below it is enough."""
        if self._query.level > level:
            yield from below
        else:
            yield from (hit for hit, _ in zip(below, range(1), strict=False))

    # -- deciding

    def _reader(self, level: Level) -> Callable[[Any], JsonDataset]:
        """What a row says of all that is asked at its level."""
        if level is Level.INSTANCE:
            return instance_attributes
        return reader_of(level, (tag for condition in self._conditions[level] for tag in condition.tags))

    def _accepts(self, level: Level, row: Any) -> bool:
        conditions = self._conditions[level]
        if not conditions:
            return True
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
        """The day and the first study behind `after`, which may itself have more series or instances."""
        after = self._query.after
        if after is None:
            return None
        inside = self._query.level > Level.STUDY
        return ALL_DAYS[0] + cut(after.date), after.study.encode() + (b"" if inside else b"\0")

    def _is_past(self, study: str) -> bool:
        """Met already, although its date may have changed since."""
        after = self._query.after
        return after is not None and study == after.study and self._query.level is Level.STUDY

    def _lies_ahead(self, study: str, row: LevelRow) -> bool:
        after = self._query.after
        if after is None or study == after.study:
            return not self._is_past(study)
        date = study_date(row)
        return date < after.date or (date == after.date and study > after.study)

    def _named(self) -> set[str] | None:
        """The studies that UIDs in path and parameters leave, None if there are no UIDs."""
        query = self._query
        sets = [{query.study}] if query.study is not None else []
        if Level.STUDY in query.uids:
            sets.append(set(query.uids[Level.STUDY]))
        for level, kind in ((Level.SERIES, b"s"), (Level.INSTANCE, b"i")):
            if level in query.uids and query.study is None:
                sets.append(self._lists.studies_of(kind, query.uids[level]))
        return set.intersection(*sets) if sets else None

    def _listed(self) -> set[str] | None:
        """The studies that all short inverted lists have in common; None where walking in order is less
        work."""
        conditions = [each for each in self._query.conditions if each.row and each.row.indexed]
        if not conditions or [each.row.tag for each in conditions if each.row] == [ORDERING]:
            return None
        if len(conditions) == 1 and all(probe.exact for probe in conditions[0].probes()):
            few = self._lists.collect(conditions[0], FEW)
            if few is not None:
                return few
        total = self._lists.studies()
        # The walk reads rows until it has found as many as are wanted, the list reads all of its own.
        short = max(math.isqrt(self._query.wanted * total), FEW)
        # Several lists may have few studies in common, however long each of them is.
        most = CANDIDATES if len(conditions) > 1 else min(CANDIDATES, short)
        found: set[str] | None = None
        for scans in (False, True):
            # Looking at every value of a list costs an eighth of reading as many rows.
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
        """Where the rows under `start` begin that lie behind `after`."""
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
        """The rows whose keys begin with `start`, or of these the ones that `only` names; from `first` on."""
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
