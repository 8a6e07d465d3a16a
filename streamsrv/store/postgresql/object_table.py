"""The table of objects: which object of the bucket is which segment, and which objects have to go.

    intent      an upload has begun, or is about to. Its node renews it until `until`
    complete    instances of the index live in it; there is no `until`
    condemned   nothing lives in it. Its bytes stay until `until`, for the readers that have found them
    removing    a node removes it. After `until` that node is taken for dead, and another one does it
    swept       it was removed. A late request may bring it back, so it is removed again at `until`; then the
                row goes

`moved` is the time when the first records of an object were moved to another one: both list them.

Rules of this file
- All times are those of the database: the clocks of nodes may differ.
- The numbers of segments come from a sequence, so that none is used twice, also after a rollback.
- Only a transaction of the index makes an object complete or condemned (object_batches.py).
- Each call is one statement, so it may be repeated. A repeated `begin` leaves an intent that is swept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import psycopg

from streamsrv.errors import StoreLocked
from streamsrv.store.objects.layout import fresh_stem
from streamsrv.store.postgresql.connections import Connections, translated
from streamsrv.store.postgresql.link import Row

CREATED = (
    "CREATE SEQUENCE segment_numbers AS bigint MAXVALUE 4294967295",
    "CREATE TABLE objects (segment bigint PRIMARY KEY, "
    'key text COLLATE "C" NOT NULL UNIQUE, length bigint NOT NULL DEFAULT 0, state text NOT NULL CHECK '
    "(state IN ('intent', 'complete', 'condemned', 'removing', 'swept')), node text NOT NULL, "
    "made timestamptz NOT NULL DEFAULT now(), until timestamptz, moved timestamptz, "
    "CHECK ((state = 'complete') = (until IS NULL)))",
    "CREATE INDEX objects_until ON objects (until) WHERE until IS NOT NULL",
    # One row: whose segments the objects are.
    "CREATE TABLE cluster (one boolean PRIMARY KEY DEFAULT true CHECK (one), store_id text NOT NULL, "
    "secret bytea NOT NULL, in_bucket boolean NOT NULL DEFAULT false, filling text NOT NULL DEFAULT '')",
)
_LATER = "now() + {} * interval '1 second'"
BEGIN = (
    "INSERT INTO objects (segment, key, state, node, until) SELECT number, "
    f"$1 || lpad(to_hex(number), 8, '0'), 'intent', $2, {_LATER.format('$3')} "
    "FROM nextval('segment_numbers') AS number RETURNING segment, key"
)
_RENEW = (
    f"UPDATE objects SET until = {_LATER.format('$1')} WHERE segment = ANY($2) AND state = 'intent' "
    "RETURNING segment"
)
_GIVE_UP = "UPDATE objects SET until = now() WHERE segment = $1 AND state = 'intent' RETURNING segment"
_FORGET = "DELETE FROM objects WHERE segment = $1 AND state = 'intent' RETURNING segment"
_FIND = (
    "SELECT segment, key, length FROM objects WHERE segment = ANY($1) AND state IN ('complete', 'condemned')"
)
_CLAIM = (
    "WITH due AS (SELECT segment, state FROM objects WHERE until <= now() ORDER BY until LIMIT $1 "
    f"FOR UPDATE SKIP LOCKED) UPDATE objects SET state = 'removing', node = $2, "
    f"until = {_LATER.format('$3')} "
    "FROM due WHERE objects.segment = due.segment RETURNING objects.segment, objects.key, due.state"
)
_REMOVED = "DELETE FROM objects WHERE segment = $1 AND state = 'removing' AND node = $2 RETURNING segment"
_SWEPT = (
    f"UPDATE objects SET state = 'swept', length = 0, until = {_LATER.format('$1')} "
    "WHERE segment = $2 AND state = 'removing' AND node = $3 RETURNING segment"
)
_PUT_OFF = (
    f"UPDATE objects SET until = {_LATER.format('$1')} "
    "WHERE segment = ANY($2) AND state = 'removing' AND node = $3 RETURNING segment"
)
_COUNTS = "SELECT state, count(*), coalesce(sum(length), 0)::bigint FROM objects GROUP BY state"


# Of `reindex`. An object that the index has stays as it is.
_STATES = "SELECT segment, key, state, node FROM objects WHERE segment = ANY($1)"
_LAST_MADE = (
    "SELECT coalesce(extract(epoch FROM max(made)), 0)::bigint FROM objects WHERE node NOT IN ($1, $2)"
)
_ADOPT = (
    "INSERT INTO objects (segment, key, state, node, until) VALUES "
    f"($1, $2, 'intent', $3, {_LATER.format('$4')}) ON CONFLICT (segment) DO UPDATE "
    "SET state = 'intent', node = EXCLUDED.node, until = EXCLUDED.until "
    "WHERE objects.key = EXCLUDED.key AND objects.state IN ('intent', 'swept') RETURNING segment"
)
_COPIED = "UPDATE objects SET moved = '-infinity' WHERE segment = ANY($1) RETURNING segment"
_FILLED = "UPDATE objects SET node = $1 WHERE segment = $2 RETURNING segment"
_CONDEMN = (
    f"UPDATE objects SET state = 'condemned', node = $1, length = $2, until = {_LATER.format('$3')} "
    "WHERE segment = $4 AND state = 'intent' RETURNING segment"
)

# One process of all nodes compacts, in this schema.
_ALONE = "SELECT pg_try_advisory_lock(1819242340, hashtext(current_schema()))"
_NO_LONGER_ALONE = "SELECT pg_advisory_unlock(1819242340, hashtext(current_schema()))"
_ALL = "SELECT segment, key, length FROM objects WHERE state = 'complete' ORDER BY segment"


class ObjectPlace(NamedTuple):
    """A segment, and the key of its object."""

    segment: int
    key: str


class ClaimedObject(NamedTuple):
    """An object that this node removes. `was` is its state before."""

    segment: int
    key: str
    was: str


class ObjectState(NamedTuple):
    key: str
    state: str
    node: str


class ObjectTable:
    """Any thread may call it; all calls block. They raise IndexUnreachable and StoreError. `node` names this
    node in the rows."""

    def __init__(self, connections: Connections, node: str) -> None:
        self._connections = connections
        self._ask = connections.ask_one
        self._node = node

    @property
    def failures(self) -> int:
        """Grows before rows of a database that was restarted, replaced or set back can be read."""
        return self._connections.failures

    def begin(self, seconds: float) -> ObjectPlace:
        """A new segment, whose intent is durable."""
        ((segment, key),) = self._ask("writing an intent", BEGIN, [fresh_stem(), self._node, seconds])
        return ObjectPlace(segment, key)

    def renew(self, segments: Sequence[int], seconds: float) -> set[int]:
        """Returns those that are still intents."""
        if not segments:
            return set()
        return {row[0] for row in self._ask("renewing intents", _RENEW, [seconds, list(segments)])}

    def give_up(self, segment: int, *, uploading: bool) -> None:
        """End an intent. If an upload has begun, the object is removed first. Does nothing to an object that
        is complete."""
        self._ask("ending an intent", _GIVE_UP if uploading else _FORGET, [segment])

    def find(self, segments: Sequence[int]) -> list[Row]:
        """(segment, key, length) of the objects that can be read."""
        return self._ask("looking up objects", _FIND, [list(segments)]) if segments else []

    def claim(self, most: int, seconds: float) -> list[ClaimedObject]:
        """Objects that are due. No other node gets them within `seconds`."""
        found = self._ask("looking for objects to remove", _CLAIM, [most, self._node, seconds])
        return [ClaimedObject(*row) for row in found]

    def put_off(self, segments: Sequence[int], seconds: float) -> None:
        """The objects of a claim could not be removed. They are due again after `seconds`."""
        self._ask("putting removals off", _PUT_OFF, [seconds, list(segments), self._node])

    def removed(self, segment: int, again: float = 0) -> None:
        """The object of a claim is gone. `again`: seconds until it is removed once more, 0: never."""
        if again:
            self._ask("noting a removal", _SWEPT, [again, segment, self._node])
        else:
            self._ask("noting a removal", _REMOVED, [segment, self._node])

    def complete(self) -> list[Row]:
        """(segment, key, length) of all objects that the index names."""
        return self._ask("listing objects", _ALL, [])

    def states(self, segments: Sequence[int]) -> dict[int, ObjectState]:
        """Those of the segments that are in the table, in any state."""
        found = self._ask("looking up objects", _STATES, [list(segments)])
        return {segment: ObjectState(*state) for segment, *state in found}

    def last_made(self, other: str) -> int:
        """When the last object was begun that is neither of this node nor of the other: seconds since 1970,
        or 0."""
        ((seconds,),) = self._ask("looking up objects", _LAST_MADE, [self._node, other])
        return int(seconds)

    def adopt(self, segment: int, key: str, seconds: float) -> bool:
        """The intent of an object that is in the bucket. False if the table has the segment already."""
        return bool(self._ask("noting an object", _ADOPT, [segment, key, self._node, seconds]))

    def copied(self, segments: Iterable[int]) -> None:
        """Other objects list records of these too, or may."""
        self._ask("noting objects", _COPIED, [sorted(segments)])

    def filled(self, segment: int, node: str) -> None:
        """The index has all instances of an adopted object."""
        self._ask("noting an object", _FILLED, [node, segment])

    def condemn(self, segment: int, length: int, node: str, seconds: float) -> None:
        """Nothing lives in an adopted object. It is removed after `seconds`."""
        self._ask("noting an object", _CONDEMN, [node, length, seconds, segment])

    @contextlib.contextmanager
    def excluding_compactions(self) -> Iterator[None]:
        """Excludes compactions of all nodes. Raises StoreLocked."""
        with translated("locking the objects"), self._connections.connect() as connection:
            row = connection.execute(_ALONE).fetchone()
            if row is None or not row[0]:
                raise StoreLocked("a compaction or a check is running on this store")
            try:
                yield
            finally:  # the end of a session is noticed later
                with contextlib.suppress(psycopg.Error):
                    connection.execute(_NO_LONGER_ALONE)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Number and bytes of the objects in each state. The bytes of an upload are not known."""
        return {state: (number, size) for state, number, size in self._ask("counting objects", _COUNTS, [])}
