"""The row that names the store of a cluster. The bucket has the same identity as an object."""

from __future__ import annotations

from typing import NamedTuple

from streamsrv.errors import WrongStore
from streamsrv.store.postgresql import schema
from streamsrv.store.postgresql.connections import Connections, translated


class ClusterRow(NamedTuple):
    """`in_bucket`: the bucket has had the identity once."""

    store_id: str
    secret: bytes
    in_bucket: bool


def read(connections: Connections) -> ClusterRow | None:
    """None for a database without tables. Raises WrongStore if its index is that of a folder."""
    with translated("opening the index"), connections.connect() as connection:
        if not schema.founded(connection):
            return None
        row = connection.execute("SELECT store_id, secret, in_bucket FROM cluster").fetchone()
    if row is None:
        raise WrongStore(
            "this database has the index of a store whose segments are in a folder: nothing was changed. "
            "Start without `--segments`, or name an empty database"
        )
    return ClusterRow(*row)


def found(connections: Connections, store_id: str, secret: bytes, fingerprint: bytes) -> None:
    """Make the tables of a new store, unless another node has done so."""
    with translated("making the index"), connections.connect() as connection:
        schema.found(connection, fingerprint.hex(), (store_id, secret))


def note_in_bucket(connections: Connections) -> None:
    with translated("opening the index"), connections.connect() as connection:
        connection.execute("UPDATE cluster SET in_bucket = true")
