"""The row that names the store of a cluster. The bucket has the same identity as an object."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from streamsrv.errors import StoreError, WrongStore
from streamsrv.store.folder import Identity
from streamsrv.store.index import with_sum
from streamsrv.store.postgresql import schema
from streamsrv.store.postgresql.connections import Connections, translated

# How `reindex` has begun with the database.
LOST, OLDER = "lost", "older"


class ClusterRow(NamedTuple):
    """`in_bucket`: the bucket has had the identity once. `filling`: LOST or OLDER while `reindex` fills the
    tables, else empty."""

    store_id: str
    secret: bytes
    in_bucket: bool
    filling: str


def read(connections: Connections) -> ClusterRow | None:
    """None for a database without tables. Raises WrongStore if its index is that of a folder, and StoreError
    if it is not complete."""
    row = _read(connections)
    if row is not None and row.filling:
        raise StoreError("`streamsrv reindex` is filling this database, or has broken off: run it to its end")
    return row


def _read(connections: Connections) -> ClusterRow | None:
    with translated("opening the index"), connections.connect() as connection:
        if not schema.founded(connection):
            return None
        row = connection.execute("SELECT store_id, secret, in_bucket, filling FROM cluster").fetchone()
    if row is None:
        raise WrongStore(
            "this database has the index of a store whose segments are in a folder: nothing was changed. "
            "Start without `--segments`, or name an empty database"
        )
    return ClusterRow(*row)


def found(connections: Connections, identity: Identity, filling: str = "") -> None:
    """Make the tables of a store, unless another process has done so."""
    with translated("making the index"), connections.connect() as connection:
        schema.found(connection, identity.fingerprint.hex(), (identity.store_id, identity.secret, filling))


def note_in_bucket(connections: Connections) -> None:
    with translated("opening the index"), connections.connect() as connection:
        connection.execute("UPDATE cluster SET in_bucket = true")


def begin_filling(connections: Connections, identity: Identity) -> bool:
    """From now on no node opens the database. Returns whether it was empty at first. Raises WrongStore if it
    is that of another store."""
    row = _read(connections)
    if row is None:
        found(connections, identity, LOST)
        row = _read(connections)
        assert row is not None
    if (row.store_id, row.secret) != (identity.store_id, identity.secret):
        raise WrongStore(
            f"the bucket has store {identity.store_id}, and the database has store {row.store_id}: nothing "
            "was changed. Name an empty database, or that of this store"
        )
    filling = row.filling or OLDER
    with translated("filling the index"), connections.connect() as connection:
        connection.execute("UPDATE cluster SET filling = %s, in_bucket = true", [filling])
    return filling == LOST


def end_filling(connections: Connections, last_segment: int) -> None:
    """Nodes may open the database. Numbers of segments up to `last_segment` are used. A new epoch of
    changes begins, because others have had their numbers."""
    epoch = with_sum(b"epoch", secrets.token_hex(8).encode())
    with translated("filling the index"), connections.connect() as connection:
        last = "SELECT setval('segment_numbers', greatest(%s, last_value)) FROM segment_numbers"
        connection.execute(last, [max(last_segment, 1)])
        connection.execute("UPDATE about SET value = %b WHERE key = %b", [epoch, b"epoch"])
        connection.execute("UPDATE head SET version = version + 1")
        connection.execute("UPDATE cluster SET filling = ''")
