"""From an Answer to bytes on a connection: status line, headers, framing, and three ways to the socket.

    send_now        head and payload in one sendmsg: small answers, and payloads that are in memory
    send_file_now   head, sendfile, rest: one span of up to SHORT bytes that is in the page cache
    Transfer        all else, and the bytes that the socket did not take at once

Rules of this file
- The framing comes from the plan alone: Content-Length if the length is known, else chunked, else (HTTP/1.0)
  the end of the connection. HEAD, 204 and 304 have no body, and 204 no Content-Length (RFC 9110 8.6).
- A header field that is not printable ASCII raises an error before anything is sent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from http import HTTPStatus

from streamsrv.errors import StoreCorrupt
from streamsrv.web.connection.clients import Watch
from streamsrv.web.connection.stream import Stream
from streamsrv.web.sending.sources import read_warm, send_file_now
from streamsrv.web.sending.transfer import SHORT, Transfer
from streamsrv.wire.answers import Answer, FileAt, Literal, Span, StoredParts, field_lines
from streamsrv.wire.conditional import slice_plan

# Up to this size copying is cheaper than a second system call and a turn of the loop.
SMALL = 64 << 10
PIECES = 64  # literals of one answer that are sent at once
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TOO_SLOW = "the client reads more slowly than the minimum rate"
BODILESS = frozenset((204, 304))
REASONS = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    416: "Range Not Satisfiable",
}

Parts = list[bytes | memoryview]


class HttpDate:
    """The IMF-fixdate of RFC 9110 5.6.7, formatted once a second."""

    def __init__(self) -> None:
        self._second, self._text, self._encoded = 0, "", b""

    def text(self) -> str:
        self.encoded()
        return self._text

    def encoded(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._text = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now))
            self._encoded = self._text.encode("ascii")
        return self._encoded


class Outgoing:
    """An answer and its head. `extra` are the headers of every answer to this request."""

    __slots__ = ("answer", "body", "chunked", "close", "head", "until_close")

    def __init__(
        self,
        answer: Answer,
        extra: Sequence[tuple[str, str]],
        *,
        method: str,
        version: str,
        keep_alive: bool,
        date: str,
    ) -> None:
        self.answer = answer
        self.body = method != "HEAD" and answer.status not in BODILESS
        self.chunked = self.body and answer.length is None and version == "HTTP/1.1"
        # Without a length and without chunks only the end of the connection tells where the answer ends.
        self.until_close = self.body and answer.length is None and not self.chunked
        self.close = not keep_alive or self.until_close
        self.head = head_bytes(answer, [*extra, *self._framing(version)], date)

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


def head_bytes(answer: Answer, extra: Sequence[tuple[str, str]], date: str) -> bytes:
    line = f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Unknown')}\r\n".encode("ascii")
    return b"%b%b\r\n" % (line, field_lines([("Date", date), *answer.headers, *extra]))


class AnswerWriter:
    """Sends the answers of one worker. Each method returns None if the socket took all bytes, else the
    Transfer that sends the rest, whose `sent` counts all of them."""

    def __init__(self, pool: Executor, watch: Watch) -> None:
        self._pool = pool
        self._watch = watch
        self.date = HttpDate()
        self._buffer = memoryview(bytearray(SMALL))

    def send(self, stream: Stream, outgoing: Outgoing) -> Transfer | None:
        """Raises as long as nothing was sent."""
        answer, head = outgoing.answer, outgoing.head
        parts = self._in_memory(answer) if outgoing.body else []
        if parts is not None:
            length = (answer.length or 0) if outgoing.body else 0
            return self.send_now(stream, [head, *parts], len(head) + length)
        single = _single_span(answer)
        if single is not None and answer.file_at is not None:
            before, span, tail = single
            return self.send_span(stream, head + before, span, tail, answer.file_at)
        return self._transfer(stream, answer, prefix=head, chunked=outgoing.chunked)

    def _in_memory(self, answer: Answer) -> Parts | None:
        """The whole payload, if it is short and in memory; valid until the next call. Raises StoreCorrupt if
        it has another length."""
        length, plan = answer.length, answer.plan
        if length is None or length > SHORT or not isinstance(plan, (list, tuple, StoredParts)):
            return None
        if length > SMALL and (isinstance(plan, StoredParts) or len(plan) > PIECES):
            return None
        parts, spans = Parts(), 0
        for piece in plan:
            if isinstance(piece, Literal):
                parts.append(piece.payload)
                continue
            if length > SMALL or not isinstance(piece, Span) or answer.file_at is None:
                return None
            start, spans = spans, spans + piece.length
            view = self._buffer[start:spans]
            if spans > SMALL:
                return None
            fd, offset = answer.file_at(piece.segment, piece.offset)
            if not read_warm(fd, view, offset):
                return None
            parts.append(view)
        if (found := sum(map(len, parts))) != length:
            raise StoreCorrupt(f"an answer of {length} bytes would have {found}")
        return parts

    def send_now(self, stream: Stream, parts: Parts, length: int) -> Transfer | None:
        """One sendmsg. If the socket is full or broken, the Transfer of the rest finds out."""
        try:
            sent = stream.socket.sendmsg(parts)
        except OSError:
            sent = 0
        if sent == length:
            return None
        rest = Literal(b"".join(parts)[sent:])
        return self._transfer(stream, Answer(200, [], (rest,), length=rest.length), sent=sent)

    def send_span(
        self, stream: Stream, head: bytes, span: Span, tail: bytes, file_at: FileAt
    ) -> Transfer | None:
        length, sent = len(head) + span.length + len(tail), 0
        if span.length <= SHORT:
            place = file_at(span.segment, span.offset)
            sent = send_file_now(stream.socket, *place, span.length, head, tail)
            if sent == length:
                return None
        rest = tuple(slice_plan((Literal(head), span, Literal(tail)), sent, length))
        answer = Answer(200, [], rest, length=length - sent, file_at=file_at)
        return self._transfer(stream, answer, sent=sent)

    def _transfer(
        self, stream: Stream, answer: Answer, *, prefix: bytes = b"", chunked: bool = False, sent: int = 0
    ) -> Transfer:
        """`prefix`, then the payload. A client that reads too slowly ends it with TimeoutError."""
        watch = self._watch
        meter = watch.meter(lambda: begun.abort(TimeoutError(TOO_SLOW)))
        begun = Transfer(
            stream.socket, answer, self._pool, meter, watch.bodies, prefix=prefix, chunked=chunked
        )
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


def _single_span(answer: Answer) -> tuple[bytes, Span, bytes] | None:
    """Literal, span, literal: the form of a frame. None if the plan has another one."""
    plan = answer.plan
    if not isinstance(plan, (tuple, list)) or len(plan) > 3:
        return None
    spans = [number for number, piece in enumerate(plan) if isinstance(piece, Span)]
    texts = [piece.payload for piece in plan if isinstance(piece, Literal)]
    if len(spans) != 1 or len(texts) != len(plan) - 1:
        return None
    (at,) = spans
    span = plan[at]
    return (b"".join(texts[:at]), span, b"".join(texts[at:])) if isinstance(span, Span) else None
