"""Studies in the order of a value, from the inverted list of its attribute.

Strategy: a list is sorted by normal form, then by UID. It is read forwards, or backwards form by form. Of a
study only the entry of its sort value counts. Studies without a sort value come last. The list of study dates
has an entry for them, the empty form, and the rows tell those of other attributes.

Rule of this file: each batch has its own read transaction, and the next one continues behind the last entry,
which may no longer exist."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import NamedTuple, Protocol, TypeAlias

from streamsrv.query.attributes import ORDERING, Level, Position, StudyOrder, forms_of
from streamsrv.query.budget import Budget
from streamsrv.query.values import cut
from streamsrv.store.index.answers import reader_of
from streamsrv.store.index.lists import END, ROWS_A_BATCH, View
from streamsrv.store.index.rows import LevelRow, apart, together
from streamsrv.store.ordered_map import OrderedMap, Pair, Transaction

StudyRow = tuple[str, LevelRow]
Place: TypeAlias = tuple[bytes, bytes]  # a key of the list, and the first study under it


class InOrder(Protocol):
    """Few studies, by their sort values."""

    def entries(
        self, low: bytes, high: bytes, place: Place | None, *, descending: bool
    ) -> Iterator[tuple[bytes, str]]: ...


class FormRange(NamedTuple):
    """The forms from `low` up to and including all that begin with `high`; `rest`: and no form."""

    low: bytes = b""
    high: bytes = b""
    rest: bool = True


ALL_FORMS = FormRange()


def value_reader(order: StudyOrder) -> Callable[[LevelRow], str | None]:
    """Reads the sort value of a study."""
    read = reader_of(Level.STUDY, (order.attribute.tag,))
    return lambda row: order.value(read(row))


class OrderedStudies:
    """With a `view` only visible studies are found."""

    def __init__(
        self,
        environment: OrderedMap,
        budget: Budget,
        order: StudyOrder,
        wanted: int,
        view: View | None = None,
    ) -> None:
        self._view = view
        self.few: InOrder | None = None  # the visible studies, instead of the entries of the list
        self.soon = 0  # the caller may stop after so many studies, if it says so
        self._environment = environment
        self._handles = environment.handles
        self._budget = budget
        self._order = order
        self._dates = order.attribute.tag == ORDERING
        self._sizes = batch_sizes(wanted)
        self._read = reader_of(Level.STUDY, (order.attribute.tag,))

    def walk(self, forms: FormRange, after: Position | None, *, inside: bool) -> Iterator[StudyRow]:
        """The studies behind a position; with `inside` its study is the first one."""
        start, place = self._order.start, None
        if after is not None:
            place = start + cut(after.value or ""), after.study.encode() + (b"" if inside else b"\0")
        if after is None or after.value is not None:
            low = start + (forms.low or b"\0")  # behind the empty form
            yield from self._valued(low, start + forms.high + END, place)
            if self._budget.spent:
                return
            place = None
        if forms.rest and (self._dates or self.few is not None):
            value_of = value_reader(self._order)
            for _, (study, row) in self._entries(start, start, place, descending=False):
                if self._dates or value_of(row) is None:
                    yield study, row
        elif forms.rest:
            yield from self._without_value(place[1] if place else b"")

    def _valued(self, low: bytes, high: bytes, place: Place | None) -> Iterator[StudyRow]:
        entries = self._entries(low, high, place, descending=self._order.descending)
        if self._dates:  # one entry for each study
            return map(itemgetter(1), entries)
        value_of, begin = value_reader(self._order), len(self._order.start)
        return (each for key, each in entries if value_of(each[1]) == key[begin:].decode("utf-8", "replace"))

    def _entries(
        self, low: bytes, high: bytes, place: Place | None, *, descending: bool
    ) -> Iterator[tuple[bytes, StudyRow]]:
        """The entries between two keys, from `place` on. Those of parts of studies may be listed apart."""
        if place is not None and not low <= place[0] <= high:
            # Before the first key everything is read, behind the last one nothing.
            if (place[0] > high) is not descending:
                return iter(())
            place = None
        if self.few is not None:
            return self._few(self.few.entries(low, high, place, descending=descending))
        if self._view is not None:
            return self._visible(self._view, low, high, place, descending=descending)
        return self._all(low, high, place, descending=descending)

    def _next_size(self) -> int:
        size = self._budget.portion(min(next(self._sizes), self.soon or ROWS_A_BATCH))
        self.soon = max(self.soon - size, 0)
        return size

    def _all(
        self, low: bytes, high: bytes, place: Place | None, *, descending: bool
    ) -> Iterator[tuple[bytes, StudyRow]]:
        walk, more = self._environment.entries, True
        while more:
            size = self._next_size()
            with self._environment.reading("walking through studies") as transaction:
                walked = walk(transaction, low, high, place, descending=descending, size=size + 1)
                entries: list[Pair] = list(itertools.islice(walked, size + 1))
                more = len(entries) > size
                del entries[size:]
                cursor = transaction.cursor(db=self._handles["studies"])
                rows = dict(cursor.getmulti([study for _, study in entries]))
            if not self._budget.spend(rows=len(entries)):
                return
            yield from (
                (key, (study.decode(), LevelRow.unpack(rows[study])))
                for key, study in entries
                if study in rows
            )
            place = (entries[-1][0], entries[-1][1] + b"\0") if more else None
            if more and self._budget.optional and self._environment.remote:
                self._budget.spend(rows=self._budget.rows + 1)  # a round trip costs more than it allows
                return

    def _visible(
        self, view: View, low: bytes, high: bytes, place: Place | None, *, descending: bool
    ) -> Iterator[tuple[bytes, StudyRow]]:
        more = True
        while more:
            batch: list[tuple[bytes, str, bytes]] = []
            size = self._next_size()
            while more and len(batch) < size:
                passed, reach, more = 0, self._budget.reach(size), False
                with self._environment.reading("walking through studies") as transaction:
                    hidden = view.hidden(transaction)
                    walked = self._walked(transaction, low, high, place, descending=descending, size=size + 1)
                    for key, entry in walked:
                        if len(batch) == size or passed == reach:
                            more = True
                            break
                        term, study = together(key), entry.decode()
                        place, value = (term, entry + b"\0"), None
                        if hidden is None or study not in hidden:
                            value = transaction.get(entry, db=self._handles["studies"])
                        if value is not None:
                            value = self._visible_at(view, transaction, key, study, value)
                        if value is not None:
                            batch.append((term, study, value))
                        else:
                            passed += 1
                if passed and not self._budget.spend(hidden=passed):
                    return
            if not self._budget.spend(rows=len(batch)):
                return
            yield from ((key, (study, LevelRow.unpack(value))) for key, study, value in batch)

    def _walked(
        self,
        transaction: Transaction,
        low: bytes,
        high: bytes,
        place: Place | None,
        *,
        descending: bool,
        size: int,
    ) -> Iterator[tuple[bytes, bytes]]:
        """The entries of the list, and those that are listed apart at their places."""
        walk = partial(self._environment.entries, transaction, descending=descending, size=size)
        found = walk(low, high, place)
        place = (apart(place[0]), place[1]) if place is not None else None
        others = walk(apart(low), apart(high), place)
        first = next(others, None)
        return found if first is None else _merged(found, chain((first,), others), descending=descending)

    def _visible_at(
        self, view: View, transaction: Transaction, key: bytes, study: str, value: bytes
    ) -> bytes | None:
        """The row of a study, `value`, as it is visible, if the entry under this key counts then."""
        seen, term = view.row(transaction, study, value), together(key)
        if seen is None or seen is value:
            return seen if key == term else None
        row = self._order.attribute
        forms = forms_of(row, self._read(LevelRow.unpack(seen)))
        return seen if any(self._order.start + cut(form) == term for form in forms) else None

    def _few(self, entries: Iterator[tuple[bytes, str]]) -> Iterator[tuple[bytes, StudyRow]]:
        view = self._view
        while page := list(itertools.islice(entries, self._budget.portion(next(self._sizes)))):
            batch = []
            with self._environment.reading("reading visible studies") as transaction:
                for key, study in page:
                    value = transaction.get(study.encode(), db=self._handles["studies"])
                    value = view.row(transaction, study, value) if view is not None else value
                    if value is not None:
                        batch.append((key, study, value))
            if not self._budget.spend(rows=len(batch)):
                return
            yield from ((key, (study, LevelRow.unpack(value))) for key, study, value in batch)

    def _without_value(self, at: bytes) -> Iterator[StudyRow]:
        value_of = value_reader(self._order)
        more, view = True, self._view
        while more:
            size = self._budget.portion(next(self._sizes))
            batch: list[tuple[bytes, bytes]] = []
            while more and len(batch) < size:
                with self._environment.reading("paging through studies") as transaction:
                    rows = self._environment.under(transaction, "studies", b"", at, size)
                    more = len(rows) == size
                    if view is None:
                        batch = rows
                    else:
                        for number, (study, value) in enumerate(rows, 1):
                            seen = view.row(transaction, study.decode(), value)
                            if seen is not None:
                                batch.append((study, seen))
                                if len(batch) == size:
                                    rows, more = rows[:number], True
                                    break
                at = rows[-1][0] + b"\0" if rows else at
                if view is not None and not self._budget.spend(hidden=len(rows)):
                    return
            if not self._budget.spend(rows=len(batch)):
                return
            for study, value in batch:
                row = LevelRow.unpack(value)
                if value_of(row) is None:
                    yield study.decode(), row


def _merged(
    one: Iterator[tuple[bytes, bytes]], other: Iterator[tuple[bytes, bytes]], *, descending: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Entries of two walks in one order."""
    left, right = next(one, None), next(other, None)
    while left is not None and right is not None:
        here, there = together(left[0]), together(right[0])
        if left[1] < right[1] if here == there else (here > there) is descending:
            yield left
            left = next(one, None)
        else:
            yield right
            right = next(other, None)
    yield from chain((each for each in (left, right) if each is not None), one, other)


def batch_sizes(wanted: int) -> Iterator[int]:
    """The wanted number first; then more and more, because few rows match."""
    size = min(wanted, ROWS_A_BATCH)
    while True:
        yield size
        size = min(size * 4, ROWS_A_BATCH)
