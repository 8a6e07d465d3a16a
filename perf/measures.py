"""The questions, one function each: it starts what it needs, measures in alternation, yields rows and
claims."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perf import data, servers
from perf.load import AS_STORED, Client, together
from perf.report import Claim, Finding, Row, median_row
from perf.servers import MemorySampler, Server

# A virtual disk is fast until it has spent its budget of bytes; then `cp` falls to a quarter, and comparing
# says nothing. So long it has to fill up again between two rounds of 400 MB.
REST = 3.0
WARMED = 512 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured. `folder` is on the disk that is measured."""

    folder: Path
    instances: int = 400
    rounds: int = 7
    seconds: float = 4.0  # of each rate of small answers
    small_instances: int = 20_000
    tiles: int = 4_000
    cold_bytes: int = 2 << 30


def stored(response_status: int, what: str) -> None:
    if response_status != 200:
        raise RuntimeError(f"{what} answered {response_status} instead of 200")


def store_study(server: Server, body: Path) -> float:
    """Seconds of one POST that stores the body's study, which is deleted again by `forget`."""
    with Client(server.address) as client:
        response = client.post_file(f"{server.prefix}/studies", data.CONTENT_TYPE, body)
    stored(response.status, f"{server.name}'s store")
    return response.seconds


def forget(server: Server, study: str) -> None:
    """Orthanc's DICOMweb has no DELETE; its own interface has, and answers the look-up with its
    identifiers."""
    with Client(server.address) as client:
        if server.name != "Orthanc":
            client.delete(f"{server.prefix}/studies/{study}")
            return
        query = f'{{"Level":"Study","Query":{{"StudyInstanceUID":"{study}"}}}}'.encode()
        found = client.post_chunks("/tools/find", "application/json", len(query), [query])
        for identifier in found.payload.decode().strip('[] \n"').split('"'):
            if identifier.strip(", \n"):
                client.delete(f"/studies/{identifier}")


def copy_and_sync(source: Path, target: Path) -> float:
    """The floor under every durable store: the same bytes by cp, then fsync."""
    started = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", str(source), str(target)], check=True)
    descriptor = os.open(target, os.O_RDWR)
    os.fsync(descriptor)
    seconds = time.perf_counter() - started
    os.close(descriptor)
    target.unlink()
    return seconds


def nothing() -> None:
    pass


