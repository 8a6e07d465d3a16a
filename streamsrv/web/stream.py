"""The server's end of one connection: Tornado's IOStream, where it and HTTP differ.

Rules of this file
- What belongs together is handed to the kernel in one piece, or with MSG_MORE; so everything is sent at once,
  always.
- The end of what a client sends is not the end of its connection: it may have shut its side only, and wait
  for the answer (`curl`, `nc -N`). IOStream takes it for the end and closes. Between `hold` and `let_go`,
  which is from a request's head to the end of its answer, its socket outlives that and can still be sent on.
  Whether anybody listens shows when something is sent.
- Of a message that it cannot parse Tornado says nothing but 400, in one piece. Where it says so, `malformed`
  speaks instead.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from tornado.iostream import IOStream

# What Tornado says in HTTP1Connection; should it ever say something else, that goes out as it is.
BARE_400 = b"HTTP/1.1 400 Bad Request\r\n\r\n"


class Stream(IOStream):
    # Told the error; says the last of this connection.
    malformed: Callable[[BaseException | None], Coroutine[Any, Any, None]] | None = None
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
        self.malformed = None  # an exchange, which holds this stream
        if self.half_closed:
            self._freed = freed
        else:
            freed()

    # What Tornado calls

    def set_nodelay(self, value: bool) -> None:
        """Tornado switches it on and off again for each answer: two system calls."""

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        count = super().read_from_fd(buf)
        if count == 0:
            self._ended = True
        return count

    def close_fd(self) -> None:
        if not (self._held and self._ended):
            super().close_fd()

    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        if data == BARE_400 and self.malformed is not None:
            return asyncio.ensure_future(self.malformed(sys.exc_info()[1]))
        return super().write(data)
