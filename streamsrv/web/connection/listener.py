"""From the listening socket to HTTP: accepted connections, and Tornado's server with our limits.

Strategy: all workers share one listening socket, which the supervisor bound before it started them. A worker
that dies or restarts resets no connection, and while one is busy another accepts. Without more, the worker
that wakes up first would take a whole burst (64 of 64 was seen). So after each connection it pauses for a
moment, in which the others accept (then 64 divide as 32 and 32, give or take 3).

Rules of this file
- At the limit, of all connections or of one client, a new connection replaces the one that has waited longest
  for a request: an idle one (RFC 9112 9.5), or one whose head does not end. If no descriptor is left, too.
- If no connection waits at the limit of all, none is accepted: new ones stay in the kernel's queue. At the
  limit of a client they are answered with 503, because all clients share that queue.
- Heads over a limit are answered with 414 or 431 before they are parsed, and end their connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.iostream import IOStream

from streamsrv.errors import TooManyRequests
from streamsrv.settings import Settings
from streamsrv.web.app import App
from streamsrv.web.client_certificate import certificate_of
from streamsrv.web.connection.exchange import DROPPED_BODY, Exchange
from streamsrv.web.connection.handshakes import Handshakes
from streamsrv.web.connection.loop import waiting_here
from streamsrv.web.connection.stream import CHUNK, Stream
from streamsrv.web.connection.tls import TlsSocket
from streamsrv.web.fastpath.answering import FastPath
from streamsrv.web.fastpath.frames import Limits
from streamsrv.web.head import check_block, most_bytes
from streamsrv.web.hosts import UNIX

log = logging.getLogger("streamsrv.web")

# Seconds of the pause after an accept. The loop rounds it up to a millisecond when it is idle.
ACCEPT_PAUSE = 0.0002
# How long to wait for a descriptor when there are none, or for room.
PAUSE = 0.25
RETRY_AFTER = 2
# Connections that are closed for one that found no descriptor: files need some, too.
FOR_DESCRIPTORS = 16
# Seconds between two lines in the log.
REPORT_EVERY = 10.0
MANY = "too many connections of this client"
_DETAIL = (
    b'{"type": "about:blank", "title": "Too Many Requests", "status": 429, "detail": "%b"}' % MANY.encode()
)
TURNED_AWAY = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/problem+json\r\nRetry-After: 2\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_DETAIL), _DETAIL)
)
NO_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Server(HTTPServer):
    """Tornado's server: an Exchange for each request. It tells the app when a connection has ended."""

    def initialize(  # type: ignore[override]
        self, app: App, settings: Settings, limits: Limits | None = None
    ) -> None:
        self.app = app
        self.fast_path = FastPath(app, limits or Limits()) if settings.fast_path else None
        self.on_free: Callable[[str], None] = _nothing
        self._check = partial(check_block, max_url=settings.max_url, max_head=settings.max_head)
        longest = most_bytes(settings.max_url, settings.max_head)
        super().initialize(
            _nothing,
            chunk_size=CHUNK,
            max_header_size=longest,
            # A head and the chunk with its end, and one more, which may be read before the body is awaited.
            max_buffer_size=longest + 2 * CHUNK,
            max_body_size=DROPPED_BODY,
            body_timeout=settings.stall_timeout,
        )
        # Slow heads are the watch's business: one sweep for all instead of a timer for each.
        self.conn_params.header_timeout = None

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        ours = cast(Stream, stream)
        ours.check, ours.peer = self._check, str(address[0])
        super().handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        return Exchange(self.app, self.fast_path, cast(HTTP1Connection, request_conn), server_conn)

    async def close_all_connections(self) -> None:
        await super().close_all_connections()
        if self.fast_path is not None:
            self.fast_path.close()

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        self.app.on_close(server_conn)
        stream = cast(Stream, cast(HTTP1ServerConnection, server_conn).stream)
        stream.when_free(partial(self.on_free, stream.party))


