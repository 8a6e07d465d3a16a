"""Cached frames: templates of the answers for the stored frames of one instance.

A viewer sends thousands of requests that differ in a frame number. After two of them the answer is kept as a
template, under the bytes of the request without the number. The app rendered it with marks in the places that
differ: Date, entity tag, boundary, request id, length, number.

    bytes of a request -> answer without date and id -> date, id, frame -> socket
                       -> template, number -> place of the frame -> answer without date and id

Nothing can be smuggled. Only bytes count that Tornado has parsed as one request without a body, from the same
peer. They must arrive as one piece while the connection waits for a request.

Rules of this file
- Requests with conditions, ranges or a request id take another way.
- After each commit the instance is looked up again. If it was deleted or replaced, its templates are dropped.
- A template has the caller that it was made for. It holds while the principal of that caller does.
- A small frame that is not in memory takes another way.
- Of a store on other machines a frame is answered here if it is at hand: the version of the index, the place
  and the bytes. Else asking.py brings them.
- `answer` raises only if nothing was sent. Then another way answers.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from streamsrv.metrics import RequestKind, RequestTally, Way
from streamsrv.retrieve.cached_frames import AskedFrame, CachedInstance, PlacedFrame
from streamsrv.web.access.access import Access
from streamsrv.web.access_log import AccessLog
from streamsrv.web.auditing import Mark
from streamsrv.web.connection.closing import final_status
from streamsrv.web.connection.stream import RequestBatch, Stream
from streamsrv.web.fastpath.headers import LONGEST, is_unique
from streamsrv.web.fastpath.segments import OpenSegments, Release
from streamsrv.web.head import Head, new_id
from streamsrv.web.hosts import Caller
from streamsrv.web.sending.response import SMALL, AnswerWriter, Outgoing
from streamsrv.web.sending.transfer import Transfer
from streamsrv.wire.answers import Answer, Literal, Span

# Placeholders of a template. They are random, so that no request can contain them.
_TAG, _BOUNDARY, _ID, _NUMBER = (secrets.token_hex(20) for _ in range(4))
_FIELDS = {f'"{_TAG}"': b"%(etag)b", _BOUNDARY: b"%(boundary)b", _NUMBER: b"%(number)b"}
_DATE = re.compile(rb"(?<=\r\nDate: )[^\r]+")
_DATE_LENGTH, _ID_LENGTH = 29, 16
_BEFORE_NUMBER, _AS_PICTURE = b"/frames/", b"/rendered"
_REQUEST = re.compile(
    rb"GET (/[!->@-~]*/frames/)([1-9][0-9]{0,9})(?:/rendered)? HTTP/1\.1\r\n(?:[^\r\n]+\r\n)+\r\n"
)
_WAY = Way.CACHED_FRAME


class Limits(NamedTuple):
    """How much one worker keeps. If all requests are as long as possible, it is 40 MB."""

    prepared: int = 4096  # answers of 2 kB
    templates: int = 512
    once: int = 2048
    headers: int = 512
    linger: float = 0.5  # seconds for which an unused segment stays open, at most twice
    # Open segments: an archive may have more than a process may open files.
    segments: int = 64


class Template(NamedTuple):
    """The answers for one instance. Between `texts` go the date, the request id and the frame. `length` is
    that of the payload without the frame and the number, which the payload contains `numbered` times. `mark`
    is None if there is no audit trail."""

    frames: CachedInstance
    caller: Caller
    texts: tuple[bytes, bytes, bytes, bytes]
    length: int
    numbered: int
    mark: Mark | None


class NamedFrame(NamedTuple):
    """The frame that a request names: `path` is percent-encoded."""

    template: Template
    number: bytes
    path: str


class PreparedAnswer(NamedTuple):
    """An answer without its date, its request id and the bytes of the frame."""

    source: str
    caller: Caller
    path: str
    frames: CachedInstance
    before: bytes
    middle: bytes
    after: bytes
    span: Span
    tail: bytes
    length: int  # of all bytes, with a date and a request id
    payload: int
    line: str  # of the access log
    tally: RequestTally
    mark: Mark | None


_Key: TypeAlias = tuple[str, bytes]  # source; the request without its number
Render: TypeAlias = Callable[[Answer, Head], Outgoing]


class FrameCache:
    """The cache of one worker."""

    def __init__(self, access_log: AccessLog, writer: AnswerWriter, access: Access, limits: Limits) -> None:
        self._access = access
        self._writer = writer
        self._limits = limits
        self._log = access_log
        self._prepared: dict[bytes, PreparedAnswer] = {}
        self._templates: dict[_Key, Template] = {}
        self._once: dict[_Key, None] = {}
        self._segments = OpenSegments(limits.segments, limits.linger, SMALL)
        self.remote = False  # whether the calls of a CachedInstance block

    # Answers

    def answer(self, stream: Stream, source: str, request: bytes, batch: RequestBatch) -> Transfer | bool:
        """False if the frame is not cached; then nothing was sent. True if the answer was sent, or the
        Transfer that sends its rest."""
        if len(request) > LONGEST:
            return False
        prepared = self._prepared.get(request)
        if prepared is None or prepared.source != source:
            prepared = self._prepare(source, request, batch)
            if prepared is None:
                return False
        frames, span = prepared.frames, prepared.span
        if not self._access.holds(prepared.caller):
            self._forget(frames)
            return False
        if not batch.date and not self._begin_batch(batch, frames):
            return False
        current = frames.is_current(batch.version)
        if not current:
            if current is False:
                self._forget(frames)
            return False
        if span.length > SMALL:
            held = self._segments.hold(frames, span)
            if held is None:
                return False
            lease, release = held
            try:
                identifier, head = self._head(prepared, batch)
                transfer = self._writer.send_span(stream, b"".join(head), span, prepared.tail, lease.file_at)
            except BaseException:
                release()
                raise
        else:
            view = self._segments.read(frames, span)
            if view is None:
                return False
            release = None
            identifier, head = self._head(prepared, batch)
            transfer = self._writer.send_now(stream, [*head, view, prepared.tail], prepared.length)
        return self._followed(transfer, prepared, batch, identifier, release)

    def _head(self, prepared: PreparedAnswer, batch: RequestBatch) -> tuple[str, list[bytes]]:
        mark = prepared.mark
        if mark is not None and not mark.is_noted:
            mark.note()
        identifier = new_id()
        return identifier, [prepared.before, batch.date, prepared.middle, identifier.encode(), prepared.after]

    def _begin_batch(self, batch: RequestBatch, frames: CachedInstance) -> bool:
        """False if the version is not at hand. All requests of the batch have arrived before."""
        version = frames.version_at_hand()
        if version is None:
            return False
        batch.version = version
        self._stamp(batch)
        return True

    def _stamp(self, batch: RequestBatch) -> None:
        batch.stamp, batch.date = self._log.now(), self._writer.date.encoded()

    # Of a remote store

    def asked(self, source: str, request: bytes) -> AskedFrame | None:
        """The cached frame that a request names. None if there is none, or its principal has ended."""
        if len(request) > LONGEST:
            return None
        prepared = self._prepared.get(request)
        if prepared is not None and prepared.source == source:
            frames, caller = prepared.frames, prepared.caller
            asked = AskedFrame(frames, 0, PlacedFrame(b"", b"", prepared.span))
        else:
            named = self._named(source, request)
            if named is None:
                return None
            frames, caller = named.template.frames, named.template.caller
            asked = AskedFrame(frames, int(named.number))
        if not self._access.holds(caller):
            self._forget(frames)
            return None
        return asked

    def keep_open(self, asked: AskedFrame) -> None:
        """Further frames of the segment may be read without a thread."""
        lease, asked.lease = asked.lease, None
        if lease is not None and asked.placed is not None:
            self._segments.keep(asked.placed.span.segment, lease, asked.version)

    def send_read(
        self, stream: Stream, source: str, request: bytes, asked: AskedFrame, batch: RequestBatch
    ) -> Transfer | bool:
        """As `answer`, with a frame that was read."""
        prepared = self._prepared.get(request)
        if prepared is None or prepared.source != source:
            named = self._named(source, request)
            if named is None or asked.placed is None or not asked.placed.etag:
                return False  # without an entity tag it is the placeholder of an answer that is gone
            prepared = self._keep_prepared(source, request, named, asked.placed)
        content = asked.content
        if prepared.frames is not asked.instance or content is None or len(content) != prepared.span.length:
            return False
        if not self._access.holds(prepared.caller):
            self._forget(prepared.frames)
            return False
        self._stamp(batch)
        identifier, head = self._head(prepared, batch)
        transfer = self._writer.send_now(stream, [*head, content, prepared.tail], prepared.length)
        return self._followed(transfer, prepared, batch, identifier, None)

    def _followed(
        self,
        transfer: Transfer | None,
        prepared: PreparedAnswer,
        batch: RequestBatch,
        identifier: str,
        release: Release | None,
    ) -> Transfer | bool:
        if transfer is None:
            if release is not None:
                release()
            seconds = time.monotonic() - batch.began
            self._log.add_line(
                prepared.line, batch.stamp, seconds, identifier, prepared.tally, prepared.payload
            )
            return True
        self._follow(transfer, prepared, batch.began, identifier, release)
        return transfer

    def _follow(
        self,
        transfer: Transfer,
        prepared: PreparedAnswer,
        began: float,
        identifier: str,
        release: Release | None,
    ) -> None:
        """Logs the request when the transfer ends."""

        def ended(_: object) -> None:
            if release is not None:
                release()
            line, tally, sent = prepared.line, prepared.tally, prepared.payload
            error = transfer.done.exception()
            if error is not None:
                sent = max(0, transfer.sent - (prepared.length - prepared.payload))
                status = final_status(error, 200, identifier, sent)
                line = self._log.line(prepared.caller.client, "GET", prepared.path, status, sent, _WAY)
                tally = self._log.tally(_kind(prepared.path), status, _WAY)
            self._log.add_line(line, self._log.now(), time.monotonic() - began, identifier, tally, sent)

        if transfer.done.done():
            ended(transfer.done)
        else:
            transfer.done.add_done_callback(ended)

    def _prepare(self, source: str, request: bytes, batch: RequestBatch) -> PreparedAnswer | None:
        named = self._named(source, request)
        if named is None:
            return None
        frames = named.template.frames
        if not batch.date and not self._begin_batch(batch, frames):
            return None
        frame = frames.at(int(named.number), brief=True) if frames.is_current(batch.version) else None
        return None if frame is None else self._keep_prepared(source, request, named, frame)

    def _named(self, source: str, request: bytes) -> NamedFrame | None:
        """The template of the instance that a request names, and the number of its frame."""
        at = request.find(_BEFORE_NUMBER) + len(_BEFORE_NUMBER)
        if at < len(_BEFORE_NUMBER):
            return None
        stop = end = request.find(b" ", at)
        if request.endswith(_AS_PICTURE, at, stop):
            end -= len(_AS_PICTURE)
        template = self._templates.get((source, request[:at] + request[end:]))
        number = request[at:end]
        if template is None or not number.isdigit() or len(number) > 10 or number[0] == 48:
            return None
        return NamedFrame(template, number, request[4:stop].decode("ascii"))

    def _keep_prepared(
        self, source: str, request: bytes, named: NamedFrame, frame: PlacedFrame
    ) -> PreparedAnswer:
        template, number, path = named
        payload = template.length + template.numbered * len(number) + frame.span.length
        fields = {
            b"etag": frame.etag,
            b"boundary": frame.boundary,
            b"number": number,
            b"length": b"%d" % payload,
        }
        before, middle, after, tail = texts = [text % fields for text in template.texts]
        length = sum(map(len, texts)) + frame.span.length + _DATE_LENGTH + _ID_LENGTH
        caller, frames = template.caller, template.frames
        line = self._log.line(caller.client, "GET", path, 200, payload, _WAY)
        prepared = PreparedAnswer(
            *(source, caller, path, frames, before, middle, after, frame.span, tail, length, payload, line),
            self._log.tally(_kind(path), 200, _WAY),
            template.mark,
        )
        if len(self._prepared) >= self._limits.prepared:
            self._prepared.clear()
        self._prepared[request] = prepared
        return prepared

    def _forget(self, frames: CachedInstance) -> None:
        """The instance was deleted or replaced, or a principal has ended."""
        for request in [request for request, each in self._prepared.items() if each.frames is frames]:
            del self._prepared[request]
        for key in [key for key, template in self._templates.items() if template.frames is frames]:
            del self._templates[key]

    # Templates

    def wants(self, request: bytes, head: Head, answer: Answer) -> bool:
        """Whether to `keep` a template of the answer to this request, which succeeded. The first of equal
        requests is only noted: most frames are requested once."""
        if _BEFORE_NUMBER not in request or not self._limits.templates or not _is_stored(answer):
            return False
        found = _REQUEST.fullmatch(request)
        if found is None or is_unique(head):
            return False
        key = _key(found, head)
        if key in self._once:
            return True
        _make_room(self._once, self._limits.once)
        self._once[key] = None
        return False

    def keep(
        self,
        request: bytes,
        head: Head,
        caller: Caller,
        frames: CachedInstance,
        render: Render,
        mark: Mark | None = None,
    ) -> None:
        """`caller` holds now."""
        found = _REQUEST.fullmatch(request)
        if found is not None:
            self.remote = frames.remote
            _make_room(self._templates, self._limits.templates)
            self._templates[_key(found, head)] = _template(frames, head, caller, render, mark)

    def close(self) -> None:
        self._segments.close()


def _kind(path: str) -> RequestKind:
    return RequestKind.RENDERED if path.endswith(_AS_PICTURE.decode()) else RequestKind.FRAMES


def _is_stored(answer: Answer) -> bool:
    plan = answer.plan
    return isinstance(plan, (tuple, list)) and any(isinstance(piece, Span) for piece in plan)


def _key(found: re.Match[bytes], head: Head) -> _Key:
    request = found.string
    return head.source, request[: found.end(1)] + request[found.end(2) :]


def _make_room(kept: dict[Any, Any], most: int) -> None:
    while len(kept) >= most:
        del kept[next(iter(kept))]


def _template(
    frames: CachedInstance, head: Head, caller: Caller, render: Render, audit: Mark | None
) -> Template:
    """Renders the answer for a frame without bytes, with placeholders in the places that differ."""
    answer = frames.answer(_NUMBER, f'"{_TAG}"', _BOUNDARY.encode())
    # A single part has no literals: its payload is the frame.
    pieces = [piece.payload for piece in answer.plan if isinstance(piece, Literal)] or [b""]
    marked = Head("GET", head.path, head.version, {**head.headers, "x-request-id": _ID}, head.peer)
    text = (render(answer, marked).head + pieces[0]).replace(b"%", b"%%")
    framing = b"\r\nContent-Length: %d\r\n" % (answer.length or 0)
    text = text.replace(framing, b"\r\nContent-Length: %(length)b\r\n", 1)
    tail = pieces[-1].replace(b"%", b"%%") if len(pieces) > 1 else b""
    for mark, field in _FIELDS.items():
        text, tail = text.replace(mark.encode(), field), tail.replace(mark.encode(), field)
    before, _, rest = _DATE.sub(b"\0", text, 1).partition(b"\0")
    middle, _, after = rest.partition(_ID.encode())
    numbered = b"".join(pieces).count(_NUMBER.encode())
    length = (answer.length or 0) - numbered * len(_NUMBER)
    return Template(frames, caller, (before, middle, after, tail), length, numbered, audit)
