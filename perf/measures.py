"""The questions, one function each: it starts what it needs, measures in alternation, yields rows and
claims."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lmdb

from perf import data, servers
from perf.load import Client, together
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
    large: int = 2_260_000_000  # bytes of one instance, beside all peers
    largest: int = 10_000_000_000  # bytes of one instance, beside cp; 0 for none
    loop: int = 20_000  # frames
    slide: int = 100_000  # tiles of all levels
    rest: float = REST


def stored(response_status: int, what: str) -> None:
    if response_status != 200:
        raise RuntimeError(f"{what} answered {response_status} instead of 200")


def store_study(server: Server, body: Path) -> float:
    """Seconds of one POST that stores the body's study, which is deleted again by `forget`."""
    with Client(server.address) as client:
        response = client.post_file(f"{server.prefix}/studies", data.CONTENT_TYPE, body)
    stored(response.status, f"{server.name}'s store")
    return response.seconds


def forget(server: Server, study: str) -> float:
    """Seconds that the deletion took. Orthanc's DICOMweb has no DELETE; its own interface has, and answers
    the look-up, which is not counted, with its identifiers."""
    with Client(server.address) as client:
        if server.name != "Orthanc":
            return client.delete(f"{server.prefix}/studies/{study}").seconds
        query = f'{{"Level":"Study","Query":{{"StudyInstanceUID":"{study}"}}}}'.encode()
        found = client.post_chunks("/tools/find", "application/json", len(query), [query])
        identifiers = json.loads(found.payload)
        return sum(client.delete(f"/studies/{identifier}").seconds for identifier in identifiers)


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
    thrown_away: int = 1,
) -> dict[str, list[float]]:
    """Each subject once a round; the first rounds are thrown away. `rest`: seconds before each round;
    `before` is called before each subject."""
    values: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(thrown_away + rounds):
        time.sleep(rest)
        for name, measure in subjects.items():
            before()
            value = measure()
            if number >= thrown_away:
                values[name].append(value)
    return values


def ratio(values: dict[str, list[float]], one: str, other: str) -> float:
    """Of rates: the median of the rounds' own ratios, so that a noisy minute spoils no comparison."""
    return statistics.median(a / b for a, b in zip(values[one], values[other], strict=True))


def beside(values: dict[str, list[float]], other: str, text: str, at_least: float) -> Iterator[Claim]:
    """The claim that our rate is so many times another's; none if that one is not there. Of what ran in turns
    the rounds are compared one by one, else the medians."""
    if not values.get(other):
        return
    ours, theirs = values["streamsrv"], values[other]
    if len(ours) == len(theirs):
        relation = ratio(values, "streamsrv", other)
    else:
        relation = statistics.median(ours) / statistics.median(theirs)
    yield Claim(text, relation, "x", at_least=at_least)


def missing(measure: str, name: str, unit: str) -> Row:
    return Row(measure, name, None, unit, "not installed")


# --- one instance a request ---


def single_posts(size: Size) -> Iterator[Finding]:
    """What a PACS does that sends each instance by itself: each answer waits for its own sync. Beside it
    Orthanc, which syncs each file and not its index, and the floor: what the disk takes for one instance."""
    count = min(size.instances, 100)
    with ExitStack() as stack:
        ours = stack.enter_context(servers.streamsrv(size.folder / "single"))
        peer = stack.enter_context(servers.orthanc(size.folder / "peer"))
        both = [server for server in (ours, peer) if server is not None]
        for clients, ratio_wanted in ((1, 1.0), (8, 2.0)):
            body = data.ct_study(2 + clients, count)
            parts = [bytes(chunk) for chunk in body.chunks()][:-1]
            subjects: dict[str, Callable[[], float]] = {
                server.name: partial(_posts_a_second, server, parts, clients) for server in both
            }
            if clients == 1:
                subjects["append, sync, commit"] = partial(_appends_a_second, size.folder / "floor", parts)
            values = in_turns(size.rounds, subjects, 1.0)
            measure = f"store CT instances one a POST, {clients} at once"
            for name, rates in values.items():
                yield median_row(measure, name, rates, "POSTs a second")
            if peer is None:
                yield missing(measure, "Orthanc", "POSTs a second")
                continue
            yield Claim(
                f"{measure}, in relation to Orthanc",
                ratio(values, "streamsrv", "Orthanc"),
                "x",
                at_least=ratio_wanted,
            )


def _posts_a_second(server: Server, parts: list[bytes], clients: int) -> float:
    """Of a study that is deleted again."""

    def post(part: bytes, client: Client) -> None:
        chunks = [part, data.CLOSING]
        length = sum(map(len, chunks))
        response = client.post_chunks(f"{server.prefix}/studies", data.CONTENT_TYPE, length, chunks)
        stored(response.status, "the store of one instance")

    seconds = together(clients, server.address, [partial(post, part) for part in parts])
    forget(server, data.keys_of(2 + clients, 0).study)
    return len(parts) / seconds


def _appends_a_second(folder: Path, parts: list[bytes]) -> float:
    """The instance to the end of a file, synced; then 6 kB to an index, committed."""
    folder.mkdir(exist_ok=True)
    file = os.open(folder / "segment", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    index = lmdb.open(str(folder), map_size=1 << 30)
    started = time.perf_counter()
    for number, part in enumerate(parts):
        os.write(file, part)
        os.fdatasync(file)
        with index.begin(write=True) as transaction:
            transaction.put(b"%d-%f" % (number, started), part[:6000])
    seconds = time.perf_counter() - started
    index.close()
    os.close(file)
    return len(parts) / seconds


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
