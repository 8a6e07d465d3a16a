"""Transactions of the ordered map: one that reads, and the one that writes.

Strategy: a reader begins with its first statement, in the same round trip, and sees one snapshot. A writer
locks the head row, so it is alone; then it reads the newest rows. Its changes wait in memory, and go to the
database in one statement a table: when a cursor wants to read that table, and at the end. Rows that a caller
is about to ask for are read before, in bulk (`expect`).

A new row is inserted with ON CONFLICT DO NOTHING. If fewer rows come back than were given, another writer was
there: the transaction is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from streamsrv.errors import StoreCorrupt
from streamsrv.store.postgresql.connections import Connections, Rows, failure
from streamsrv.store.postgresql.cursors import Pair, TableCursor, WritingCursor
from streamsrv.store.postgresql.tables import TABLES, Table

READING = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_HEAD = "SELECT version, entries FROM head"
STUDIES = TABLES["studies"]


class TableTransaction:
    """The part of both. `doing` is for errors."""

    def __init__(self, connections: Connections, doing: str) -> None:
        self._connections = connections
        self._doing = doing
        self._connection: psycopg.Connection[Any] | None = None
        self._named: dict[bytes, None] = {}  # studies in pages of lists, whose rows may be asked for
        self._known: dict[Table, dict[bytes, bytes | None]] = {table: {} for table in TABLES.values()}

    def ask(self, statement: str, arguments: Sequence[object]) -> Rows:
        assert self._connection is not None
        return self._connection.execute(statement, arguments, binary=True).fetchall()

    def settle_table(self, table: Table) -> None:
        pass

    def page_of(self, table: Table, rows: Sequence[Pair]) -> None:
        if table.name == "attributes":
            self._named.update((value, None) for _, value in rows if b"\0" not in value)

    def cursor(self, db: Table) -> TableCursor:
        return TableCursor(self, db)

    def get(self, key: bytes, *, db: Table) -> bytes | None:
        known = self._known[db]
        if key not in known:
            keys = [key]
            if db is STUDIES and key in self._named:
                keys = [each for each in self._named if each not in known]
            self._look_up(db, keys)
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
        self._head: tuple[int, dict[str, int]] | None = None

    def __enter__(self) -> ReadingTables:
        return self

    def ask(self, statement: str, arguments: Sequence[object]) -> Rows:
        connection = self._connection
        if connection is not None:
            return connection.execute(statement, arguments, binary=True).fetchall()

        def begin(connection: psycopg.Connection[Any]) -> Rows:
            with connection.pipeline():
                connection.execute(READING)
                return connection.execute(statement, arguments, binary=True).fetchall()

        self._connection, rows = self._connections.begun(begin)
        return rows

    def id(self) -> int:
        return self._known_head()[0]

    def stat(self, table: Table) -> dict[str, int]:
        return {"entries": self._known_head()[1].get(table.name, 0)}

    def _known_head(self) -> tuple[int, dict[str, int]]:
        if self._head is None:
            ((version, entries),) = self.ask(_HEAD, ())
            self._head = version, entries
        return self._head

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        connection, self._connection = self._connection, None
        usable = not isinstance(error, psycopg.Error)
        if connection is not None:
            try:
                if usable:
                    connection.execute("COMMIT")
            except psycopg.Error:  # all rows were read before
                usable = False
            finally:
                self._connections.give_back(connection, usable=usable)
        if isinstance(error, psycopg.Error):
            raise failure(error, self._doing) from error


class WritingTables(TableTransaction):
    """The only writer of all processes. A context manager: it commits, or changes nothing."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections, "writing to the index")
        self._waiting: dict[Table, dict[bytes, bytes | None]] = {table: {} for table in TABLES.values()}
        self._pairs: dict[Table, dict[Pair, bool]] = {table: {} for table in TABLES.values()}
        self._wrote = False

    def __enter__(self) -> WritingTables:
        self._connection, (self._version, entries, self._number) = self._connections.begun(_locked)
        self._entries: dict[str, int] = {name: entries.get(name, 0) for name in TABLES}
        return self

    def cursor(self, db: Table) -> WritingCursor:
        return WritingCursor(self, db)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        assert self._connection is not None
        usable = False
        try:
            if error is not None:
                if not isinstance(error, psycopg.Error):
                    self._connection.execute("ROLLBACK")
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
        assert self._connection is not None
        for table in TABLES.values():
            self.settle_table(table)
        if self._wrote:
            self._connection.execute(
                "UPDATE head SET version = version + 1, entries = %s", [Jsonb(self._entries)]
            )

    def _commit(self) -> bool:
        """Whether the connection can be used again."""
        assert self._connection is not None
        try:
            self._connection.execute("COMMIT")
            return True
        except (psycopg.OperationalError, psycopg.InterfaceError):
            self._connection.close()
            if not self._connections.settle(self._number):
                raise
            return False

    def _end(self, *, usable: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._connections.give_back(connection, usable=usable)

    def id(self) -> int:
        version: int = self._version + 1
        return version

    def stat(self, table: Table) -> dict[str, int]:
        self.settle_table(table)
        return {"entries": self._entries[table.name]}

    # -- changes

    def expect(self, rows: Iterable[tuple[str, Iterable[bytes]]]) -> None:
        """Read rows that will be asked for, by the name of their table, in one round trip."""
        assert self._connection is not None
        asked = []
        with self._connection.pipeline():
            for name, keys in rows:
                table = TABLES[name]
                known = self._known[table]
                missing = [key for key in dict.fromkeys(keys) if key not in known]
                if missing:
                    arguments = table.arguments(missing)
                    answer = self._connection.execute(table.looked_up, arguments, binary=True)
                    asked.append((known, missing, answer))
            for known, missing, answer in asked:
                known.update(dict.fromkeys(missing))
                known.update(answer.fetchall())

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
        self.settle_table(table)
        lows, highs = [low for low, _ in ranges], [high for _, high in ranges]
        self._change(table, -1, table.ranges_deleted, ranges, (lows, highs))

    def settle_table(self, table: Table) -> None:
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
        arguments: Sequence[object],
        *,
        exact: bool = False,
    ) -> None:
        if not rows:
            return
        ((count,),) = self.ask(statement, arguments)
        if exact and count != len(rows):
            raise StoreCorrupt(
                f"the table {table.name} of the index was changed by another program: run check, then reindex"
            )
        self._entries[table.name] += sign * count
        self._wrote = True


def _locked(connection: psycopg.Connection[Any]) -> tuple[int, dict[str, int], int]:
    """Begin, and lock the head row: its version and entries, and the number of the transaction."""
    with connection.pipeline():
        connection.execute("BEGIN")
        locked = connection.execute(f"{_HEAD} FOR UPDATE", binary=True)
        numbered = connection.execute("SELECT pg_current_xact_id()::text")
        ((version, entries),) = locked.fetchall()
        ((number,),) = numbered.fetchall()
    return version, entries, int(number)
