"""Cursors over a table, as the index uses those of LMDB.

Strategy: a cursor holds a page of neighbouring rows and moves within it. It reads the next page where the
last one ends, in either direction. Pages grow, because a long walk goes on. So a batch of a search costs a
few statements, not one for each row.

Rules of this file: the rows of a page are all rows of the table between its first and its last one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias

from streamsrv.store.postgresql.link import Row, Value
from streamsrv.store.postgresql.tables import Table

Pair: TypeAlias = tuple[bytes, bytes]
NOWHERE: Pair = (b"", b"")
GROWTH = 4


class Statements(Protocol):
    """The transaction of a cursor."""

    def ask(self, statement: str, values: Sequence[Value] = ()) -> list[Row]: ...

    def settle_table(self, table: Table, behind: Pair = NOWHERE) -> None:
        """Before rows behind a row are read: write those of them that wait."""

    def list_of(self, table: Table, key: bytes) -> list[Pair] | None:
        """All rows of a key, if they are known."""

    def getmulti(self, table: Table, keys: Sequence[bytes]) -> list[Pair]: ...


class ChangingStatements(Statements, Protocol):
    """The transaction of a cursor that writes."""

    def put(self, key: bytes, value: bytes, *, db: Table) -> bool: ...

    def remove(self, table: Table, row: Pair) -> None: ...


class TableCursor:
    def __init__(self, transaction: Statements, table: Table) -> None:
        self._transaction = transaction
        self._table = table
        self._rows: list[Pair] = []
        self._at = 0
        self._low = self._high = NOWHERE  # all rows between them are in the page
        self._before = self._behind = False  # whether there may be rows outside
        self._next = False  # a row was deleted: the cursor is at the next one, once that is read
        self._size = table.first

    # -- where it is

    def item(self) -> Pair:
        if self._next:
            self._next = False
            self._reach(self._at)
        return self._rows[self._at] if 0 <= self._at < len(self._rows) else NOWHERE

    def key(self) -> bytes:
        return self.item()[0]

    def value(self) -> bytes:
        return self.item()[1]

    def count(self) -> int:
        """The number of values under this key."""
        key = self.key()
        if self._high[0] > key or not self._behind:
            first = bisect_left(self._rows, (key, b""))
            if first or not self._before or self._low <= (key, b""):
                return bisect_left(self._rows, (key + b"\0", b"")) - first
        found = self._ask(f"SELECT count(*) FROM {self._table.name} WHERE key = $1", [key])
        return int(found[0][0])

    # -- moving

    def first(self) -> bool:
        return self.set_range(b"")

    def last(self) -> bool:
        rows = self._page(f"ORDER BY {_descending(self._table)}", [])
        self._stand(rows[::-1], len(rows) - 1, before=len(rows) == self._asked, behind=False)
        return bool(rows)

    def set_range(self, key: bytes) -> bool:
        """To the first row from `key` on."""
        return self._seek((key, b""))

    def set_key(self, key: bytes) -> bool:
        known = self._transaction.list_of(self._table, key)
        if known is not None:
            self._stand(known, 0, before=True, behind=True)
            self._low, self._high = (key, b""), (key + b"\0", b"")
        return self.set_range(key) and self._is(self.key() == key) if known is None else bool(known)

    def set_key_dup(self, key: bytes, value: bytes) -> bool:
        return self._seek((key, value)) and self._is(self.item() == (key, value))

    def set_range_dup(self, key: bytes, value: bytes) -> bool:
        """To the first value of `key` from `value` on."""
        return self._seek((key, value)) and self._is(self.key() == key)

    def next(self) -> bool:
        if not self._rows and not self._next:
            return self.first()
        if self._next:
            return bool(self.key())
        self._at += 1
        return self._reach(self._at)

    def next_dup(self) -> bool:
        key, at = self.key(), self._at + 1
        there = at < len(self._rows) or (self._high[0] <= key and self._reach(at))
        if there and self._rows[at][0] == key:
            self._at = at
            return True
        return False

    def prev(self) -> bool:
        if not self._rows:
            return self.last()
        if self._at == 0 and self._before:
            self._read_before(self._rows[0] if self._table.several else (self._rows[0][0], b""))
        self._at = max(self._at - 1, -1)
        return self._at >= 0

    def prev_nodup(self) -> bool:
        """To the last value of the key before."""
        key = self.key()
        first = bisect_left(self._rows, (key, b""))
        if first:
            self._at = first - 1
            return True
        rows = self._page(f"WHERE key < $1 ORDER BY {_descending(self._table)}", [key])
        self._stand(rows[::-1], len(rows) - 1, before=len(rows) == self._asked, behind=True)
        return bool(rows)

    def next_nodup(self) -> bool:
        return self.set_range(self.key() + b"\0")

    def first_dup(self) -> bool:
        key = self.key()
        first = bisect_left(self._rows, (key, b""))
        if first or not self._before or self._low <= (key, b""):
            self._at = first
            return True
        return self.set_range(key)

    # -- many

    def __iter__(self) -> Iterator[Pair]:
        return self.iternext()

    def iternext(self) -> Iterator[Pair]:
        there = bool(self.key()) or self.first()
        while there:
            yield self.item()
            there = self.next()

    def iternext_dup(self) -> Iterator[bytes]:
        key = self.key()
        if key < self._high[0]:  # all of them are in the page
            first, self._at = self._at, bisect_left(self._rows, (key + b"\0", b"")) - 1
            yield from [value for _, value in self._rows[first : self._at + 1]]
            return
        there = bool(key)
        while there:
            yield self.value()
            there = self.next_dup()

    def getmulti(self, keys: Sequence[bytes]) -> list[Pair]:
        """The rows of those keys that exist, in the order of `keys`."""
        return self._transaction.getmulti(self._table, keys)

    def get(self, key: bytes) -> bytes | None:
        found = self.getmulti([key])
        return found[0][1] if found else None

    # -- pages

    def _is(self, found: bool) -> bool:
        if not found:
            self._at = len(self._rows)
        return found

    def _seek(self, wanted: Pair) -> bool:
        self._next = False
        if self._rows and self._low <= wanted <= self._high:
            self._at = bisect_left(self._rows, wanted)
            return self._reach(self._at)
        if self._table.several and wanted[1]:
            rows = self._page("WHERE (key, value) >= ($1, $2) ORDER BY key, value", list(wanted))
        else:
            rows = self._page(f"WHERE key >= $1 ORDER BY {self._table.order}", [wanted[0]])
        self._stand(rows, 0, before=True, behind=len(rows) == self._asked)
        self._low = wanted
        return bool(rows)

    def _reach(self, at: int) -> bool:
        """Whether there is a row at this place of the page, which may have to be read."""
        if at < len(self._rows):
            return at >= 0
        if not self._behind:
            return False
        if self._table.several:
            clause, arguments = "WHERE (key, value) > ($1, $2) ORDER BY key, value", list(self._high)
        else:
            clause, arguments = "WHERE key > $1 ORDER BY key", [self._high[0]]
        rows = self._page(clause, arguments, self._high)
        self._rows += rows
        self._behind = len(rows) == self._asked
        self._high = rows[-1] if rows else self._high
        return at < len(self._rows)

    def _read_before(self, row: Pair) -> None:
        where = "(key, value) < ($1, $2)" if self._table.several else "key < $1"
        arguments = list(row) if self._table.several else [row[0]]
        rows = self._page(f"WHERE {where} ORDER BY {_descending(self._table)}", arguments)
        self._rows[:0] = rows[::-1]
        self._at += len(rows)
        self._before = len(rows) == self._asked
        self._low = rows[-1] if rows else self._low

    def _page(self, clause: str, arguments: Sequence[bytes], behind: Pair = NOWHERE) -> list[Pair]:
        self._asked, self._size = self._size, min(self._size * GROWTH, self._table.most)
        statement = f"SELECT key, value FROM {self._table.name} {clause} LIMIT ${len(arguments) + 1}"
        return self._ask(statement, [*arguments, self._asked], behind)

    def _ask(self, statement: str, values: list[Value], behind: Pair = NOWHERE) -> list[Row]:
        self._transaction.settle_table(self._table, behind)
        return self._transaction.ask(statement, values)

    def _stand(self, rows: list[Pair], at: int, *, before: bool, behind: bool) -> None:
        self._rows, self._at, self._before, self._behind = rows, at, before, behind
        self._low, self._high = (rows[0], rows[-1]) if rows else (NOWHERE, NOWHERE)
        self._next = False


def _descending(table: Table) -> str:
    return "key DESC, value DESC" if table.several else "key DESC"


class WritingCursor(TableCursor):
    def __init__(self, transaction: ChangingStatements, table: Table) -> None:
        super().__init__(transaction, table)
        self._changes = transaction

    def put(self, key: bytes, value: bytes) -> bool:
        """Write at the cursor."""
        done = self._changes.put(key, value, db=self._table)
        if self.key() == key:
            self._rows[self._at] = key, value
        return done

    def delete(self) -> bool:
        """The cursor is at the next row afterwards."""
        row = self.item()
        if row == NOWHERE:
            return False
        self._changes.remove(self._table, row)
        del self._rows[self._at]
        self._next = True
        return True
