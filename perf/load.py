"""Clients that cost less than what they measure.

An upload is a head and then sendfile, or chunks as they are made. A download counts its bytes with MSG_TRUNC,
which throws them away inside the kernel. Small answers are asked for by wrk if it is installed, else by
threads, which are slower than the server then and say so in their name.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

Address: TypeAlias = tuple[str, int]

TIMEOUT = 600.0
DRAIN = 4 << 20
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
FRAME = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    length: int  # of the payload, which is thrown away unless it was asked for
    payload: bytes
    seconds: float  # from the first byte of the request to the last of the answer
    first_byte: float


class Client:
    """One connection, kept alive."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.socket = self._connect()
        self._sink = bytearray(DRAIN)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self.address, TIMEOUT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def get(
        self, path: str, accept: str = "*/*", encoding: str = "identity", *, keep: bool = False
    ) -> Response:
        return self._exchange("GET", path, {"Accept": accept, "Accept-Encoding": encoding}, keep=keep)

    def delete(self, path: str) -> Response:
        return self._exchange("DELETE", path, {}, keep=True)

    def post_file(self, path: str, content_type: str, body: Path) -> Response:
        """The file's bytes go to the socket inside the kernel."""
        return self._send_file("POST", path, content_type, body)

    def _send_file(self, method: str, path: str, content_type: str, body: Path) -> Response:
        with body.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size

            def send() -> None:
                self.socket.sendfile(stream)

            headers = {"Content-Type": content_type, "Content-Length": str(size)}
            return self._exchange(method, path, headers, send=send, keep=True)

    def put_file(self, path: str, body: Path) -> Response:
        return self._send_file("PUT", path, "application/octet-stream", body)

    def post_chunks(
        self, path: str, content_type: str, length: int, chunks: Iterable[bytes | memoryview]
    ) -> Response:
        def send() -> None:
            for chunk in chunks:
                self.socket.sendall(chunk)

        headers = {"Content-Type": content_type, "Content-Length": str(length)}
        return self._exchange("POST", path, headers, send=send, keep=True)

    def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        send: Callable[[], None] | None = None,
        keep: bool,
    ) -> Response:
        host, port = self.address
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        started = time.perf_counter()
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        if send is not None:
            send()
        status, answer_headers, rest = self._read_head()
        first_byte = time.perf_counter() - started
        payload, length = self._read_payload(status, answer_headers, rest, keep)
        return Response(status, answer_headers, length, payload, time.perf_counter() - started, first_byte)

    def _read_head(self) -> tuple[int, dict[str, str], bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError("the connection was closed before the answer")
            received += more
        head, _, rest = received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(status_line.split(" ")[1]), headers, rest

    def _read_payload(
        self, status: int, headers: Mapping[str, str], rest: bytes, keep: bool
    ) -> tuple[bytes, int]:
        if status in (204, 304):
            return b"", 0
        if headers.get("transfer-encoding") == "chunked":
            payload = self._read_chunked(rest)
            return payload, len(payload)
        if "content-length" not in headers:
            return self._until_closed(rest)
        length = int(headers["content-length"])
        if keep:
            while len(rest) < length:
                rest += self.socket.recv(length - len(rest))
            return rest, length
        self._throw_away(length - len(rest))
        return b"", length

    def _throw_away(self, left: int) -> None:
        while left:
            count = self.socket.recv_into(self._sink, min(left, DRAIN), socket.MSG_TRUNC)
            if not count:
                raise ConnectionError(f"the connection was closed {left} bytes before the end of the answer")
            left -= count

    def _until_closed(self, rest: bytes) -> tuple[bytes, int]:
        """A length that only the end tells; the next request has a new connection."""
        length = len(rest)
        while count := self.socket.recv_into(self._sink, DRAIN, socket.MSG_TRUNC):
            length += count
        self.socket.close()
        self.socket = self._connect()
        return b"", length

    def _read_chunked(self, rest: bytes) -> bytes:
        while not rest.endswith(b"0\r\n\r\n"):
            rest += self.socket.recv(65536)
        payload = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            payload, rest = payload + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return payload


def together(count: int, address: Address, work: Iterable[Callable[[Client], object]]) -> float:
    """Seconds until every piece of work, a function of a Client, is done by `count` clients at once."""
    pieces = iter(work)
    lock = threading.Lock()

    def run() -> None:
        with Client(address) as client:
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
    """What many requests came to; percentiles of the time of one answer are milliseconds."""

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


def answers_a_second(
    address: Address, paths: Sequence[str], accept: str, clients: int, seconds: float
) -> float:
    """GETs over the paths in turn."""
    return answered(address, paths, accept, clients, seconds).rate


def answered(address: Address, paths: Sequence[str], accept: str, clients: int, seconds: float) -> Answered:
    """GETs of small answers over the paths in turn; for large ones there is `perf.flood`."""
    if shutil.which("wrk"):
        return _by_wrk(address, paths, accept, clients, seconds)
    return _by_threads(address, paths, accept, clients, seconds)


def _by_threads(
    address: Address, paths: Sequence[str], accept: str, clients: int, seconds: float
) -> Answered:
    deadline = time.perf_counter() + seconds
    answers: list[list[Response]] = [[] for _ in range(clients)]

    def run(number: int) -> None:
        with Client(address) as client:
            while time.perf_counter() < deadline:
                turn = len(answers[number]) * clients + number
                answers[number].append(client.get(paths[turn % len(paths)], accept))

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        for future in [threads.submit(run, number) for number in range(clients)]:
            future.result()
    took = time.perf_counter() - started
    every = [answer for some in answers for answer in some]
    return Answered.of([one.seconds * 1e3 for one in every], took, sum(one.length for one in every))


# Requests are made beforehand: making one costs wrk more than sending it. One thread: on two cores a second
# one would only take the server's.
_WRK = """
local paths = {%s}
local requests, turn = {}, 0
wrk.headers["Accept"] = [[%s]]
init = function()
  for place, path in ipairs(paths) do requests[place] = wrk.format("GET", path) end
end
request = function()
  turn = turn %% #requests + 1
  return requests[turn]
end
done = function(summary, latency)
  local errors = summary.errors
  local failed = errors.status + errors.connect + errors.timeout
  io.write(string.format("answered %%d %%d %%d %%d %%f %%f %%f\\n", summary.requests, summary.duration,
    summary.bytes, failed, latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
"""


def _by_wrk(address: Address, paths: Sequence[str], accept: str, clients: int, seconds: float) -> Answered:
    script = _WRK % (",".join(f'"{path}"' for path in paths), accept)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t", "1", "-c", str(clients), "-d", f"{max(1, round(seconds))}s", "-s", file.name]
        # Slow is not failed: wrk itself gives an answer two seconds.
        command += ["--timeout", "120s", f"http://{address[0]}:{address[1]}"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return wrk_said(printed)


def wrk_said(printed: str) -> Answered:
    """Of the line that `_WRK` prints. Raises RuntimeError if it is missing or any request failed."""
    found = re.search(r"^answered (\d+) (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+) ([\d.]+)$", printed, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"wrk printed no figures:\n{printed}")
    requests, microseconds, length, failed = map(int, found.groups()[:4])
    if failed or not requests:
        raise RuntimeError(f"{failed} of {requests} requests failed or were refused")
    seconds = microseconds / 1e6
    p50, p95, p99 = (float(one) / 1e3 for one in found.groups()[4:])
    return Answered(requests / seconds, p50, p95, p99, length / 1e6 / seconds)


@contextmanager
def pinging(address: Address, path: str, accept: str = "*/*", pause: float = 0.005) -> Iterator[list[float]]:
    """Asks for the path again and again on one connection; the list fills with the seconds of each answer."""
    latencies: list[float] = []
    done = threading.Event()

    def run() -> None:
        with Client(address) as client:
            while not done.wait(pause):
                latencies.append(client.get(path, accept).seconds)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield latencies
    finally:
        done.set()
        thread.join()