class Acceptor:
    """Accepts on listening sockets; `limit` connections, `share` of them of one client (0: no such limit).
    `alone` if no other worker shares the sockets. With `handshakes`, ports speak TLS; a Unix socket never
    does."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        server: Server,
        limit: int,
        share: int = 0,
        *,
        alone: bool = True,
        handshakes: Handshakes | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting = waiting_here()
        self._listeners = listeners
        self._server = server
        self._watch = server.app.watch
        self._limit = limit
        self._share = share
        self._alone = alone
        self._handshakes = handshakes
        self._open = 0
        self._by_party: Counter[str] = Counter()
        self._replaced = self._turned_away = 0
        self._accepting = False
        self._stopped = False
        server.on_free = self._freed
        server.app.own = self._own

    @property
    def connections(self) -> int:
        return self._open

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
        if self._open >= self._limit and not self._watch.has_waiting:
            self._pause()
            self._loop.call_later(PAUSE, self.start)
            return
        try:
            connection, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # another worker was faster, or the client has gone
        except OSError as error:
            if error.errno not in NO_DESCRIPTORS:
                raise
            self._pause()
            replaced = sum(self._replace() for _ in range(FOR_DESCRIPTORS))
            self._loop.call_later(ACCEPT_PAUSE if replaced else PAUSE, self.start)
            return
        local = listener.family == socket.AF_UNIX
        peer = UNIX if local else str(address[0])
        handshakes = None if local else self._handshakes
        party = self._server.app.party(peer)
        if not self._has_room(party):
            self._turn_away(connection, b"" if handshakes else TURNED_AWAY)
            return
        self._open += 1
        self._by_party[party] += 1
        if not self._alone:
            self._pause()
            self._loop.call_later(ACCEPT_PAUSE, self.start)
        if not local:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if handshakes is None:
            self._serve(connection, peer, party)
        else:
            serve = partial(self._serve, peer=peer, party=party)
            handshakes.begin(connection, party, serve, partial(self._freed, party))

    def _serve(self, connection: socket.socket, peer: str, party: str) -> None:
        stream = Stream(connection, max_buffer_size=self._server.max_buffer_size, read_chunk_size=CHUNK)
        stream.waiting = self._waiting
        stream.party = party
        if isinstance(connection, TlsSocket):
            stream.certificate = certificate_of(connection.session.engine)
        self._server.handle_stream(stream, (peer,))

    def _has_room(self, party: str) -> bool:
        """Makes it, if that is possible."""
        if party and self._share and self._by_party[party] >= self._share:
            return self._replace(party)
        return self._open < self._limit or self._replace()

    def _own(self, stream: Stream, party: str) -> None:
        """From now on the connection counts for this principal. Raises TooManyRequests if it has its share,
        and all of its connections are busy."""
        if self._share and self._by_party[party] >= self._share and not self._replace(party):
            self._count(turned_away=1)
            raise TooManyRequests(MANY, RETRY_AFTER)
        self._by_party[party] += 1
        self._forget(stream.party)
        stream.party = party

    def _forget(self, party: str) -> None:
        self._by_party[party] -= 1
        if not self._by_party[party]:
            del self._by_party[party]

    def _replace(self, party: str = "") -> bool:
        """Whether a waiting connection was closed."""
        found = self._watch.end_longest(party)
        if found:
            self._count(replaced=1)
        return found

    def _turn_away(self, connection: socket.socket, last: bytes) -> None:
        self._count(turned_away=1)
        with contextlib.suppress(OSError):
            connection.send(last, socket.MSG_DONTWAIT)
            connection.shutdown(socket.SHUT_WR)
        connection.close()

    def _count(self, *, replaced: int = 0, turned_away: int = 0) -> None:
        if not self._replaced and not self._turned_away:
            self._loop.call_later(REPORT_EVERY, self._report)
        self._replaced += replaced
        self._turned_away += turned_away

    def _report(self) -> None:
        counts = self._replaced, self._turned_away
        log.warning("too many connections: %d were closed for newer ones, %d were turned away", *counts)
        self._replaced = self._turned_away = 0

    def _freed(self, party: str) -> None:
        self._open -= 1
        self._forget(party)
        self.start()


def _nothing(_: object) -> None:
    pass
