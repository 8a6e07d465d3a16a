"""Connections to PostgreSQL: time-outs, the pool of a process, errors as sentences.

Strategy: the calls of the index block and come from any thread, so each takes a connection of the pool for
one transaction. The pool is bounded, and a thread waits for a connection for a bounded time. A connection
that failed is closed, never used again.

A COMMIT whose connection broke may have happened. The transaction looks for its own change in the log, on a
new connection (`settle`). It first waits for the lock of the head row, which the lost session holds until its
end is decided. Its number is not enough: after a failover another transaction may have it. A transaction
without changes of instances, which may be repeated, asks for the state of its number.

With synchronous replication PostgreSQL reports a commit also if the wait for the standby was cancelled. It
warns then, and link.py raises an error. So this commit is looked up, too. A statement that is a transaction
is repeated: an intent that a failover loses would leave its object in the bucket.

A node that was stopped in a transaction loses its session after ABANDONED, so that others can write. This is
shorter than LOCKING: they wait, and are not refused. The stopped transaction is refused when it goes on.

Rules of this file
- No text of an error holds the password.
- The log has the address of a database that cannot be reached. Clients get the reason without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import errors as refusals
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from streamsrv.errors import IndexUnreachable, InsufficientStorage, StoreCorrupt, StoreError, StoreLocked
from streamsrv.store.postgresql.link import Asked, PipelineLink, Row, Value

# All in seconds. CONNECTING is for each host; SETTLING for the fate of a commit.
CONNECTING = 1.0
WAITING = 5.0
SETTLING = 30.0
READING = 15.0  # for the answer to one call of a reader
WRITING = 75.0
LEAVING = 2.0  # for the end of a session whose process has ended: the server notices it later

MOST = 32  # connections of one process
SESSION = {
    "lock_timeout": "10s",  # LOCKING: for the lock of the head row
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "5s",  # ABANDONED
    "client_connection_check_interval": "2s",
    "tcp_user_timeout": "20s",  # for a client that was stopped while it reads
    # For a machine that was lost: its sessions would hold their locks and places for two hours.
    "tcp_keepalives_idle": "5s",
    "tcp_keepalives_interval": "5s",
    "tcp_keepalives_count": "3",
    # All statements are made for their indexes, also before the tables have statistics.
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "max_parallel_workers_per_gather": "0",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
}

# A server that has lost commits was started at another time: a standby, or one with an older copy.
_STARTED = "SELECT extract(epoch FROM pg_postmaster_start_time())::text"
_FULL = (refusals.DiskFull, refusals.OutOfMemory)
_BROKEN = (refusals.DataCorrupted, refusals.IndexCorrupted)
# In texts of libpq and the server: a refused connection has no code.
_CREDENTIALS = ("authentication failed", "no password supplied", "no pg_hba.conf entry", "is not permitted")
_UNTRUSTED = ("certificate", "SSL", "does not match host name")
_BROKE_OFF = ("SYSCALL", "unexpected eof", "unexpectedly", "reset by peer", "Broken pipe")
_ADDRESS = re.compile(r'connection to server (?:at|on socket) "[^"]*"(?: \([^)]*\))?(?:, port \d+)? failed: ')
_ABANDONED = (refusals.IdleInTransactionSessionTimeout, refusals.TransactionTimeout)
_AGAIN = (refusals.LockNotAvailable, refusals.QueryCanceled, refusals.DeadlockDetected, *_ABANDONED)
_UNREACHABLE = (psycopg.OperationalError, psycopg.InterfaceError, *_AGAIN)

log = logging.getLogger("streamsrv.store")


def failure(error: BaseException, doing: str) -> BaseException:
    """The error of the store for one of psycopg."""
    if not isinstance(error, psycopg.Error):
        return error
    said = _said(error)
    if isinstance(error, _FULL):
        return InsufficientStorage(f"no space left in the database of the index while {doing}")
    if isinstance(error, _BROKEN):
        return StoreCorrupt(f"the database of the index is damaged ({said}), found while {doing}")
    if isinstance(error, _UNREACHABLE):
        return IndexUnreachable(f"the database of the index does not answer while {doing}: {said}")
    return StoreError(f"the database of the index failed while {doing}: {said}")


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Translate exceptions of psycopg."""
    try:
        yield
    except psycopg.Error as error:
        raise failure(error, doing) from error


def _said(error: psycopg.Error) -> str:
    """The message of the server, or that of the client, in one line."""
    primary = error.diag.message_primary
    lines = [line.strip() for line in str(primary or error).splitlines() if line.strip()]
    return "; ".join(lines) or type(error).__name__


Result = TypeVar("Result")


