"""Clients that cost less than the server that they measure.

An upload is a head and then sendfile, or chunks from a generator. A download counts its bytes with MSG_TRUNC,
which discards them inside the kernel. A `Load` is many GETs over several connections. wrk sends it if its
answers are small. All others are sent by this module in a process of its own, with one thread and epoll: it
shares no interpreter with the process that measures.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import selectors
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from perf.servers import ROOT, Service

TIMEOUT = 600.0
DRAIN = 4 << 20
PRIORITY = -10
WRK_SCRIPT = Path(__file__).with_name("requests.lua")
DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
FRAME = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
JSON = "application/dicom+json"


# --- one connection ---


class Response(NamedTuple):
    headers: Mapping[str, str]
    length: int  # of the payload
    payload: bytes  # empty unless the caller asked for it
    seconds: float  # from the first byte of the request to the last of the answer
    first_byte: float


class Client:
    """One connection, kept alive. Paths are those of `Service.target`. With a non-blocking socket, `receive`
    is called until the answer is complete."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._sink = bytearray(DRAIN)
        # TLS has to read the bytes that the kernel could discard.
        self._flags = 0 if service.tls else socket.MSG_TRUNC
        self.connect()

    def connect(self) -> None:
        host = self.service.host
        self.socket = socket.create_connection((host, self.service.port), TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.service.tls:
            context = ssl.create_default_context()
            self.socket = context.wrap_socket(self.socket, server_hostname=host)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    # --- whole exchanges, which raise as `receive` ---

    def get(
        self, path: str, accept: str = "*/*", encoding: str = "identity", *, keep: bool = False
    ) -> Response:
        return self.exchange("GET", path, {"Accept": accept, "Accept-Encoding": encoding}, keep=keep)

    def send_file(self, path: str, content_type: str, body: Path) -> Response:
        """A POST. The bytes of the file go to the socket inside the kernel."""
        with body.open("rb") as stream:
            headers = {"Content-Type": content_type, "Content-Length": str(body.stat().st_size)}
            return self.exchange("POST", path, headers, lambda: self.socket.sendfile(stream), keep=True)

    def post(self, path: str, content_type: str, length: int, chunks: Iterable[bytes]) -> Response:
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
        return Response(self.headers, self.length, bytes(self.kept), seconds, first_byte)

    # --- the steps of one ---

    def ask(self, method: str, path: str, headers: Mapping[str, str], *, keep: bool = False) -> None:
        """Sends the head of a request; `keep`: the payload of the answer is kept."""
        service, self.asked, self.keep = self.service, path, keep
        lines = [f"{method} {service.target(path)} HTTP/1.1", f"Host: {service.host}:{service.port}"]
        lines += [f"{name}: {value}" for name, value in {**service.headers, **headers}.items()]
        self.rest, self.kept, self.length, self.left = bytearray(), bytearray(), 0, -1
        self.ending, self.chunked, self.first_byte = False, False, 0.0
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def receive(self) -> bool:
        """True if the answer is complete. Raises RuntimeError if it is a refusal, and ConnectionError if the
        connection ends before the answer does."""
        try:
            if self.left < 0:
                self._receive_head()
            while self.left:
                self._receive_chunk() if self.chunked else self._receive_payload()
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        return True

    def _receive_head(self) -> None:
        while (end := self.rest.find(b"\r\n\r\n")) < 0:
            more = self.socket.recv(65536 if self.keep else 4096)
            if not more:
                raise ConnectionError("the connection was closed before the answer")
            self.first_byte = self.first_byte or time.perf_counter()
            self.rest += more
        status_line, *lines = bytes(self.rest[:end]).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        del self.rest[: end + 4]
        status = int(status_line.split(" ")[1])
        if status not in (200, 204):
            raise RuntimeError(f"{self.service.name} answered {status} to {self.asked[:80]}")
        self.chunked = self.headers.get("transfer-encoding") == "chunked"
        self.ending = status == 200 and not self.chunked and "content-length" not in self.headers
        if self.chunked or self.ending:
            self.left = DRAIN
        else:
            self.left = int(self.headers.get("content-length", 0)) - len(self.rest)
        if not self.chunked:
            self._take(len(self.rest))

    def _receive_payload(self) -> None:
        most = min(self.left, DRAIN)
        if self.keep:
            self.rest += self.socket.recv(min(most, 1 << 18))
            count = len(self.rest)
        else:
            count = self.socket.recv_into(self._sink, most, self._flags)
        if not count and not self.ending:
            raise ConnectionError(f"the connection was closed {self.left} bytes before the end")
        if not count:
            self.socket.close()
            self.left = 0
        elif not self.ending:
            self.left -= count
        self._take(count)

    def _receive_chunk(self) -> None:
        """One chunk of the payload; the last one is empty."""
        end = self.rest.find(b"\r\n")
        size = int(self.rest[:end], 16) if end >= 0 else DRAIN
        if len(self.rest) < end + size + 4:
            more = self.socket.recv(1 << 18)
            if not more:
                raise ConnectionError("the connection was closed before the last chunk")
            self.rest += more
            return
        del self.rest[: end + 2]
        self._take(size)
        del self.rest[:2]
        self.left = size

    def _take(self, count: int) -> None:
        """Counts bytes of payload; they are in `rest` if they are kept or were received with a head."""
        self.length += count
        self.kept += self.rest[:count] if self.keep else b""
        del self.rest[:count]


def together(count: int, service: Service, work: Iterable[Callable[[Client], object]]) -> float:
    """Seconds until `count` clients at once have done all work, a function of a Client each."""
    pieces = iter(work)
    lock = threading.Lock()

    def run() -> None:
        with Client(service) as client:
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


# --- many answers ---


class Timed(NamedTuple):
    """One answer: when it was asked for, by time.perf_counter, which is one clock for all processes."""

    began: float
    seconds: float


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


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: the least value that so large a share of them does not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * share - 1e-9) - 1)]


