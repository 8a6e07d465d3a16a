"""One connection that sends batches of files and receives response datasets.

Strategy: http.client writes the head and reads the answer. The multipart body (RFC 2046, PS3.18 8.7.1) is
sent in between: part heads from memory, files with sendfile. Its length is known in advance.

Rules
- Plain connections send `Expect: 100-continue`, so that an overloaded service refuses before it gets the
  body.
- A redirect is followed within the origin only (307 and 308, RFC 9110 15.4.8), so credentials and files go
  to no other service.
- A service may answer before it has the whole body (RFC 9112 9.3). The connection then closes, because
  the rest of the body is not sent. It also closes if a file has another size than before, because the
  length is then wrong.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import secrets
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar
from urllib.parse import urljoin, urlsplit

from streamsrv.client.credentials import PORTS, Credentials, same_origin
from streamsrv.client.files import FileChanged
from streamsrv.config import SettingsError
from streamsrv.wire.multipart import PAYLOAD_END, closing, multipart_type, part_head

CONTINUE_WAIT = 1.0  # seconds; RFC 9110 10.1.1: the service may not know Expect
HEADERS = {"Content-Type": "application/dicom"}
REDIRECTS = 5  # in a row

# Beside the Failure Reasons of a response: the file was stored, or the response does not name it.
STORED, UNNAMED = -1, -2

JsonDataset: TypeAlias = Mapping[str, Any]
Progress: TypeAlias = Callable[[int], None]
# Connects to a host and port, within so many seconds. Raises OSError.
OpenSocket: TypeAlias = Callable[[tuple[str, int], float], socket.socket]


class Part10Bytes(Protocol):
    """An instance to send: its SOP Instance UID or "", and its `length` in bytes. `send` writes the bytes and
    calls `progress` with the number of those sent. It raises FileChanged if they are not there any more."""

    @property
    def uid(self) -> str: ...

    @property
    def length(self) -> int: ...

    def send(self, sock: socket.socket, progress: Progress) -> None: ...


Sent = TypeVar("Sent", bound=Part10Bytes)


class ReplyError(Exception):
    """The answer does not come from a DICOMweb service."""


class ServiceRefused(Exception):
    """The service, or this client, refuses all requests: a certificate or credentials are not accepted."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def dataset(self) -> JsonDataset:
        try:
            dataset = json.loads(self.body)
        except ValueError:
            dataset = None
        if not isinstance(dataset, dict):
            raise ReplyError(f"status {self.status}, but the body is not a DICOM JSON dataset")
        return dataset

    def retry_after(self) -> float:
        """Seconds to wait (RFC 9110 10.2.3: a number or a date)."""
        value = self.headers.get("retry-after", "1").strip()
        if value.isdigit():
            return float(value)
        try:
            date = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return 1.0
        return max(0.0, date.timestamp() - time.time())

    def explanation(self) -> str:
        """One line for a refusal, with the detail of problem+json (RFC 9457)."""
        try:
            problem = json.loads(self.body)
            detail = str(problem.get("detail") or problem.get("title") or "")
        except (ValueError, AttributeError):
            detail = self.body[:200].decode("utf-8", "replace").strip()
        phrase = http.client.responses.get(self.status, "")
        return f"HTTP status {self.status} {phrase}: {detail}".rstrip(": ")


