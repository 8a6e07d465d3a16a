"""Static files: from a file on the disk, or bytes in memory, to an answer.

A file is described before it is served: media type, entity tag, and its bytes in each content coding. So no
path of a request ever reaches the file system: it is a key of a table.

Files on the disk are opened by a thread and sent by the ways of a segment: sendfile from the page cache, a
thread where a page is missing. The answer holds the open file, so a file that is removed meanwhile is sent to
its end.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from streamsrv.errors import NotFound
from streamsrv.wire.answers import Answer, Computed, Deferred, Literal, Request, Span
from streamsrv.wire.codings import ENCODERS, IDENTITY, WORTH_CODING, choose_coding, encoded
from streamsrv.wire.conditional import evaluate

# Values of Cache-Control. A browser asks each time for a file whose name says nothing about its contents.
ASK = "no-cache"
NEVER = "no-store"
FOREVER = "public, max-age=31536000, immutable"  # a year (RFC 9111 5.2.2.1, RFC 8246)

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".jsonc": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webapp": "application/manifest+json",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
}
_SHRINKS = frozenset((".css", ".html", ".js", ".json", ".jsonc", ".mjs", ".svg", ".txt", ".wasm", ".xml"))


class StaticFile(NamedTuple):
    """`etag` is a token for the bytes without a coding. `codings` has the bytes, or the path of a file with
    them, by the name of the content coding: IDENTITY alone, or every coding of ENCODERS too. `cache` is the
    value of Cache-Control."""

    media_type: str
    etag: str
    codings: Mapping[str, bytes | Path]
    cache: str = ASK


def media_type_of(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"


def shrinks(name: str) -> bool:
    """Whether the contents of a file of this name are worth a content coding."""
    return os.path.splitext(name)[1].lower() in _SHRINKS


def in_memory(name: str, body: bytes, cache: str = ASK) -> StaticFile:
    """A short file, encoded once."""
    codings: dict[str, bytes | Path] = {IDENTITY: body}
    if shrinks(name) and len(body) >= WORTH_CODING:
        codings |= {coding: b"".join(encoded((body,), coding)) for coding in ENCODERS}
    return StaticFile(media_type_of(name), hashlib.sha256(body).hexdigest()[:32], codings, cache)


def file_answer(
    request: Request, file: StaticFile, policy: str, extra: Sequence[tuple[str, str]] = ()
) -> Computed:
    """The answer to GET and HEAD, with conditions and ranges (RFC 9110 13, 14), in the content coding that
    the client prefers. `policy` is its Content-Security-Policy, `extra` are more headers. Raises NotFound if
    the file has been removed, PreconditionFailed and RangeNotSatisfiable."""
    coding = choose_coding(request.headers.get("accept-encoding"))
    if coding not in file.codings:
        coding = IDENTITY
    headers = [("Content-Type", file.media_type), ("Cache-Control", file.cache), *extra]
    if len(file.codings) > 1:
        headers.append(("Vary", "Accept-Encoding"))
    if coding:
        headers.append(("Content-Encoding", coding))
    etag = f'"{file.etag}-{coding}"' if coding else f'"{file.etag}"'
    source = file.codings[coding]
    if isinstance(source, bytes):
        whole = Answer(200, headers, (Literal(source),), len(source), policy=policy)
        return evaluate(request, whole, etag)
    return Deferred(lambda: evaluate(request, _opened(source, headers, policy), etag))


def _opened(path: Path, headers: list[tuple[str, str]], policy: str) -> Answer:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NotFound("this file has been replaced: load the page again") from None
    length = os.fstat(fd).st_size
    plan, release = (Span(0, 0, length),), partial(os.close, fd)
    return Answer(200, headers, plan, length, file_at=lambda _, at: (fd, at), release=release, policy=policy)
