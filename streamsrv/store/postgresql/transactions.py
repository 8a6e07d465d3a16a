"""Transactions of the ordered map: one that reads, and the one that writes.

Strategy: a reader begins with its first statement, in the same round trip, and sees one snapshot. That round
trip also brings the head row, and nothing waits for the end. A writer locks the head row, so it is alone;
then it reads the newest rows. Its changes wait in memory. They go to the database together at the end, or
when a cursor wants to read their table. Rows that a caller is about to ask for are read before, in bulk
(`expect`).

A new row is inserted with ON CONFLICT DO NOTHING. If fewer rows come back than were given, another writer was
there: the transaction is refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from operator import itemgetter
from typing import cast

import orjson
import psycopg

from streamsrv.errors import StoreCorrupt
from streamsrv.store.ordered_map import KeysRead, Needle
from streamsrv.store.postgresql.connections import READING, WRITING, Connections, failure
from streamsrv.store.postgresql.cursors import NOWHERE, Pair, TableCursor, WritingCursor
from streamsrv.store.postgresql.link import Asked, PipelineLink, Row, Value
from streamsrv.store.postgresql.tables import (
    ATTRIBUTES,
    BETWEEN,
    CHANGES,
    DISTINCT,
    FOUND,
    LISTED,
    LISTS,
    MANY,
    NUMBERS,
    SHORT_LIST,
    STUDIES,
    TABLES,
    WALKED,
    Table,
    behind,
    escaped,
)

_HEAD = "SELECT version, entries::text FROM head"
_READ = [Asked("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"), Asked(_HEAD)]
_WRITE = [
    Asked("BEGIN"),
    Asked(f"{_HEAD} FOR UPDATE"),
    Asked("SELECT pg_current_xact_id()::text"),
    Asked("SELECT key, value FROM changes ORDER BY key DESC LIMIT 1"),
]
_CHANGED = "UPDATE head SET version = version + 1, entries = convert_from($1::bytea, 'UTF8')::jsonb"
# Entries that a walk reads at once, at most.
_WALKED_AT_ONCE = 501


class TableTransaction(ABC):
    """The part of both. `doing` is for errors."""

    def __init__(self, connections: Connections, doing: str) -> None:
        self._connections = connections
        self._doing = doing
        self._link: PipelineLink | None = None
        self._known: dict[Table, dict[bytes, bytes | None]] = {table: {} for table in TABLES.values()}

    @abstractmethod
    def ask(self, statement: str, values: Sequence[Value] = ()) -> list[Row]:
        """The rows of one statement."""

    @abstractmethod
    def settle_table(self, table: Table, behind: Pair = NOWHERE) -> None:
        """As `Statements.settle_table`."""

    @abstractmethod
    def list_of(self, table: Table, key: bytes) -> list[Pair] | None:
        """All rows of a key, if they are known."""

    def cursor(self, db: Table) -> TableCursor:
        return TableCursor(self, db)

    def get(self, key: bytes, *, db: Table) -> bytes | None:
        known = self._known[db]
        if key not in known:
            self._look_up(db, [key])
        return known[key]

    def getmulti(self, table: Table, keys: Sequence[bytes]) -> list[Pair]:
        known = self._known[table]
        self._look_up(table, [key for key in keys if key not in known])
        found = ((key, known[key]) for key in keys)
        return [(key, value) for key, value in found if value is not None]

    def _look_up(self, table: Table, keys: list[bytes]) -> None:
        if keys:
            known = self._known[table]
            known.update(dict.fromkeys(keys))
            known.update(self.ask(table.looked_up, table.arguments(keys)))


class ReadingTables(TableTransaction):
    """A context manager; without a statement it costs nothing."""

    def __init__(self, connections: Connections, doing: str) -> None:
        super().__init__(connections, doing)
        self._version = -1
        self._entries: dict[str, int] = {}
        self._lists: dict[bytes, list[Pair]] = {}
        self._begun: dict[bytes, int] = {}  # lists that have so many entries at least

    def __enter__(self) -> ReadingTables:
        return self

    def ask(self, statement: str, values: Sequence[Value] = ()) -> list[Row]:
        asked = Asked(statement, values)
        if self._link is not None:
            return self._link.ask([asked], READING)[0]
        return self._begin([asked])[-1]

    def _begin(self, asked: Sequence[Asked]) -> list[list[Row]]:
        self._link, answers = self._connections.begun([*_READ, *asked], READING)
        ((version, entries),) = answers[1]
        self._entries = self._connections.counted = orjson.loads(entries)
        self._version = self._link.numbered(version)
        return answers

    def id(self) -> int:
        if self._version < 0:
            self._begin(())
        return self._version

    def stat(self, table: Table) -> dict[str, int]:
        self.id()
        return {"entries": self._entries.get(table.name, 0)}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        link, self._link = self._link, None
        usable = not isinstance(error, psycopg.Error)
        if link is not None:
            try:
                if usable:
                    link.tell("COMMIT")
            except psycopg.Error:  # all rows were read before
                usable = False
            finally:
                self._connections.give_back(link, usable=usable)
        if isinstance(error, psycopg.Error):
            raise failure(error, self._doing) from error

    # -- many rows in one statement

    def under(self, table: Table, start: bytes, first: bytes, size: int) -> list[Pair]:
        """Rows whose keys begin with `start`, from the key `first` on."""
        values: list[Value] = [max(first, start), behind(start), size]
        pruned = table.by_study and b"\0" in start
        if pruned:
            values += table.studies([start])
        return self.ask(table.ranged(pruned=pruned), values)

    def under_each(self, table: Table, starts: Sequence[bytes], size: int) -> list[list[Pair]]:
        """The rows that `under` finds for each beginning, which is a study and NUL."""
        found: dict[bytes, list[Pair]] = {start: [] for start in starts}
        ends = [behind(start) for start in starts]
        for row in self.ask(table.ranged_each, [list(starts), ends, table.studies(starts), size]):
            found[row[0][: row[0].index(b"\0") + 1]].append(row)
        return [sorted(rows) for rows in found.values()]

    def keys(self, at: bytes, end: bytes, size: int, needle: Needle, most: int) -> KeysRead:
        """The keys of lists between two keys that hold the needle, and the entries of their lists. At most
        `size` entries are read."""
        size = size if needle.text else min(size, most + 1)
        texts: list[Value] = [needle.text, needle.other]
        if needle.caseless:
            texts = [escaped(needle.text), escaped(needle.other)]
        values: list[Value] = [at, end, size, *texts, needle.long, most + 1]
        ((joined, held, number, limit, last),) = self.ask(FOUND[needle.caseless], values)
        pairs = joined.split(BETWEEN) if held else []
        found = {key: [(key, each) for each in entries] for key, entries in _grouped(pairs)}
        keys = list(found)
        if not limit:
            keys, number, self._begun[last] = [last], 1, most + 1
            if needle.text in (last.lower() if needle.caseless else last):
                return KeysRead(keys, number, last)
        if held > most:  # those behind are left out
            last, number = keys[-1], number * (most + 1) // held
        if last in found:  # the others of its entries are behind
            self._begun[last] = len(found.pop(last))
        self._lists.update(found)
        if limit < size and last and held <= most:
            steps = max(size // MANY, 1)
            further = [key for (key,) in self.ask(DISTINCT, [last + b"\0", end, steps])]
            keys, number = keys + further, number + len(further)
            last = further[-1] if len(further) == steps else b""
        return KeysRead(keys, number, last or b"")

    def lists(
        self, keys: Sequence[bytes], most: int, *, exact: bool, counting: bool
    ) -> Iterator[tuple[bytes, int, Iterable[bytes]]]:
        """Key, number of entries, and entries of each list that exists."""
        known = list(takewhile(self._lists.__contains__, keys))
        for key in known:
            entries = self._lists[key]
            yield key, len(entries), map(itemgetter(1), entries)
        further = keys[len(known) :]
        if further and not exact and (begun := self._begun.get(further[0], 0)) > most:
            yield further[0], begun, ()
        elif len(further) == 1 and not exact:
            ((joined, number),) = self.ask(SHORT_LIST[counting], [further[0], most])
            if number:
                yield further[0], number, joined.split(BETWEEN) if joined else ()
        elif further:
            yield from self._read_lists(further, most, exact=exact)

    def _read_lists(
        self, keys: Sequence[bytes], most: int, *, exact: bool
    ) -> Iterator[tuple[bytes, int, Iterable[bytes]]]:
        ((joined, entries),) = self.ask(LISTS, [list(keys), most + 1])
        pairs = joined.split(BETWEEN) if entries else []
        known = {key: list(values) for key, values in _grouped(pairs)}
        unread = keys.index(pairs[-2]) if entries > most else len(keys)
        if entries > most and unread == 0 and not exact:
            yield keys[0], entries, ()
            return
        for key in keys[:unread]:
            if key in known:
                yield key, len(known[key]), known[key]
        cursor = self.cursor(ATTRIBUTES)
        for key in keys[unread:]:
            if cursor.set_key(key):
                yield key, cursor.count(), cursor.iternext_dup()

    def numbers(self, low: bytes, end: bytes, size: int) -> Iterator[tuple[bytes, int]]:
        """Key and number of entries of each list between two keys."""
        more = True
        while more:
            found = self.ask(NUMBERS, [low, end, size])
            yield from ((key, number) for key, number in found)
            more = len(found) == size
            low = found[-1][0] + b"\0" if more else low

    def expect_list(self, key: bytes, most: int) -> None:
        """Read a list and the rows of its studies, if it has not more than `most` entries."""
        found = self.ask(LISTED, [key, most + 1])
        self._known[STUDIES].update((study, value) for study, value in found)
        if len(found) <= most:
            self._lists[key] = [(key, study) for study, _ in found]

    def settle_table(self, table: Table, behind: Pair = NOWHERE) -> None:
        """No row waits."""

    def list_of(self, table: Table, key: bytes) -> list[Pair] | None:
        return self._lists.get(key) if table is ATTRIBUTES else None

    def entries(
        self, low: bytes, high: bytes, place: Pair | None, *, descending: bool, size: int
    ) -> Iterator[Pair]:
        """Entries of lists, in the order of a walk, with the rows of their studies."""
        at = place or ((high + b"\0", b"") if descending else (low, b""))
        bound = low if descending else high
        more = True
        while more:
            size = min(size, _WALKED_AT_ONCE)
            found = self.ask(WALKED[descending], [*at, bound, size])
            self._known[STUDIES].update((study, value) for _, study, value in found)
            yield from ((key, study) for key, study, _ in found)
            more = len(found) == size
            if more:
                at, size = (found[-1][0], found[-1][1] + b"\0"), size * 4


@dataclass(slots=True)
class _TableWrite:
    """Rows that are written by one statement, which returns their number. `sign` says how that changes the
    number of rows. `rows` is the number that is expected, or -1."""

    table: Table
    sign: int
    asked: Asked
    rows: int = -1


class WritingTables(TableTransaction):
    """The only writer of all processes. A context manager: it commits, or changes nothing."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections, "writing to the index")
        self._waiting: dict[Table, dict[bytes, bytes | None]] = {table: {} for table in TABLES.values()}
        self._pairs: dict[Table, dict[Pair, bool]] = {table: {} for table in TABLES.values()}
        self._changes: list[_TableWrite] = []
        self._wrote = False
        self._change_written: Pair | None = None  # the last one

    def __enter__(self) -> WritingTables:
        self._link, answers = self._connections.begun(_WRITE, WRITING)
        ((version, entries),), ((number,),), changes = answers[1:]
        self._version = self._link.numbered(version)
        self.last_change: Pair | None = changes[0] if changes else None
        self._number = int(number)
        found: dict[str, int] = orjson.loads(entries)
        self._entries = {name: found.get(name, 0) for name in TABLES}
        return self

    def cursor(self, db: Table) -> WritingCursor:
        return WritingCursor(self, db)

    def ask(self, statement: str, values: Sequence[Value] = ()) -> list[Row]:
        return self._ask([Asked(statement, values)])[0]

    def _ask(self, asked: Sequence[Asked]) -> list[list[Row]]:
        assert self._link is not None
        return self._link.ask(asked, WRITING)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        usable = False
        try:
            if error is not None:
                if not isinstance(error, psycopg.Error):
                    self.ask("ROLLBACK")
                    usable = True
            else:
                self._write()
                usable = self._commit()
        except psycopg.Error:
            if error is None:
                raise
        finally:
            self._end(usable=usable)

    def _write(self) -> None:
        for table in TABLES.values():
            self._collect(table)
        self._send()

    def _commit(self) -> bool:
        """Whether the connection can be used again."""
        assert self._link is not None
        changed = [Asked(_CHANGED, [orjson.dumps(self._entries)])] if self._wrote else []
        try:
            self._ask([*changed, Asked("COMMIT")])
            return True
        except (psycopg.OperationalError, psycopg.InterfaceError):
            self._link.close()
            if not self._connections.settle(self._number, self._change_written):
                raise
            return False

    def _end(self, *, usable: bool) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._connections.give_back(link, usable=usable)

    def id(self) -> int:
        return self._version + 1

    def stat(self, table: Table) -> dict[str, int]:
        self.settle_table(table)
        return {"entries": self._entries[table.name]}

    # -- changes

    def expect(self, rows: Iterable[tuple[str, Iterable[bytes]]]) -> None:
        """Read rows that will be asked for, by the name of their table, in one round trip."""
        asked, missing = [], []
        for name, keys in rows:
            table = TABLES[name]
            unknown = [key for key in dict.fromkeys(keys) if key not in self._known[table]]
            if unknown:
                asked.append(Asked(table.looked_up, table.arguments(unknown)))
                missing.append((self._known[table], unknown))
        if asked:
            for (known, keys), found in zip(missing, self._ask(asked), strict=True):
                known.update(dict.fromkeys(keys))
                known.update(found)

    def get(self, key: bytes, *, db: Table) -> bytes | None:
        waiting = self._waiting[db]
        return waiting[key] if key in waiting else super().get(key, db=db)

    def getmulti(self, table: Table, keys: Sequence[bytes]) -> list[Pair]:
        self.settle_table(table)
        return super().getmulti(table, keys)

    def put(
        self, key: bytes, value: bytes, *, db: Table, append: bool = False, overwrite: bool = True
    ) -> bool:
        """With `append` the key is new."""
        if db.several:
            self._pairs[db][key, value] = True
            return True
        if append:
            self._known[db].setdefault(key, None)
        elif self.get(key, db=db) is not None and not overwrite:
            return False
        self._waiting[db][key] = value
        return True

    def delete(self, key: bytes, value: bytes = b"", *, db: Table) -> bool:
        if db.several:
            self._pairs[db][key, value] = False
            return True
        there = self.get(key, db=db) is not None
        self._waiting[db][key] = None
        return there

    def remove(self, table: Table, row: Pair) -> None:
        """Delete a row that a cursor has read."""
        if table.several:
            self._pairs[table][row] = False
        else:
            self._known[table].setdefault(*row)
            self._waiting[table][row[0]] = None

    def delete_ranges(self, table: Table, ranges: Sequence[Pair]) -> None:
        """Delete all rows between two keys, without the second."""
        self._collect(table)
        lows, highs = [low for low, _ in ranges], [high for _, high in ranges]
        self._changes.append(_TableWrite(table, -1, Asked(table.ranges_deleted, (lows, highs))))

    def list_of(self, table: Table, key: bytes) -> list[Pair] | None:
        return None

    def settle_table(self, table: Table, behind: Pair = NOWHERE) -> None:
        waiting = max(self._pairs[table], default=NOWHERE), (max(self._waiting[table], default=b""), b"")
        if max(waiting) > behind:
            self._collect(table)
        if any(change.table is table for change in self._changes):
            self._send()

    def _collect(self, table: Table) -> None:
        """The statements that write the waiting rows of a table."""
        if table.several:
            pairs, self._pairs[table] = self._pairs[table], {}
            gone = [row for row, there in pairs.items() if not there]
            new = [row for row, there in pairs.items() if there]
            self._change(table, -1, table.deleted, gone, table.pairs(gone))
            self._change(table, 1, table.inserted, new, table.pairs(new))
            return
        waiting, self._waiting[table] = self._waiting[table], {}
        known = self._known[table]
        before = {key for key in waiting if known.get(key) is not None}
        goes = [key for key, value in waiting.items() if value is None and key in before]
        set_now = [(key, value) for key, value in waiting.items() if value is not None]
        fresh = [row for row in set_now if row[0] not in before]
        again = [row for row in set_now if row[0] in before and known[row[0]] != row[1]]
        known.update(waiting)
        self._change(table, -1, table.deleted, goes, table.arguments(goes), exact=True)
        self._change(table, 1, table.inserted, fresh, table.pairs(fresh), exact=True)
        self._change(table, 0, table.updated, again, table.pairs(again), exact=True)

    def _change(
        self,
        table: Table,
        sign: int,
        statement: str,
        rows: Sequence[object],
        values: Sequence[Value],
        *,
        exact: bool = False,
    ) -> None:
        if rows:
            if sign > 0 and table is CHANGES:
                self._change_written = cast(Pair, rows[-1])
            self._changes.append(
                _TableWrite(table, sign, Asked(statement, values), len(rows) if exact else -1)
            )

    def _send(self) -> None:
        """Write in one round trip."""
        changes, self._changes = self._changes, []
        if not changes:
            return
        for change, ((count,),) in zip(changes, self._ask([each.asked for each in changes]), strict=True):
            if change.rows not in (-1, count):
                raise StoreCorrupt(
                    f"the table {change.table.name} of the index was changed by another program: run check, "
                    "then reindex"
                )
            self._entries[change.table.name] += change.sign * count
        self._wrote = True


def _grouped(pairs: Sequence[bytes]) -> Iterator[tuple[bytes, Iterator[bytes]]]:
    """The values of each key, from keys with their values; values of a key are side by side."""
    for key, group in groupby(zip(pairs[0::2], pairs[1::2], strict=True), itemgetter(0)):
        yield key, map(itemgetter(1), group)
