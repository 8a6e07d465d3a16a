"""A client for many answers that are too large for wrk, which copies every byte of them 8 kB at a time.

Strategy: a process of its own with one thread and epoll, so that it shares nothing with who measures; the
first 4 kB of an answer are read, the rest is counted with MSG_TRUNC and thrown away in the kernel. Either
each connection asks again as soon as it was answered, or it asks at a steady pace, as a viewer does whose
user scrolls; then a request that is late counts from when it was due.

usage: python -m perf.flood < ORDER.json    (prints JSON: seconds, bytes, milliseconds of each answer)
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from perf.load import Address, Answered
from perf.servers import ROOT

HEAD = 4096
DRAIN = 4 << 20
END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Order:
    """`pause`: seconds from one request of a connection to its next one; 0 for as fast as it goes.
    `seconds`: how long; 0 for until standard input ends."""

    port: int
    paths: Sequence[str]
    accept: str
    clients: int
    seconds: float
    pause: float = 0.0
    encoding: str = "identity"


class Asker:
    """One connection."""

    def __init__(self, order: Order, first: int) -> None:
        self.order = order
        self.turn = first
        self.sink = bytearray(DRAIN)
        self.due = 0.0
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.order.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def ask(self, due: float) -> None:
        path = self.order.paths[self.turn % len(self.order.paths)]
        self.turn += self.order.clients
        self.due = due
        self.head, self.left, self.ending, self.length = b"", -1, False, 0
        lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{self.order.port}", f"Accept: {self.order.accept}"]
        lines.append(f"Accept-Encoding: {self.order.encoding}")
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def receive(self) -> bool:
        """Takes what has come; True if the answer is whole. Raises ConnectionError and RuntimeError."""
        try:
            return self._take_head() if self.left < 0 else self._take_payload()
        except BlockingIOError:
            return False

    def _take_head(self) -> bool:
        more = self.socket.recv(HEAD)
        if not more:
            raise ConnectionError("the connection was closed before the answer")
        self.head += more
        head, end, rest = self.head.partition(END)
        if not end:
            return False
        lines = head.decode("latin-1").lower().split("\r\n")
        if lines[0].split(" ")[1] != "200":
            raise RuntimeError(f"an answer was {lines[0]}")
        headers = dict(line.split(":", 1) for line in lines[1:])
        if "chunked" in headers.get("transfer-encoding", ""):
            raise RuntimeError("answers in chunks are for another client")
        self.ending = "content-length" not in headers
        self.left = DRAIN if self.ending else int(headers["content-length"]) - len(rest)
        self.length = len(rest)
        return self.left == 0 or self._take_payload()

    def _take_payload(self) -> bool:
        while self.left:
            count = self.socket.recv_into(self.sink, min(self.left, DRAIN), socket.MSG_TRUNC)
            if not count and not self.ending:
                raise ConnectionError("the connection was closed within an answer")
            self.length += count
            if self.ending:
                if not count:
                    return True
            else:
                self.left -= count
        return True


def run(order: Order) -> tuple[float, int, list[float]]:
    """Seconds, bytes of payload, and the seconds of each answer. Raises as `Asker.receive`."""
    askers = [Asker(order, number) for number in range(order.clients)]
    try:
        return _run(order, askers)
    finally:
        for asker in askers:
            asker.socket.close()


def _run(order: Order, askers: Sequence[Asker]) -> tuple[float, int, list[float]]:
    latencies: list[float] = []
    total, ended = 0, False
    with selectors.DefaultSelector() as selector:
        for asker in askers:
            selector.register(asker.socket, selectors.EVENT_READ, asker)
        if not order.seconds:
            selector.register(sys.stdin, selectors.EVENT_READ, None)
        began = now = time.perf_counter()
        # Viewers do not all ask at the same moment.
        waiting = {asker: began + order.pause * n / order.clients for n, asker in enumerate(askers)}
        while not ended and (not order.seconds or now < began + order.seconds):
            for asker in [asker for asker, due in waiting.items() if due <= now]:
                asker.ask(waiting.pop(asker))
            for key, _ in selector.select(max(0.0, min(waiting.values(), default=now + 0.1) - now)):
                asker = key.data
                if asker is None:
                    ended = True
                elif asker.receive():
                    now = time.perf_counter()
                    latencies.append(now - asker.due)
                    total += asker.length
                    if asker.ending:
                        _connect_anew(selector, asker)
                    if order.pause:
                        waiting[asker] = asker.due + order.pause
                    else:
                        asker.ask(now)
            now = time.perf_counter()
    return now - began, total, latencies


def _connect_anew(selector: selectors.BaseSelector, asker: Asker) -> None:
    selector.unregister(asker.socket)
    asker.socket.close()
    asker.connect()
    selector.register(asker.socket, selectors.EVENT_READ, asker)


def flood(
    address: Address,
    paths: Sequence[str],
    accept: str,
    clients: int,
    seconds: float,
    encoding: str = "identity",
) -> Answered:
    """GETs over the paths in turn, each connection as fast as it is answered."""
    with started(Order(address[1], paths, accept, clients, seconds, encoding=encoding)) as process:
        return _read(process)


@contextmanager
def viewing(order: Order) -> Iterator[list[Answered]]:
    """Asks until the block ends; then the list holds what came of it."""
    found: list[Answered] = []
    with started(order) as process:
        yield found
        found.append(_read(process))


@contextmanager
def started(order: Order) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "perf.flood"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(order)) + "\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()


def _read(process: subprocess.Popen[str]) -> Answered:
    printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("the client for large answers failed")
    answers = json.loads(printed)
    return Answered.of(answers["milliseconds"], answers["seconds"], answers["bytes"])


def main() -> int:
    order = Order(**json.loads(sys.stdin.readline()))
    seconds, total, latencies = run(order)
    milliseconds = [round(each * 1e3, 4) for each in latencies]
    print(json.dumps({"seconds": seconds, "bytes": total, "milliseconds": milliseconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
