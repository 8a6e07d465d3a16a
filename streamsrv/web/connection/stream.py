"""The server's end of one connection: Tornado's IOStream, where it and HTTP differ.

Rules of this file
- What belongs together is handed to the kernel in one piece, or with MSG_MORE; so everything is sent at once,
  always.
- The end of what a client sends is not the end of its connection: it may have shut its side only, and wait
  for the answer (`curl`, `nc -N`). IOStream takes it for the end and closes. Between `hold` and `let_go`,
  which is from a request's head to the end of its answer, its socket outlives that and can still be sent on.
  Whether anybody listens shows when something is sent.
- What comes first of a request is shown to `express` before IOStream has it, and if that takes it, IOStream
  never knows: by our loop, for all streams that have something to read (loop.py), else when IOStream reads.
  `pause` holds the next ones back meanwhile.
- Of a message that it cannot parse Tornado says nothing but 400, in one piece. Where it says so, `malformed`
  speaks instead.
- IOStream drops a connection whose head is over the limit. Here all bytes received so far are handed on as
  the head: `check` refuses it, and the refusal is sent.
- IOStream reads on until it has found the end of a head, and a client may shut its side meanwhile. The end of
  the connection is not reported before a head that is complete has been handed on.
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

# Tornado reads into blocks of this size; larger ones slow every small request.
CHUNK = 64 << 10
# What Tornado says in HTTP1Connection; should it ever say something else, that goes out as it is.
BARE_400 = b"HTTP/1.1 400 Bad Request\r\n\r\n"

# The end of a head, as Tornado looks for it.
HEAD_END = re.compile(rb"\r?\n\r?\n")

# The line with the size of a chunk (RFC 9112 7.1), or its first 64 bytes if it is longer.
CHUNK_SIZE = rb"(?s)\A(?:.{0,62}?\r\n|.{64})"


class RequestBatch:
    """One look at all requests that have come: what is the same for each of them. `date` is empty until
    somebody asks."""

    __slots__ = ("began", "date", "moment", "stamp")

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.date = b""
        self.stamp = ""
        self.moment = -1


class Stream(IOStream):
    # Called with the bytes of each head before Tornado parses it. Raises HTTPInputError to refuse it.
    check: Callable[[bytes], None] | None = None
    # Told the error; says the last of this connection.
    malformed: Callable[[BaseException | None], Coroutine[Any, Any, None]] | None = None
    # Told what comes first of a request; whether it has answered it.
    show_first: Callable[[bytes, RequestBatch], bool] | None = None
    # Called when a part of the head that Tornado waits for has come.
    begun: Callable[[], None] | None = None
    party = ""  # the client that this connection counts for
    is_new = True  # no request was awaited yet
    # Told, while this is paused, that the client has shut its side. What it has sent behind its request hides
    # that.
    shut: Callable[[], None] | None = None
    # Streams of this loop that await a request, by descriptor.
    waiting: dict[int, Stream] | None = None
    _awaited = False  # a request, and nothing of it has come
    _first = b""  # has come, and is for Tornado
    _head: asyncio.Future[bytes] | None = None  # the head that Tornado waits for
    _paused = _muted = False
    _held = False
    _ended = False  # no more will come from the client
    _freed: Callable[[], None] | None = None

    @property
    def half_closed(self) -> bool:
        """Closed for reading and for Tornado, while `socket` still takes what is sent."""
        return self._held and self._ended and self.closed()

    def hold(self) -> None:
        """Of a stream that is closed already no socket is left to hold."""
        self._held = not self.closed()

    def let_go(self) -> None:
        half_closed, self._held = self.half_closed, False
        if half_closed:
            super().close_fd()
            if self._freed is not None:
                self._freed()

    def when_free(self, freed: Callable[[], None]) -> None:
        """Call `freed` when the socket of this closed stream is no more: now, or when it is let go."""
        self.malformed = self.show_first = self.shut = self.begun = (
            None  # an exchange, which holds this stream
        )
        if self.half_closed:
            self._freed = freed
        else:
            freed()

    def pause(self) -> None:
        """Nothing is read until `resume`."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._muted and not self.closed():
            self.io_loop.update_handler(self.fileno(), self._state or 0)
        self._muted = False

    def drop_arrived(self) -> None:
        """Of a paused stream that is going to be closed. What was not read would make that a reset, which may
        overtake what was sent last (connection/closing.py)."""
        with contextlib.suppress(OSError):
            while self.socket.recv(CHUNK, socket.MSG_DONTWAIT):
                pass

    # What Tornado calls

    def set_nodelay(self, value: bool) -> None:
        """Tornado switches it on and off again for each answer: two system calls."""

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        if self._paused or (self._awaited and not self._first and self._taken()):
            return None  # as if nothing had come
        if self._first:
            first, self._first = self._first, b""
            buf[: len(first)] = first
            return len(first)
        count = super().read_from_fd(buf)
        if count == 0:
            if self._head is not None and not self._head.done() and HEAD_END.search(self._read_buffer):
                return None  # IOStream finds the head now; the end is still there at the next read
            self._ended = True
        elif count:
            self._await(False)
        return count

    def _handle_events(self, fd: Any, events: int) -> None:
        """What the loop calls. Of Tornado's private names only this, the buffer, `_read_from_buffer` and
        `_state` (the events that are waited for) are used here."""
        if self._paused and events == IOLoop.READ:
            self._hold_back(fd)
            return
        super()._handle_events(fd, events)
        self._tell_begun()

    def _tell_begun(self) -> None:
        if self._head is not None and self._read_buffer_size and self.begun and not self._head.done():
            self.begun()

    def _hold_back(self, fd: Any) -> None:
        """What has come while this is paused, until `resume`; unless it has been read by now."""
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

    def _taken(self) -> bool:
        """Whether nothing is left of what has come."""
        asked = self.arrived()
        return asked is None or (bool(asked) and self.show(asked, RequestBatch()))

    def arrived(self) -> bytes | None:
        """What has come of an awaited request: None if nothing has, empty if IOStream has to look."""
        if self._paused or self.writing():
            return b""
        try:
            return self.socket.recv(CHUNK)
        except BlockingIOError:
            return None  # a second look might find what the lane has not seen
        except OSError:
            return b""

    def show(self, asked: bytes, batch: RequestBatch) -> bool:
        """Whether it is answered; else IOStream reads it next."""
        if not self._awaited:
            return False  # closed, since it came
        if self.show_first is not None and self.show_first(asked, batch):
            return True
        self._await(False)
        self._first = asked
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
        """Tornado reads heads so, and nothing else."""
        self._await(self.show_first is not None and (not self._read_buffer_size or self._early_taken()))
        self._head = cast("asyncio.Future[bytes]", super().read_until_regex(regex, max_bytes))
        self._tell_begun()
        return self._checked(self._head) if self.check is not None else self._head

    async def _checked(self, head: Awaitable[bytes]) -> bytes:
        try:
            block = await head
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
        """Tornado reads the size of a chunk so, and nothing else; without an end within 64 bytes it would
        close the connection and say nothing."""
        line = cast("asyncio.Future[bytes]", super().read_until_regex(CHUNK_SIZE))
        is_there = line.done() and line.exception() is None and line.result().endswith(b"\r\n")
        return line if is_there else _with_its_end(line)

    def _early_taken(self) -> bool:
        """Of what had come before anything was awaited, as `_taken`. What stands behind a last request is
        never answered."""
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
        if not (self._held and self._ended):
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