# Nodes share a lock, in this schema, which `reindex` has alone.
_PRESENT = "SELECT pg_try_advisory_lock_shared(1819242341, hashtext(current_schema()))"
_FILLING = "SELECT filling FROM cluster"
_ALONE = "SELECT pg_try_advisory_lock(1819242341, hashtext(current_schema()))"
_NO_LONGER_ALONE = "SELECT pg_advisory_unlock(1819242341, hashtext(current_schema()))"


class Connections:
    """The pool of one process. Thread-safe. With `present` each connection says that a node runs."""

    def __init__(self, url: str, *, present: bool = False) -> None:
        self._url = url
        self._present = present
        self._free: list[PipelineLink] = []
        self._room = threading.BoundedSemaphore(MOST)
        self._closed = False
        self._refused = ""  # the text of the last refusal, until a connection is there
        self.failures = 0  # connections that failed: the database may be another one since
        self.counted: dict[str, int] = {}  # the rows of each table, as the last reader has found them
        self._servers: dict[str, int] = {}  # when a server was started -> its number in this process
        self._numbering = threading.Lock()

    def take(self) -> PipelineLink:
        """A connection in no transaction. Raises IndexUnreachable."""
        if self._closed:
            raise StoreError("the index is closed")
        if not self._room.acquire(timeout=WAITING):
            raise IndexUnreachable("every connection to the database of the index is in use")
        try:
            with contextlib.suppress(IndexError):
                while not (link := self._free.pop()).closed:
                    return link
            return self._opened()
        except BaseException:
            self._room.release()
            raise

    def announce(self) -> None:
        """Open the first connection."""
        self.give_back(self.take(), usable=True)

    def _opened(self) -> PipelineLink:
        link = PipelineLink(self._connected())
        try:
            (((started,),),) = link.ask([Asked(_STARTED)], READING)
        except BaseException:
            link.close()
            raise
        with self._numbering:
            link.server = self._servers.setdefault(started, len(self._servers))
        return link

    def begun(self, statements: list[Asked], patience: float) -> tuple[PipelineLink, list[list[Any]]]:
        """A connection on which a transaction has begun, and the rows of these statements. The database may
        have been restarted since the connection was used: then all of them are closed, and a new one is tried
        once."""
        link = self.take()
        for last in (False, True):
            try:
                return link, link.ask(statements, patience)
            except BaseException as error:
                self.give_back(link, usable=False)
                if last or not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
                    raise
                if isinstance(error, _AGAIN):
                    raise
            self._close_free()
            link = self.take()
        raise AssertionError

    def ask(self, doing: str, statements: list[Asked], patience: float) -> list[list[Any]]:
        """The rows of statements that leave no transaction open. Raises StoreError."""
        with translated(doing):
            link, answers = self.begun(statements, patience)
        self.give_back(link, usable=True)
        return answers

    def ask_one(self, doing: str, statement: str, values: Sequence[Value]) -> list[Row]:
        """The rows of one statement, which is a transaction and may write. Raises StoreError."""
        (rows,) = self.ask(doing, [Asked(statement, values)], WRITING)
        return rows

    def give_back(self, link: PipelineLink, *, usable: bool) -> None:
        if usable and not self._closed and not link.closed:
            self._free.append(link)
        else:
            self.failures += 1
            link.close()
        self._room.release()

    def _connected(self) -> psycopg.Connection[Any]:
        connection = self.connect()
        try:
            if self._present:
                _be_present(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def excluding_nodes(self) -> Iterator[None]:
        """Excludes all nodes. Raises StoreLocked."""
        with translated("locking the index"), self.connect() as connection:
            deadline = time.monotonic() + LEAVING
            # It does not wait in the server: that would refuse new connections of nodes that go on.
            while (row := connection.execute(_ALONE).fetchone()) is None or not row[0]:
                if time.monotonic() > deadline:
                    raise StoreLocked("nodes or verbs have this database open: end them first")
                time.sleep(0.05)
            try:
                yield
            finally:  # a node may open the database at once
                with contextlib.suppress(psycopg.Error):
                    connection.execute(_NO_LONGER_ALONE)

    def connect(self) -> psycopg.Connection[Any]:
        """A new connection. Raises StoreError if the setting is wrong, else IndexUnreachable."""
        try:
            connection = psycopg.Connection[Any](_connected(self._url))
        except psycopg.OperationalError as error:
            said = _said(error)
            if any(each in said for each in _CREDENTIALS):
                raise StoreError(
                    f"the setting `index`: the database refuses the user or its password: {said}"
                ) from None
            if any(each in said for each in _UNTRUSTED) and not any(each in said for each in _BROKE_OFF):
                raise StoreError(
                    f"the setting `index`: no trusted TLS connection to the database: {said}"
                ) from None
            if "does not exist" in said:
                raise StoreError(f"the setting `index`: the database cannot be opened: {said}") from None
            if said != self._refused:
                log.warning("the database of the index cannot be reached: %s", said)
            self._refused = said
            reason = _ADDRESS.sub("", said)
            raise IndexUnreachable(f"the database of the index cannot be reached: {reason}") from None
        except psycopg.Error:  # its text has parts of the URL, perhaps of the password
            raise StoreError(
                "the setting `index`: this URL cannot be used: libpq does not understand it, or knows no "
                "such parameter"
            ) from None
        connection.autocommit, self._refused = True, ""
        return connection

    def settle(self, number: int, change: tuple[bytes, bytes] | None) -> bool:
        """Whether the transaction of this number was committed, which wrote this row of the log of changes.
        Raises IndexUnreachable if the database does not say so in SETTLING seconds."""
        asked = Asked("SELECT 1 WHERE pg_xact_status($1::text::xid8) = 'committed'", [str(number)])
        if change is not None:
            asked = Asked("SELECT 1 FROM changes WHERE key = $1 AND value = $2", change)
        deadline = time.monotonic() + SETTLING
        while True:
            try:
                return self._happened(asked, deadline - time.monotonic())
            except (psycopg.Error, StoreError) as error:  # also a refusal may pass, in a failover
                if time.monotonic() > deadline:
                    raise IndexUnreachable(
                        "the database of the index does not answer, and whether the last commit happened is "
                        "not known"
                    ) from error
                time.sleep(0.1)

    def _happened(self, asked: Asked, patience: float) -> bool:
        """The lock of the head row is a write: its own commit waits for standbys, which then have all commits
        before it."""
        link = PipelineLink(self.connect())
        try:
            _, found = link.ask([Asked("SELECT version FROM head FOR SHARE"), asked], patience)
            return bool(found)
        finally:
            link.close()

    def close(self) -> None:
        self._closed = True
        self._close_free()

    def _close_free(self) -> None:
        with contextlib.suppress(IndexError):  # another thread may empty it
            while self._free:
                self._free.pop().close()


def _be_present(connection: psycopg.Connection[Any]) -> None:
    """While the connection is open, no `reindex` begins. Raises IndexUnreachable if one has not ended."""
    row = connection.execute(_PRESENT).fetchone()
    if row is not None and row[0]:
        row = connection.execute(_FILLING).fetchone()
        if row is None or not row[0]:
            return
    raise IndexUnreachable("`streamsrv reindex` is filling this database, or has broken off")


def _connected(url: str) -> pq.abc.PGconn:
    """Tries each host for CONNECTING seconds. libpq allows no less than two. Raises psycopg.Error."""
    options = " ".join(f"-c {name}={value}" for name, value in SESSION.items())
    given: dict[str, Any] = conninfo_to_dict(
        url,
        application_name="streamsrv",
        tcp_user_timeout=10_000,
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
    )
    seconds = float(given.get("connect_timeout") or CONNECTING)
    given["options"] = f"{options} {given.get('options') or os.environ.get('PGOPTIONS', '')}"
    refused = psycopg.OperationalError("the URL names no host")
    for each in _hosts(given):
        try:
            return _connected_to(make_conninfo(**{**given, **each}), seconds)
        except psycopg.OperationalError as error:
            refused = error
    raise refused


def _hosts(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of each host."""
    names = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT"}
    listed = {name: str(given.get(name) or os.environ.get(names[name], "")).split(",") for name in names}
    count = max(map(len, listed.values()))
    return [
        {name: values[min(number, len(values) - 1)] for name, values in listed.items() if values != [""]}
        for number in range(count)
    ]


def _connected_to(conninfo: str, seconds: float) -> pq.abc.PGconn:
    deadline = time.monotonic() + seconds
    made = pq.PGconn.connect_start(conninfo.encode())
    try:
        wanted = pq.PollingStatus.WRITING
        while wanted != pq.PollingStatus.OK:
            if made.status == pq.ConnStatus.BAD or wanted == pq.PollingStatus.FAILED:
                raise psycopg.OperationalError(made.get_error_message())
            _wait_for(made.socket, wanted, deadline)
            wanted = pq.PollingStatus(made.connect_poll())
        made.nonblocking = 1
    except BaseException:
        made.finish()
        raise
    return made


def _wait_for(socket: int, wanted: pq.PollingStatus, deadline: float) -> None:
    poll = select.poll()
    poll.register(socket, select.POLLIN if wanted == pq.PollingStatus.READING else select.POLLOUT)
    if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
        raise psycopg.OperationalError("no answer in time")
