"""Files of the command line in batches, and one connection that sends them and receives response datasets.

Strategy: http.client writes the head and reads the answer. The multipart body (RFC 2046, PS3.18 8.7.1) is
sent in between: part heads from memory, files with sendfile. Its length is known in advance.

Rules
- Files are found lazily. A folder of millions needs the memory of one batch and of the names of one folder.
- Plain connections send `Expect: 100-continue`, so that an overloaded service refuses before it gets the
  body.
- A service may answer before it has the whole body (RFC 9112 9.3). The connection then closes, because
  the rest of the body is not sent. It also closes if a file has another size than before, because the
  length is then wrong.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from streamsrv.dicom.part10 import PREAMBLE, PREFIX, read_file_meta
from streamsrv.dicom.window import Pread, ReadLimits, ReadWindow
from streamsrv.errors import InstanceError
from streamsrv.wire.multipart import closing, multipart_type, part_head

CONTINUE_WAIT = 1.0  # seconds; RFC 9110 10.1.1: the service may not know Expect
SLICE = 4 << 20  # bytes between two steps of the progress bar
HEADERS = {"Content-Type": "application/dicom"}
INSTANCE_UID = 0x00020003


JsonDataset: TypeAlias = Mapping[str, Any]


class ReplyError(Exception):
    """The answer does not come from a DICOMweb service."""


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


class StoreConnection:
    """A connection to one service. It opens when needed, and again after a loss. It calls `progress` with
    the number of bytes sent."""

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
        """One store transaction. Raises OSError if the connection is lost, ReplyError for an invalid
        answer."""
        fresh = self._http.sock is None
        try:
            return self._exchange(batch)
        except ConnectionError:
            self.close()
            if fresh:
                raise
            return self.store(batch)  # the service had closed the idle connection
        except http.client.HTTPException as fault:
            self.close()
            raise ReplyError(f"not an HTTP answer: {fault!r}") from fault
        except OSError:
            self.close()
            raise

    def _exchange(self, batch: Batch) -> Reply:
        boundary = secrets.token_hex(24).encode()
        sock = self._begin(boundary, _body_length(boundary, batch))
        complete = self._may_continue(sock)
        if complete:
            try:
                self._send_body(sock, boundary, batch)
            except (BrokenPipeError, ConnectionResetError):
                complete = False  # the answer may say why
        response = self._http.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        reply = Reply(response.status, headers, response.read())
        if not complete:
            self.close()
        return reply

    def _begin(self, boundary: bytes, length: int) -> socket.socket:
        if self._http.sock is None:
            self._http.connect()
        sock: socket.socket = self._http.sock
        self._http.putrequest("POST", self._path)
        self._http.putheader("Accept", "application/dicom+json")
        self._http.putheader("Content-Type", multipart_type(boundary, "application/dicom"))
        self._http.putheader("Content-Length", str(length))
        if not isinstance(sock, ssl.SSLSocket):
            self._http.putheader("Expect", "100-continue")
        self._http.endheaders()
        return sock

    def _may_continue(self, sock: socket.socket) -> bool:
        """Returns False if a final answer comes before the body. http.client then reads the answer, and
        skips a
        100. A TLS connection does not send Expect, because it cannot be peeked."""
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

    def _send_body(self, sock: socket.socket, boundary: bytes, batch: Batch) -> None:
        for found in batch:
            sock.sendall(part_head(boundary, HEADERS))
            with found.path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size != found.size:
                    self.close()
                    raise ReplyError(f"{found.path} changed while it was being sent")
                self._send_file(sock, stream, found)
        sock.sendall(closing(boundary))

    def _send_file(self, sock: socket.socket, stream: Any, found: FoundFile) -> None:
        for offset in range(0, found.size, SLICE):
            wanted = min(SLICE, found.size - offset)
            sent = sock.sendfile(stream, offset, wanted)
            self._progress(sent)
            if sent != wanted:
                self.close()
                raise ReplyError(f"{found.path} became shorter while it was being sent")


def _body_length(boundary: bytes, batch: Batch) -> int:
    framing = len(part_head(boundary, HEADERS)) * len(batch) + len(closing(boundary))
    return framing + sum(found.size for found in batch)


class FoundFile(NamedTuple):
    """A file to send. `uid` is its SOP Instance UID, or "" if that is unknown."""

    path: Path
    size: int
    uid: str


Batch: TypeAlias = list[FoundFile]


class Limit(NamedTuple):
    """The limits of one request, `size` in bytes. A file above `size` is sent alone."""

    instances: int = 200
    size: int = 256 << 20  # a request that breaks off loses a few seconds of a usual line


def files_under(paths: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Yields each regular file, by name in each folder, and whether the command line names it."""
    for path in paths:
        if not path.is_dir():
            yield path, True
            continue
        for folder, folders, names in os.walk(path):
            folders.sort()
            yield from ((Path(folder, name), False) for name in sorted(names) if Path(folder, name).is_file())


def size_of(path: Path) -> int:
    """0 after an error, which opening the file raises again."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def examine(path: Path) -> tuple[FoundFile, bool]:
    """The file, and whether it is a Part 10 file (PS3.10 7.1). Raises OSError."""
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size

        def pread(offset: int, length: int) -> bytes:
            return os.pread(stream.fileno(), length, offset)

        is_dicom = pread(PREAMBLE, len(PREFIX)) == PREFIX
        return FoundFile(path, size, _instance_uid(pread, size) if is_dicom else ""), is_dicom


def _instance_uid(pread: Pread, size: int) -> str:
    """Media Storage SOP Instance UID (0002,0003), which identifies the file in a response."""
    try:
        meta = read_file_meta(ReadWindow(pread, size), size, ReadLimits())
    except InstanceError:
        return ""
    uids = [value for tag, _, value in meta.elements if tag == INSTANCE_UID]
    return uids[0].decode("ascii", "replace").rstrip("\0 ") if uids else ""


def batches(files: Iterator[FoundFile], limit: Limit) -> Iterator[Batch]:
    batch: Batch = []
    size = 0
    for found in files:
        if batch and (len(batch) >= limit.instances or size + found.size > limit.size):
            yield batch
            batch, size = [], 0
        batch.append(found)
        size += found.size
    if batch:
        yield batch