def warm_memory(folder: Path) -> None:
    """Use the memory that is going to be used, and free it again. A virtual machine gives what has been free
    for a second back to its host, and writing there costs ten times as much at first: in a round of two
    subjects the first would pay for both."""
    block, scratch = bytes(2 << 20), folder / "scratch"
    with scratch.open("wb", buffering=0) as stream:
        for _ in range(WARMED // len(block)):
            stream.write(block)
    scratch.unlink()


def in_turns(
    rounds: int,
    subjects: dict[str, Callable[[], float]],
    rest: float = 0.0,
    before: Callable[[], None] = nothing,
) -> dict[str, list[float]]:
    """Each subject once a round; one round before them is thrown away. `rest`: seconds before each round;
    `before` is called before each subject."""
    values: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        time.sleep(rest)
        for name, measure in subjects.items():
            before()
            value = measure()
            if number:
                values[name].append(value)
    return values


def ratio(values: dict[str, list[float]], one: str, other: str) -> float:
    """Of rates: the median of the rounds' own ratios, so that a noisy minute spoils no comparison."""
    return statistics.median(a / b for a, b in zip(values[one], values[other], strict=True))


def missing(measure: str, name: str, unit: str) -> Row:
    return Row(measure, name, None, unit, "not installed")


# --- store and retrieve a CT study ---


def ct_study(size: Size) -> Iterator[Finding]:
    """400 instances of 526 kB: in by one POST, out by one GET, beside disk, nginx and Orthanc."""
    body = data.ct_study(1, size.instances)
    with ExitStack() as stack:
        ours = stack.enter_context(servers.streamsrv(size.folder / "ct"))
        files = size.folder / "nginx"
        files.mkdir()
        path = body.write(files / "study.body")
        megabytes = body.length / 1e6
        peers = [stack.enter_context(servers.orthanc(size.folder / "peer"))]
        others = {peer.name: peer for peer in peers if peer is not None}
        yield from _store(size, ours, others, body, path, megabytes)
        web = stack.enter_context(servers.nginx(files))
        yield from _retrieve(size, ours, others, web, body)


def _store(
    size: Size, ours: Server, others: dict[str, Server], body: data.Body, path: Path, megabytes: float
) -> Iterator[Finding]:
    measure = f"store {size.instances} CT instances of 526 kB, one POST"

    def rate(server: Server) -> float:
        seconds = store_study(server, path)
        forget(server, body.keys[0].study)
        return megabytes / seconds

    subjects: dict[str, Callable[[], float]] = {"streamsrv": partial(rate, ours)}
    subjects["cp + fsync"] = lambda: megabytes / copy_and_sync(path, size.folder / "copy")
    with MemorySampler(ours.pid) as memory:
        values = in_turns(2 * size.rounds + 1, subjects, REST, partial(warm_memory, size.folder))
    # Orthanc is much slower and rewrites its own files: apart, so that it disturbs nobody.
    values |= {name: [rate(server) for _ in range(2)] for name, server in others.items()}
    for name, rates in values.items():
        yield median_row(measure, name, rates, "MB/s")
    if not others:
        yield missing(measure, "Orthanc", "MB/s")
    yield Claim(
        "the CT study is stored at half the speed of cp + fsync or better",
        ratio(values, "streamsrv", "cp + fsync"),
        "x",
        at_least=0.5,
    )
    yield Row(
        "memory while the CT study is stored",
        "streamsrv",
        memory.growth / 1e6,
        "MB",
        "growth, RssAnon + RssShmem",
    )
    for server in (ours, *others.values()):
        store_study(server, path)


def _retrieve(
    size: Size, ours: Server, others: dict[str, Server], web: Server | None, body: data.Body
) -> Iterator[Finding]:
    url = f"/studies/{body.keys[0].study}"

    def rate(server: Server, path: str, clients: int) -> float:
        lengths: list[int] = []

        def fetch(client: Client) -> None:
            response = client.get(path, AS_STORED)
            stored(response.status, f"{server.name}'s retrieve")
            lengths.append(response.length)

        seconds = together(clients, server.address, [fetch] * (2 * clients))
        return sum(lengths) / 1e6 / seconds

    for clients in (1, 4):
        measure = f"retrieve the study, {clients} at once"
        subjects: dict[str, Callable[[], float]] = {
            "streamsrv": partial(rate, ours, ours.prefix + url, clients)
        }
        if web is not None:
            subjects["nginx"] = partial(rate, web, "/study.body", clients)
        values = in_turns(size.rounds, subjects)
        values |= {
            name: [rate(peer, peer.prefix + url, clients) for _ in range(2)] for name, peer in others.items()
        }
        for name, rates in values.items():
            yield median_row(measure, name, rates, "MB/s")
        if web is None:
            yield missing(measure, "nginx", "MB/s")
        elif clients == 1:
            yield Claim(
                "the CT study is retrieved at 0.8 of nginx's sendfile or better",
                ratio(values, "streamsrv", "nginx"),
                "x",
                at_least=0.8,
            )


# --- one instance a request ---


def single_posts(size: Size) -> Iterator[Finding]:
    """What a PACS does that sends each instance by itself: each answer waits for its own sync."""
    body = data.ct_study(2, size.instances)
    parts = [bytes(chunk) for chunk in body.chunks()][:-1]
    with servers.streamsrv(size.folder / "single") as server:
        path = f"{server.prefix}/studies"

        def post(part: bytes, client: Client) -> None:
            chunks = [part, data.CLOSING]
            response = client.post_chunks(path, data.CONTENT_TYPE, sum(map(len, chunks)), chunks)
            stored(response.status, "the store of one instance")

        for clients in (1, 8):
            half = parts[: len(parts) // 2] if clients == 1 else parts[len(parts) // 2 :]
            seconds = together(clients, server.address, [partial(post, part) for part in half])
            rate = sum(map(len, half)) / 1e6 / seconds
            yield Row(
                f"store CT instances one a POST, {clients} at once",
                "streamsrv",
                rate,
                "MB/s",
                f"{len(half) / seconds:.0f} POSTs a second",
            )


# --- the index ---


def indexing(size: Size) -> Iterator[Finding]:
    """Instances with next to no pixels: what remains is reading, JSON and index."""
    body = data.ct_study(3, size.small_instances, pixels=512)
    with servers.streamsrv(size.folder / "index") as server:
        path = body.write(size.folder / "small.body")
        with MemorySampler(server.pid) as memory:
            seconds = store_study(server, path)
        yield Row(
            "instances stored and indexed",
            "streamsrv",
            size.small_instances / seconds,
            "a second",
            f"{size.small_instances} CT headers in one POST; memory grew by {memory.growth / 1e6:.0f} MB",
        )
        yield Row(
            "index on disk",
            "streamsrv",
            index_bytes(server.folder) / size.small_instances,
            "bytes an instance",
            "CT headers of 80 attributes",
        )


def index_bytes(folder: Path) -> int:
    """Blocks really used by everything in the data folder but the segments."""
    files = (path for path in folder.rglob("*") if path.is_file() and "segments" not in path.parts)
    return sum(path.stat().st_blocks * 512 for path in files)
