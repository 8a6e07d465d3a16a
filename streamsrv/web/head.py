"""The head of one request: parsed once, checked before a byte of the body is read.

Rules of this file
- What Tornado refuses stays refused; whatever decides where a body ends is decided here, strictly, because
  our own read loop bypasses Tornado's (RFC 9112 6.3: one Content-Length of digits only, or chunked, never
  both; anything else may smuggle a second request).
- Queries are never logged: they hold names.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Mapping

from tornado.httputil import HTTPHeaders

from streamsrv.errors import BadRequest, HeadersTooLarge, URITooLong
from streamsrv.wire.answers import Request, Requester

# A request id from outside goes into logs and headers, so it must be tame.
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
DIGITS = re.compile(r"[0-9]{1,18}")
ABSOLUTE = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)
CHUNKED = -1  # the body's length when only its end tells
UNREADABLE = "-", "-", "HTTP/1.1"  # method, target and version where there is no knowing


class Head:
    """`headers` by lower-case name. Never raises: what is wrong with it is told by the functions below, once
    it has a request id."""

    __slots__ = (
        "headers",
        "host",
        "method",
        "path",
        "peer",
        "query",
        "request_id",
        "size",
        "version",
        "words",
    )

    def __init__(self, method: str, target: str, version: str, headers: Mapping[str, str], peer: str) -> None:
        self.method = method
        self.version = version
        self.headers = lowered = dict[str, str]()
        size = len(target)
        for name, value in headers.get_all() if isinstance(headers, HTTPHeaders) else headers.items():
            size += len(name) + len(value) + 4
            key = name.lower()
            lowered[key] = f"{lowered[key]},{value}" if key in lowered else value  # RFC 9110 5.3
        self.peer = peer
        self.size = size
        self.words = b""  # all of the request but its target, once that is remembered (words.py)
        self.host = lowered.get("host", "")
        absolute = ABSOLUTE.fullmatch(target) if not target.startswith("/") else None
        if absolute:  # RFC 9112 3.2.2: its authority counts instead of Host
            self.host = absolute[1]
            target = absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
        self.path, _, self.query = target.partition("?")
        given = self.headers.get("x-request-id", "")
        self.request_id = given if given and SANE_ID.fullmatch(given) else new_id()

    def again(self, target: str, peer: str, size: int) -> Head:
        """The same for another target, a path with or without a query. `size` is this head's without its
        own; it has no request id of the client's."""
        head = Head.__new__(Head)
        head.method, head.version, head.headers = self.method, self.version, self.headers
        head.words = self.words
        head.peer, head.size, head.host = peer, size + len(target), self.host
        head.path, _, head.query = target.partition("?")
        head.request_id = new_id()
        return head

    @property
    def keep_alive(self) -> bool:
        """As Tornado decides it, so that both sides of this process agree on when the connection ends."""
        connection = self.headers.get("connection", "").lower()
        if self.version == "HTTP/1.1":
            return connection != "close"
        return connection == "keep-alive" and (
            self.method in ("GET", "HEAD") or "content-length" in self.headers
        )

    @property
    def expects_continue(self) -> bool:
        return self.version == "HTTP/1.1" and self.headers.get("expect", "").lower() == "100-continue"

    def request(
        self, base_url: str, query: tuple[tuple[str, str], ...], version: int, client: str
    ) -> Request:
        """The description that answers are made from. `client` is the address of the requester."""
        requester = Requester(client)
        return Request(
            self.method, self.path, query, self.headers, base_url, version, self.request_id, requester
        )


_numbers = itertools.count(int.from_bytes(secrets.token_bytes(8)))


def new_id() -> str:
    """One that no other request has. It is no secret: asking the kernel for each costs more than all of a
    line in the log."""
    return f"{next(_numbers) % (1 << 64):016x}"


def check_target(head: Head) -> None:
    """RFC 9112 3.2: a path, an absolute URL, or `*` for OPTIONS."""
    if not head.path.startswith("/") and not (head.path == "*" and head.method == "OPTIONS"):
        raise BadRequest("the request target is neither a path nor an http or https URL")


def check_size(head: Head, max_url: int, max_head: int) -> None:
    length = len(head.path) + len(head.query)
    if length > max_url:
        raise URITooLong(f"the URL has {length} bytes; this server accepts {max_url}")
    if head.size > max_head:
        raise HeadersTooLarge(f"the request's headers have {head.size} bytes; this server accepts {max_head}")


def body_length(head: Head) -> int:
    """Bytes of the body, CHUNKED, or 0 where there is none."""
    length = head.headers.get("content-length")
    coding = head.headers.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise BadRequest("a request has either Content-Length or Transfer-Encoding, not both")
        if coding.lower() != "chunked" or head.version != "HTTP/1.1":
            raise BadRequest("the only Transfer-Encoding that this server reads is chunked, in HTTP/1.1")
        return CHUNKED
    if length is None:
        return 0
    if DIGITS.fullmatch(length) is None:
        raise BadRequest("Content-Length is not one number of at most 18 digits")
    return int(length)
