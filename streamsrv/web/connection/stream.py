"""The server's end of one connection: Tornado's IOStream, in the places where HTTP needs something else.

Rules of this file
- Bytes that belong together are given to the kernel in one piece, or with MSG_MORE. So all is sent at once.
- The end of the bytes of a client is not the end of its connection: it may have shut its side only, and wait
  for the answer (`curl`, `nc -N`). IOStream would close. From `hold` to `let_go`, that is from the head of a
  request to the end of its answer, the socket outlives that and takes bytes. Whether the client still reads
  shows when something is sent.
- The first bytes of a request are shown to `show_first` before IOStream has them. If that answers, IOStream
  never sees them. Our loop does so for all readable streams at once (loop.py); else the stream does, when
  IOStream reads. `pause` holds the next requests back.
- For a message that it cannot parse Tornado writes a bare 400, in one piece. `malformed` replaces it.
- IOStream drops a connection whose head is over the limit. Here all bytes received so far are returned as the
  head: `check` refuses it, and the refusal is sent.
- IOStream reads on until it has found the end of a head, and the client may shut its side meanwhile. The end
  of the connection is not reported from a complete head to `hold`: coroutines take turns of the loop between.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

from tornado.httputil import HTTPInputError
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, UnsatisfiableReadError

from streamsrv.web.client_certificate import ClientCertificate
from streamsrv.web.connection.tls import TlsSocket

# Tornado reads into blocks of this size; larger ones slow every small request.
CHUNK = 64 << 10
# Tornado's text in HTTP1Connection. If it changes, it is sent as it is.
BARE_400 = b"HTTP/1.1 400 Bad Request\r\n\r\n"

# The end of a head, as Tornado looks for it.
HEAD_END = re.compile(rb"\r?\n\r?\n")

# The line with the size of a chunk (RFC 9112 7.1), or its first 64 bytes if it is longer.
CHUNK_SIZE = rb"(?s)\A(?:.{0,62}?\r\n|.{64})"


class RequestBatch:
    """Values that all requests that arrived together share. `date` is empty until it is needed."""

    __slots__ = ("began", "date", "stamp", "version")

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.date = b""
        self.stamp = ""
        self.version = -1  # of the index


class Stream(IOStream):
    # Called with the bytes of each head before Tornado parses it. Raises HTTPInputError to refuse it.
    check: Callable[[bytes], None] | None = None
    # Called with the error of a message that cannot be parsed. Sends the last bytes of this connection.
    malformed: Callable[[BaseException | None], Coroutine[Any, Any, None]] | None = None
    # Called with the first bytes of a request. Returns whether it has answered it.
    show_first: Callable[[bytes, RequestBatch], bool] | None = None
    # Called when a part of the awaited head has arrived.
    begun: Callable[[], None] | None = None
    party = ""  # the client that this connection counts for
    peer = "-"  # address of the client, or `unix`.
    certificate: ClientCertificate | None = None
    is_new = True  # no request was awaited yet
    # Called if the client shuts its side while this is paused. Bytes behind the request hide that.
    shut: Callable[[], None] | None = None
    # Streams of this loop that await a request, by descriptor.
    waiting: dict[int, Stream] | None = None
    _awaited = False  # a request, of which no byte has arrived.
    _first = b""  # has arrived, and is for Tornado.
    _head: asyncio.Future[bytes] | None = None  # Tornado waits for it
    # A head was requested, and the stream is not held yet.
    _head_due = False
    _head_found = False
    _paused = _muted = False
    _held = False
    _at_end = False  # the client sends no more
    _freed: Callable[[], None] | None = None

    @property
    def half_closed(self) -> bool:
        """Closed for reading and for Tornado, while `socket` still takes bytes."""
        return self._held and self._at_end and self.closed()

    def hold(self) -> None:
        """A stream that is closed already has no socket to hold."""
        self._held = not self.closed()
        self._head_due = False

    def let_go(self) -> None:
        half_closed, self._held = self.half_closed, False
        if half_closed:
            super().close_fd()
            if self._freed is not None:
                self._freed()

    def when_free(self, freed: Callable[[], None]) -> None:
        """Calls `freed` when the socket of this closed stream is closed: now, or by `let_go`."""
        # Breaks reference cycles with the exchange.
        self.malformed = self.show_first = self.shut = self.begun = None
        if self.half_closed:
            self._freed = freed
        else:
            freed()

    def pause(self) -> None:
        """Reads nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._muted and not self.closed():
            self.io_loop.update_handler(self.fileno(), self._state or 0)
        self._muted = False
        if isinstance(self.socket, TlsSocket) and self.socket.has_ahead:
            self.io_loop.add_callback(self._read_ahead)

    def _read_ahead(self) -> None:
        """Reads bytes that the kernel does not report."""
        if not self._paused and not self.closed():
            self._handle_events(self.fileno(), IOLoop.READ)

    def drop_arrived(self) -> None:
        """Drops the bytes that a paused stream has not read, before it is closed. They would make the close a
        reset, which may overtake the last answer (connection/closing.py)."""
        with contextlib.suppress(OSError):
            while self.socket.recv(CHUNK, socket.MSG_DONTWAIT):
                pass

    # Called by Tornado

    def set_nodelay(self, value: bool) -> None:
        """Tornado switches it on and off for each answer: two system calls."""

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        if self._paused or (self._awaited and not self._first and self._is_answered()):
            return None  # as if no byte had arrived
        if self._first:
            first, self._first = self._first, b""
            buf[: len(first)] = first
            return len(first)
        count = super().read_from_fd(buf)
        if count == 0:
            if self._head_due and self._has_head():
                return None  # the end is still there at the next read
            self._at_end = True
        elif count:
            self._await(False)
        return count

    def _has_head(self) -> bool:
        """Whether the awaited head was returned, or is in the buffer."""
        done = self._head is not None and self._head.done()
        return done or self._head_found or HEAD_END.search(self._read_buffer) is not None

    def _handle_events(self, fd: Any, events: int) -> None:
        """Called by the loop. Of Tornado's private names only this, the buffer, `_read_from_buffer` and
        `_state` (the awaited events) are used here."""
        if self._paused and events == IOLoop.READ:
            self._hold_back(fd)
            return
        super()._handle_events(fd, events)
        self._report_begun()

    def _report_begun(self) -> None:
        if self._head is not None and self._read_buffer_size and self.begun and not self._head.done():
            self.begun()

    def _hold_back(self, fd: Any) -> None:
        """Stops listening until `resume`, if a byte or the end has arrived at a paused stream."""
        try:
            more = bool(self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return
        except OSError:
            more = False
        self._muted = True
        self.io_loop.update_handler(fd, 0)
        if not more and self.shut is not None:
            self.shut()

    def _is_answered(self) -> bool:
        """Whether no byte is left for IOStream."""
        request = self.arrived()
        return request is None or (bool(request) and self.show(request, RequestBatch()))

    def arrived(self) -> bytes | None:
        """The bytes of an awaited request: None if none has arrived, empty if IOStream has to read."""
        if self._paused or self.writing():
            return b""
        try:
            return self.socket.recv(CHUNK)
        except BlockingIOError:
            return None  # IOStream might find bytes that the fast path has not seen
        except OSError:
            return b""

    def show(self, request: bytes, batch: RequestBatch) -> bool:
        """Whether it is answered. Otherwise IOStream reads it next."""
        if not self._awaited:
            return False  # closed since it arrived
        if self.show_first is not None and self.show_first(request, batch):
            return True
        self._await(False)
        self._first = request
        return False

    def _await(self, awaited: bool) -> None:
        self._awaited = awaited
        if self.waiting is None or self.closed():
            return
        if awaited:
            self.waiting[self.socket.fileno()] = self
        else:
            self.waiting.pop(self.socket.fileno(), None)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Tornado calls this for heads only."""
        self._await(self.show_first is not None and (not self._read_buffer_size or self._early_answered()))
        self._head_due, self._head_found = True, False  # IOStream may read at once
        self._head = cast("asyncio.Future[bytes]", super().read_until_regex(regex, max_bytes))
        self._report_begun()
        return self._checked(self._head) if self.check is not None else self._head

    async def _checked(self, head: Awaitable[bytes]) -> bytes:
        try:
            block = await head
            self._head_found = True
        finally:
            self._head = None
            del head  # Breaks the cycle future -> exception -> traceback -> this frame -> future.
        if self.check is not None:
            self.check(block)
        return block

    def close(self, exc_info: Any = False) -> None:
        if isinstance(exc_info, UnsatisfiableReadError) and self.check is not None and not self.closed():
            self._read_from_buffer(self._read_buffer_size)
        else:
            super().close(exc_info)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Tornado calls this for the size of a chunk only. Without an end within 64 bytes it would close the
        connection without an answer."""
        line = cast("asyncio.Future[bytes]", super().read_until_regex(CHUNK_SIZE))
        is_there = line.done() and line.exception() is None and line.result().endswith(b"\r\n")
        return line if is_there else _with_its_end(line)

    def _early_answered(self) -> bool:
        """As `_is_answered`, for bytes that arrived before a request was awaited. A request behind the last
        one is never answered."""
        size = self._read_buffer_size
        if (
            size > CHUNK
            or self.closed()
            or self.writing()
            or self.show_first is None
            or not self.show_first(bytes(self._read_buffer), RequestBatch())
        ):
            return False
        self._consume(size)
        return True

    def close_fd(self) -> None:
        self._await(False)
        if not (self._held and self._at_end):
            super().close_fd()

    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        if data == BARE_400 and self.malformed is not None:
            return asyncio.ensure_future(self.malformed(sys.exc_info()[1]))
        return super().write(data)


async def _with_its_end(line: Awaitable[bytes]) -> bytes:
    found = await line
    if not found.endswith(b"\r\n"):
        raise HTTPInputError("the size of a chunk has no end within 64 bytes")
    return found
