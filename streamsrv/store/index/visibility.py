"""The studies that a rule of access shows, remembered from one version of the index to the next.

Strategy: the row of a study has the facts of all its instances (levels.py), and the rule decides on them. The
decision is remembered by study. After a commit only the studies of the changes since then are forgotten. If a
rule shows few studies, all of them are remembered in the order of searches, with their counts. Then a search
reads no other study.

Rules of this file
- A decision is made in the transaction that reads the rows, so both are of one version.
- The event loop never waits for another thread here: it decides without remembering.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator

import orjson

from streamsrv.errors import StoreCorrupt
from streamsrv.query.attributes import NEWEST
from streamsrv.query.budget import BRIEF_ROWS, Budget
from streamsrv.query.rules import STUDY_UID, Alternative, Rule, RuleCondition
from streamsrv.store.index.levels import fact_reader
from streamsrv.store.index.lists import Lists
from streamsrv.store.index.ordered import ALL_FORMS, OrderedStudies, value_reader
from streamsrv.store.index.rows import LevelRow, number_key, studies_changed
from streamsrv.store.ordered_map import OrderedMap, Transaction

# Decisions that are remembered, of 150 bytes each.
KNOWN = 20_000
# Studies of a rule that are remembered in order, of 400 bytes each.
MOST = 10_000
# Entries of a list that are read for them. A study is listed once for each series.
ENTRIES = 4 * MOST
# More changes cost as much as starting again.
MOST_CHANGES = 1_000
# Versions for which a rule that shows many studies is not tried again.
BROAD_FOR = 1_000
ENDLESS = 1 << 62
_START, _date_of = NEWEST.start, value_reader(NEWEST)
# Digits in descending order. A study without a date comes last.
_DESCENDING = str.maketrans("0123456789", "9876543210")


class FewStudies:
    """The visible studies of one version of the index, newest first. Nothing changes it."""

    __slots__ = ("counts", "order", "sequence", "totals", "version")

    def __init__(
        self,
        version: int,
        sequence: int,
        counts: dict[str, tuple[str, int, int]],
        order: list[tuple[str, str]],
    ) -> None:
        """`counts` has the place in the order, the series and the instances of each study."""
        self.version = version
        self.sequence = sequence  # of the last change
        self.counts = counts
        self.order = order
        series = sum([each for _, each, _ in counts.values()])
        self.totals = len(counts), series, sum([each for _, _, each in counts.values()])

    def changed(self, version: int, sequence: int, rows: Iterable[tuple[str, LevelRow | None]]) -> FewStudies:
        """The same with other rows of some studies, None for those that are gone or invisible."""
        counts, order = dict(self.counts), list(self.order)
        for study, row in rows:
            before = counts.pop(study, None)
            if before is not None:
                del order[bisect.bisect_left(order, (before[0], study))]
            if row is not None:
                counts[study] = now = _count(row)
                bisect.insort(order, (now[0], study))
        return FewStudies(version, sequence, counts, order)

    def entries(self, low: bytes, high: bytes, at: tuple[bytes, bytes] | None) -> Iterator[tuple[bytes, str]]:
        """The entries of the list of study dates between two keys, newest first, from a place on."""
        first = bisect.bisect_left(self.order, True, key=lambda each: _key(each) <= high)
        if at is not None:
            behind = bisect.bisect_left(self.order, True, key=lambda each: _is_behind(each, *at))
            first = max(first, behind)
        last = bisect.bisect_left(self.order, True, key=lambda each: _key(each) < low)
        return ((_key(each), each[1]) for each in itertools.islice(self.order, first, last))


def _place(date: str) -> str:
    return date.translate(_DESCENDING) or "~"


def _key(each: tuple[str, str]) -> bytes:
    """The key of a study in the list of study dates."""
    place = each[0]
    return _START + (b"" if place == "~" else place.translate(_DESCENDING).encode())


def _is_behind(each: tuple[str, str], key: bytes, study: bytes) -> bool:
    own = _key(each)
    return own < key or (own == key and each[1].encode() >= study)


def _count(row: LevelRow) -> tuple[str, int, int]:
    return _place(_date_of(row) or ""), row.series, row.instances


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

    def __init__(self, environment: OrderedMap, rule: Rule) -> None:
        self.rule = rule
        self._accepts = decider(rule)
        self._environment = environment
        self._handles = environment.handles
        self._known: dict[str, bool] = {}
        self._version, self._sequence = -1, 0  # of the decisions
        self._changing = threading.Lock()  # held for a moment only
        self._building = threading.Lock()
        self.latest: FewStudies | None = None
        self._broad_until = -1

    def sees(self, transaction: Transaction, study: str, value: bytes | None = None) -> bool:
        """Whether the study exists and is visible. `value` is its row, if that was read."""
        version: int = transaction.id()
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
        return seen

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

    # The studies of a rule that shows few

    def few(self, budget: Budget) -> FewStudies | None:
        """The visible studies of this version; None if they are many, or if the budget is spent: a brief one
        never waits until they are found."""
        found = self.latest
        with self._environment.reading("looking for visible studies") as transaction:
            version: int = transaction.id()
            if found is not None and found.version >= version:
                return found
            if found is not None:
                sequence, studies = self._changes(transaction, found.sequence)
                if studies is not None and budget.spend(hidden=len(studies)):
                    rows = [(study, self._visible_row(transaction, study)) for study in studies]
                    found = found.changed(version, sequence, rows)
                    if len(found.order) <= MOST:
                        self.latest = found
                        return found
        if version < self._broad_until or budget.spent:
            return None
        if not budget.spend(hidden=BRIEF_ROWS + 1):
            return None
        with self._building:
            if version < self._broad_until:
                return None
            if self.latest is None or self.latest.version < version:
                self.latest = self._found()
                self._broad_until = -1 if self.latest else version + BROAD_FOR
            return self.latest

    def _visible_row(self, transaction: Transaction, study: str) -> LevelRow | None:
        value = transaction.get(study.encode(), db=self._handles["studies"])
        return LevelRow.unpack(value) if value is not None and self.sees(transaction, study, value) else None

    def _found(self) -> FewStudies | None:
        with self._environment.reading("looking for visible studies") as transaction:
            version: int = transaction.id()
            sequence, _ = self._changes(transaction, 0)
        endless = Budget(ENDLESS, ENDLESS)
        lists = Lists(self._environment, endless, self.sees)
        candidates: set[str] = set()
        for alternative in self.rule.alternatives:
            listed = _candidates(lists, alternative)
            if listed is None:
                if lists.studies() > MOST:
                    return None
                ordered = OrderedStudies(self._environment, endless, NEWEST, ENDLESS, self.sees)
                return self._made(version, sequence, ordered.walk(ALL_FORMS, None, inside=False))
            candidates |= listed
        return self._made(version, sequence, lists.rows(sorted(candidates)))

    def _made(self, version: int, sequence: int, rows: Iterable[tuple[str, LevelRow]]) -> FewStudies | None:
        counts: dict[str, tuple[str, int, int]] = {}
        for study, row in rows:
            counts[study] = _count(row)
            if len(counts) > MOST:
                return None
        order = sorted((place, study) for study, (place, _, _) in counts.items())
        return FewStudies(version, sequence, counts, order)


def _candidates(lists: Lists, alternative: Alternative) -> set[str] | None:
    """The studies that the lists of the conditions have in common; None if the lists are long."""
    if alternative.studies is not None:
        return set(alternative.studies)
    found: set[str] | None = None
    for condition in alternative.conditions:
        for each in condition.listed:
            listed = lists.collect(each, ENTRIES)
            if listed is not None:
                found = listed if found is None else found & listed
    return found
