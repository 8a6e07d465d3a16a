"""Content codings of answers: which one a client takes (RFC 9110 12.5.3), and the coding itself in pieces.

Rules
- zstd before gzip where both are as welcome: at level 1 it is three times as fast and no larger. A coding is
  taken only if the client names it, by name or by `*`, and likes it no less than none.
- Level 1: a metadata answer shrinks to a tenth already, and higher levels cost more than the network saves.
- The same text gives the same bytes: no time and no name in the gzip header (RFC 1952 2.3).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Protocol

import zstandard

from streamsrv.wire.accept import LONGEST_REMEMBERED
from streamsrv.wire.answers import Answer, Computed, Literal, Piece, Request, Stream, then

IDENTITY = ""
LEVEL = 1
PIECE = 64 << 10
# Shorter texts go out as they are: the head of the answer weighs as much.
WORTH_CODING = 1_024
GZIP = 31  # zlib's wbits for a gzip member
_ALIASES = {"x-gzip": "gzip"}
_QUALITY = re.compile(r"q[ \t]*=[ \t]*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z", re.IGNORECASE)


class Encoder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


# In our order.
ENCODERS: dict[str, Callable[[], Encoder]] = {
    "zstd": lambda: zstandard.ZstdCompressor(level=LEVEL).compressobj(),
    "gzip": lambda: zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP),
}


class Gatherer:
    """No coding: the same bytes in pieces of at least PIECE."""

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
    """The name of the coding to use, IDENTITY for none."""
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


def encoded(chunks: Iterable[bytes], coding: str) -> Iterator[bytes]:
    """The chunks in a coding, in fewer pieces; no piece is empty."""
    encoder = ENCODERS[coding]() if coding else Gatherer()
    for chunk in chunks:
        if piece := encoder.compress(chunk):
            yield piece
    if piece := encoder.flush():
        yield piece


# Answers in a coding

_CONDITIONS = ("if-match", "if-none-match")
_MARKED = re.compile(rf'-(?:{"|".join(ENCODERS)})"')


def coded(request: Request, answer: Callable[[Request], Computed]) -> Computed:
    """The answer that `answer` makes, in the coding that the client prefers."""
    return then(answer(_unmarked(request)), partial(_in_coding, request))


def _in_coding(request: Request, found: Answer) -> Answer:
    found.headers = [(name, _varied(value) if name == "Vary" else value) for name, value in found.headers]
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
    read_back = {name: _MARKED.sub('"', request.headers.get(name, "")) for name in _CONDITIONS}
    sent = {name: value for name, value in read_back.items() if name in request.headers}
    return replace(request, headers={**request.headers, **sent})


def _varied(value: str) -> str:
    return f"{value}, Accept-Encoding"


def _marked(etag: str, coding: str) -> str:
    return f'{etag[:-1]}-{coding}"'


def _mark_known(found: Answer, coding: str, known: str) -> None:
    """Of the two that the client may have, the one that it named."""
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
    stream = Stream(lambda start, stop: encoded(_chunks(pieces), coding), None)
    return replace(found, headers=headers, plan=(stream,), length=None)


def _chunks(pieces: list[Piece]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, Literal):
            yield piece.payload
        elif isinstance(piece, Stream):
            yield from piece.chunks(0, piece.length)
        else:
            raise TypeError("the bytes of a segment are not read here")
