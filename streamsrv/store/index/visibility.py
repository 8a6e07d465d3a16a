"""The studies that a rule of access shows, remembered from one version of the index to the next.

Strategy: the row of a study has the facts of all its instances (levels.py), and the rule decides on them. If
it shows some of them, it decides variant by variant, and the view has the `StudyPart` that it shows. The
decision is remembered by study. After a commit only the studies of the changes since then are forgotten.

The studies that a rule shows are remembered, with their counts and their orders: a search reads no other
study. If it hides fewer, these are remembered instead: a decision is one look-up. Either way all counts are
known. Of a rule that shows and hides more studies than the memory holds (few_studies.py), it is known how
many it shows at least.

Rules of this file
- A decision is made in the transaction that reads the rows, so both are of one version.
- The event loop never waits for another thread here: it decides without remembering.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container
from typing import TypeAlias

import orjson

from streamsrv.errors import StoreCorrupt
from streamsrv.query.attributes import NEWEST, Level, StudyOrder, terms
from streamsrv.query.budget import BRIEF_ROWS, Budget
from streamsrv.query.rules import STUDY_UID, Alternative, Rule, RuleCondition
from streamsrv.store.index.answers import level_attributes
from streamsrv.store.index.environment import dump
from streamsrv.store.index.few_studies import (
    FewInOrder,
    FewStudies,
    RuleMemory,
    Side,
    StudyRows,
    place_of,
    rows_of,
)
from streamsrv.store.index.levels import StudyPart, fact_reader, part_of
from streamsrv.store.index.lists import END, ROWS_A_BATCH, Lists
from streamsrv.store.index.rows import LevelRow, number_key, studies_changed, together
from streamsrv.store.ordered_map import OrderedMap, Transaction, same_server

# Decisions that are remembered, of 150 bytes each.
KNOWN, KNOWN_PARTS = 20_000, 1_000
KNOWN_BYTES, PART_BYTES, KNOWN_AT_ONCE = 150, 8_000, 1 << 10
# Studies that are decided on to find the visible or hidden ones, in 5 us each.
MOST_DECIDED = 500_000
# If a rule hides a study of so many, a search passes hidden ones as fast as it finds the visible ones alone.
SKIPPED = 4
# Entries of a list that are read for them, at least. A study is listed once for each series.
ENTRIES = 40_000
# More changes cost as much as starting again.
MOST_CHANGES = 1_000
# Versions for which a rule that shows and hides many studies is not tried again.
BROAD_FOR = 10_000


Seen: TypeAlias = StudyPart | bool  # of a study: some of its instances, all or none
Decider: TypeAlias = Callable[[str, bytes], bool | None]


def decider(rule: Rule) -> Decider:
    """Decides on a study and its row as `Rule.accepts` does on the facts of each instance. None if they may
    differ."""
    alternatives = [[_condition(each) for each in one.conditions] for one in rule.alternatives]

    def decide(study: str, value: bytes) -> bool | None:
        found: bool | None = False
        for conditions in alternatives:
            met: bool | None = True
            for accepts in conditions:
                met = accepts(study, value) and met
                if met is False:
                    break
            if met:
                return True
            found = found if met is False else None
        return found

    return decide


def _condition(condition: RuleCondition) -> Decider:
    if condition.compared == STUDY_UID:
        return lambda study, _: condition.accepts(study)
    read, known = fact_reader(condition.compared), dict[bytes, bool]()

    def meets(text: bytes) -> bool:
        met = known.get(text)
        if met is None:
            if len(known) >= KNOWN:
                known.clear()
            met = known[text] = condition.accepts(orjson.loads(b'"' + text + b'"'))
        return met

    def accepts(_: str, value: bytes) -> bool | None:
        texts = read(value)
        if len(texts) == 1:
            return meets(texts[0])
        met = set(map(meets, texts))
        return True if met == {True} else None if True in met else False

    return accepts


class Visibility:
    """The studies that one rule shows. Thread-safe."""

    def __init__(self, environment: OrderedMap, rule: Rule, memory: RuleMemory) -> None:
        self.rule = rule
        self.used = 0.0  # the last time, by the monotonic clock
        self._memory = memory
        self._decide = decider(rule)
        self._environment = environment
        self._handles = environment.handles
        self._known: dict[str, bool] = {}
        self._parts: dict[str, StudyPart] = {}
        self._version, self._sequence = -1, 0  # of the decisions
        self._changing = threading.Lock()  # held for a moment only
        self._building = threading.Lock()
        self.latest: FewStudies | None = None
        self._broad_until = -1
        self._least = 0, 0  # visible studies, and the sequence of the last change then

    def sees(self, transaction: Transaction, study: str, value: bytes | None = None) -> Seen:
        """The visible part of the study, or whether it exists and is visible. `value` is its row, if that was
        read."""
        version: int = transaction.id()
        if value is not None and (few := self._all_hidden(version)) is not None:
            if study in few.counts:
                return False
            if study not in few.parts:
                return True
        if version > self._version:
            self._forget_changed(transaction, version)
        if version == self._version:
            known: Seen | None = self._known.get(study)
            if known is None:
                known = self._parts.get(study)
            if known is not None:
                return known
        if value is None:
            value = transaction.get(study.encode(), db=self._handles["studies"])
        seen = self._seen(transaction, study, value) if value is not None else False
        if self._changing.acquire(blocking=False):
            if version == self._version:
                self._remember(study, seen)
            self._changing.release()
            if len(self._known) % KNOWN_AT_ONCE == 0:
                self._memory.grown(self)
        return seen

    def row(self, transaction: Transaction, study: str, value: bytes | None) -> bytes | None:
        """The row of the study, `value`, as it is without invisible instances; None without visible ones."""
        if value is None:
            return None
        seen = self.sees(transaction, study, value)
        return value if seen is True else _row_of(seen, value)

    def shows(self, transaction: Transaction, key: bytes, value: bytes | None = None) -> bool:
        """Whether a series or instance that exists is visible. `key` is study \0 series, or that and \0
        instance; `value` is the row of the instance, if that was read."""
        study, _, below = key.decode().partition("\0")
        seen = self.sees(transaction, study)
        if not isinstance(seen, StudyPart):
            return seen
        if "\0" not in below:
            return below in seen.series
        value = value or transaction.get(key, db=self._handles["instances"])
        return value is not None and seen.holds(value)

    def lists(self, transaction: Transaction, entry: bytes, term: bytes) -> bool:
        """Whether an entry of the inverted lists, a study or study \0 series, counts under this term. That of
        a part counts if the part has the value."""
        study, _, series = entry.decode().partition("\0")
        seen = self.sees(transaction, study)
        if not isinstance(seen, StudyPart):
            return seen and term == together(term)
        value = seen.series.get(series) if series else seen.row
        level = Level.SERIES if series else Level.STUDY
        return value is not None and together(term) in terms(level, level_attributes(LevelRow.unpack(value)))

    def _seen(self, transaction: Transaction, study: str, value: bytes) -> Seen:
        seen = self._decide(study, value)
        if seen is not None:
            return seen
        return part_of(transaction, self._handles, study, lambda row: self._decide(study, row) is True)

    def _remember(self, study: str, seen: Seen) -> None:
        if isinstance(seen, StudyPart):
            if len(self._parts) >= KNOWN_PARTS:
                self._parts = {}
            self._parts[study] = seen
        else:
            if len(self._known) >= KNOWN:
                self._known = {}
            self._known[study] = seen

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        few = self.latest
        known = len(self._known) * KNOWN_BYTES + len(self._parts) * PART_BYTES
        return known + (few.size if few is not None else 0)

    def forget(self) -> None:
        self.latest, self._known, self._parts = None, {}, {}

    def hidden(self, transaction: Transaction) -> Container[str] | None:
        """All hidden studies of this version, if they are few."""
        few = self._all_hidden(transaction.id())
        return few.counts if few is not None else None

    def _all_hidden(self, version: int) -> FewStudies | None:
        few = self.latest
        return few if few is not None and few.hidden and few.version == version else None

    def _forget_changed(self, transaction: Transaction, version: int) -> None:
        if not self._changing.acquire(blocking=False):
            return
        try:
            if version > self._version:
                same = same_server(version, self._version)
                self._sequence, studies = self._changes(transaction, self._sequence if same else 0)
                if studies is None or not same:
                    self._known, self._parts = {}, {}
                for study in studies or ():
                    self._known.pop(study, None)
                    self._parts.pop(study, None)
                self._version = version
        finally:
            self._changing.release()

    def _changes(self, transaction: Transaction, after: int) -> tuple[int, set[str] | None]:
        """The sequence of the last change, and the studies of those behind `after`; None if they are many, or
        not all kept."""
        cursor = transaction.cursor(db=self._handles["changes"])
        last = int.from_bytes(cursor.key(), "big") if cursor.last() else 0
        if last == after:
            return last, set()
        if not after or not 0 < last - after <= MOST_CHANGES or not cursor.set_range(number_key(after + 1)):
            return last, None
        found: set[str] = set()
        expected, more = after + 1, True
        try:
            while more:
                sequence = int.from_bytes(cursor.key(), "big")
                first, studies = studies_changed(sequence, cursor.value())
                if first > expected:
                    return last, None
                found |= studies
                expected, more = sequence + 1, cursor.next()
        except StoreCorrupt:
            return last, None
        return last, found

    # The studies of a rule that shows or hides few

    def few(self, budget: Budget) -> FewStudies | None:
        """The visible studies of this version, else the hidden ones; None if both are many, or if the budget
        is spent: a brief one never waits until they are found."""
        self.used = time.monotonic()
        with self._environment.reading("looking for visible studies") as transaction:
            version: int = transaction.id()
            found = self._brought_up(transaction, budget)
        if found is not None or version < self._broad_until or budget.spent:
            return found
        if not budget.spend(hidden=BRIEF_ROWS + 1):
            return None
        with self._building:
            if version < self._broad_until:
                return None
            if self.latest is None or self.latest.version < version:
                self.latest = self._found()
                self._broad_until = -1 if self.latest else version + BROAD_FOR
                self._memory.grown(self)
            with self._environment.reading("looking for visible studies") as transaction:
                return self._brought_up(transaction, budget)

    def _brought_up(self, transaction: Transaction, budget: Budget) -> FewStudies | None:
        """Those that were found last, with the changes since then; None if they are many."""
        found, version = self.latest, transaction.id()
        if found is None or found.version >= version:
            return found
        if not same_server(version, found.version):
            return None
        sequence, studies = self._changes(transaction, found.sequence)
        if studies is None or not budget.spend(hidden=len(studies)):
            return None
        rows = self._rows(transaction, sorted(studies))
        found = found.changed(version, sequence, rows, self._stored(transaction))
        if len(found.counts) + len(found.parts) > self._memory.most:
            return None
        self.latest = found
        return found

    def _rows(self, transaction: Transaction, studies: list[str]) -> list[StudyRows]:
        cursor = transaction.cursor(db=self._handles["studies"])
        values = dict(cursor.getmulti([study.encode() for study in studies]))
        found = ((study, values.get(study.encode())) for study in studies)
        return [rows_of(study, value, self.row(transaction, study, value)) for study, value in found]

    def _stored(self, transaction: Transaction) -> tuple[int, int, int]:
        """The number of all studies, series and instances."""
        studies, series, instances = (
            int(transaction.stat(self._handles[name])["entries"])
            for name in ("studies", "series", "instances")
        )
        return studies, series, instances

    def _found(self) -> FewStudies | None:
        with self._environment.reading("looking for visible studies") as transaction:
            version: int = transaction.id()
            sequence, _ = self._changes(transaction, 0)
            stored = self._stored(transaction)
        most = self._memory.most
        side, hidden = Side(most), Side(most, hidden=True)
        if not self._find_listed(side, max(ENTRIES, stored[Level.STUDY] // 2)):
            self._least = 0, sequence
            if stored[Level.STUDY] > MOST_DECIDED:
                return None
            shown = Side(most)
            for key, value in dump(self._environment, "studies"):
                study = key.decode()
                seen: Seen | None = self._decide(study, value)
                if seen is None and min(shown.number, hidden.number) <= most:
                    with self._environment.reading("looking for visible instances") as transaction:
                        seen = self._seen(transaction, study, value)
                if isinstance(seen, StudyPart):
                    rows = rows_of(study, value, seen.row)
                    shown.add_part(rows)
                    hidden.add_part(rows)
                elif seen is not None:
                    (shown if seen else hidden).add(study, value)
            self._least = shown.number, sequence
            side = hidden if hidden.number * SKIPPED < shown.number or shown.number > most else shown
        return side.few(version, sequence, stored, self._dated) if side.number <= most else None

    def _find_listed(self, shown: Side, entries: int) -> bool:
        """Finds the studies by inverted lists. Returns False if these have more entries, or the studies are
        too many."""
        lists, candidates = Lists(self._environment, _endless(), self), set[str]()
        for alternative in self.rule.alternatives:
            listed = _candidates(lists, alternative, entries)
            if listed is None:
                return False
            candidates |= listed
        studies = sorted(candidates)
        for first in range(0, len(studies), ROWS_A_BATCH):
            with self._environment.reading("looking for visible studies") as transaction:
                for rows in self._rows(transaction, studies[first : first + ROWS_A_BATCH]):
                    if rows.part is not None:
                        shown.add_part(rows)
                    elif rows.shown is not None:
                        shown.add(rows.study, rows.shown)
        return shown.number <= self._memory.most

    def in_order(self, few: FewStudies, order: StudyOrder, budget: Budget) -> FewInOrder | None:
        """Few visible studies in an order; None if a brief budget is spent."""
        found = few.orders.get(order.tag)
        if found is None and budget.spend(hidden=BRIEF_ROWS + 1):
            with self._building:
                found = few.orders.get(order.tag)
                if found is None:
                    rows = Lists(self._environment, _endless(), self).rows(sorted(few.counts))
                    found = FewInOrder(order, {study: place_of(order, row) for study, row in rows})
                    few.keep(order, found)
                    self._memory.grown(self)
        return found

    def _dated(self, studies: Container[str]) -> dict[str, bytes]:
        """The keys of the studies in the list of study dates. A study that has gone since has none: it is
        among the next changes."""
        found, end = dict[str, bytes](), NEWEST.start + END
        for key, entry in dump(self._environment, "attributes", NEWEST.start):
            if key > end:
                break
            if (study := entry.decode()) in studies:
                found[study] = key
        return found

    def least(self) -> int:
        """The number of visible studies at least. A change of the index hides one at most."""
        least, sequence = self._least
        with self._environment.reading("looking for changes") as transaction:
            last, _ = self._changes(transaction, 0)
        return max(least - (last - sequence), 0)


def _row_of(seen: Seen, value: bytes) -> bytes | None:
    return seen.row if isinstance(seen, StudyPart) else value if seen else None


def _endless() -> Budget:
    return Budget(1 << 62, 1 << 62)


def _candidates(lists: Lists, alternative: Alternative, entries: int) -> set[str] | None:
    """The studies that the lists of the conditions have in common; None if they have more entries."""
    if alternative.studies is not None:
        return set(alternative.studies)
    found: set[str] | None = None
    for condition in alternative.conditions:
        for each in condition.listed:
            listed = lists.collect(each, entries)
            if listed is not None:
                found = listed if found is None else found & listed
    return found
