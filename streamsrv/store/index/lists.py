"""The inverted lists of the index: which studies have a value.

Strategy: a list is sorted by normal form, then by UID. A condition accepts some of its forms, and the studies
under these are collected. A list may hold too many studies, because forms are cut: the row decides. A view
may see a part of a study, so it also reads the entries that are listed apart (levels.py).

Rules of this file
- Each batch has its own read transaction, and the next one continues behind the last key.
- In a restricted view only visible studies are charged (query/budget.py). Work for others counts for a brief
  budget alone.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from functools import partial
from operator import itemgetter
from typing import Protocol

from streamsrv.query.attributes import ORDERING, Level, term_prefix
from streamsrv.query.budget import Budget
from streamsrv.query.conditions import Condition, Query
from streamsrv.query.matching import Probe
from streamsrv.query.values import NORMAL_BYTES
from streamsrv.store.index.rows import LevelRow, apart, together
from streamsrv.store.ordered_map import Cursor, Needle, OrderedMap, Transaction

ROWS_A_BATCH = 500
FIRST_KEYS = 64  # in the first batch, because most ranges are short.
MOST_COUNTED = 1_000  # entries under one value that are looked at to count visible ones
# Behind all keys that begin with the same text: forms are UTF-8, which never holds this byte.
END = b"\xff"

_BETWEEN = b"\xff" * 6  # in no key: before a form are five bytes


class View(Protocol):
    """The studies that a rule of access shows."""

    def row(self, transaction: Transaction, study: str, value: bytes | None) -> bytes | None:
        """The row of a study, `value`, as it is without invisible instances; None without visible ones."""

    def shows(self, transaction: Transaction, key: bytes, value: bytes | None = None) -> bool:
        """Whether a series or an instance that exists is visible."""

    def lists(self, transaction: Transaction, entry: bytes, term: bytes) -> bool:
        """Whether an entry of the lists counts under this term."""

    def hidden(self, transaction: Transaction) -> Container[str] | None:
        """All hidden studies of this version; None if they are not known."""


class KnownStudies(Protocol):
    """The visible studies of a view, or the hidden ones, and those that are visible in part."""

    @property
    def parts(self) -> Collection[str]: ...

    def visible(self, studies: Iterable[str]) -> list[str]: ...

    def least(self, key: bytes, entries: int) -> int: ...

    def note(self, key: bytes, visible: int) -> None: ...

    def on_date(self, key: bytes, entries: int) -> int: ...


class Lists:
    """With a `view` only visible studies are found. If `few` are visible or hidden, counts are those of a
    store without others."""

    def __init__(
        self,
        environment: OrderedMap,
        budget: Budget,
        view: View | None = None,
        few: KnownStudies | None = None,
    ) -> None:
        self._environment = environment
        self._handles = environment.handles
        self._budget = budget
        self._view = view
        self._few = few
        self.counted = 0  # entries of the list that `collect` has found too long, if it is sure of them

    def studies_of(self, kind: bytes, uids: frozenset[str]) -> set[str]:
        found: set[str] = set()
        if not self._budget.spend(rows=len(uids)):
            return found
        with self._environment.reading("looking up UIDs") as transaction:
            cursor = transaction.cursor(db=self._handles["uids"])
            for uid in uids:
                if cursor.set_key(kind + uid.encode()):
                    entries = list(cursor.iternext_dup())
                    if (view := self._view) is not None:
                        below = b"\0" + uid.encode()
                        entries = [each for each in entries if view.shows(transaction, each + below)]
                    studies = [entry.split(b"\0")[0].decode() for entry in entries]
                    if not self._budget.spend(rows=len(studies)):
                        return found
                    found.update(studies)
        return found

    def studies(self) -> int:
        """Their number, as it is or was just before."""
        if (known := self._environment.rows_at_hand("studies")) is not None:
            return known
        with self._environment.reading("counting studies") as transaction:
            count: int = transaction.stat(self._handles["studies"])["entries"]
        return count

    def count(self, query: Query, most: int) -> int | None:
        """The number of matches, if the list of the only condition tells it: by one value, or by up to `most`
        study dates."""
        condition = query.counted_by
        if condition is None or condition.row is None:
            return None
        row = condition.row
        (probe,), start = condition.probes(), term_prefix(row)
        # A study may have several values in the list of any other attribute.
        most = most if row.tag == ORDERING else 1
        low, end = start + probe.low, start + (probe.low if probe.exact else probe.high + END)
        total = 0
        with self._environment.reading("counting entries") as transaction:
            cursor = transaction.cursor(db=self._handles["attributes"])
            numbers = partial(self._environment.numbers, transaction, size=most + 1)
            found = numbers(low, end)
            if self._view is not None:
                others = ((together(key), 0) for key, _ in numbers(apart(low), apart(end)))
                found = heapq.merge(found, others)
            for key, several in itertools.groupby(found, itemgetter(0)):
                count = sum([number for _, number in several])
                if self._few is not None and row.tag == ORDERING:
                    count = self._few.on_date(key, count)
                elif self._view is not None:
                    if self._few is None or count > MOST_COUNTED:
                        return None
                    count = len(self._with_value(transaction, cursor, key, row.level))
                if count and not most:
                    return None
                total, most = total + count, most - bool(count)
        return total

    def _with_value(self, transaction: Transaction, cursor: Cursor, key: bytes, level: Level) -> list[str]:
        """The studies of the visible entries under a key."""
        found = list[str]()
        for at in (key, apart(key)):
            entries = list(cursor.iternext_dup()) if cursor.set_key(at) else []
            found += self._visible(transaction, entries, at, level)
        return found

    def _visible(self, transaction: Transaction, entries: list[bytes], key: bytes, level: Level) -> list[str]:
        """The studies of those entries under a key that count."""
        view, few = self._view, self._few
        assert view is not None
        assert few is not None
        found = few.visible(_STUDIES[level](entries))
        if key != together(key) or (few.parts and any(study in few.parts for study in found)):
            seen = set(found)
            pairs = zip(_STUDIES[level](entries), entries, strict=True)
            found = [study for study, entry in pairs if study in seen and view.lists(transaction, entry, key)]
        return found

    def collect(self, condition: Condition, most: int, *, counting: bool = False) -> set[str] | None:
        """The studies that the probes of a condition find in the list of its attribute; None if there are
        more entries than `most`. With `counting` they are `counted` then, if it is one list."""
        assert condition.row is not None
        start, found = term_prefix(condition.row), set[str]()
        starts = (start,) if self._view is None else (start, apart(start))
        for probe, begin in itertools.product(condition.probes(), starts):
            if not self._probe(probe, begin, condition.row.level, found, most, counting=counting):
                return None
        return found

    def _probe(
        self, probe: Probe, start: bytes, level: Level, found: set[str], most: int, *, counting: bool
    ) -> bool:
        """Collect the studies under the keys that the probe accepts; False if they are too many."""
        if probe.exact:
            with self._environment.reading("reading a list of studies") as transaction:
                return self._take(transaction, [start + probe.low], level, found, most, counting=counting)
        at, end = start + probe.low, start + probe.high + END
        usual = self._environment.keys_at_once
        size = usual if probe.scans or self._environment.remote else FIRST_KEYS
        # A form that may have been cut: a character has at most four bytes.
        needle = Needle(probe.needle, probe.other, probe.caseless, len(start) + NORMAL_BYTES - 3)
        more = True
        while more:
            size = min(size, self._budget.portion(size) * 8)
            with self._environment.reading("searching a list of values") as transaction:
                read = self._environment.keys(transaction, at, end, size, needle, most)
                if not self._spend(read.number // 8):
                    return True
                keys = _accepted(read.keys, probe, needle)
                if not self._take(transaction, keys, level, found, most):
                    return False
            more, at = bool(read.last), read.last + b"\0"
            size = usual if read.number >= size else 2 * read.number  # many keys hold the needle
        return True

    def _take(
        self,
        transaction: Transaction,
        keys: list[bytes],
        level: Level,
        found: set[str],
        most: int,
        *,
        counting: bool = False,
    ) -> bool:
        """Collect the studies under these keys; False if they are too many."""
        exact = self._few is not None
        lists = self._environment.lists
        for key, count, entries in lists(transaction, keys, most, exact=exact, counting=counting):
            if self._few is not None:
                if len(found) + self._few.least(key, count) > most:
                    return False
                if not self._budget.spend(hidden=count // 8):
                    return False
                visible = self._visible(transaction, list(entries), key, level)
                count = len(visible)
                if count > most:
                    self._few.note(key, len(set(visible)))
            if len(found) + count > most:
                self.counted = count if counting else 0
                return False
            if not self._budget.spend(rows=count // 8):
                return False
            found.update(_STUDIES[level](entries) if self._few is None else visible)
        return self._spend(1 + len(keys) // 8)

    def _spend(self, rows: int) -> bool:
        """For reading keys of a list, visible or not."""
        return self._budget.spend(rows=rows) if self._view is None else self._budget.spend(hidden=rows)

    def rows(self, studies: list[str]) -> Iterator[tuple[str, LevelRow]]:
        for first in range(0, len(studies), ROWS_A_BATCH):
            batch = studies[first : first + ROWS_A_BATCH]
            if not self._budget.spend(rows=len(batch)):
                return
            with self._environment.reading("reading studies") as transaction:
                cursor = transaction.cursor(db=self._handles["studies"])
                rows = cursor.getmulti(list(map(str.encode, batch)))
                if (view := self._view) is not None:
                    seen = ((study, view.row(transaction, study.decode(), value)) for study, value in rows)
                    rows = [(study, value) for study, value in seen if value is not None]
            yield from ((study.decode(), LevelRow.unpack(value)) for study, value in rows)


def _accepted(keys: list[bytes], probe: Probe, needle: Needle) -> list[bytes]:
    """The keys whose forms the probe accepts."""
    long, accepts = needle.long, probe.accepts
    begin = long - NORMAL_BYTES + 3  # of the form
    if needle.text and max(map(len, keys), default=0) < long:
        keys = _holding(keys, needle.text, needle.caseless)
    if accepts:
        keys = [key for key in keys if accepts(key[begin:].decode("utf-8", "replace")) or len(key) >= long]
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


# From the entries of a list: a study, or a study and a series; a study once for each entry.
_STUDIES: dict[Level, Callable[[Iterable[bytes]], Iterable[str]]] = {
    Level.STUDY: partial(map, bytes.decode),
    Level.SERIES: lambda entries: (entry.partition(b"\0")[0].decode() for entry in entries),
}
