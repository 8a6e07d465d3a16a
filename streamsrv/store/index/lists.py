"""Which studies are looked at: the inverted lists, and the order in which all studies stand.

Rules of this file: each batch has its own read transaction, and the next one goes on behind the last key.
Everything looked at is charged to the budget of the search.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from streamsrv.query.attributes import BY_TAG, Level
from streamsrv.query.budget import Budget
from streamsrv.query.conditions import Condition
from streamsrv.query.matching import Probe
from streamsrv.query.terms import ORDERING, term_prefix
from streamsrv.query.values import NORMAL_BYTES, cut, date_form
from streamsrv.store.index.environment import Cursor, Environment
from streamsrv.store.index.rows import LevelRow

CANDIDATES = 5_000  # a list that offers more is not used: walking in order is as fast then
ROWS_A_BATCH = 500
FIRST_KEYS = 64  # in the first batch: most ranges are short
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
        """How many there are."""
        with self._environment.reading("counting studies") as transaction:
            count: int = transaction.stat(self._handles["studies"])["entries"]
        return count

    def collect(self, condition: Condition, most: int) -> set[str] | None:
        """The studies in the list of a condition's attribute that its probes offer, None if there are more
        entries than `most`."""
        assert condition.row is not None
        start, found = term_prefix(condition.row), set[str]()
        for probe in condition.probes():
            for keys in [[start + probe.low]] if probe.exact else self._keys(start, probe):
                if not self._take(keys, condition.row.level, found, most):
                    return None
        return found

    def _take(self, keys: list[bytes], level: Level, found: set[str], most: int) -> bool:
        """Gather the studies that are listed under these keys; False if they are too many."""
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
        """Those that the probe accepts, batch by batch."""
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
        """All studies in order, those whose study dates are between two keys of their list; from `at` on, a
        key and a study that need not be there."""
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
    """As many as are wanted; then, because few of them match, ever more."""
    size = min(wanted, ROWS_A_BATCH)
    while True:
        yield size
        size = min(size * 4, ROWS_A_BATCH)


def study_date(row: LevelRow) -> str:
    """Its place in the order, as in the list of study dates."""
    found = _DATE_AT.search(row.answer)
    return (date_form(found[1].decode()) or "") if found else ""


def _accepted(keys: list[bytes], probe: Probe, begin: int) -> list[bytes]:
    """Those whose forms, from `begin` on, the probe accepts."""
    long = begin + NORMAL_BYTES - 3  # a form that may have been cut, perhaps within a character
    needle, accepts = probe.needle, probe.accepts
    if needle and max(map(len, keys), default=0) < long:
        keys = _holding(keys, needle)
    if accepts:
        keys = [key for key in keys if accepts(key[begin:].decode("utf-8", "replace"))]
    return keys


def _holding(keys: list[bytes], needle: bytes) -> list[bytes]:
    """Those that hold the needle. In one text it is found ten times as fast as in thousands."""
    text = _BETWEEN.join([b"", *keys, b""])
    if text.count(needle) > len(keys) // 8:
        return [key for key in keys if needle in key]
    found = []
    at = text.find(needle)
    while at >= 0:
        end = text.index(_BETWEEN, at)
        found.append(text[text.rindex(_BETWEEN, 0, at) + len(_BETWEEN) : end])
        at = text.find(needle, end)
    return found


# From the entries of a list: a study, or a study and a series.
_STUDIES: dict[Level, Callable[[Iterable[bytes]], Iterable[str]]] = {
    Level.STUDY: partial(map, bytes.decode),
    Level.SERIES: lambda entries: {entry.partition(b"\0")[0].decode() for entry in entries},
}


# The list of study dates is walked backwards by day, forwards within a day.


def _begin(cursor: Cursor, high: bytes) -> bool:
    """To the first study of the last day that begins with `high` or is before it."""
    # Behind every key that begins with `high`: forms are UTF-8, which never holds 0xFF.
    there = cursor.prev_nodup() if cursor.set_range(high + b"\xff") else cursor.last()
    return bool(there and cursor.first_dup())


def _go_on(cursor: Cursor, day: bytes, study: bytes) -> bool:
    """To the first study from `study` on, which need not be there."""
    if cursor.set_range_dup(day, study):
        return True
    return _begin_before(cursor, day)


def _begin_before(cursor: Cursor, day: bytes) -> bool:
    there = cursor.prev_nodup() if cursor.set_range(day) else cursor.last()
    return bool(there and cursor.first_dup())


def _back(cursor: Cursor) -> bool:
    return bool(cursor.next_dup() or (cursor.prev_nodup() and cursor.first_dup()))