@dataclass(frozen=True, slots=True)
class Load:
    """GETs over the paths in turn. Each connection asks again `gap` seconds after an answer. wrk bounds the
    rate of `large` answers. `first`: it runs before the other processes of this machine, if that is allowed.
    `seconds` is 0 until it is known."""

    service: Service
    paths: Sequence[str]
    accept: str = "*/*"
    encoding: str = "identity"
    large: bool = False
    clients: int = 1
    seconds: float = 0.0
    gap: float = 0.0
    first: bool = False

    def answered(self, clients: int, seconds: float) -> Answered:
        """By so many clients for so long."""
        load = replace(self, clients=clients, seconds=seconds)
        if not self.large and shutil.which("wrk"):
            return by_wrk(load)
        with started(load) as seen:
            pass
        return seen.answered


def by_wrk(load: Load) -> Answered:
    """wrk copies every byte, 8 kB at a time. One thread: on two cores a second one would take processor time
    from the server. By default it counts an answer that takes two seconds as failed."""
    seconds = max(1, round(load.seconds))
    flags = f"-t 1 -c {load.clients} -d {seconds}s --timeout 120s -s {WRK_SCRIPT}"
    command = ["wrk", *flags.split(" ")]
    for name, value in {**load.service.headers, "Accept": load.accept}.items():
        command += ["-H", f"{name}: {value}"]
    command += [load.service.url, "--", *map(load.service.target, load.paths)]
    return wrk_printed(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def wrk_printed(printed: str) -> Answered:
    """Reads the last line, which requests.lua prints. Raises RuntimeError if it is missing or any request
    failed."""
    line = printed.rstrip().rpartition("\n")[2]
    if not line.startswith("{"):
        raise RuntimeError(f"wrk printed no figures:\n{printed}")
    found = json.loads(line)
    if found["failed"] or not found["requests"]:
        raise RuntimeError(f"{found['failed']} of {found['requests']} requests failed or were refused")
    seconds = found["microseconds"] / 1e6
    p50, p95, p99 = (each / 1e3 for each in found["times"])
    return Answered(found["requests"] / seconds, p50, p95, p99, found["bytes"] / 1e6 / seconds)


class Seen:
    """The result of a load, once it has ended."""

    answers: Sequence[Timed] = ()
    answered: Answered


@contextmanager
def started(load: Load) -> Iterator[Seen]:
    """Asks until the block ends, and for the seconds of the load at least."""
    command = [sys.executable, "-c", "from perf import clients; clients.main()"]
    seen = Seen()
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        pickle.dump(load, process.stdin)
        process.stdin.flush()
        try:
            yield seen
            printed, _ = process.communicate()
        finally:
            process.kill()
    if process.returncode:
        raise RuntimeError("the process of a load failed")
    seconds, total, seen.answers = pickle.loads(printed)
    seen.answered = Answered.of([one.seconds * 1e3 for one in seen.answers], seconds, total)


# --- the process of a load ---


class Asker(Client):
    """One connection that does not block."""

    def __init__(self, load: Load, first: int) -> None:
        super().__init__(load.service)
        self.load, self.turn, self.began = load, first, 0.0
        self.accepted = {"Accept": load.accept, "Accept-Encoding": load.encoding}

    def connect(self) -> None:
        super().connect()
        self.socket.setblocking(False)

    def ask_next(self) -> None:
        self.began = time.perf_counter()
        self.ask("GET", self.load.paths[self.turn % len(self.load.paths)], self.accepted)
        self.turn += self.load.clients


def run(load: Load) -> tuple[float, int, list[Timed]]:
    """Seconds, bytes of payload, and the answers. Raises as `Client.receive`."""
    answers: list[Timed] = []
    total, ended = 0, False
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        askers = [stack.enter_context(Asker(load, number)) for number in range(load.clients)]
        for asker in askers:
            selector.register(asker.socket, selectors.EVENT_READ, asker)
        if not load.seconds:
            selector.register(sys.stdin, selectors.EVENT_READ, None)
        began = now = time.perf_counter()
        waiting = dict.fromkeys(askers, began)
        # An end that comes before the first answer waits for it.
        while not (ended and answers) and (not load.seconds or now < began + load.seconds):
            for asker in [asker for asker, due in waiting.items() if due <= now]:
                del waiting[asker]
                asker.ask_next()
            for key, _ in selector.select(max(0.0, min(waiting.values(), default=now + 0.1) - now)):
                asker = key.data
                if asker is None:
                    selector.unregister(sys.stdin)
                    ended = True
                elif asker.receive():
                    now = time.perf_counter()
                    answers.append(Timed(asker.began, now - asker.began))
                    total += asker.length
                    if asker.ending:
                        # The closed socket has left the epoll, but not the map of the selector.
                        selector.unregister(key.fileobj)
                        asker.connect()
                        selector.register(asker.socket, selectors.EVENT_READ, asker)
                    if load.gap:
                        waiting[asker] = now + load.gap
                    else:
                        asker.ask_next()
            now = time.perf_counter()
    return now - began, total, answers


def main() -> None:
    """Reads a pickled load from standard input, and writes the result of `run` to standard output."""
    load: Load = pickle.load(sys.stdin.buffer)
    if load.first:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    pickle.dump(run(load), sys.stdout.buffer)
