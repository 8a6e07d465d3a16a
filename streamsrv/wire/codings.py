"""Content codings of answers (RFC 9110 8.4, 12.5.3): the choice, the encoding, and `coded`, which encodes
the answer of a function that knows no codings. Character sets of answers (PS3.18 8.8): text is UTF-8.

Rules
- zstd comes before gzip at the same q: at level 1 it is three times as fast, and its result is no larger.
  A coding is used only if the client names it or `*`, with a q not below that of identity.
- Level 1: it shrinks a metadata answer to a tenth, and higher levels cost more than the network saves.
- The same text gives the same bytes: no time and no name in the gzip header (RFC 1952 2.3).
- The coded representation has its own entity tag: that of the answer with the name of the coding at its
  end. `coded` removes it from the conditions of the request, so that the function compares its own tag.
- Ranges and short answers are not encoded. A stream is encoded while it is sent.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Protocol

import zstandard

from streamsrv.errors import NotAcceptable
from streamsrv.wire.accept import LONGEST_REMEMBERED
from streamsrv.wire.answers import Answer, ByteStream, Computed, Literal, Piece, Request, then

IDENTITY = ""
LEVEL = 1
PIECE = 64 << 10
# Bytes. The head of a shorter answer has the same size.
WORTH_CODING = 1_024
GZIP = 31  # zlib's wbits for a gzip member
UTF8 = "utf-8"
_ALIASES = {"x-gzip": "gzip", "utf8": UTF8}
_QUALITY = re.compile(r"q[ \t]*=[ \t]*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z", re.IGNORECASE)


class Encoder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


# In the order of preference.
ENCODERS: dict[str, Callable[[], Encoder]] = {
    "zstd": lambda: zstandard.ZstdCompressor(level=LEVEL).compressobj(),
    "gzip": lambda: zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP),
}


class Joiner:
    """Identity: joins the chunks to pieces of at least PIECE bytes."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._length = 0

    def compress(self, data: bytes, /) -> bytes:
        self._waiting.append(data)
        self._length += len(data)
        return self.flush() if self._length >= PIECE else b""

    def flush(self) -> bytes:
        whole = b"".join(self._waiting)
        self._waiting, self._length = [], 0
        return whole


def choose_coding(accept_encoding: str | None) -> str:
    """The name of the coding to use; IDENTITY for none."""
    header = accept_encoding or ""
    return (_chosen if len(header) <= LONGEST_REMEMBERED else _chosen.__wrapped__)(header)


@lru_cache(maxsize=64)
def _chosen(header: str) -> str:
    qualities = _qualities(header)
    least = qualities.get("identity", 0.0)
    named = [(qualities.get(name, qualities.get("*", 0.0)), name) for name in ENCODERS]
    liked = [(quality, name) for quality, name in named if quality > 0 and quality >= least]
    return max(liked, key=lambda each: each[0])[1] if liked else IDENTITY


def _qualities(header: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for element in header.split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        quality = 1.0
        for parameter in parameters:
            matched = _QUALITY.match(parameter)
            quality = float(matched[1]) if matched else 0.0
        if name:
            found[_ALIASES.get(name.lower(), name.lower())] = quality
    return found


def check_charset(request: Request) -> None:
    """For answers in text. The query parameter `charset` (PS3.18 8.3.3.2) comes before Accept-Charset
    (8.8.4). Raises NotAcceptable if the client does not accept UTF-8."""
    listed = [value for name, value in request.query if name == "charset"]
    if not listed and (header := request.headers.get("accept-charset", "").strip(" \t,")):
        listed = [header]
    if not listed:
        return
    qualities = _qualities(",".join(listed))
    if qualities.get(UTF8, qualities.get("*", 0.0)) <= 0:
        raise NotAcceptable(f"text is sent in {UTF8} only, which the request does not accept", (UTF8,))


def encoded(chunks: Iterable[bytes], coding: str) -> Iterator[bytes]:
    """Encodes the chunks. Yields fewer pieces, none of them empty."""
    encoder = ENCODERS[coding]() if coding else Joiner()
    for chunk in chunks:
        if piece := encoder.compress(chunk):
            yield piece
    if piece := encoder.flush():
        yield piece


_CONDITIONS = ("if-match", "if-none-match")
_MARKED = re.compile(rf'-(?:{"|".join(ENCODERS)})"')


def coded(request: Request, answer: Callable[[Request], Computed]) -> Computed:
    """The answer of `answer`, in the coding that the client prefers."""
    return then(answer(_unmarked(request)), partial(_in_coding, request))


def _in_coding(request: Request, found: Answer) -> Answer:
    found.headers = [
        (name, f"{value}, Accept-Encoding" if name == "Vary" else value) for name, value in found.headers
    ]
    if "range" in request.headers:
        return found
    coding = choose_coding(request.headers.get("accept-encoding"))
    if coding and found.status == 304:
        _mark_known(found, coding, request.headers.get("if-none-match", ""))
    elif coding and found.status == 200 and (found.length is None or found.length >= WORTH_CODING):
        return _encoded(found, coding, bodiless=request.method == "HEAD")
    return found


def _unmarked(request: Request) -> Request:
    if not any(name in request.headers for name in _CONDITIONS):
        return request
    headers = {
        name: _MARKED.sub('"', request.headers[name]) for name in _CONDITIONS if name in request.headers
    }
    return replace(request, headers={**request.headers, **headers})


def _marked(etag: str, coding: str) -> str:
    return f'{etag[:-1]}-{coding}"'


def _mark_known(found: Answer, coding: str, known: str) -> None:
    """Sets the tag of the coded representation, if the client named that one."""
    for place, (name, value) in enumerate(found.headers):
        if name == "ETag" and _marked(value, coding) in known:
            found.headers[place] = name, _marked(value, coding)


def _encoded(found: Answer, coding: str, *, bodiless: bool) -> Answer:
    headers = [
        (name, _marked(value, coding) if name == "ETag" else value)
        for name, value in found.headers
        if name != "Accept-Ranges"
    ]
    headers.append(("Content-Encoding", coding))
    if bodiless:
        return replace(found, headers=headers, plan=(), length=None)
    pieces = list(found.plan)
    if all(isinstance(piece, Literal) for piece in pieces):
        body = Literal(b"".join(encoded(_chunks(pieces), coding)))
        return replace(found, headers=headers, plan=(body,), length=body.length)
    stream = ByteStream(lambda start, stop: encoded(_chunks(pieces), coding), None)
    return replace(found, headers=headers, plan=(stream,), length=None)


def _chunks(pieces: list[Piece]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, Literal):
            yield piece.payload
        elif isinstance(piece, ByteStream):
            yield from piece.chunks(0, piece.length)
        else:
            raise TypeError("the bytes of a segment cannot be encoded")