def _values(item: Any, tag: str) -> list[Any]:
    """The values of an element of DICOM JSON; none if it is malformed."""
    element = item.get(tag) if isinstance(item, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _text(item: Any, tag: str) -> str:
    return str(next(iter(_values(item, tag)), ""))


def stored_of(dataset: JsonDataset) -> Iterator[str]:
    """Yields the SOP Instance UIDs of Referenced SOP Sequence."""
    for item in _values(dataset, "00081199"):
        yield _text(item, "00081155")


def failures_of(dataset: JsonDataset) -> Iterator[tuple[str, int, str]]:
    """Yields SOP Instance UID (or ""), Failure Reason and Error Comments of Failed SOP Sequence. A
    sentence may continue in the next comment, because an LO is short."""
    for item in _values(dataset, "00081198"):
        comments = (_text(row, "00000902") for row in _values(item, "00741048"))
        reason = _text(item, "00081197")
        yield _text(item, "00081155"), int(reason) if reason.isdecimal() else 0, " ".join(comments)


def results_of(batch: Sequence[Sent], reply: Reply) -> Iterator[tuple[Sent, int, str]]:
    """Yields each file of the batch, its Failure Reason or STORED or UNNAMED, and a comment (PS3.18 10.5.3).
    Raises ReplyError.

    The SOP Instance UID identifies a file; of two files with one UID the first was stored. Failures
    without a UID come in the order of the parts, and belong to the files that the response does not
    name."""
    waiting: dict[str, list[Sent]] = {}
    for each in batch:
        waiting.setdefault(each.uid, []).append(each)

    def take(uid: str) -> Sent | None:
        named = waiting.get(uid) if uid else None
        return named.pop(0) if named else None

    dataset = reply.dataset
    for uid in stored_of(dataset):
        if (stored := take(uid)) is not None:
            yield stored, STORED, ""
    unnamed = []
    for uid, reason, comment in failures_of(dataset):
        if (refused := take(uid)) is not None:
            yield refused, reason, comment
        else:
            unnamed.append((reason, comment))
    rest = sorted((each for named in waiting.values() for each in named), key=batch.index)
    for position, each in enumerate(rest):
        if position < len(unnamed):
            yield each, *unnamed[position]
        else:
            yield each, UNNAMED, f"the response (status {reply.status}) does not name it"


class _Http(http.client.HTTPConnection):
    """A connection that `open_socket` opens; without a context there is no TLS."""

    def __init__(
        self, url: str, timeout: float, context: ssl.SSLContext | None, open_socket: OpenSocket
    ) -> None:
        parts = urlsplit(url)
        port = parts.port or PORTS[parts.scheme]
        super().__init__(parts.hostname or "", port, timeout=timeout)
        self.default_port = PORTS[parts.scheme]  # the header Host leaves it out
        self._open_socket = open_socket
        self._seconds = timeout
        self._tls = context if context or parts.scheme == "http" else ssl.create_default_context()

    def connect(self) -> None:
        self.sock = self._open_socket((self.host, self.port), self._seconds)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)


class ServiceConnection:
    """A connection to one service. It opens when needed, and again after a loss."""

    def __init__(
        self,
        url: str,
        timeout: float,
        credentials: Credentials | None = None,
        open_socket: OpenSocket = socket.create_connection,
    ) -> None:
        self._credentials = credentials or Credentials()
        self._http = _Http(url, timeout, self._credentials.context, open_socket)

    def close(self) -> None:
        self._http.close()

    def _request_headers(self) -> Sequence[tuple[str, str]]:
        try:
            return self._credentials.request_headers()
        except SettingsError as fault:  # the file has become unreadable
            raise ServiceRefused(fault.detail) from fault

    @contextlib.contextmanager
    def _closing_on_faults(self) -> Iterator[None]:
        """Closes the connection after a fault. Raises OSError if it is lost, ReplyError for an invalid
        answer, ServiceRefused if no other request can succeed."""
        try:
            yield
        except http.client.HTTPException as fault:
            self.close()
            if isinstance(fault, ConnectionError):
                raise
            raise ReplyError(f"not an HTTP answer: {fault!r}") from fault
        except ssl.SSLCertVerificationError as fault:
            self.close()
            host, reason = self._http.host, fault.verify_message
            raise ServiceRefused(f"the certificate of {host} is not accepted: {reason}") from fault
        except ssl.SSLError as fault:
            self.close()
            if "CERTIFICATE" not in (fault.reason or "") and "UNKNOWN_CA" not in (fault.reason or ""):
                raise
            raise ServiceRefused("the service wants another certificate of this client (--cert)") from fault
        except Exception:
            self.close()
            raise


