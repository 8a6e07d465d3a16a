"""From the listening socket to HTTP: accepting connections, and Tornado's server with our limits.

Strategy: all workers share one listening socket, which the supervisor bound before it started them, so a
worker that dies or restarts resets nobody's connection, and one in the middle of a long turn keeps nobody
waiting: another accepts. Left to itself the worker that wakes up first would take a whole burst (64 of 64 was
seen); so after each connection it stands back for a moment, in which the others take theirs (then 64 divide
as 32 and 32, give or take 3).

Rules of this file
- Over `limit` connections, or without descriptors, nothing is accepted: newcomers wait in the kernel's
  queue.
- Heads over a limit are answered with 414 or 431 before they are parsed, and end their connection.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from streamsrv.settings import Settings
from streamsrv.web.app import App
from streamsrv.web.exchange import DROPPED_BODY
from streamsrv.web.head import check_block, most_bytes
from streamsrv.web.loop import waiting_here
from streamsrv.web.stream import CHUNK, Stream

# How long a worker stands back after it has accepted. The loop rounds it up to a millisecond when it is idle.
STAND_BACK = 0.0002
# How long to wait for a descriptor when there are none.
PAUSE = 0.25
NO_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Server(HTTPServer):
    """Tells the app when a connection has ended: HTTPServer keeps that to itself."""

    def initialize(self, app: App, settings: Settings) -> None:  # type: ignore[override]
        self.app = app
        self.on_free: Callable[[], None] = _nothing
        self._check = partial(check_block, max_url=settings.max_url, max_head=settings.max_head)
        longest = most_bytes(settings.max_url, settings.max_head)
        super().initialize(
            app,
            chunk_size=CHUNK,
            max_header_size=longest,
            max_buffer_size=longest + CHUNK,
            max_body_size=DROPPED_BODY,
            body_timeout=settings.stall_timeout,
        )
        # Slow heads are the watch's business: one sweep for all instead of a timer for each.
        self.conn_params.header_timeout = None

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        cast(Stream, stream).check = self._check
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        self.app.on_close(server_conn)
        cast(Stream, cast(HTTP1ServerConnection, server_conn).stream).when_free(self.on_free)


class Acceptor:
    """Accepts on listening sockets for as long as there is room; `alone` if no other worker shares them."""

    def __init__(
        self, listeners: Sequence[socket.socket], server: Server, limit: int, *, alone: bool = True
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting = waiting_here()
        self._listeners = listeners
        self._server = server
        self._limit = limit
        self._alone = alone
        self._open = 0
        self._accepting = False
        self._stopped = False
        server.on_free = self._freed

    def start(self) -> None:
        if self._accepting or self._stopped:
            return
        self._accepting = True
        for listener in self._listeners:
            listener.setblocking(False)
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def stop(self) -> None:
        self._stopped = True
        self._pause()

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        """One connection a turn."""
        try:
            connection, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # another worker was faster, or the client has gone
        except OSError as error:
            if error.errno not in NO_DESCRIPTORS:
                raise
            self._pause()
            self._loop.call_later(PAUSE, self._resume)
            return
        self._open += 1
        if self._open >= self._limit:
            self._pause()
        elif not self._alone:
            self._pause()
            self._loop.call_later(STAND_BACK, self._resume)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = Stream(connection, max_buffer_size=self._server.max_buffer_size, read_chunk_size=CHUNK)
        stream.waiting = self._waiting
        self._server.handle_stream(stream, address)

    def _resume(self) -> None:
        if self._open < self._limit:
            self.start()

    def _freed(self) -> None:
        self._open -= 1
        self._resume()


def _nothing() -> None:
    pass
