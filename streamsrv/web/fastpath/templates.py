"""Answers with marks where the next ones differ: what the express lane and known words remember, and what
they ask of the app and of the room below.

A template is the usual answer, rendered once by what renders all others, for a frame that has no bytes and
names that nobody outside knows.
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple, Protocol

from streamsrv.web.head import Head
from streamsrv.web.sending.response import Outgoing
from streamsrv.wire.answers import Answer, Literal, Span

# What stands in a template until it is filled in; nobody outside knows them.
_TAG, _BOUNDARY, _ID, _NUMBER = (secrets.token_hex(20) for _ in range(4))
_FIELDS = {
    f'"{_TAG}"': b"%(etag)b",
    _BOUNDARY: b"%(boundary)b",
    _NUMBER: b"%(number)b",
}
_DATE = re.compile(rb"(?<=\r\nDate: )[^\r]+")


class Lease(Protocol):
    def fd(self, segment: int) -> int: ...
    def release(self) -> None: ...


class Frame(Protocol):
    """Where one frame lies, and what its answer says of it."""

    @property
    def etag(self) -> bytes: ...
    @property
    def boundary(self) -> bytes: ...
    @property
    def span(self) -> Span: ...


class Frames(Protocol):
    """The single frames of one instance for one client's words; the room below makes it."""

    def moment(self) -> int: ...
    def current(self, moment: int) -> bool: ...
    def at(self, number: int) -> Frame | None: ...
    def lease(self, segment: int) -> Lease | None: ...
    def answer(self, number: str, etag: str, boundary: bytes) -> Answer: ...


class Knowledge(Protocol):
    """What the lane learns from; the app."""

    def hot(self, head: Head) -> Frames | None:
        """If the request of this head was answered with one of them."""
        ...

    def outgoing(self, head: Head, answer: Answer) -> Outgoing: ...


class Template(NamedTuple):
    """Of the answers for one instance. Between the texts go the date, the request id and the frame. `length`
    is that of the payload without the frame and its number, which is in it `numbered` times."""

    frames: Frames
    client: str
    texts: tuple[bytes, bytes, bytes, bytes]
    length: int
    numbered: int


def render(frames: Frames, head: Head, client: str, known: Knowledge) -> Template:
    """The usual answer, with marks where another one differs."""
    answer = frames.answer(_NUMBER, f'"{_TAG}"', _BOUNDARY.encode())
    texts = _texts(head, answer, known)
    numbered = _named(answer, _NUMBER)
    return Template(frames, client, texts, (answer.length or 0) - numbered * len(_NUMBER), numbered)


def _texts(head: Head, answer: Answer, known: Knowledge) -> tuple[bytes, bytes, bytes, bytes]:
    """Between them go the date, the request id and the frame."""
    marked = Head("GET", head.path, head.version, {**head.headers, "x-request-id": _ID}, head.peer)
    pieces = _literals(answer)
    text = (known.outgoing(marked, answer).head + pieces[0]).replace(b"%", b"%%")
    framing = b"\r\nContent-Length: %d\r\n" % (answer.length or 0)
    text = text.replace(framing, b"\r\nContent-Length: %(length)b\r\n", 1)
    tail = pieces[-1].replace(b"%", b"%%") if len(pieces) > 1 else b""
    for mark, field in _FIELDS.items():
        text, tail = text.replace(mark.encode(), field), tail.replace(mark.encode(), field)
    before, _, rest = _DATE.sub(b"\0", text, 1).partition(b"\0")
    middle, _, after = rest.partition(_ID.encode())
    return before, middle, after, tail


def _literals(answer: Answer) -> list[bytes]:
    """A single part is the frame and nothing else."""
    return [piece.payload for piece in answer.plan if isinstance(piece, Literal)] or [b""]


def _named(answer: Answer, mark: str) -> int:
    """How often the payload says it."""
    return b"".join(_literals(answer)).count(mark.encode())
