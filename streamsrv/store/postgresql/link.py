"""A connection to PostgreSQL that sends several statements in one round trip, and encodes their values.

Strategy: libpq stays in pipeline mode. All statements of a call go out together, and each is prepared by name
when it is first seen. Values are bytes in both directions, so nothing is converted. This takes less time than
a cursor of psycopg. An answer that is not needed, that of the COMMIT of a reader, is read before the next
call.

Rules of this file
- A call ends with one synchronization. Without BEGIN its statements are one transaction.
- A connection whose call has raised is closed, never used again.
- A warning is an error. The server warns if it commits without its standby, because an operator has
  cancelled the wait: a failover would lose the commit. `statement_timeout` does not end this wait.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import psycopg
from psycopg import pq
from psycopg.errors import QueryCanceled, error_from_result

from streamsrv.store.ordered_map import COMMIT_BITS

Value: TypeAlias = bytes | str | int | float | list[bytes] | list[int]
Row: TypeAlias = tuple[Any, ...]

# Object identifiers of types (pg_type), and the formats of their values.
_BYTEA, _BIGINT, _INTEGER, _TEXT, _DOUBLE = 17, 20, 23, 25, 701
_BYTEAS, _INTEGERS, _BIGINTS = 1001, 1007, 1016
_BINARY = pq.Format.BINARY
_DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)
_LONG, _FLOAT = struct.Struct(">q"), struct.Struct(">d")
_ARRAY = struct.Struct(">iiIii")  # dimensions, whether it has NULL, type, length, first index
_LENGTH = struct.Struct(">i")


class Asked(NamedTuple):
    """A statement with values for $1, $2 and so on."""

    text: str
    values: Sequence[Value] = ()


class PipelineLink:
    """One connection. Used by one thread at a time."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._libpq = connection.pgconn
        self._prepared: dict[tuple[str, tuple[int, ...]], bytes] = {}
        self._unread = 0  # calls whose answers are not read
        self.server = 0  # the number of its server in this process
        self._warned = False  # by the server
        self._poll = select.poll()
        self._poll.register(self._libpq.socket, select.POLLIN)
        self._libpq.enter_pipeline_mode()
        connection.add_notice_handler(self._notice)

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        self._warned |= notice.severity_nonlocalized == "WARNING"

    @property
    def closed(self) -> bool:
        return self._connection.closed or self._connection.broken

    def close(self) -> None:
        self._connection.close()

    def numbered(self, commit: int) -> int:
        """The version of the index that this server gave to a commit."""
        return self.server << COMMIT_BITS | commit

    def ask(self, statements: Sequence[Asked], patience: float) -> list[list[Row]]:
        """The rows of each statement. Waits `patience` seconds at most. Raises psycopg.Error."""
        deadline = time.monotonic() + patience
        sent = self._send(statements)
        self._flush(deadline)
        while self._unread:
            self._answers(deadline)
            self._unread -= 1
        answers = self._answers(deadline)
        if self._warned:
            raise psycopg.OperationalError("a standby did not confirm the commit")
        return [_rows(answers[at]) for at in sent]

    def tell(self, statement: str) -> None:
        """Send a statement whose answer is not needed. Raises psycopg.Error."""
        self._send([Asked(statement)])
        self._libpq.flush()
        self._unread += 1

    def _send(self, statements: Sequence[Asked]) -> list[int]:
        """Returns the places of their answers: that of PREPARE is in front of that of its statement."""
        libpq, places, at = self._libpq, list[int](), -1
        for text, values in statements:
            encoded = [_encoded(value) for value in values]
            types = tuple([kind for _, kind in encoded])
            name = self._prepared.get((text, types))
            if name is None:
                name = self._prepared[text, types] = b"s%d" % len(self._prepared)
                libpq.send_prepare(name, text.encode(), types)
                at += 1
            formats = [_BINARY] * len(encoded)
            libpq.send_query_prepared(name, [value for value, _ in encoded], formats, _BINARY)
            at += 1
            places.append(at)
        libpq.pipeline_sync()
        return places

    def _flush(self, deadline: float) -> None:
        libpq = self._libpq
        while libpq.flush():
            self._poll.modify(libpq.socket, select.POLLIN | select.POLLOUT)
            try:
                self._wait(deadline)
            finally:
                self._poll.modify(libpq.socket, select.POLLIN)
            libpq.consume_input()

    def _wait(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not self._poll.poll(left * 1000):
            raise QueryCanceled("the server does not answer in time")

    def _answers(self, deadline: float) -> list[pq.abc.PGresult]:
        """All of them up to the next synchronization."""
        libpq = self._libpq
        found: list[pq.abc.PGresult] = []
        refused = None
        while True:
            while libpq.is_busy():
                self._wait(deadline)
                libpq.consume_input()
            result = libpq.get_result()
            if result is None:  # the end of a statement
                continue
            status = result.status
            if status in _DONE:
                found.append(result)
            elif status == pq.ExecStatus.PIPELINE_SYNC:
                break
            elif status == pq.ExecStatus.FATAL_ERROR:
                refused = refused or error_from_result(result)
                if self._libpq.status == pq.ConnStatus.BAD:
                    break
        if refused is not None:
            raise refused
        return found


def _rows(result: pq.abc.PGresult) -> list[Row]:
    value, columns = result.get_value, range(result.nfields)
    readers = [(column, _READERS[kind]) for column in columns if (kind := result.ftype(column)) in _READERS]
    if len(columns) == 2 and not readers:
        return [(value(row, 0), value(row, 1)) for row in range(result.ntuples)]
    if len(columns) == 3 and not readers:
        return [(value(row, 0), value(row, 1), value(row, 2)) for row in range(result.ntuples)]
    rows = []
    for row in range(result.ntuples):
        found: list[Any] = [value(row, column) for column in columns]
        for column, read in readers:
            if found[column] is not None:
                found[column] = read(found[column])
        rows.append(tuple(found))
    return rows


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


# Other values are bytes.
_READERS: dict[int, Callable[[bytes], Any]] = {_BIGINT: _number, _INTEGER: _number, _TEXT: bytes.decode}


def _encoded(value: Value) -> tuple[bytes, int]:
    """The value and its type."""
    if isinstance(value, bytes):
        return value, _BYTEA
    if isinstance(value, int):
        return _LONG.pack(value), _BIGINT
    if isinstance(value, str):
        return value.encode(), _TEXT
    if isinstance(value, float):
        return _FLOAT.pack(value), _DOUBLE
    if value and isinstance(value[0], int):
        return _numbers(value)
    head, texts = _ARRAY.pack(1, 0, _BYTEA, len(value), 1), cast(list[bytes], value)
    return head + b"".join([part for each in texts for part in (_LENGTH.pack(len(each)), each)]), _BYTEAS


def _numbers(values: list[int]) -> tuple[bytes, int]:
    """Short ones are of the type integer, else all are of the type bigint."""
    short = min(values) >= -(1 << 31) and max(values) < 1 << 31
    kind, whole, letter, size = (_INTEGER, _INTEGERS, "i", 4) if short else (_BIGINT, _BIGINTS, "q", 8)
    pairs = [part for number in values for part in (size, number)]
    head = _ARRAY.pack(1, 0, kind, len(values), 1)
    return head + struct.pack(">" + f"i{letter}" * len(values), *pairs), whole
