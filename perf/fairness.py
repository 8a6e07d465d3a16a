"""How long single frames take while eight clients upload studies and eight download them.

Strategy: bursts. In each every uploader sends one study, the downloaders go on until the last of those is
stored, and only requests of that time count; before each, memory is warmed (`measures.warm_memory`), which
lasts for a second or two. All clients share the machine with the server, which those of a real one do not: so
the bulk clients take what the server leaves of the cores, and the one that is timed goes before all others.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from perf import data, servers
from perf.load import AS_STORED, FRAME, Client, percentile
from perf.measures import Size, store_study, stored, warm_memory
from perf.ping import Ping, pinging_apart
from perf.report import Claim, Finding, Row
from perf.servers import Server

BULK_CLIENTS = 8
BURSTS = 8


class Stretch(NamedTuple):
    """Bytes of one file that a study lies in."""

    path: Path
    begin: int
    end: int


@dataclass(slots=True)
class Busy:
    """Seconds of each frame while bulk moved, and the bytes that moved in how much time."""

    frames: list[float] = field(default_factory=list)
    sent: int = 0
    received: int = 0
    seconds: float = 0.0


def fairness(size: Size) -> Iterator[Finding]:
    """Single frames while eight clients upload studies and eight download them, from memory and from disk."""
    instances = min(size.instances // 2, 100)
    watched, study = data.ct_study(6, 1), data.ct_study(7, instances)
    with servers.streamsrv(size.folder / "fair") as server:
        store_study(server, watched.write(size.folder / "fair.body"))
        before = sizes_of(server)
        store_study(server, study.write(size.folder / "fair.body"))
        # The disk itself is slow for one frame as well: it is the bulk that is cold.
        bulk = [Stretch(path, before.get(path, 0), end) for path, end in sizes_of(server).items()]
        frame = f"{server.prefix}{watched.keys[0].path}/frames/1"
        with pinging_apart(server.address, frame, FRAME) as pings:
            time.sleep(1 + 2 * size.seconds)
        idle = [ping.seconds for ping in pings]
        yield _percentiles("one frame at a time", "streamsrv, idle", idle, "")
        for number, (name, cold) in enumerate((("in memory", ()), ("on disk", bulk))):
            first = 20 + number * BURSTS * BULK_CLIENTS
            busy = _bursts(size, server, study, frame, first, cold)
            measure = f"one frame at a time, {BULK_CLIENTS} uploads and {BULK_CLIENTS} downloads, {name}"
            rates = (f"{moved / 1e6 / busy.seconds:.0f}" for moved in (busy.sent, busy.received))
            note = "bulk: {} MB/s in, {} MB/s out".format(*rates)
            yield _percentiles(measure, "streamsrv, busy", busy.frames, note)
            ratio = percentile(busy.frames, 0.99) / percentile(idle, 0.99)
            yield Claim(f"p99 of one frame, in relation to idle, bulk data {name}", ratio, "x", at_most=10)


def _bursts(
    size: Size, server: Server, study: data.Body, frame: str, first: int, cold: Sequence[Stretch]
) -> Busy:
    """BURSTS times eight uploads of studies numbered from `first`, and downloads, before each of which the
    pages of `cold` are dropped from memory."""
    busy, times = Busy(), []
    whole = f"{server.prefix}/studies/{study.keys[0].study}"
    with pinging_apart(server.address, frame, FRAME) as pings:
        for burst in range(BURSTS):
            numbers = range(first + burst * BULK_CLIENTS, first + (burst + 1) * BULK_CLIENTS)
            bodies = [data.ct_study(number, len(study.keys)) for number in numbers]
            warm_memory(size.folder)
            began = time.perf_counter()
            _burst(server, bodies, whole, cold, busy)
            times.append((began, time.perf_counter()))
    busy.frames = within(times, pings)
    busy.seconds = sum(ended - began for began, ended in times)
    return busy


def _burst(
    server: Server, bodies: Sequence[data.Body], whole: str, cold: Sequence[Stretch], busy: Busy
) -> None:
    """One upload of each body, and as many downloads as the time of those allows."""
    received: list[int] = []
    over = threading.Event()

    def upload(body: data.Body, client: Client) -> None:
        response = client.post_chunks(
            f"{server.prefix}/studies", data.CONTENT_TYPE, body.length, body.chunks()
        )
        stored(response.status, "an upload")

    def download(client: Client) -> None:
        while not over.is_set():
            drop_from_memory(cold)
            response = client.get(whole, AS_STORED)
            stored(response.status, "a download")
            received.append(response.length)

    with ThreadPoolExecutor(2 * BULK_CLIENTS) as threads:
        downloads = [threads.submit(_in_bulk, server, download) for _ in range(BULK_CLIENTS)]
        uploads = [threads.submit(_in_bulk, server, partial(upload, body)) for body in bodies]
        try:
            for future in uploads:
                future.result()
        finally:
            over.set()
    for future in downloads:
        future.result()
    busy.sent += sum(body.length for body in bodies)
    busy.received += sum(received)


def _in_bulk(server: Server, work: Callable[[Client], None]) -> None:
    """In a thread that runs when nothing else wants the core."""
    os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
    with Client(server.address) as client:
        work(client)


def within(times: Sequence[tuple[float, float]], pings: Sequence[Ping]) -> list[float]:
    """Seconds of the requests that began in one of the times."""
    return [ping.seconds for ping in pings if any(began <= ping.began < ended for began, ended in times)]


def _percentiles(measure: str, subject: str, values: Sequence[float], note: str) -> Row:
    p50, p99 = (percentile(values, share) * 1e3 for share in (0.5, 0.99))
    text = f"median {p50:.2f}, longest {max(values) * 1e3:.1f}, {len(values)} requests"
    return Row(measure, subject, p99, "ms at p99", f"{text}; {note}" if note else text)


def sizes_of(server: Server) -> dict[Path, int]:
    """Of each segment, in bytes."""
    files = (path for path in server.folder.rglob("*") if path.is_file() and "segments" in path.parts)
    return {path: path.stat().st_size for path in files}


def drop_from_memory(stretches: Sequence[Stretch]) -> None:
    """Drops their pages from the page cache; they were synced when the store was acknowledged."""
    for path, begin, end in stretches:
        descriptor = os.open(path, os.O_RDONLY)
        if end > begin:  # a length of 0 would mean: to the end of the file
            os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
