"""Connections to PostgreSQL: time-outs, the pool of a process, errors as sentences.

Strategy: the calls of the index block and come from any thread, so each takes a connection of the pool for
one transaction. The pool is bounded, and a thread waits for a connection for a bounded time. A connection
that failed is closed, never used again.

A COMMIT whose connection broke may have happened. The transaction knows its number, and asks the database for
its state on a new connection (`settle`). It first waits for the lock of the head row, which the lost session
holds until its end is decided.

Rules of this file: no text of an error holds the password.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import errors as refusals

from streamsrv.errors import IndexUnreachable, InsufficientStorage, StoreCorrupt, StoreError

# All in seconds. CONNECTING is for each host; SETTLING for the fate of a commit.
CONNECTING = 1
WAITING = 5.0
SETTLING = 30.0

MOST = 32  # connections of one process
LOCKING = "10s"  # for the lock of the head row
STATEMENT = "60s"
ABANDONED = "20s"  # a session whose client has gone lets the head row go

_FULL = (refusals.DiskFull, refusals.OutOfMemory)
_BROKEN = (refusals.DataCorrupted, refusals.IndexCorrupted)
_CREDENTIALS = (refusals.InvalidPassword, refusals.InvalidAuthorizationSpecification)
_AGAIN = (refusals.LockNotAvailable, refusals.QueryCanceled, refusals.DeadlockDetected)
_UNREACHABLE = (psycopg.OperationalError, psycopg.InterfaceError, *_AGAIN)


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
    """The message of the server, or the last line of the client's."""
    primary = error.diag.message_primary
    lines = [line.strip() for line in str(primary or error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


Result = TypeVar("Result")


class Connections:
    """The pool of one process. Thread-safe."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._free: list[psycopg.Connection[Any]] = []
        self._room = threading.BoundedSemaphore(MOST)
        self._closed = False

    def take(self) -> psycopg.Connection[Any]:
        """A connection in no transaction. Raises IndexUnreachable."""
        if self._closed:
            raise StoreError("the index is closed")
        if not self._room.acquire(timeout=WAITING):
            raise IndexUnreachable("every connection to the database of the index is in use")
        try:
            with contextlib.suppress(IndexError):
                while not (connection := self._free.pop()).closed:
                    return connection
            return self.connect()
        except BaseException:
            self._room.release()
            raise

    def begun(
        self, begin: Callable[[psycopg.Connection[Any]], Result]
    ) -> tuple[psycopg.Connection[Any], Result]:
        """A connection on which `begin` has begun a transaction. The database may have been restarted since
        the connection was used: then all of them are closed, and a new one is tried once."""
        connection = self.take()
        for last in (False, True):
            try:
                return connection, begin(connection)
            except BaseException as error:
                self.give_back(connection, usable=False)
                if last or not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
                    raise
                if isinstance(error, _AGAIN):
                    raise
            self._close_free()
            connection = self.take()
        raise AssertionError

    def give_back(self, connection: psycopg.Connection[Any], *, usable: bool) -> None:
        if usable and not self._closed and not connection.broken:
            self._free.append(connection)
        else:
            connection.close()
        self._room.release()

    def connect(self) -> psycopg.Connection[Any]:
        """A new connection. Raises StoreError for wrong credentials, else IndexUnreachable."""
        try:
            connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECTING,
                application_name="streamsrv",
                prepare_threshold=2,
                tcp_user_timeout=10_000,
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
            )
        except psycopg.OperationalError as error:
            said = _said(error)
            if isinstance(error, _CREDENTIALS) or "authentication failed" in said:
                raise StoreError(f"the database of the index refuses these credentials: {said}") from None
            if "does not exist" in said:
                raise StoreError(f"the database of the index cannot be opened: {said}") from None
            raise IndexUnreachable(f"the database of the index cannot be reached: {said}") from None
        except psycopg.Error as error:
            raise StoreError(f"the URL of the index cannot be used: {_said(error)}") from None
        connection.execute(
            f"SET lock_timeout = '{LOCKING}'; SET statement_timeout = '{STATEMENT}'; "
            f"SET idle_in_transaction_session_timeout = '{ABANDONED}'; SET jit = off"
        )
        return connection

    def settle(self, number: int) -> bool:
        """Whether this transaction was committed. Raises IndexUnreachable if the database does not say so in
        SETTLING seconds."""
        deadline = time.monotonic() + SETTLING
        while True:
            try:
                return self._fate(number) == "committed"
            except (psycopg.Error, IndexUnreachable) as error:
                if time.monotonic() > deadline:
                    raise IndexUnreachable(
                        "the database of the index does not answer, and whether the last commit happened is "
                        "not known"
                    ) from error
                time.sleep(0.1)

    def _fate(self, number: int) -> str | None:
        with self.connect() as connection:
            connection.execute("SELECT version FROM head FOR SHARE")
            row = connection.execute("SELECT pg_xact_status(%s::text::xid8)", [number]).fetchone()
            return str(row[0]) if row else None

    def close(self) -> None:
        self._closed = True
        self._close_free()

    def _close_free(self) -> None:
        with contextlib.suppress(IndexError):  # another thread may empty it
            while self._free:
                self._free.pop().close()


Rows = Sequence[tuple[Any, ...]]
