"""One connection that stores batches of Part 10 files: requests go out, response datasets come back.

Strategy: http.client writes the head and reads the answer; the multipart body (RFC 2046, PS3.18 8.7.1) is
sent between the two, its part heads from memory and its files with sendfile, under a Content-Length known
beforehand.

Rules of this file
- `Expect: 100-continue` on plain connections: an overloaded service refuses before the bytes were sent, not
  after.
- A service may answer while the body is still on its way (RFC 9112 9.3). Its answer then counts, and the
  connection is over, because the rest of the body was never sent.
- A file that changed its size since it was examined spoils the length that was announced: the connection is
  over.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import secrets
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from streamsrv.client.files import Batch, FoundFile

CONTINUE_WAIT = 1.0  # seconds; RFC 9110 10.1.1: never wait for ever, the service may not know Expect
SLICE = 4 << 20  # a progress bar wants to move while a large file is sent
HEAD = "Content-Type: application/dicom\r\n\r\n"


JsonDataset: TypeAlias = Mapping[str, Any]


class ReplyError(Exception):
    """What came back is not an answer of a DICOMweb service."""


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
        """Seconds; RFC 9110 10.2.3 allows a number or a date."""
        value = self.headers.get("retry-after", "1").strip()
        if value.isdigit():
            return float(value)
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return 1.0
        return max(0.0, moment.timestamp() - time.time())

    def words(self) -> str:
        """One line that explains a refusal: the detail of problem+json (RFC 9457) if there is one."""
        try:
            problem = json.loads(self.body)
            detail = str(problem.get("detail") or problem.get("title") or "")
        except (ValueError, AttributeError):
            detail = self.body[:200].decode("utf-8", "replace").strip()
        phrase = http.client.responses.get(self.status, "")
        return f"HTTP status {self.status} {phrase}: {detail}".rstrip(": ")


def _values(item: Any, tag: str) -> list[Any]:
    """Of an element of DICOM JSON; none where the service sends something else."""
    element = item.get(tag) if isinstance(item, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _text(item: Any, tag: str) -> str:
    return str(next(iter(_values(item, tag)), ""))


def stored_of(dataset: JsonDataset) -> Iterator[str]:
    """SOP Instance UIDs of Referenced SOP Sequence."""
    for item in _values(dataset, "00081199"):
        yield _text(item, "00081155")


def failures_of(dataset: JsonDataset) -> Iterator[tuple[str, int, str]]:
    """SOP Instance UID (or ""), Failure Reason and Error Comments of Failed SOP Sequence: an LO is short, a
    sentence goes on in the next one."""
    for item in _values(dataset, "00081198"):
        comments = (_text(row, "00000902") for row in _values(item, "00741048"))
        reason = _text(item, "00081197")
        yield _text(item, "00081155"), int(reason) if reason.isdecimal() else 0, " ".join(comments)


class Connection:
    """To one service; opened when needed, again when lost. `progress` is told the bytes as they leave."""

    def __init__(self, url: str, timeout: float, progress: Callable[[int], None]) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        self._path = parts.path.rstrip("/") + "/studies"
        self._progress = progress
        self._http = (
            http.client.HTTPSConnection(host, parts.port, timeout=timeout)
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, parts.port, timeout=timeout)
        )

    def close(self) -> None:
        self._http.close()

    def store(self, batch: Batch) -> Reply:
        """One store transaction. Raises OSError if the service is lost, ReplyError if it is none."""
        fresh = self._http.sock is None
        try:
            return self._exchange(batch)
        except ConnectionError:
            self.close()
            if fresh:
                raise
            return self.store(batch)  # an idle connection that the service had closed meanwhile
        except http.client.HTTPException as fault:
            self.close()
            raise ReplyError(f"not an HTTP answer: {fault!r}") from fault
        except OSError:
            self.close()
            raise

    def _exchange(self, batch: Batch) -> Reply:
        boundary = secrets.token_hex(24)
        sock = self._begin(boundary, _body_length(boundary, batch))
        complete = self._may_continue(sock)
        if complete:
            try:
                self._send_body(sock, boundary, batch)
            except (BrokenPipeError, ConnectionResetError):
                complete = False  # the service did not want the rest: it has said why, or is gone
        response = self._http.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        reply = Reply(response.status, headers, response.read())
        if not complete:
            self.close()
        return reply

    def _begin(self, boundary: str, length: int) -> socket.socket:
        if self._http.sock is None:
            self._http.connect()
        sock: socket.socket = self._http.sock
        self._http.putrequest("POST", self._path)
        self._http.putheader("Accept", "application/dicom+json")
        media_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
        self._http.putheader("Content-Type", media_type)
        self._http.putheader("Content-Length", str(length))
        if not isinstance(sock, ssl.SSLSocket):
            self._http.putheader("Expect", "100-continue")
        self._http.endheaders()
        return sock

    def _may_continue(self, sock: socket.socket) -> bool:
        """False if a final answer has come before the body was sent. The answer is left for http.client to
        read, which skips a 100; a TLS connection cannot be looked into and is not asked."""
        if isinstance(sock, ssl.SSLSocket):
            return True
        deadline = time.monotonic() + CONTINUE_WAIT
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([sock], [], [], left)[0]:
                continue
            head = sock.recv(12, socket.MSG_PEEK)
            if len(head) >= 12 or not head:
                return head.endswith(b" 100")
            time.sleep(0.001)  # a status line in two packets
        return True

    def _send_body(self, sock: socket.socket, boundary: str, batch: Batch) -> None:
        for found in batch:
            sock.sendall(_part_head(boundary))
            with found.path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size != found.size:
                    self.close()
                    raise ReplyError(f"{found.path} changed while it was being sent")
                self._send_file(sock, stream, found)
        sock.sendall(_closing(boundary))

    def _send_file(self, sock: socket.socket, stream: Any, found: FoundFile) -> None:
        for offset in range(0, found.size, SLICE):
            wanted = min(SLICE, found.size - offset)
            sent = sock.sendfile(stream, offset, wanted)
            self._progress(sent)
            if sent != wanted:
                self.close()
                raise ReplyError(f"{found.path} became shorter while it was being sent")


def _part_head(boundary: str) -> bytes:
    return f"\r\n--{boundary}\r\n{HEAD}".encode("ascii")


def _closing(boundary: str) -> bytes:
    return f"\r\n--{boundary}--\r\n".encode("ascii")


def _body_length(boundary: str, batch: Batch) -> int:
    framing = len(_part_head(boundary)) * len(batch) + len(_closing(boundary))
    return framing + sum(found.size for found in batch)
