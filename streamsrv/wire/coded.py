"""A content coding around an answer that knows nothing of codings (RFC 9110 8.4, 12.5.3).

Rules
- The coded representation has an entity tag of its own: that of the answer with the name of the coding
  behind it. In what the client sends such tags are read back, so the answer compares its own.
- What is asked for in ranges, and what is too short to be worth it, goes out as it is.
- What is sent while it is made is coded while it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from streamsrv.wire.answers import Answer, Computed, Literal, Piece, Request, Stream, then
from streamsrv.wire.codings import ENCODERS, WORTH_CODING, choose_coding, encoded

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
