"""Clients that cost less than the server that they measure.

An upload is a head and then sendfile, or chunks from a generator. A download counts its bytes with MSG_TRUNC,
which discards them inside the kernel. Many requests at a time come from wrk, or from `perf.flood`.
"""

from __future__ import annotations

import math
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from perf.servers import Server

TIMEOUT = 600.0
DRAIN = 4 << 20
WRK_SCRIPT = Path(__file__).with_name("requests.lua")
DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
FRAME = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
JSON = "application/dicom+json"


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    length: int  # of the payload
    payload: bytes  # empty unless the caller asked for it
    seconds: float  # from the first byte of the request to the last of the answer
    first_byte: float


class Client:
    """One connection, kept alive. Paths are those of `Server.target`. With a non-blocking socket, `receive`
    is called until the answer is complete."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._sink = bytearray(DRAIN)
        # TLS has to read the bytes that the kernel could discard.
        self._flags = 0 if server.tls else socket.MSG_TRUNC
        self.connect()

    def connect(self) -> None:
        host = self.server.host
        self.socket = socket.create_connection((host, self.server.port), TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.server.tls:
            context = ssl.create_default_context()
            self.socket = context.wrap_socket(self.socket, server_hostname=host)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    # --- whole exchanges ---

    def get(
        self, path: str, accept: str = "*/*", encoding: str = "identity", *, keep: bool = False
    ) -> Response:
        return self.exchange("GET", path, {"Accept": accept, "Accept-Encoding": encoding}, keep=keep)

    def fetch(self, path: str, accept: str = "*/*", *, keep: bool = False) -> Response:
        """As `get`. Raises RuntimeError unless the status is 200."""
        response = self.get(path, accept, keep=keep)
        if response.status != 200:
            raise RuntimeError(f"{self.server.name} answered {response.status} to {path[:80]}")
        return response

    def send_file(self, method: str, path: str, content_type: str, body: Path) -> Response:
        """The bytes of the file go to the socket inside the kernel."""
        with body.open("rb") as stream:
            headers = {"Content-Type": content_type, "Content-Length": str(body.stat().st_size)}
            return self.exchange(method, path, headers, lambda: self.socket.sendfile(stream), keep=True)

    def post(
        self, path: str, content_type: str, length: int, chunks: Iterable[bytes | memoryview]
    ) -> Response:
        def send() -> None:
            for chunk in chunks:
                self.socket.sendall(chunk)

        headers = {"Content-Type": content_type, "Content-Length": str(length)}
        return self.exchange("POST", path, headers, send, keep=True)

    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        send: Callable[[], object] | None = None,
        *,
        keep: bool,
    ) -> Response:
        started = time.perf_counter()
        self.ask(method, path, headers, keep=keep)
        if send is not None:
            send()
        self.receive()
        seconds, first_byte = time.perf_counter() - started, self.first_byte - started
        if self.ending:
            self.connect()
        return Response(self.status, self.headers, self.length, bytes(self.kept), seconds, first_byte)

    # --- the steps of one ---

    def ask(self, method: str, path: str, headers: Mapping[str, str], *, keep: bool = False) -> None:
        """Sends the head of a request; `keep`: the payload of the answer is kept."""
        lines = [f"{method} {self.server.target(path)} HTTP/1.1", f"Host: {self.server.host}"]
        lines[1] += f":{self.server.port}"
        lines += [f"{name}: {value}" for name, value in {**self.server.headers, **headers}.items()]
        self.kept, self.left, self.length, self.keep = bytearray(), -1, 0, keep
        self.status, self.ending, self.chunked, self.first_byte = 0, False, False, 0.0
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def receive(self) -> bool:
        """True if the answer is complete. Raises ConnectionError if the connection ends before."""
        try:
            if not self.status:
                self._receive_head()
            return self._receive_payload()
        except (BlockingIOError, ssl.SSLWantReadError):
            return False

    def _receive_head(self) -> None:
        while (end := self.kept.find(b"\r\n\r\n")) < 0:
            more = self.socket.recv(65536 if self.keep else 4096)
            if not more:
                raise ConnectionError("the connection was closed before the answer")
            self.first_byte = self.first_byte or time.perf_counter()
            self.kept += more
        status_line, *lines = bytes(self.kept[:end]).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        del self.kept[: end + 4]
        self.status = int(status_line.split(" ")[1])
        if self.status in (204, 304):
            self.left = 0
            return
        self.chunked = self.headers.get("transfer-encoding") == "chunked"
        self.ending = not self.chunked and "content-length" not in self.headers
        self.length = len(self.kept)
        self.left = (
            DRAIN if self.chunked or self.ending else int(self.headers["content-length"]) - self.length
        )
        if not self.keep and not self.chunked:
            self.kept.clear()

    def _receive_payload(self) -> bool:
        while self.left and not (self.chunked and self.kept.endswith(b"0\r\n\r\n")):
            most = min(self.left, DRAIN)
            if self.keep or self.chunked:
                more = self.socket.recv(min(most, 1 << 18))
                self.kept += more
                count = len(more)
            else:
                count = self.socket.recv_into(self._sink, most, self._flags)
            if not count:
                if self.ending:
                    self.socket.close()
                    return True
                raise ConnectionError(f"the connection was closed {self.left} bytes before the end")
            self.length += count
            if not (self.chunked or self.ending):
                self.left -= count
        if self.chunked:
            self._join_chunks()
        return True

    def _join_chunks(self) -> None:
        rest, payload = bytes(self.kept), bytearray()
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            payload += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        self.kept, self.length = payload, len(payload)


def together(count: int, server: Server, work: Iterable[Callable[[Client], object]]) -> float:
    """Seconds until `count` clients at once have done all work, a function of a Client each."""
    pieces = iter(work)
    lock = threading.Lock()

    def run() -> None:
        with Client(server) as client:
            while True:
                with lock:
                    piece = next(pieces, None)
                if piece is None:
                    return
                piece(client)

    started = time.perf_counter()
    with ThreadPoolExecutor(count) as threads:
        for future in [threads.submit(run) for _ in range(count)]:
            future.result()
    return time.perf_counter() - started


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: the least value that so large a share of them does not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * share - 1e-9) - 1)]


class Answered(NamedTuple):
    """The result of many requests. Percentiles of the time of one answer are in milliseconds."""

    rate: float  # answers a second
    p50: float
    p95: float
    p99: float
    megabytes: float  # a second

    @classmethod
    def of(cls, milliseconds: Sequence[float], seconds: float, length: int) -> Answered:
        if not milliseconds:
            raise RuntimeError(f"nothing was answered within {seconds:.1f} s")
        p50, p95, p99 = (percentile(milliseconds, share) for share in (0.5, 0.95, 0.99))
        return cls(len(milliseconds) / seconds, p50, p95, p99, length / 1e6 / seconds)

    @property
    def note(self) -> str:
        return f"p50 {self.p50:.3g}, p95 {self.p95:.3g}, p99 {self.p99:.3g} ms"


def by_wrk(server: Server, paths: Sequence[str], accept: str, clients: int, seconds: float) -> Answered:
    """Sends GETs of small answers over the paths in turn; wrk copies every byte, 8 kB at a time. One thread:
    on two cores a second one would take processor time from the server."""
    command = [
        "wrk",
        "-t",
        "1",
        "-c",
        str(clients),
        "-d",
        f"{max(1, round(seconds))}s",
        "-s",
        str(WRK_SCRIPT),
    ]
    # By default wrk counts an answer that takes two seconds as failed.
    command += ["--timeout", "120s"]
    for name, value in {**server.headers, "Accept": accept}.items():
        command += ["-H", f"{name}: {value}"]
    command += [server.url, "--", *map(server.target, paths)]
    return wrk_printed(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def wrk_printed(printed: str) -> Answered:
    """Reads the line of the script. Raises RuntimeError if it is missing or any request failed."""
    found = re.search(r"^answered (\d+) (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+) ([\d.]+)$", printed, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"wrk printed no figures:\n{printed}")
    requests, microseconds, length, failed = map(int, found.groups()[:4])
    if failed or not requests:
        raise RuntimeError(f"{failed} of {requests} requests failed or were refused")
    seconds = microseconds / 1e6
    p50, p95, p99 = (float(one) / 1e3 for one in found.groups()[4:])
    return Answered(requests / seconds, p50, p95, p99, length / 1e6 / seconds)
