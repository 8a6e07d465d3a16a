"""The express lane: frames, and pictures that are stored frames, asked for in words that were understood
before.

A viewer sends thousands of requests that differ in a number. The first two of them take the usual way:
Tornado, the checks, the rooms below. What was found out is kept by the exact bytes of the request with the
number left out, as a template of the answer; a third request of the very same bytes is answered from it
before Tornado sees it.

    bytes from the socket -> known? -- yes -> number -> where the frame lies -> template filled in, sent
                              no  -> Tornado, unchanged

Why nothing is parsed, and nothing can be smuggled: the lane takes only what came as one whole request, when
the connection waits for one and holds no other byte; and only bytes that Tornado has read as exactly one
request without a body, and the app has let in, from the same peer. All else goes to Tornado as it came, so
there is no hand-over and no way back: the connection is Tornado's all the time.

Rules of this file
- The template is the handlers' own answer, rendered once with marks where answers differ; only Date, the
  entity tag, the boundary, the request id, the length and the number are filled in.
- Conditions, ranges, request ids of the client's: the usual way.
- After each commit the instance is looked up again: what was deleted or replaced is forgotten.
- A small frame that is not in memory goes the usual way; a large one is sent by a Transfer, as ever, and so
  is what the socket does not take at once. Nothing is read from the connection meanwhile.
- `answer` raises only as long as nothing was sent; then the usual way answers.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from streamsrv.web.access_log import AccessLog, Way
from streamsrv.web.connection.closing import sent_as
from streamsrv.web.connection.stream import Look, Stream
from streamsrv.web.fastpath.headers import LONGEST, Words, is_particular
from streamsrv.web.fastpath.templates import Frames, Knowledge, Lease, Template, render
from streamsrv.web.head import Head, new_id
from streamsrv.web.sending.response import SMALL, date_bytes
from streamsrv.web.sending.sources import read_warm, send_warm
from streamsrv.web.sending.transfer import SHORT, Transfer
from streamsrv.wire.answers import Answer, Literal, Span
from streamsrv.wire.byte_ranges import slice_plan


class Limits(NamedTuple):
    """How much one worker keeps. With requests as long as they may be it is 40 MB in all."""

    ready: int = 4096  # answers of 2 kB
    templates: int = 512
    once: int = 2048
    headers: int = 512
    linger: float = 0.5  # seconds for which an unused segment stays open, at most twice
    # Open segments: an archive may have more than a process may open files.
    segments: int = 64


DATE_LENGTH, ID_LENGTH = 29, 16
_WAY = Way.CACHED_FRAME
BEFORE_NUMBER, AS_PICTURE = b"/frames/", b"/rendered"
_REQUEST = re.compile(
    rb"GET (/[!->@-~]*/frames/)([1-9][0-9]{0,9})(?:/rendered)? HTTP/1\.1\r\n(?:[^\r\n]+\r\n)+\r\n"
)


class Ready(NamedTuple):
    """All of an answer but its date, its request id and the bytes of the frame."""

    peer: str
    client: str
    path: str
    frames: Frames
    before: bytes
    middle: bytes
    after: bytes
    span: Span
    tail: bytes
    length: int  # of everything, with a date and a request id
    payload: int
    line: str  # of the log


_Key: TypeAlias = tuple[str, bytes]  # peer; the request without its number


class Lane:
    """Of one worker."""

    def __init__(
        self, access_log: AccessLog, begin: Callable[[Stream, Answer, int], Transfer], limits: Limits
    ) -> None:
        self._begin = begin
        self._limits = limits
        self._log = access_log
        self._ready: dict[bytes, Ready] = {}
        self._templates: dict[_Key, Template] = {}
        self._once: dict[_Key, None] = {}
        self._leases: dict[int, Lease] = {}
        self._idle: set[int] = set()  # segments that were not read since the last sweep
        self._timer: asyncio.TimerHandle | None = None
        self._buffer = memoryview(bytearray(SMALL))
        self.words = Words(limits.headers)

    # Answering

    def answer(self, stream: Stream, peer: str, asked: bytes, look: Look) -> Transfer | bool:
        """Whether the request has been answered; if not, nothing was sent. A Transfer is at it, or was."""
        if len(asked) > LONGEST:
            return False
        ready = self._ready.get(asked)
        if ready is None or ready.peer != peer:
            ready = self._make_ready(peer, asked, look)
            if ready is None:
                return False
        if not look.date:
            self._begin_look(look, ready.frames)
        if not ready.frames.current(look.moment):
            self._forget(ready.frames)
            return False
        identifier = new_id()
        head: list[bytes | memoryview]
        head = [ready.before, look.date, ready.middle, identifier.encode(), ready.after]
        if ready.span.length > SMALL:
            return self._transfer(stream, ready, b"".join(head), look, identifier)
        view = self._read(ready.frames, ready.span)
        if view is None:
            return False
        head += (view, ready.tail)
        try:
            sent = stream.socket.sendmsg(head)
        except OSError:  # full, or broken: the transfer finds out which
            sent = 0
        if sent == ready.length:
            self._log.add_line(ready.line, look.stamp, time.monotonic() - look.began, identifier, _WAY)
            return True
        rest = Literal(b"".join(head)[sent:])
        transfer = self._begin(stream, Answer(200, [], (rest,), length=rest.length), sent)
        self._follow(transfer, ready, look.began, identifier, None)
        return transfer

    def _begin_look(self, look: Look, frames: Frames) -> None:
        look.moment, look.stamp, look.date = frames.moment(), self._log.now(), date_bytes()

    def _transfer(
        self, stream: Stream, ready: Ready, head: bytes, look: Look, identifier: str
    ) -> Transfer | bool:
        """A large frame: mostly the socket takes all of it; a Transfer sends what it does not take."""
        span, tail = ready.span, ready.tail
        lease = ready.frames.lease(span.segment)
        if lease is None:
            return False
        sent = (
            send_warm(stream.socket, lease.fd(span.segment), head, span, tail) if span.length <= SHORT else 0
        )
        if sent == ready.length:
            lease.release()
            self._log.add_line(ready.line, look.stamp, time.monotonic() - look.began, identifier, _WAY)
            return True
        rest = tuple(slice_plan((Literal(head), span, Literal(tail)), sent, ready.length))
        answer = Answer(200, [], rest, length=ready.length - sent, descriptor=lease.fd)
        transfer = self._begin(stream, answer, sent)
        self._follow(transfer, ready, look.began, identifier, lease)
        return transfer

    def _follow(
        self, transfer: Transfer, ready: Ready, began: float, identifier: str, lease: Lease | None
    ) -> None:
        """To its end, which the log tells."""

        def ended(_: object) -> None:
            if lease is not None:
                lease.release()
            line, error = ready.line, transfer.done.exception()
            if error is not None:
                sent = max(0, transfer.sent - (ready.length - ready.payload))
                status = sent_as(error, 200, identifier, sent)
                line = self._log.line(ready.client, "GET", ready.path, status, sent, _WAY)
            self._log.add_line(line, self._log.now(), time.monotonic() - began, identifier, _WAY)

        if transfer.done.done():
            ended(transfer.done)
        else:
            transfer.done.add_done_callback(ended)

    def _make_ready(self, peer: str, asked: bytes, look: Look) -> Ready | None:
        at = asked.find(BEFORE_NUMBER, 0, LONGEST) + 8
        stop = end = asked.find(b" ", at)
        if asked.endswith(AS_PICTURE, at, stop):
            end -= len(AS_PICTURE)
        template = self._templates.get((peer, asked[:at] + asked[end:]))
        number = asked[at:end]
        if template is None or not number.isdigit() or len(number) > 10 or number[0] == 48:
            return None
        if not look.date:
            self._begin_look(look, template.frames)
        frame = template.frames.at(int(number)) if template.frames.current(look.moment) else None
        if frame is None:
            return None
        payload = template.length + template.numbered * len(number) + frame.span.length
        fields = {
            b"etag": frame.etag,
            b"boundary": frame.boundary,
            b"number": number,
            b"length": b"%d" % payload,
        }
        before, middle, after, tail = texts = [text % fields for text in template.texts]
        length = sum(map(len, texts)) + frame.span.length + DATE_LENGTH + ID_LENGTH
        client, frames, path = template.client, template.frames, asked[4:stop].decode("ascii")
        line = self._log.line(client, "GET", path, 200, payload, _WAY)
        ready = Ready(
            peer, client, path, frames, before, middle, after, frame.span, tail, length, payload, line
        )
        if len(self._ready) >= self._limits.ready:
            self._ready.clear()
        self._ready[asked] = ready
        return ready

    def _forget(self, frames: Frames) -> None:
        """The instance is another now, or gone."""
        for asked in [asked for asked, ready in self._ready.items() if ready.frames is frames]:
            del self._ready[asked]
        for key in [key for key, template in self._templates.items() if template.frames is frames]:
            del self._templates[key]

    def _read(self, frames: Frames, span: Span) -> memoryview | None:
        lease = self._leases.get(span.segment)
        if lease is None:
            lease = frames.lease(span.segment)
            if lease is None:
                return None
            while len(self._leases) >= self._limits.segments:
                self._give_back(next(iter(self._leases)))
            self._leases[span.segment] = lease
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._limits.linger, self._sweep)
        self._idle.discard(span.segment)
        view = self._buffer[: span.length]
        return view if read_warm(lease.fd(span.segment), view, span.offset) else None

    # Learning

    @staticmethod
    def may_learn(asked: bytes) -> bool:
        return asked.startswith(b"GET /") and len(asked) <= LONGEST

    @staticmethod
    def may_learn_frames(asked: bytes) -> bool:
        return BEFORE_NUMBER in asked

    def learn(self, asked: bytes, head: Head, client: str, known: Knowledge) -> None:
        """A request that was answered the usual way, with success. Nothing is made for one that is never
        asked again, so its first time is only noted. `client` is named in the log."""
        self.words.learn(asked, head)
        found = _REQUEST.fullmatch(asked) if BEFORE_NUMBER in asked else None
        if found is None or is_particular(head) or not self._limits.templates:
            return
        key = head.peer, asked[: found.end(1)] + asked[found.end(2) :]
        if key not in self._once:
            _make_room(self._once, self._limits.once)
            self._once[key] = None
            return
        frames = known.hot(head)
        if frames is not None:
            _make_room(self._templates, self._limits.templates)
            self._templates[key] = render(frames, head, client, known)

    # The end

    def _give_back(self, segment: int) -> None:
        self._idle.discard(segment)
        self._leases.pop(segment).release()

    def _sweep(self) -> None:
        for segment in list(self._idle):
            self._give_back(segment)
        self._idle = set(self._leases)
        self._timer = (
            asyncio.get_running_loop().call_later(self._limits.linger, self._sweep) if self._leases else None
        )

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        while self._leases:
            self._leases.popitem()[1].release()


def lies_in_store(answer: Answer) -> bool:
    """Whether what the lane could send is among its pieces: it knows no frame that has to be made."""
    plan = answer.plan
    return isinstance(plan, (tuple, list)) and any(isinstance(piece, Span) for piece in plan)


def _make_room(kept: dict[Any, Any], most: int) -> None:
    while len(kept) >= most:
        del kept[next(iter(kept))]
