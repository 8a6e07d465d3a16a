"""Health of this worker, for probes: alive, and ready for requests.

`HealthListener` answers probes on its own port while clients use all connections of the service. It speaks
the least of HTTP/1.1: one GET or HEAD a connection, no body, and the connection ends with the answer. All
workers share the listening socket, so the next free one answers.

Rules of this file
- The supervisor binds that socket to the loopback interface. Host is not checked: the answers have no data.
- A client has SECONDS for its head of at most LONGEST bytes. Over MOST connections a new one is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from streamsrv.errors import IndexUnreachable, StreamsrvError
from streamsrv.wire.answers import Answer, Literal

HEADERS = (("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"))
SECONDS = 5.0
PROBED_EVERY = 1.0  # seconds
PROBE_PATIENCE = 10.0  # seconds
LONGEST = 8 << 10  # bytes
MOST = 64
_REQUEST = re.compile(rb"(GET|HEAD) ([!-~]+) HTTP/1\.[01]\r?\n")


def live() -> Answer:
    """Always 200: a worker that answers is alive."""
    return _text(200, b"alive\n")


def ready(probe: Callable[[], None], *, draining: bool, store_open: bool) -> Answer:
    """503 while the worker drains, or if `probe` cannot read the store."""
    if draining:
        return _text(503, b"draining\n", ("Retry-After", "5"))
    if not store_open:
        return _text(503, b"the store is not open\n", ("Retry-After", "1"))
    try:
        probe()
    except StreamsrvError as error:
        return _text(503, f"the store cannot be read: {error.detail}\n".encode(), ("Retry-After", "1"))
    return _text(200, b"ready\n")


class WatchedStore:
    """Asks a store that may wait, in a thread of its own; `probe` and `version` tell the last result at
    once."""

    def __init__(self, probe: Callable[[], None], version: Callable[[], int]) -> None:
        self._probe = probe
        self._ask_version = version
        self._version = version()
        self._end = threading.Event()
        self._at = time.monotonic()
        self._error: StreamsrvError | None = None
        self._thread = threading.Thread(target=self._watch, name="probe", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.is_set():
            try:
                self._probe()
                self._version = self._ask_version()
                self._error = None
            except StreamsrvError as error:
                self._error = error
            self._at = time.monotonic()
            self._end.wait(PROBED_EVERY)

    def probe(self) -> None:
        """Raises the StreamsrvError of the last probe; IndexUnreachable if it has not returned for long."""
        error, since = self._error, time.monotonic() - self._at
        if since > PROBE_PATIENCE:
            raise IndexUnreachable(f"the store has not answered for {since:.0f} seconds")
        if error is not None:
            raise error

    def version(self) -> int:
        """The version of the index, at most some seconds old."""
        return self._version

    def close(self) -> None:
        self._end.set()
        self._thread.join(SECONDS)


def _text(status: int, text: bytes, *more: tuple[str, str]) -> Answer:
    return Answer(status, [*HEADERS, *more], (Literal(text),), len(text))


class HealthListener:
    """The listener of one worker. `answers` has the function for each path."""

    def __init__(
        self, listeners: Sequence[socket.socket], answers: Mapping[str, Callable[[], Answer]]
    ) -> None:
        self._listeners = listeners
        self._answers = answers
        self._servers: list[asyncio.Server] = []
        self._open = 0

    async def start(self) -> None:
        for listener in self._listeners:
            server = await asyncio.start_server(self._serve, sock=listener, limit=LONGEST)
            self._servers.append(server)

    def stop(self) -> None:
        for server in self._servers:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MOST:
                async with asyncio.timeout(SECONDS):
                    writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        found = _REQUEST.match(head)
        if found is None:
            return _bytes(_text(400, b"only GET and HEAD of HTTP/1.1 are answered here\n"), body=True)
        make = self._answers.get(found[2].decode("ascii"))
        answer = make() if make else _text(404, b"only health is answered here\n")
        return _bytes(answer, body=found[1] == b"GET")


def _bytes(answer: Answer, *, body: bool) -> bytes:
    payload = b"".join(piece.payload for piece in answer.plan if isinstance(piece, Literal))
    headers = [*answer.headers, ("Content-Length", str(len(payload))), ("Connection", "close")]
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n{lines}\r\n"
    return head.encode("ascii") + (payload if body else b"")
