"""The studies that a rule of access shows, remembered from one version of the index to the next.

Strategy: the row of a study has the facts of all its instances (levels.py), and the rule decides on them. The
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

import orjson

from streamsrv.errors import StoreCorrupt
from streamsrv.query.attributes import NEWEST, Level, StudyOrder
from streamsrv.query.budget import BRIEF_ROWS, Budget
from streamsrv.query.rules import STUDY_UID, Alternative, Rule, RuleCondition
from streamsrv.store.index.environment import dump
from streamsrv.store.index.few_studies import FewInOrder, FewStudies, RuleMemory, place_of
from streamsrv.store.index.levels import fact_reader
from streamsrv.store.index.lists import END, Lists
from streamsrv.store.index.rows import LevelRow, counts_in, number_key, studies_changed
from streamsrv.store.ordered_map import OrderedMap, Transaction
from streamsrv.store.shared_map import SharedMap

# Decisions that are remembered, of 150 bytes each.
KNOWN = 20_000
KNOWN_BYTES, KNOWN_AT_ONCE = 150, 1 << 10
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


def decider(rule: Rule) -> Callable[[str, bytes], bool]:
    """Decides on a study and its row as `Rule.accepts` does on its facts."""
    alternatives = [[_condition(each) for each in one.conditions] for one in rule.alternatives]
    return lambda study, value: any(
        all(accepts(study, value) for accepts in conditions) for conditions in alternatives
    )


def _condition(condition: RuleCondition) -> Callable[[str, bytes], bool]:
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

    def accepts(_: str, value: bytes) -> bool:
        texts = read(value)
        return bool(texts) and all(map(meets, texts))

    return accepts


class Visibility:
    """The studies that one rule shows. Thread-safe."""

    def __init__(self, environment: OrderedMap, rule: Rule, memory: RuleMemory) -> None:
        self.rule = rule
        self.used = 0.0  # the last time, by the monotonic clock
        self._memory = memory
        self._accepts = decider(rule)
        self._environment = environment
        self._handles = environment.handles
        self._known: dict[str, bool] = {}
        self._version, self._sequence = -1, 0  # of the decisions
        self._changing = threading.Lock()  # held for a moment only
        self._building = threading.Lock()
        self.latest: FewStudies | None = None
        self._broad_until = -1
        self._least = 0, 0  # visible studies, and the sequence of the last change then

    def sees(self, transaction: Transaction, study: str, value: bytes | None = None) -> bool:
        """Whether the study exists and is visible. `value` is its row, if that was read."""
        version: int = transaction.id()
        if value is not None and (hidden := self.hidden(transaction)) is not None:
            return study not in hidden
        if version > self._version:
            self._forget_changed(transaction, version)
        if version == self._version:
            known = self._known.get(study)
            if known is not None:
                return known
        if value is None:
            value = transaction.get(study.encode(), db=self._handles["studies"])
        seen = value is not None and self._accepts(study, value)
        if self._changing.acquire(blocking=False):
            if version == self._version:
                if len(self._known) >= KNOWN:
                    self._known = {}
                self._known[study] = seen
            self._changing.release()
            if len(self._known) % KNOWN_AT_ONCE == 0:
                self._memory.grown(self)
        return seen

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        few = self.latest
        return len(self._known) * KNOWN_BYTES + (few.size if few is not None else 0)

    def forget(self) -> None:
        self.latest, self._known = None, {}

    def hidden(self, transaction: Transaction) -> Container[str] | None:
        """All hidden studies of this version, if they are few."""
        few = self.latest
        return few.counts if few is not None and few.hidden and few.version == transaction.id() else None

    def _forget_changed(self, transaction: Transaction, version: int) -> None:
        if not self._changing.acquire(blocking=False):
            return
        try:
            if version > self._version:
                self._sequence, studies = self._changes(transaction, self._sequence)
                if studies is None:
                    self._known = {}
                for study in studies or ():
                    self._known.pop(study, None)
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
        sequence, studies = self._changes(transaction, found.sequence)
        if studies is None or not budget.spend(hidden=len(studies)):
            return None
        rows = [(study, self._row(transaction, study, hidden=found.hidden)) for study in studies]
        found = found.changed(version, sequence, rows, self._stored(transaction))
        if len(found.counts) > self._memory.most:
            return None
        self.latest = found
        return found

    def _row(self, transaction: Transaction, study: str, *, hidden: bool) -> LevelRow | None:
        value = transaction.get(study.encode(), db=self._handles["studies"])
        if value is None or self.sees(transaction, study, value) is hidden:
            return None
        return LevelRow.unpack(value)

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
        side, hidden = _Side(most), _Side(most)
        if not self._find_listed(side, max(ENTRIES, stored[Level.STUDY] // 2)):
            self._least = 0, sequence
            if stored[Level.STUDY] > MOST_DECIDED:
                return None
            shown = _Side(most)
            for key, value in dump(self._environment, "studies"):
                study = key.decode()
                (shown if self._accepts(study, value) else hidden).add(study, value)
            self._least = shown.number, sequence
            side = hidden if hidden.number * SKIPPED < shown.number or shown.number > most else shown
        if side.number > most:
            return None
        orders = {NEWEST.tag: FewInOrder(NEWEST, side.places or self._dated(side.counts))}
        counts, below = SharedMap(side.counts), stored if side is hidden else None
        return FewStudies(version, sequence, counts, orders, below)

    def _find_listed(self, shown: _Side, entries: int) -> bool:
        """Finds the studies by inverted lists. Returns False if these have more entries, or the studies are
        too many."""
        lists, candidates = Lists(self._environment, _endless(), self), set[str]()
        for alternative in self.rule.alternatives:
            listed = _candidates(lists, alternative, entries)
            if listed is None:
                return False
            candidates |= listed
        for study, row in lists.rows(sorted(candidates)):
            shown.add(study, row)
        return shown.number <= self._memory.most

    def in_order(self, few: FewStudies, order: StudyOrder, budget: Budget) -> FewInOrder | None:
        """Few visible studies in an order; None if a brief budget is spent."""
        found = few.orders.get(order.tag)
        if found is None and budget.spend(hidden=BRIEF_ROWS + 1):
            with self._building:
                found = few.orders.get(order.tag)
                if found is None:
                    rows = Lists(self._environment, _endless()).rows(sorted(few.counts))
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


class _Side:
    """The studies of a rule that are visible, or hidden: all, or none if they are more than `most`."""

    def __init__(self, most: int) -> None:
        self.number = 0
        self._most = most
        self.counts: dict[str, tuple[int, int]] = {}
        self.places: dict[str, bytes] = {}  # those of rows

    def add(self, study: str, value: bytes | LevelRow) -> None:
        self.number += 1
        if self.number > self._most:
            return
        if isinstance(value, LevelRow):
            self.counts[study] = value.series, value.instances
            self.places[study] = place_of(NEWEST, value)
        else:
            self.counts[study] = counts_in(value)


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
