"""The inverted lists of the index: which studies have a value.

Strategy: a list is sorted by normal form, then by UID. A condition accepts some of its forms, and the studies
under these are collected. A list may hold too many studies, because forms are cut: the row decides.

Rules of this file
- Each batch has its own read transaction, and the next one continues behind the last key.
- In a restricted view only visible studies are charged (query/budget.py). Work for others counts for a brief
  budget alone.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from typing import Protocol

from streamsrv.query.attributes import ORDERING, Level, term_prefix
from streamsrv.query.budget import Budget
from streamsrv.query.conditions import Condition, Query
from streamsrv.query.matching import Probe
from streamsrv.query.values import NORMAL_BYTES
from streamsrv.store.index.rows import LevelRow
from streamsrv.store.ordered_map import OrderedMap, Transaction

ROWS_A_BATCH = 500
FIRST_KEYS = 64  # in the first batch, because most ranges are short
KEYS_A_BATCH = 5_000
MOST_COUNTED = 1_000  # entries under one value that are looked at to count visible ones
# Behind all keys that begin with the same text: forms are UTF-8, which never holds this byte.
END = b"\xff"

_BETWEEN = b"\xff" * 6  # in no key: before a form are five bytes


class View(Protocol):
    """The studies that a rule of access shows."""

    def sees(self, transaction: Transaction, study: str, value: bytes | None = None) -> bool:
        """Whether a study is visible. `value` is its row, if that was read."""

    def hidden(self, transaction: Transaction) -> Container[str] | None:
        """All hidden studies of this version; None if they are not known."""


class KnownStudies(Protocol):
    """The visible studies of a view, or the hidden ones."""

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

    def studies_of(self, kind: bytes, uids: frozenset[str]) -> set[str]:
        found: set[str] = set()
        if not self._budget.spend(rows=len(uids)):
            return found
        with self._environment.reading("looking up UIDs") as transaction:
            cursor = transaction.cursor(db=self._handles["uids"])
            for uid in uids:
                if cursor.set_key(kind + uid.encode()):
                    studies = [value.split(b"\0")[0].decode() for value in cursor.iternext_dup()]
                    if (view := self._view) is not None:
                        studies = [study for study in studies if view.sees(transaction, study)]
                    if not self._budget.spend(rows=len(studies)):
                        return found
                    found.update(studies)
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
        low, end = start + probe.low, start + (probe.low if probe.exact else probe.high + END)
        total = 0
        with self._environment.reading("counting entries") as transaction:
            cursor = transaction.cursor(db=self._handles["attributes"])
            more = cursor.set_range(low) and cursor.key() <= end
            while more:
                count: int = cursor.count()
                if self._few is not None and row.tag == ORDERING:
                    count = self._few.on_date(cursor.key(), count)
                elif self._view is not None:
                    if self._few is None or count > MOST_COUNTED:
                        return None
                    count = len(self._few.visible(_STUDIES[row.level](cursor.iternext_dup())))
                if count and not most:
                    return None
                total, most = total + count, most - bool(count)
                more = cursor.next_nodup() and cursor.key() <= end
        return total

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
            for key, count, entries in self._environment.lists(transaction, keys, most):
                studies = _STUDIES[level](entries)
                if self._few is not None:
                    if len(found) + self._few.least(key, count) > most:
                        return False
                    if not self._budget.spend(hidden=count // 8):
                        return False
                    visible = self._few.visible(studies)
                    studies, count = visible, len(visible)
                    if count > most:
                        self._few.note(key, len(set(visible)))
                if len(found) + count > most:
                    return False
                if not self._budget.spend(rows=count // 8):
                    return False
                found.update(studies)
        return self._spend(1 + len(keys) // 8)

    def _spend(self, rows: int) -> bool:
        """For reading keys of a list, visible or not."""
        return self._budget.spend(rows=rows) if self._view is None else self._budget.spend(hidden=rows)

    def _keys(self, start: bytes, probe: Probe) -> Iterator[list[bytes]]:
        """The keys that the probe accepts, in batches."""
        at, end, size = start + probe.low, start + probe.high + END, FIRST_KEYS
        more = True
        while more:
            size = min(size, self._budget.portion(size) * 8)
            with self._environment.reading("searching a list of values") as transaction:
                batch = self._environment.keys(transaction, at, end, size)
            more = len(batch) == size
            at, size = batch[-1] + b"\0" if batch else at, KEYS_A_BATCH
            if not self._spend(len(batch) // 8):
                return
            yield _accepted(batch, probe, len(start))

    def rows(self, studies: list[str]) -> Iterator[tuple[str, LevelRow]]:
        for first in range(0, len(studies), ROWS_A_BATCH):
            batch = studies[first : first + ROWS_A_BATCH]
            if not self._budget.spend(rows=len(batch)):
                return
            with self._environment.reading("reading studies") as transaction:
                cursor = transaction.cursor(db=self._handles["studies"])
                read = dict(cursor.getmulti([study.encode() for study in batch]))
                values = [read.get(study.encode()) for study in batch]
                if (view := self._view) is not None:
                    pairs = zip(batch, values, strict=True)
                    values = [
                        value if value and view.sees(transaction, study, value) else None
                        for study, value in pairs
                    ]
            yield from (
                (study, LevelRow.unpack(value))
                for study, value in zip(batch, values, strict=True)
                if value is not None
            )


def _accepted(keys: list[bytes], probe: Probe, begin: int) -> list[bytes]:
    """The keys whose forms, from `begin` on, the probe accepts."""
    long = begin + NORMAL_BYTES - 3  # a form that may have been cut: a character has at most four bytes
    needle, accepts = probe.needle, probe.accepts
    if needle and max(map(len, keys), default=0) < long:
        keys = _holding(keys, needle, probe.caseless)
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
