"""The head of one request: parsed once, checked before a byte of the body is read.

Rules of this file
- A head that Tornado refuses stays refused. Headers that decide where a body ends are checked here, strictly,
  because our own read loop bypasses Tornado's. RFC 9112 6.3: one Content-Length of digits only, or chunked,
  never both. Anything else may smuggle a second request.
- Queries are never logged: they hold names.
- The size of a head is checked on its bytes, before the parser sees them: parsing 3,000 lines takes a quarter
  of a second, in which no other request is served.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from tornado.httputil import HTTPHeaders, HTTPInputError

from streamsrv.errors import BadRequest, HeadersTooLarge, RequestError, URITooLong
from streamsrv.web.client_certificate import ClientCertificate
from streamsrv.wire.accept import MAX_RANGES, AcceptableRange, parse_accept
from streamsrv.wire.answers import Request, Requester

# A request id from outside goes into logs and headers, so it must be tame.
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
DIGITS = re.compile(r"[0-9]{1,18}")
ABSOLUTE = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)
CHUNKED = -1  # the body's length when only its end tells
UNREADABLE = "-", "-", "HTTP/1.1"  # method, target and version that cannot be read
# Header lines of one request; browsers behind proxies send about 30.
MAX_LINES = 100
# Headers that are lists, read element by element.
LISTS = ("accept", "accept-charset", "accept-encoding", "range")
# Bytes of the request line beside its target: method, version, blanks.
LINE_SLACK = 256
# Method, the first kilobyte of the target, version.
REQUEST_LINE = re.compile(rb"\s*([!-~]{1,32}) ([!-~]{1,1024})[!-~]* (HTTP/1\.[01])\r?\n")


class HeadRefused(HTTPInputError):
    """Stops the parser before it begins. `reason` is the refusal, `line` are method, target and version as
    far as they can be read."""

    def __init__(self, reason: RequestError, line: tuple[str, str, str]) -> None:
        super().__init__(reason.detail)
        self.reason = reason
        self.line = line


class Head:
    """`headers` by lower-case name. `peer` is an address or `unix`. Requests of one `source` have the same
    peer and certificate. Never raises: the functions below check it, once it has a request id."""

    __slots__ = (
        "certificate",
        "headers",
        "host",
        "keep_alive",
        "method",
        "path",
        "peer",
        "query",
        "request_id",
        "source",
        "tornado_closes",
        "version",
    )

    def __init__(
        self,
        method: str,
        target: str,
        version: str,
        headers: Mapping[str, str],
        peer: str,
        certificate: ClientCertificate | None = None,
    ) -> None:
        self.method = method
        self.version = version
        self.headers = lowered = dict[str, str]()
        for name, value in headers.get_all() if isinstance(headers, HTTPHeaders) else headers.items():
            key = name.lower()
            lowered[key] = f"{lowered[key]},{value}" if key in lowered else value  # RFC 9110 5.3
        self.peer = peer
        self.certificate = certificate
        self.source = source_of(peer, certificate)
        self.host = lowered.get("host", "")
        absolute = ABSOLUTE.fullmatch(target) if not target.startswith("/") else None
        if absolute:  # RFC 9112 3.2.2: its authority counts instead of Host
            self.host = absolute[1]
            target = absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
        self.path, _, self.query = target.partition("?")
        self.tornado_closes, closes = (
            self._closes() if "connection" in lowered else (version != "HTTP/1.1",) * 2
        )
        self.keep_alive = not closes
        given = self.headers.get("x-request-id", "")
        self.request_id = given if given and SANE_ID.fullmatch(given) else new_id()

    def with_target(self, target: str) -> Head:
        """The same for another target, a path with or without a query, and with a new request id."""
        head = Head.__new__(Head)
        head.method, head.version, head.headers = self.method, self.version, self.headers
        head.peer, head.host = self.peer, self.host
        head.certificate, head.source = self.certificate, self.source
        head.tornado_closes, head.keep_alive = self.tornado_closes, self.keep_alive
        head.path, _, head.query = target.partition("?")
        head.request_id = new_id()
        return head

    def _closes(self) -> tuple[bool, bool]:
        """Whether Tornado ends the connection after the answer, and whether anyone does."""
        connection = self.headers.get("connection", "").lower()
        if not connection and self.version == "HTTP/1.1":
            return False, False
        # Tornado reads Connection as one word. It is a list (RFC 9110 7.6.1).
        if self.version == "HTTP/1.1":
            tornado = connection == "close"
        else:
            tornado = connection != "keep-alive" or not (
                self.method in ("GET", "HEAD") or "content-length" in self.headers
            )
        return tornado, tornado or "close" in [option.strip() for option in connection.split(",")]

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


def source_of(peer: str, certificate: ClientCertificate | None) -> str:
    return peer if certificate is None else f"{peer} {certificate.fingerprint}"


def new_id() -> str:
    """A random request id of 64 bits. It is not a secret, so that no system call is needed."""
    return f"{random.getrandbits(64):016x}"


def check_target(head: Head) -> None:
    """RFC 9112 3.2: a path, an absolute URL, or `*` for OPTIONS."""
    if not head.path.startswith("/") and not (head.path == "*" and head.method == "OPTIONS"):
        raise BadRequest("the request target is neither a path nor an http or https URL")


def most_bytes(max_url: int, max_head: int) -> int:
    """Of a whole head that `check_block` accepts."""
    return max_url + max_head + LINE_SLACK


def check_block(block: bytes, max_url: int, max_head: int) -> None:
    """Check the bytes of a head, whole or over `most_bytes`, in units of bytes. Raises HeadRefused (RFC 9110
    15.5.15, RFC 6585 5)."""
    lines = block.count(b"\n") - 2  # without the request line and the blank line
    if lines <= MAX_LINES and len(block) <= min(max_url, max_head):
        return
    line, _, rest = block.lstrip(b"\r\n").partition(b"\n")
    words = line.split(b" ", 2)
    target = len(words[1]) if len(words) > 1 else 0
    reason: RequestError
    if target > max_url:
        reason = URITooLong(f"the URL has {target} bytes or more; this server accepts {max_url}")
    elif len(line) > max_url + LINE_SLACK:
        reason = BadRequest("the method or the version in the request line is too long")
    elif len(rest) > max_head:
        reason = HeadersTooLarge(
            f"the request's headers have {len(rest)} bytes or more; this server accepts {max_head}"
        )
    elif lines > MAX_LINES:
        reason = HeadersTooLarge(f"the request has {lines} header lines; this server accepts {MAX_LINES}")
    else:
        return
    raise HeadRefused(reason, _request_line(block))


def _request_line(block: bytes) -> tuple[str, str, str]:
    found = REQUEST_LINE.match(block)
    if found is None:
        return UNREADABLE
    method, target, version = (word.decode("ascii") for word in found.groups())
    return method, target, version


def check_lists(head: Head) -> None:
    """Lists are read element by element, and again for each question, so their length is limited first.
    Raises HeadersTooLarge."""
    for name in LISTS:
        value = head.headers.get(name)
        if value is not None and value.count(",") >= MAX_RANGES:
            raise HeadersTooLarge(f"the header {name} lists more than {MAX_RANGES} elements")


def acceptable(head: Head) -> list[AcceptableRange]:
    """The media ranges of the Accept header, for a problem. None if there are too many."""
    accept = head.headers.get("accept", "")
    return parse_accept(accept) if accept.count(",") < MAX_RANGES else []


def check_url(head: Head, max_url: int) -> None:
    length = len(head.path) + len(head.query)
    if length > max_url:
        raise URITooLong(f"the URL has {length} bytes; this server accepts {max_url}")


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
