"""How long a process may use a version of the index without a question, and how removals wait for that.

Strategy: a process may use a version for VERSION_LEASE seconds, counted from before its question was sent,
unless a removal was announced then. A removal is a deletion, a replacement, or the registration of damage: a
reader may have something at hand that is no longer right. It is announced in a row of the database, waits
until all leases have ended, and commits. So no process uses an older version when it commits: every answer
that begins later has seen it. Nodes need not know each other, and send no messages. New instances wait for
nothing.

    announce         from now on no question gives a lease
    wait             VERSION_LEASE and MARGIN
    write, commit    only if the announcement is still there; several times, if they belong together
    withdraw

Rules of this file
- Version and announcements are read by one statement, so they are of one snapshot.
- The clock goes on while the machine is suspended. A process that was stopped compares it when it wakes up,
  and compares before it uses anything. So each request that it answers came before the lease had ended.
- An announcement whose process died goes after DEAD seconds, by the clock of the database. So may one that
  lives, or a failover loses it. Then the commit is refused, and announced again.
- A question is asked only if a request came within the lease before: an idle process asks nothing.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from streamsrv.boot_clock import boot_seconds
from streamsrv.errors import AnnouncementLost, StoreError
from streamsrv.store.ordered_map import Transaction
from streamsrv.store.postgresql.connections import Connections
from streamsrv.store.postgresql.link import Asked

# All in seconds. Clocks of two machines differ by some microseconds in a lease.
VERSION_LEASE = 0.020
MARGIN = 0.005
RENEWED = VERSION_LEASE / 2  # a question is asked when so much is left
DEAD = 30.0
AGED = DEAD / 3  # an announcement that is used for longer is made again

CREATED = (
    "CREATE TABLE removals (token bytea PRIMARY KEY, made timestamptz NOT NULL DEFAULT clock_timestamp())",
)
QUESTION = Asked("SELECT version, (SELECT count(*) FROM removals) FROM head")
# An announcement that is lost refuses a commit, so it need not be durable.
_QUICK = "WITH quick AS (SELECT set_config('synchronous_commit', 'off', true))"
_ANNOUNCE = f"{_QUICK} INSERT INTO removals (token) SELECT $1 FROM quick ON CONFLICT DO NOTHING"
_WITHDRAW = f"{_QUICK} DELETE FROM removals USING quick WHERE token = $1"
_CONFIRM = "SELECT token FROM removals WHERE token = $1 FOR KEY SHARE"
_SWEEP = (
    "DELETE FROM removals WHERE token IN (SELECT token FROM removals WHERE made NOT BETWEEN "
    "now() - $1 * interval '1 second' AND now() + $1 * interval '1 second' FOR UPDATE SKIP LOCKED)"
)


class VersionLease(NamedTuple):
    """A version of the index. It may be used until then."""

    version: int
    until: float


class Freshness:
    """The lease of one process. Thread-safe. `ask` asks for the version, and calls `note`."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._lease = VersionLease(-1, 0)
        self._guard = threading.Lock()
        self._wanted = threading.Event()
        self._asking = self._closed = False
        self._thread: threading.Thread | None = None

    def note(self, version: int, asked_at: float) -> None:
        """No removal was announced. `asked_at` is the time before the question."""
        lease = VersionLease(version, asked_at + VERSION_LEASE)
        with self._guard:
            if lease.until > self._lease.until:
                self._lease = lease

    def at_hand(self) -> int | None:
        """The version, if it may be used. Never blocks: a thread asks for the next lease."""
        lease = self._lease
        left = lease.until - boot_seconds()
        if left <= 0:
            return None
        if left < RENEWED and not self._asking:
            self._asking = True
            self._wanted.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="freshness", daemon=True)
                self._thread.start()
        return lease.version

    def _run(self) -> None:
        while self._wanted.wait() and not self._closed:
            self._wanted.clear()
            with contextlib.suppress(StoreError):  # the next request asks itself, and gets the reason
                self._ask()
            self._asking = False

    def close(self) -> None:
        self._closed = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()


class AnnouncedRemoval:
    """The removals of one thread. All calls block."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._token = b""
        self._made = 0.0

    def announce(self) -> None:
        """Waits until no process has a lease."""
        self.withdraw()
        self._token, self._made = secrets.token_bytes(16), time.monotonic()
        self._connections.ask_one("announcing a removal", _ANNOUNCE, [self._token])
        time.sleep(VERSION_LEASE + MARGIN)

    def keep_up(self) -> None:
        if time.monotonic() - self._made > AGED:
            self.announce()

    def confirm(self, transaction: Transaction) -> None:
        """Called in each transaction that removes. Raises AnnouncementLost."""
        if not transaction.ask(_CONFIRM, [self._token]):
            raise AnnouncementLost("the database has lost the announcement of this removal: try again")

    def withdraw(self) -> None:
        if self._token:
            with contextlib.suppress(StoreError):  # it goes after DEAD seconds
                self._connections.ask_one("withdrawing a removal", _WITHDRAW, [self._token])
            self._token = b""


class Removals:
    """Announcements of one process. Thread-safe."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._own = threading.local()
        self._swept_at = 0.0

    @contextlib.contextmanager
    def announced(self) -> Iterator[AnnouncedRemoval]:
        """A block in a block of the same thread uses the same announcement. Blocks; raises StoreError."""
        own: AnnouncedRemoval | None = getattr(self._own, "announcement", None)
        if own is not None:
            own.keep_up()
            yield own
            return
        own = self._own.announcement = AnnouncedRemoval(self._connections)
        try:
            own.announce()
            yield own
        finally:
            self._own.announcement = None
            own.withdraw()

    def sweep(self) -> None:
        """Drop the announcements of dead processes, now and then."""
        if time.monotonic() - self._swept_at > AGED:
            self._swept_at = time.monotonic()
            self._connections.ask_one("dropping announcements", _SWEEP, [DEAD])
