"""The table of tombstones: the records that were deleted or replaced, until their objects are gone.

    without key    the bucket does not have the tombstone yet
    with a key     this object of the bucket names the records. Row and object stay while one of `segments`
                   has an object, and while an object is there whose records had begun to move before: it may
                   list them still

Rules of this file
- The transaction of the index that removes instances also writes their tombstone (object_batches.py). So no
  deletion is without one, and no tombstone names a record that lives.
- A node writes its own tombstones to the bucket, and those that other nodes have left behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from streamsrv.store.postgresql.connections import Connections
from streamsrv.store.postgresql.link import Value

CREATED = (
    "CREATE TABLE tombstones (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
    'key text COLLATE "C", records bytea NOT NULL, segments bigint[] NOT NULL, node text NOT NULL, '
    "made timestamptz NOT NULL DEFAULT clock_timestamp())",
    "CREATE INDEX tombstones_waiting ON tombstones (number) WHERE key IS NULL",
    "CREATE INDEX tombstones_key ON tombstones (key)",
)
# `records` are the ids of records, one behind the other.
ADD = "INSERT INTO tombstones (records, segments, node) VALUES ($1, $2, $3) RETURNING number"
_WAITING = (
    "SELECT number, records FROM tombstones WHERE key IS NULL AND (node = $1 OR "
    "made < now() - $2 * interval '1 second') ORDER BY number LIMIT $3"
)
_WRITTEN = "UPDATE tombstones SET key = $1 WHERE number = ANY($2) AND key IS NULL RETURNING number"
_KEYS = "SELECT DISTINCT key FROM tombstones WHERE key IS NOT NULL"
_AGAIN = "UPDATE tombstones SET key = NULL, made = now() WHERE key = $1 RETURNING number"
_IDLE = (
    "SELECT key FROM tombstones WHERE key IS NOT NULL GROUP BY key HAVING bool_and(NOT EXISTS "
    "(SELECT FROM objects WHERE objects.segment = ANY(tombstones.segments) "
    "OR objects.moved <= tombstones.made)) LIMIT $1"
)
# Of `reindex`.
_ADOPT = "INSERT INTO tombstones (key, records, segments, node) VALUES ($1, $2, '{}', $3) RETURNING number"
_LIES_IN = (
    "UPDATE tombstones SET segments = segments || $1::bigint WHERE key = ANY(string_to_array($2, ' ')) "
    "AND $1::bigint <> ALL(segments) RETURNING number"
)
_FORGET = "DELETE FROM tombstones WHERE key = $1 RETURNING number"


_COUNT = (
    "SELECT count(*), coalesce(extract(epoch FROM now() - min(made)), 0)::bigint FROM tombstones "
    "WHERE key IS NULL"
)


class WaitingTombstone(NamedTuple):
    """`records` are the ids of records, one behind the other."""

    number: int
    records: bytes


class TombstoneTable:
    """Any thread may call it; all calls block. They raise IndexUnreachable and StoreError. `node` names this
    node in the rows."""

    def __init__(self, connections: Connections, node: str) -> None:
        self._ask = connections.ask_one
        self._node = node

    def add(self, ids: Sequence[bytes], segment: int) -> None:
        """Records of an object that were refused."""
        self._ask("noting refused records", ADD, [b"".join(ids), [segment], self._node])

    def waiting(self, most: int, others: float) -> list[WaitingTombstone]:
        """Those of this node, and those of other nodes that have waited for `others` seconds."""
        values: list[Value] = [self._node, others, most]
        return [WaitingTombstone(*row) for row in self._ask("looking for tombstones", _WAITING, values)]

    def left(self) -> tuple[int, int]:
        """Number of the tombstones that the bucket does not have, and the age of the oldest in seconds."""
        ((number, age),) = self._ask("counting tombstones", _COUNT, [])
        return number, age

    def written(self, numbers: Sequence[int], key: str) -> None:
        self._ask("noting tombstones", _WRITTEN, [key, list(numbers)])

    def keys(self) -> set[str]:
        """The objects that the bucket should have."""
        return {row[0] for row in self._ask("listing tombstones", _KEYS, [])}

    def again(self, key: str) -> int:
        """The bucket has lost an object. Returns the number of its tombstones, which wait again."""
        return len(self._ask("noting tombstones", _AGAIN, [key]))

    def idle(self, most: int) -> list[str]:
        """Keys of tombstones whose records are gone."""
        return [row[0] for row in self._ask("looking for old tombstones", _IDLE, [most])]

    def adopt(self, key: str, ids: Sequence[bytes]) -> None:
        """The bucket has a tombstone that the table does not have."""
        self._ask("noting a tombstone", _ADOPT, [key, b"".join(ids), self._node])

    def lies_in(self, segment: int, keys: Iterable[str]) -> None:
        """An object has records that these tombstones name."""
        self._ask("noting tombstones", _LIES_IN, [segment, " ".join(keys)])

    def forget(self, key: str) -> None:
        self._ask("forgetting a tombstone", _FORGET, [key])