class StoreConnection(ServiceConnection):
    """A connection that stores. It calls `progress` with the number of bytes sent."""

    def __init__(
        self,
        url: str,
        timeout: float,
        progress: Progress,
        credentials: Credentials | None = None,
        open_socket: OpenSocket = socket.create_connection,
    ) -> None:
        super().__init__(url, timeout, credentials, open_socket)
        self._url = url.rstrip("/") + "/studies"
        self._progress = progress

    def store(self, batch: Sequence[Part10Bytes]) -> Reply:
        """One store transaction. Raises OSError if the connection is lost, ReplyError for an invalid
        answer, ServiceRefused if no other transaction can succeed."""
        for _ in range(REDIRECTS):
            reply = self._store_here(batch)
            if reply.status not in (301, 302, 303, 307, 308):
                return reply
            self._follow(reply)
        raise ServiceRefused(f"the service redirects more than {REDIRECTS} times")

    def _follow(self, reply: Reply) -> None:
        there = urljoin(self._url, reply.headers.get("location", ""))
        if not same_origin(self._url, there) or reply.status not in (307, 308):
            place = _printable(there.partition("?")[0].removesuffix("/studies"))
            raise ServiceRefused(f"the service redirects to {place}: give this URL if it is right")
        self._url = there

    def _store_here(self, batch: Sequence[Part10Bytes]) -> Reply:
        headers = self._request_headers()
        reply = self._try(batch, headers)
        if reply.status == 401:
            self._credentials.refused()
            renewed = self._request_headers()
            if renewed != headers:  # another program has written a new token
                reply = self._try(batch, renewed)
        if reply.status == 401:
            raise ServiceRefused(reply.explanation())
        return reply

    def _try(self, batch: Sequence[Part10Bytes], headers: Sequence[tuple[str, str]]) -> Reply:
        fresh = self._http.sock is None
        try:
            with self._closing_on_faults():
                return self._exchange(batch, headers)
        except ConnectionError:
            if fresh:
                raise
        return self._try(batch, headers)  # the service had closed the idle connection

    def _exchange(self, batch: Sequence[Part10Bytes], headers: Sequence[tuple[str, str]]) -> Reply:
        boundary = secrets.token_hex(24).encode()
        sock = self._begin(boundary, _body_length(boundary, batch), headers)
        complete = self._may_continue(sock)
        if complete:
            try:
                self._send_body(sock, boundary, batch)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                complete = False  # the answer may say why
        response = self._http.getresponse()
        received = {name.lower(): value for name, value in response.getheaders()}
        reply = Reply(response.status, received, response.read())
        if not complete:
            self.close()
        return reply

    def _begin(self, boundary: bytes, length: int, headers: Sequence[tuple[str, str]]) -> socket.socket:
        if self._http.sock is None:
            self._http.connect()
        sock: socket.socket = self._http.sock
        parts = urlsplit(self._url)
        self._http.putrequest("POST", parts.path + (f"?{parts.query}" if parts.query else ""))
        self._http.putheader("Accept", "application/dicom+json")
        self._http.putheader("Content-Type", multipart_type(boundary, "application/dicom"))
        self._http.putheader("Content-Length", str(length))
        for name, value in headers:
            self._http.putheader(name, value)
        if not isinstance(sock, ssl.SSLSocket):
            self._http.putheader("Expect", "100-continue")
        self._http.endheaders()
        return sock

    def _may_continue(self, sock: socket.socket) -> bool:
        """Returns False if a final answer comes before the body. http.client then reads the answer, and
        skips a 100.
        A TLS connection does not send Expect, because it cannot be peeked."""
        if isinstance(sock, ssl.SSLSocket):
            return True
        deadline = time.monotonic() + CONTINUE_WAIT
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([sock], [], [], left)[0]:
                continue
            head = sock.recv(12, socket.MSG_PEEK)
            if len(head) >= 12 or not head:
                return head.endswith(b" 100")
            time.sleep(0.001)  # the status line is incomplete
        return True

    def _send_body(self, sock: socket.socket, boundary: bytes, batch: Sequence[Part10Bytes]) -> None:
        try:
            for each in batch:
                sock.sendall(part_head(boundary, HEADERS))
                each.send(sock, self._progress)
                sock.sendall(PAYLOAD_END)
            sock.sendall(closing(boundary))
        except FileChanged as fault:
            raise ReplyError(str(fault)) from fault


def _body_length(boundary: bytes, batch: Sequence[Part10Bytes]) -> int:
    framing = len(part_head(boundary, HEADERS) + PAYLOAD_END) * len(batch) + len(closing(boundary))
    return framing + sum(each.length for each in batch)


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())
