"""TLS handshakes of the new connections of one worker.

Strategy: the signature of a handshake takes up to 5 ms. So each step runs in a thread, outside the
interpreter's lock, and at most TOGETHER run at once: a flood of handshakes takes no more of the processors.
A connection is served when its handshake has ended.

Rules of this file
- A connection in its handshake waits for a head: it has `head_timeout` seconds, and is closed for a newer one
  when connections are scarce.
- A failed handshake is no line in the log: scanners cause thousands. They are counted, and reported together.
- A client that speaks plain HTTP gets an answer that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import Callable
from typing import TypeAlias

from streamsrv.settings import Settings
from streamsrv.web.connection.certificates import BadCertificate, ServerCertificate
from streamsrv.web.connection.clients import Watch
from streamsrv.web.connection.loop import Threads, from_thread
from streamsrv.web.connection.tls import RECEIVED, TlsSession, TlsSocket

log = logging.getLogger("streamsrv.web")

# Steps that run at once.
TOGETHER = 2
# Seconds between two lines in the log.
REPORT_EVERY = 10.0
NOT_TLS = "this port speaks HTTPS: the URL has to begin with https"
_PROBLEM = json.dumps({"type": "about:blank", "title": "Bad Request", "status": 400, "detail": NOT_TLS})
SPEAK_TLS = (
    "HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\n"
    f"Connection: close\r\nContent-Length: {len(_PROBLEM)}\r\n\r\n{_PROBLEM}"
).encode("ascii")
# Reasons of OpenSSL if the first bytes are those of an HTTP request.
PLAIN_HTTP = frozenset(("HTTP_REQUEST", "HTTPS_PROXY_REQUEST"))

Serve: TypeAlias = Callable[[TlsSocket], None]


class Handshakes:
    """Must be made inside the running loop. Raises BadCertificate."""

    def __init__(self, settings: Settings, certificate: ServerCertificate, watch: Watch) -> None:
        self._settings = settings
        self._certificate = certificate
        self._context = certificate.context(settings)
        self._scratch = memoryview(bytearray(RECEIVED))
        self._loop = asyncio.get_running_loop()
        self._failed = 0
        self._reason = ""
        self.watch = watch
        self.threads = Threads(TOGETHER, "streamsrv-tls")

    def begin(self, connection: socket.socket, party: str, serve: Serve, freed: Callable[[], None]) -> None:
        """Calls `serve` with the connection when its handshake has ended, or else `freed`."""
        connection.setblocking(False)
        session = TlsSession(self._context, self._scratch)
        _Handshake(self, TlsSocket(connection.detach(), session), party, serve, freed).await_bytes()

    def renew(self) -> None:
        """New connections use the certificate that the supervisor has read."""
        try:
            self._context = self._certificate.context(self._settings)
        except BadCertificate as error:
            log.error("the certificate was not renewed, and the old one stays: %s", error.detail)

    def failed(self, reason: str) -> None:
        """The line in the log has the last reason."""
        if not self._failed:
            self._loop.call_later(REPORT_EVERY, self._report)
        self._failed += 1
        self._reason = reason

    def _report(self) -> None:
        if self._failed:
            log.warning("%d TLS handshakes failed, the last one: %s", self._failed, self._reason)
        self._failed = 0

    def stop(self) -> None:
        self._report()
        self.threads.shutdown()


class _Handshake:
    def __init__(
        self, owner: Handshakes, connection: TlsSocket, party: str, serve: Serve, freed: Callable[[], None]
    ) -> None:
        self._owner = owner
        self._connection = connection
        self._serve = serve
        self._freed = freed
        self._loop = asyncio.get_running_loop()
        self._busy = self._closed = False
        owner.watch.head_awaited(self, self.close, party, new=True)

    def await_bytes(self) -> None:
        self._loop.add_reader(self._connection.fileno(), self._begin_step)

    def _begin_step(self) -> None:
        self._loop.remove_reader(self._connection.fileno())
        self._busy = True
        from_thread(self._owner.threads, self._step, self._step_ended)

    def _step(self) -> bool | OSError:
        try:
            return self._connection.shake_hands()
        except OSError as error:
            return error

    def _step_ended(self, result: bool | OSError) -> None:
        self._busy = False
        if self._closed:
            self._end()
        elif isinstance(result, OSError):
            self._fail(result)
        elif not result:
            self.await_bytes()
        else:
            self._owner.watch.head_arrived(self)
            self._serve(self._connection)

    def _fail(self, error: OSError) -> None:
        self._owner.watch.head_arrived(self)
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        if isinstance(error, ssl.SSLError):
            self._owner.failed(reason)
            if reason in PLAIN_HTTP:
                self._connection.send_plain(SPEAK_TLS)
        self._end()

    def close(self) -> None:
        """The client took too long, or makes room. A step that runs ends first."""
        self._closed = True
        self._owner.watch.head_arrived(self)
        if not self._busy:
            self._loop.remove_reader(self._connection.fileno())
            self._end()

    def _end(self) -> None:
        self._connection.cut()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        self._connection.close()
        self._freed()
