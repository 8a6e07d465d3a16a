"""Studies that are forwarded to peers. They count from the end of `study_quiet` until the last instance is
with the peer.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

from perf import bodies
from perf.clients import Client
from perf.dimse.associations import STORESCP, TITLE, storescp
from perf.out.verbs import run_verb
from perf.results import OURS, Row, median_row
from perf.run import Run, store_study
from perf.servers import MemorySampler, Service, cpu_seconds, free_port

QUIET = 0.5  # seconds
LONGEST = 600.0  # seconds until a study is there
FIRST = 7_100  # number of a study
SLOW, SLOWLY = "a slow peer", 0.1  # seconds for each MB
SLOW_SECONDS = 10.0


def forwarding(run: Run) -> Iterator[Row]:
    flags = ("--hooks", "--study-quiet", str(QUIET), "--aet", "SENDER")
    port, slow = free_port(), free_port()
    with (
        run.streamsrv("source", *flags) as source,
        run.streamsrv("peer") as peer,
        storescp(run.folder / "received", port) as receiver,
        _slow_peer(slow),
    ):
        folder = run.folder / "received"
        yield from _forwarded(run, source, f"{OURS}, DICOMweb", peer.url + peer.prefix, lambda: _at(peer))
        if receiver is not None:
            address = f"aet://{TITLE}@127.0.0.1:{port}"
            yield from _forwarded(run, source, STORESCP, address, lambda: sum(1 for _ in folder.iterdir()))
        with _hook(source, f"http://127.0.0.1:{slow}/v2"):
            _post(run, source, FIRST - 1)
            with MemorySampler(source.pid) as memory:
                time.sleep(SLOW_SECONDS)
        yield Row(f"memory growth, forward a study of {run.size.instances} CT", SLOW, memory.growth / 1e6)


def _forwarded(
    run: Run, source: Service, subject: str, address: str, there: Callable[[], int]
) -> Iterator[Row]:
    """`there` counts the instances that the peer has."""
    rates, growths, used = list[float](), list[float](), list[float]()
    measure = f"forward a study of {run.size.instances} CT"
    with _hook(source, address):
        for number in range(run.size.rounds):
            before = there()
            length = _post(run, source, FIRST + number + 100 * len(subject))
            begin, processor = time.monotonic() + QUIET, cpu_seconds(source.pid)
            with MemorySampler(source.pid) as memory:
                while there() < before + run.size.instances:
                    if time.monotonic() > begin + LONGEST:
                        raise RuntimeError(f"{subject} has not got all instances")
                    time.sleep(0.02)
            rates.append(length / 1e6 / (time.monotonic() - begin))
            growths.append(memory.growth / 1e6)
            used.append((cpu_seconds(source.pid) - processor) * 1e9 / length)
    yield median_row(measure, subject, rates)
    yield median_row(f"CPU time, {measure}", subject, used)
    yield median_row(f"memory growth, {measure}", subject, growths)


def _post(run: Run, source: Service, number: int) -> int:
    body = bodies.ct_study(number, run.size.instances)
    path = body.write(run.folder / "forwarded.body")
    store_study(source, body, path)
    path.unlink()
    return body.length


def _at(peer: Service) -> int:
    """Instances of all studies of a service."""
    with Client(peer) as client:
        found = client.get("/studies?includefield=00201208&limit=200", keep=True).payload
    return sum(each["00201208"]["Value"][0] for each in json.loads(found or b"[]"))


@contextlib.contextmanager
def _hook(source: Service, address: str) -> Iterator[None]:
    data = ("--data", source.folder)
    run_verb("hook", "forward", address, "--name", "perf", "--allow-local", *data)
    deadline = time.monotonic() + LONGEST
    while json.loads(run_verb("hook", "list", "--json", *data))[0]["sequence"] is None:
        if time.monotonic() > deadline:
            raise RuntimeError("the hook does not begin")
        time.sleep(0.1)
    try:
        yield
    finally:
        run_verb("hook", "remove", "perf", *data)


@contextlib.contextmanager
def _slow_peer(port: int) -> Iterator[None]:
    """Takes a MB of a request in SLOWLY, and never answers."""
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                connection, _ = listener.accept()
                connection.settimeout(1.0)
                with connection, contextlib.suppress(OSError):
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    while not ended.wait(SLOWLY) and connection.recv(1 << 20):
                        pass

    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(None)
        thread = threading.Thread(target=serve, args=[listener], daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
