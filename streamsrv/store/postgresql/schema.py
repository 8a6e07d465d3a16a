"""The tables of a database, their version, and the way from one version to the next.

Strategy: the first process that opens an empty schema makes all tables, in one transaction and under an
advisory lock. `head` has the version of the layout. A newer one is refused; an older one is brought up to
date by `streamsrv migrate-index` only, because servers of the older version may still be running.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from streamsrv.errors import StoreError, WrongStore
from streamsrv.store.index import birth, with_sum, without_sum
from streamsrv.store.postgresql import document_table, freshness, object_table, tombstone_table
from streamsrv.store.postgresql.connections import Connections, translated
from streamsrv.store.postgresql.tables import HEAD, TABLES

# The layout of the tables; the rows in them have the version of the index.
LAYOUT = 2
FORMAT = "PostgreSQL"
# Statements that lead from a layout to the next one.
STEPS: dict[int, tuple[str, ...]] = {
    1: (
        *freshness.CREATED,
        *document_table.CREATED,
        *tombstone_table.CREATED,
        "ALTER TABLE cluster ADD COLUMN filling text NOT NULL DEFAULT ''",
        "ALTER TABLE objects ADD COLUMN moved timestamptz",
        "UPDATE objects SET moved = '-infinity'",  # perhaps
    )
}
# Of pg_advisory_xact_lock: one process makes or migrates the tables.
_LOCK = 0x73747265616D
_LEAST_SERVER = 140000

Connection = psycopg.Connection[Any]


def prepare(connections: Connections, *, read_only: bool, store: str) -> None:
    """Make the tables if there are none; check whose they are. Raises StoreError, WrongStore."""
    with translated("opening the index"), connections.connect() as connection:
        if not founded(connection):
            if read_only:
                raise StoreError("the database has no index: open the store for writing once")
            found(connection, store)
        about = _about(connection)
        _check_rows(about)
        if about.get("store") != store:
            raise _wrong_store(connection)


def founded(connection: Connection) -> bool:
    """Whether there are tables. Raises StoreError if the server is too old, or their layout is not known."""
    if connection.info.server_version < _LEAST_SERVER:
        raise StoreError("the index needs PostgreSQL 14 or later")
    if there := _there(connection):
        _check_layout(_layout(connection))
    return there


def _there(connection: Connection) -> bool:
    row = connection.execute("SELECT to_regclass('head')").fetchone()
    return row is not None and row[0] is not None


def found(connection: Connection, store: str, cluster: tuple[str, bytes, str] | None = None) -> None:
    """Make the tables, unless another process has made them. `cluster` is the id and secret of a store whose
    segments are objects, and how `reindex` fills its tables."""
    about = TABLES["about"]
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        if _there(connection):
            return
        for table in TABLES.values():
            for statement in table.created:
                connection.execute(statement)
        texts = birth() | {"format": FORMAT, "store": store}
        rows = [(name.encode(), with_sum(name.encode(), text.encode())) for name, text in texts.items()]
        keys, values = about.pairs(rows)
        connection.execute("INSERT INTO about SELECT * FROM unnest(%b::bytea[], %b::bytea[])", [keys, values])
        tables = (freshness, object_table, tombstone_table, document_table)
        for statement in [each for table in tables for each in table.CREATED]:
            connection.execute(statement)
        if cluster is not None:
            connection.execute("INSERT INTO cluster (store_id, secret, filling) VALUES (%s, %s, %s)", cluster)
        connection.execute(HEAD)
        connection.execute(
            "INSERT INTO head (layout, version, entries) VALUES (%s, 1, %s)",
            [LAYOUT, Jsonb({about.name: len(rows)})],
        )


def _layout(connection: Connection, lock: str = "") -> int:
    row = connection.execute(f"SELECT layout FROM head{lock}").fetchone()
    assert row is not None
    return int(row[0])


def _about(connection: Connection) -> dict[str, str]:
    rows = connection.execute("SELECT key, value FROM about", binary=True).fetchall()
    return {key.decode(): without_sum("about", key, value).decode() for key, value in rows}


def _check_layout(layout: int) -> None:
    if layout > LAYOUT:
        raise StoreError(
            f"the index in this database has layout {layout}, and this program knows only up to {LAYOUT}: "
            "use the version of streamsrv that made it, or a later one"
        )
    if layout < LAYOUT:
        raise StoreError(
            f"the index in this database has layout {layout}, not {LAYOUT}: stop all servers, then run "
            "`streamsrv migrate-index`"
        )


def _check_rows(about: dict[str, str]) -> None:
    expected = birth()
    for name in ("schema", "table"):
        if about.get(name) != expected[name]:
            raise StoreError(
                f"the index was made by another version ({name} is {about.get(name)}, not {expected[name]})"
            )


def _wrong_store(connection: Connection) -> WrongStore:
    if connection.execute("SELECT FROM cluster").fetchone() is not None:
        return WrongStore(
            "this database has the index of a store whose segments are in a bucket: nothing was changed. "
            "Name the bucket with `--segments`, or name an empty database"
        )
    return WrongStore(
        "this database has the index of another store: nothing was changed. Name the database of this "
        "store, or an empty one for a new store"
    )


def migrate(url: str) -> tuple[int, int]:
    """Bring the tables to the current layout; returns the layouts before and after. Raises StoreError."""
    with translated("migrating the index"), Connections(url).connect() as connection:
        if not _there(connection):
            raise StoreError("the database has no index: nothing was changed")
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
            before = _layout(connection, " FOR UPDATE")
            if before > LAYOUT:
                _check_layout(before)
            for layout in range(before, LAYOUT):
                for statement in STEPS[layout]:
                    connection.execute(statement)
            connection.execute("UPDATE head SET layout = %s, version = version + 1", [LAYOUT])
    return before, LAYOUT
