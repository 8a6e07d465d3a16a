"""From an Answer to bytes on a connection: status line, headers, framing, and the way that its payload takes.

Strategy: a small answer (literals, and spans that are in memory) goes out with its head in one write, and so
does a frame or picture that was made.
Everything else, and what that write leaves, goes by a Transfer on a dup of the socket, head first, so that
the kernel sends head and first bytes in one segment.

Rules of this file
- The framing comes from the plan alone: Content-Length where the length is known, else chunked, else
  (HTTP/1.0) the end of the connection. HEAD, 204 and 304 have no body, and 204 no Content-Length either (RFC
  9110 8.6).
- A header field that is not printable ASCII is an error of the server and raises: it is never sent.
- Whatever happens, the answer's `release` is called, once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from http import HTTPStatus

from tornado.http1connection import HTTP1Connection
from tornado.iostream import IOStream

from streamsrv.errors import StoreCorrupt
from streamsrv.web.connection.pace import Watch
from streamsrv.web.sending.sources import read_warm
from streamsrv.web.sending.transfer import SHORT, Transfer
from streamsrv.wire.answers import Answer, Literal, Span, StoredParts, field_lines

# Up to this size copying is cheaper than a second system call and a turn of the loop.
SMALL = 64 << 10
PIECES = 64  # literals of one answer that are sent at once
MADE = (tuple, list, StoredParts)  # plans that are there, and not made while they are walked
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TOO_SLOW = "the client reads more slowly than the minimum rate"
BODILESS = frozenset((204, 304))
REASONS = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    416: "Range Not Satisfiable",
}


class Outgoing:
    """An answer with everything that its head needs besides."""

    __slots__ = ("answer", "body", "chunked", "close", "head", "rest", "sent", "until_close")

    def __init__(
        self, answer: Answer, extra: Sequence[tuple[str, str]], *, method: str, version: str, keep_alive: bool
    ) -> None:
        self.answer = answer
        self.body = method != "HEAD" and answer.status not in BODILESS
        self.chunked = self.body and answer.length is None and version == "HTTP/1.1"
        # Without a length and without chunks only the end of the connection tells where the answer ends.
        self.until_close = self.body and answer.length is None and not self.chunked
        self.close = not keep_alive or self.until_close
        self.head = head_bytes(answer, [*extra, *self._framing(version)])
        self.sent, self.rest = 0, b""  # if it was begun: bytes of head and payload, and what they left

    def _framing(self, version: str) -> list[tuple[str, str]]:
        headers = []
        if self.answer.length is not None and self.answer.status not in BODILESS:
            headers.append(("Content-Length", str(self.answer.length)))
        if self.chunked:
            headers.append(("Transfer-Encoding", "chunked"))
        if self.close:
            headers.append(("Connection", "close"))
        elif version == "HTTP/1.0":
            headers.append(("Connection", "keep-alive"))
        return headers


def head_bytes(answer: Answer, extra: Sequence[tuple[str, str]]) -> bytes:
    fields = field_lines([("Date", date()), *answer.headers, *extra])
    return f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Unknown')}\r\n{fields}\r\n".encode("ascii")


_second = (0, "", b"")


def date() -> str:
    """IMF-fixdate of RFC 9110 5.6.7, made once a second."""
    return _this_second()[1]


def date_bytes() -> bytes:
    return _this_second()[2]


def _this_second() -> tuple[int, str, bytes]:
    global _second
    now = int(time.time())
    if now != _second[0]:
        text = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now))
        _second = now, text, text.encode("ascii")
    return _second


# What small spans are read into, on their way from the page cache to the socket. Only the loop uses it.
_buffer = bytearray(SMALL)


def small_parts(answer: Answer) -> list[bytes | memoryview] | None:
    """The whole payload, if it is short and at hand; None if it has to be transferred. Views are good until
    the next call."""
    if answer.length is None or answer.length > SMALL or not isinstance(answer.plan, MADE):
        return _literals(answer)
    parts: list[bytes | memoryview] = []
    used = length = 0
    for piece in answer.plan:
        if isinstance(piece, Literal):
            parts.append(piece.payload)
            length += len(piece.payload)
        elif isinstance(piece, Span) and answer.descriptor is not None:
            if used + piece.length > SMALL:
                break
            view = memoryview(_buffer)[used : used + piece.length]
            if not read_warm(answer.descriptor(piece.segment), view, piece.offset):
                return None
            parts.append(view)
            used += piece.length
            length += piece.length
        else:
            return None
    if length != answer.length:
        raise StoreCorrupt(f"an answer of {answer.length} bytes would have {length}")
    return parts


def _literals(answer: Answer) -> list[bytes | memoryview] | None:
    """The whole of a longer payload that is in memory: the kernel takes it as it is, at once."""
    plan = answer.plan
    if answer.length is None or answer.length > SHORT or not isinstance(plan, (tuple, list)):
        return None
    if len(plan) > PIECES or not all(isinstance(piece, Literal) for piece in plan):
        return None
    parts: list[bytes | memoryview] = [piece.payload for piece in plan if isinstance(piece, Literal)]
    if sum(map(len, parts)) != answer.length:
        raise StoreCorrupt(f"an answer of {answer.length} bytes would have {sum(map(len, parts))}")
    return parts


def send_now(connection: HTTP1Connection, outgoing: Outgoing) -> int | None:
    """Send it at once and finish; returns the payload's length. None: not possible, or not all of it, and
    `begin_transfer` does the rest."""
    stream = connection.stream
    if stream.writing():
        parts = small_parts(outgoing.answer) if outgoing.body else []
        if parts is None:
            return None
        connection.write(b"".join((outgoing.head, *parts)))  # behind what Tornado has to say
        sent: int | None = sum(map(len, parts))
    else:
        sent = send_small(stream, outgoing)
    if sent is not None:
        connection.finish()
    return sent


def send_small(stream: IOStream, outgoing: Outgoing) -> int | None:
    """The same on a stream to which nobody writes, as far as it can be."""
    parts = small_parts(outgoing.answer) if outgoing.body else []
    if parts is None:
        return None
    parts.insert(0, outgoing.head)
    length = sum(map(len, parts))
    with contextlib.suppress(OSError):  # full, or broken: the transfer finds out which
        outgoing.sent = stream.socket.sendmsg(parts)
    if outgoing.sent < length:
        outgoing.rest = b"".join(parts)[outgoing.sent :]
        return None
    return length - len(outgoing.head)


def begin_transfer(stream: IOStream, outgoing: Outgoing, pool: Executor, watch: Watch) -> Transfer:
    """Send head and payload, or what is left of them, as far as the socket takes them at once."""
    if outgoing.rest:
        return transfer_rest(stream, outgoing.sent, outgoing.rest, pool, watch)
    answer = outgoing.answer if outgoing.body else Answer(outgoing.answer.status)
    return transfer(stream, answer, pool, watch, prefix=outgoing.head, chunked=outgoing.chunked)


def transfer_rest(stream: IOStream, sent: int, rest: bytes, pool: Executor, watch: Watch) -> Transfer:
    """The rest of an answer of which so many bytes are sent."""
    answer = Answer(200, [], (Literal(rest),), length=len(rest))
    return transfer(stream, answer, pool, watch, sent=sent)


def transfer(
    stream: IOStream,
    answer: Answer,
    pool: Executor,
    watch: Watch,
    *,
    prefix: bytes = b"",
    chunked: bool = False,
    sent: int = 0,
) -> Transfer:
    """`prefix`, then the payload; `sent` counts on. A client that reads too slowly later ends the transfer
    with TimeoutError."""
    meter = watch.meter(lambda: begun.abort(TimeoutError(TOO_SLOW)))
    begun = Transfer(stream.socket, answer, pool, meter, watch.turns, prefix=prefix, chunked=chunked)
    begun.sent = sent
    begun.start()
    if begun.done.done():
        watch.drop(meter)
    else:
        watch.add(meter)
        begun.done.add_done_callback(lambda _: watch.drop(meter))
    return begun


def release(answer: Answer) -> None:
    if answer.release is not None:
        answer.release()
