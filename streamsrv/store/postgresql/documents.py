"""Documents of the nodes of a cluster, as rows of the database (store/documents.py).

Strategy: a change takes the row of its kind, which counts the changes. So changes of one kind are made one
after the other. A reader that has all of them up to a number asks for those behind it only. A removed
document leaves a row without text for a while, so that it is noticed in the same way.

A lease is a row with an end. Its holder renews it, and another process takes it after its end.

Rules of this file
- All times are those of the database: the clocks of nodes may differ.
- A holder counts its lease from the moment before it asked, by a clock that goes on while its machine sleeps.
  So it gives up before another one begins.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence

import psycopg

from streamsrv.boot_clock import boot_seconds
from streamsrv.errors import IndexUnreachable, StoreError
from streamsrv.store.documents import (
    ChangedTexts,
    DocumentChange,
    Documents,
    Lease,
    LeaseLost,
    NamedText,
)
from streamsrv.store.postgresql import document_table as table
from streamsrv.store.postgresql import schema
from streamsrv.store.postgresql.connections import READING, WRITING, Connections, translated
from streamsrv.store.postgresql.link import Asked, PipelineLink, Row, Value

DOCUMENTS_LEASE = 5.0  # seconds
PATIENCE = 10.0  # seconds, for the changes of other threads
# A lease that was looked at within so many seconds is not looked at again.
FRESH = 1.0
NO_STORE = "the database has no store yet: start a node of it once"


class DatabaseLease:
    """Used by several threads."""

    def __init__(self, documents: DatabaseDocuments, kind: str, holder: str, until: float) -> None:
        """`until` is in seconds of `boot_seconds`."""
        self.kind, self.holder = kind, holder
        self._documents = documents
        self._until = until

    def holds(self) -> bool:
        now = boot_seconds()
        if now < self._until - DOCUMENTS_LEASE + FRESH:
            return True
        if now >= self._until:
            return False
        renewed = self._documents.ask(
            "renewing a lease", table.RENEW, [self.kind, self.holder, DOCUMENTS_LEASE]
        )
        self._until = now + DOCUMENTS_LEASE if renewed else 0.0
        return bool(renewed)


class DatabaseDocuments(Documents):
    """`url` is one of libpq. A connection is made when it is needed."""

    patience = DOCUMENTS_LEASE / 2

    def __init__(self, url: str, kind: str) -> None:
        self.where = f"the {kind} of the database"
        self.watched = self
        self._kind = kind
        self._connections = Connections(url)
        self._checked = False
        self._changing = threading.Lock()

    def exist(self) -> bool:
        if not self._checked:
            with translated("opening the documents"), self._connections.connect() as connection:
                self._checked = schema.founded(connection)
        return self._checked

    def names(self, start: str = "", end: str = "") -> list[str]:
        if not self.exist():
            return []
        return [name for (name,) in self.ask("listing documents", table.NAMES, [self._kind, start, end])]

    def all(self, start: str = "", end: str = "") -> Iterator[NamedText]:
        if not self.exist():
            return iter(())
        found = self.ask("reading documents", table.ALL, [self._kind, start, end])
        return (NamedText(*row) for row in found)

    def read(self, name: str) -> bytes | None:
        return self.read_several([name]).texts[name]

    def read_several(self, names: Sequence[str]) -> ChangedTexts:
        return self._texts(table.SEVERAL, [name.encode() for name in names], dict.fromkeys(names))

    def changed_since(self, version: int) -> ChangedTexts:
        return self._texts(table.CHANGED, version, {})

    def _texts(self, statement: str, value: Value, texts: dict[str, bytes | None]) -> ChangedTexts:
        """The version is read first, so the texts may be newer."""
        asked = [Asked(table.VERSION, [self._kind]), Asked(statement, [self._kind, value])]
        self._require_store()
        ((version,),), rows = self._connections.ask("reading documents", asked, READING)
        return ChangedTexts(version, texts | dict(rows))

    @contextlib.contextmanager
    def changing(self, lease: Lease | None = None) -> Iterator[DocumentChange]:
        """One thread at a time. Others would hold the connections with which it reads meanwhile."""
        self._require_store()
        if not self._changing.acquire(timeout=PATIENCE):
            raise IndexUnreachable("other requests change the same documents of the database: try again")
        with contextlib.ExitStack() as held, translated("changing documents"):
            held.callback(self._changing.release)
            begin = [Asked("BEGIN"), Asked(table.HEAD, [self._kind])]
            link, (_, ((version,),)) = self._connections.begun(begin, WRITING)
            usable = False
            try:
                change = RowChange(link, self._kind, version)
                if isinstance(lease, DatabaseLease):
                    change.require(lease)
                yield change
                change.ask(table.FORGET, [self._kind])
                change.ask("COMMIT")
                usable = True
            except psycopg.Error:
                raise
            except BaseException:
                change.ask("ROLLBACK")
                usable = True
                raise
            finally:
                self._connections.give_back(link, usable=usable)

    @contextlib.contextmanager
    def leased(self) -> Iterator[Lease | None]:
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        now = boot_seconds()
        if not self.ask("claiming a lease", table.CLAIM, [self._kind, holder, DOCUMENTS_LEASE]):
            yield None
            return
        try:
            yield DatabaseLease(self, self._kind, holder, now + DOCUMENTS_LEASE)
        finally:
            with contextlib.suppress(StoreError):  # it ends by itself
                self.ask("ending a lease", table.END, [self._kind, holder])

    def holder(self) -> str:
        found = self.ask("looking for the holder of a lease", table.HOLDER, [self._kind])
        return found[0][0].rpartition(":")[0] if found else ""

    def now(self) -> float:
        ((microseconds,),) = self.ask("asking for the time", table.NOW, [])
        return float(microseconds) / 1e6

    def ask(self, doing: str, statement: str, values: Sequence[Value]) -> list[Row]:
        """The rows of one statement, which is a transaction. Raises StoreError."""
        self._require_store()
        return self._connections.ask_one(doing, statement, values)

    def _require_store(self) -> None:
        if not self.exist():
            raise StoreError(NO_STORE)

    def close(self) -> None:
        self._connections.close()


class RowChange:
    """Within one transaction: all of its calls count, or none."""

    def __init__(self, link: PipelineLink, kind: str, version: int) -> None:
        self._link = link
        self._kind = kind
        self._version = version

    def ask(self, statement: str, values: Sequence[Value] = ()) -> list[Row]:
        return self._link.ask([Asked(statement, values)], WRITING)[0]

    def require(self, lease: DatabaseLease) -> None:
        """Keeps others from taking the lease until the end. Raises LeaseLost."""
        if not self.ask(table.HELD, [lease.kind, lease.holder]):
            raise LeaseLost("another node does this meanwhile")

    def write(self, name: str, text: bytes) -> None:
        self.ask(table.WRITE, [self._kind, name, text, self._version])

    def append(self, name: str, text: bytes) -> None:
        self.ask(table.APPEND, [self._kind, name, text, self._version])

    def rename(self, name: str, new: str) -> None:
        self.ask(table.COPY, [self._kind, name, new, self._version])
        self.remove(name)

    def remove(self, name: str) -> None:
        self.ask(table.REMOVE, [self._kind, name, self._version])
