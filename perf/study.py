"""A CT study of 400 instances of 526 kB: in by one POST, out by one GET, deleted; beside cp, nginx, Orthanc.

Store, retrieve and delete are measured in the same rounds: what is stored in one is deleted in it.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from perf import data, servers
from perf.load import AS_STORED, Client, Response, percentile, together
from perf.measures import (
    Size,
    beside,
    copy_and_sync,
    forget,
    in_turns,
    missing,
    store_study,
    stored,
    warm_memory,
)
from perf.report import Claim, Finding, Row, median_row
from perf.servers import MemorySampler, Server, cpu_seconds

PEER_ROUNDS = 3
STORE, STORE_PEER, DELETE_MS = 0.6, 7.0, 10.0
STORED_GROWTH, RETRIEVED_GROWTH = 50, 20  # MB
RETRIEVE, FIRST_BYTE_MS = 1.0, 10.0


def ct_study(size: Size) -> Iterator[Finding]:
    body = data.ct_study(1, size.instances)
    files = size.folder / "nginx"
    files.mkdir()
    path = body.write(files / "study.body")
    with ExitStack() as stack:
        ours = stack.enter_context(servers.streamsrv(size.folder / "ct"))
        peer = stack.enter_context(servers.orthanc(size.folder / "peer"))
        web = stack.enter_context(servers.nginx(files))
        yield from _store(size, ours, peer, body, path)
        yield from _put(web, path)
        for server in (ours, peer):
            if server is not None:
                store_study(server, path)
        yield from _retrieve(size, ours, peer, web, body)
        yield from _cold(size, ours, peer, web, body)


# --- in, and away again ---


class Stored:
    """Stores a study and deletes it; keeps what that cost besides time."""

    def __init__(self, server: Server, study: str, path: Path) -> None:
        self.server, self.study, self.path = server, study, path
        self.deletes: list[float] = []  # milliseconds
        self.processor: list[float] = []  # seconds a GB

    def rate(self) -> float:
        """MB/s."""
        length = self.path.stat().st_size
        before = cpu_seconds(self.server.pid)
        seconds = store_study(self.server, self.path)
        self.processor.append((cpu_seconds(self.server.pid) - before) * 1e9 / length)
        self.deletes.append(forget(self.server, self.study) * 1e3)
        return length / 1e6 / seconds


def _store(size: Size, ours: Server, peer: Server | None, body: data.Body, path: Path) -> Iterator[Finding]:
    study, what = body.keys[0].study, f"{size.instances} CT instances of 526 kB"
    megabytes = body.length / 1e6
    mine = Stored(ours, study, path)
    subjects: dict[str, Callable[[], float]] = {"streamsrv": mine.rate}
    subjects["cp + fsync"] = lambda: megabytes / copy_and_sync(path, size.folder / "copy")
    with MemorySampler(ours.pid) as memory:
        values = in_turns(2 * size.rounds + 1, subjects, size.rest, partial(warm_memory, size.folder))
    measured = {"streamsrv": (mine, memory)}
    if peer is not None:
        # Orthanc is much slower and rewrites its own files: apart, so that it disturbs nobody.
        theirs = Stored(peer, study, path)
        with MemorySampler(peer.pid) as peer_memory:
            values["Orthanc"] = [theirs.rate() for _ in range(PEER_ROUNDS)]
        measured["Orthanc"] = (theirs, peer_memory)
    measure = f"store {what}, one POST"
    for name, rates in values.items():
        yield median_row(measure, name, rates, "MB/s")
    if peer is None:
        yield missing(measure, "Orthanc", "MB/s")
    yield from beside(values, "cp + fsync", f"{measure}, in relation to cp + fsync", STORE)
    yield from beside(values, "Orthanc", f"{measure}, in relation to Orthanc", STORE_PEER)
    yield from costs(
        "store the study", {name: (one.processor, held) for name, (one, held) in measured.items()}
    )
    yield Claim("memory growth, store the study", memory.growth / 1e6, "MB", at_most=STORED_GROWTH)
    yield from deletes(f"delete {what}", {name: one.deletes for name, (one, _) in measured.items()})
    if peer is None:
        yield missing(f"delete {what}", "Orthanc", "ms")


def costs(what: str, measured: Mapping[str, tuple[Sequence[float], MemorySampler]]) -> Iterator[Row]:
    """Processor time a GB, and memory of the process tree."""
    for name, (processor, _) in measured.items():
        yield median_row(f"CPU time, {what}", name, processor, "s/GB", "user and system, all processes")
    for name, (_, memory) in measured.items():
        note = f"at most {memory.peak / 1e6:.0f} MB, RssAnon + RssShmem of all processes"
        yield Row(f"memory growth, {what}", name, memory.growth / 1e6, "MB", note)


def deletes(measure: str, milliseconds: dict[str, list[float]]) -> Iterator[Finding]:
    for name, times in milliseconds.items():
        yield median_row(measure, name, times, "ms")
    yield Claim(measure, statistics.median(milliseconds["streamsrv"]), "ms", at_most=DELETE_MS)


def _put(web: Server | None, path: Path) -> Iterator[Row]:
    """The same bytes as one file. nginx does not sync: what it acknowledges may be lost."""
    measure = "store the same bytes by PUT, not synced"
    if web is None:
        yield missing(measure, "nginx", "MB/s")
        return
    yield median_row(measure, "nginx", [put(web, path) for _ in range(PEER_ROUNDS)], "MB/s")


def put(web: Server, path: Path) -> float:
    """MB/s."""
    with Client(web.address) as client:
        response = client.put_file("/put/study", path)
    if response.status not in (201, 204):
        raise RuntimeError(f"nginx's PUT answered {response.status}")
    (web.folder / "put" / "study").unlink()
    return path.stat().st_size / 1e6 / response.seconds


# --- out ---


class Fetched:
    """Retrieves by several clients at once; keeps the times of the first byte, and what it cost."""

    def __init__(self, server: Server, path: str, clients: int, each: int = 2) -> None:
        self.server, self.path, self.clients, self.each = server, server.prefix + path, clients, each
        self.first_bytes: list[float] = []  # milliseconds
        self.processor: list[float] = []  # seconds a GB

    def rate(self) -> float:
        """MB/s of all clients together."""
        answers: list[Response] = []

        def fetch(client: Client) -> None:
            response = client.get(self.path, AS_STORED)
            stored(response.status, f"{self.server.name}'s retrieve")
            answers.append(response)

        before = cpu_seconds(self.server.pid)
        seconds = together(self.clients, self.server.address, [fetch] * (self.each * self.clients))
        length = sum(answer.length for answer in answers)
        self.processor.append((cpu_seconds(self.server.pid) - before) * 1e9 / length)
        self.first_bytes += [answer.first_byte * 1e3 for answer in answers]
        return length / 1e6 / seconds

    def forget_first(self) -> None:
        """The round that only warmed up does not count here either."""
        del self.first_bytes[: self.clients * self.each]
        del self.processor[0]


def _retrieve(
    size: Size, ours: Server, peer: Server | None, web: Server | None, body: data.Body
) -> Iterator[Finding]:
    url = f"/studies/{body.keys[0].study}"
    for clients in (1, 4):
        what = f"retrieve the study, {clients} at once"
        yield from retrieved(what, 2 * size.rounds + 1, ours, peer, web, (url, "/study.body"), clients)
    series = Fetched(ours, f"{url}/series/{body.keys[0].series}", 1)
    yield median_row("retrieve its series", "streamsrv", [series.rate() for _ in range(size.rounds)], "MB/s")


def retrieved(
    what: str,
    rounds: int,
    ours: Server,
    peer: Server | None,
    web: Server | None,
    paths: tuple[str, str],
    clients: int,
    peer_rounds: int = PEER_ROUNDS,
) -> Iterator[Finding]:
    """`paths`: of the DICOMweb servers, and of the file that nginx has."""
    mine = Fetched(ours, paths[0], clients)
    fetched = {"streamsrv": mine}
    if web is not None:
        fetched["nginx"] = Fetched(web, paths[1], clients)
    with MemorySampler(ours.pid) as memory:
        values = in_turns(rounds, {name: one.rate for name, one in fetched.items()})
    for one in fetched.values():
        one.forget_first()
    measured = {"streamsrv": (mine.processor, memory)}
    if peer is not None and peer_rounds:
        theirs = fetched["Orthanc"] = Fetched(peer, paths[0], clients, each=1)
        with MemorySampler(peer.pid) as peer_memory:
            values["Orthanc"] = [theirs.rate() for _ in range(peer_rounds)]
        measured["Orthanc"] = (theirs.processor, peer_memory)
    for name, rates in values.items():
        yield median_row(what, name, rates, "MB/s")
    for name, there in (("nginx", web), ("Orthanc", peer)):
        if there is None:
            yield missing(what, name, "MB/s")
    yield from beside(values, "nginx", f"{what}, in relation to nginx", RETRIEVE)
    yield from _first_bytes(what, {name: one.first_bytes for name, one in fetched.items()})
    yield from costs(what, measured)
    yield Claim(f"memory growth, {what}", memory.growth / 1e6, "MB", at_most=RETRIEVED_GROWTH)


def _first_bytes(what: str, milliseconds: dict[str, list[float]]) -> Iterator[Finding]:
    measure = f"first byte, {what}"
    for name, times in milliseconds.items():
        note = f"p50 {statistics.median(times):.2f}, longest {max(times):.2f}, {len(times)} requests"
        yield Row(measure, name, percentile(times, 0.95), "ms at p95", note)
    yield Claim(measure, percentile(milliseconds["streamsrv"], 0.95), "ms at p95", at_most=FIRST_BYTE_MS)


# --- from the disk ---


def _cold(
    size: Size, ours: Server, peer: Server | None, web: Server | None, body: data.Body
) -> Iterator[Finding]:
    measure = "retrieve the study, in no memory"
    url = f"/studies/{body.keys[0].study}"
    fetched = {"streamsrv": Fetched(ours, url, 1, each=1)}
    if web is not None:
        fetched["nginx"] = Fetched(web, "/study.body", 1, each=1)
    if peer is not None:
        fetched["Orthanc"] = Fetched(peer, url, 1, each=1)
    values = in_turns(size.rounds, {name: partial(_cold_rate, one) for name, one in fetched.items()})
    for name, rates in values.items():
        note = f"first byte after {statistics.median(fetched[name].first_bytes):.1f} ms"
        yield median_row(measure, name, rates, "MB/s", note)


def _cold_rate(fetched: Fetched) -> float:
    drop_folder(fetched.server.folder)
    return fetched.rate()


def drop_folder(folder: Path) -> None:
    """Drops the pages of its files from the page cache, as far as they are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
