"""A working day: two clients upload CT studies as fast as they can, eight viewers scroll through one, each at
25 frames of 524 kB a second, and one opens it again and again: the search, its series, its metadata.

The same in turn for Orthanc. A frame that is late counts from when it was due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from perf import data, servers
from perf.flood import Order, viewing
from perf.load import FRAME, Client, percentile
from perf.measures import Size, missing, store_study, stored
from perf.report import Finding, Row
from perf.servers import MemorySampler, Server, cpu_seconds

JSON = "application/dicom+json"
UPLOADERS, VIEWERS, FRAMES_A_SECOND = 2, 8, 25
INSTANCES = 100  # of a study that is uploaded
SECONDS = 3  # times those of a rate
PAUSE = 0.25  # seconds between two openings
FIRST = 121  # number of the first study that is uploaded
MEASURE = "mixed load"


def mixed_load(size: Size) -> Iterator[Finding]:
    watched = data.ct_study(120, size.instances)
    path = watched.write(size.folder / "watched.body")
    with ExitStack() as stack:
        ours = stack.enter_context(servers.streamsrv(size.folder / "mixed"))
        yield from _loaded(size, ours, watched, path)
    with ExitStack() as stack:
        peer = stack.enter_context(servers.orthanc(size.folder / "peer"))
        if peer is None:
            yield missing(MEASURE, "Orthanc", "ms")
        else:
            yield from _loaded(size, peer, watched, path)


def _loaded(size: Size, server: Server, watched: data.Body, path: Path) -> Iterator[Finding]:
    store_study(server, path)
    frames = [f"{server.prefix}{key.path}/frames/1" for key in watched.keys]
    order = Order(server.port, frames, FRAME, VIEWERS, 0, 1 / FRAMES_A_SECOND)
    done = threading.Event()
    before, began = cpu_seconds(server.pid), time.perf_counter()
    with (
        MemorySampler(server.pid) as memory,
        ThreadPoolExecutor(UPLOADERS + 1) as threads,
        viewing(order) as viewers,
    ):
        uploads = [threads.submit(_upload, server, number, done) for number in range(UPLOADERS)]
        opened = threads.submit(_open, server, watched, done)
        time.sleep(SECONDS * size.seconds)
        done.set()
        stored_bytes = sum(upload.result() for upload in uploads)
        openings = opened.result()
        seconds = time.perf_counter() - began
    seen, name = viewers[0], server.name
    processor = cpu_seconds(server.pid) - before
    yield Row(f"{MEASURE}: stored", name, stored_bytes / 1e6 / seconds, "MB/s", f"{UPLOADERS} uploaders")
    wanted = f"{VIEWERS} viewers want {VIEWERS * FRAMES_A_SECOND}; {seen.note}"
    yield Row(f"{MEASURE}: frames seen", name, seen.rate, "a second", wanted)
    yield Row(f"{MEASURE}: a frame", name, seen.p99, "ms at p99", seen.note)
    note = f"p50 {percentile(openings, 0.5):.1f} ms, {len(openings)} times"
    text = f"{MEASURE}: search, series and metadata of {size.instances} instances"
    yield Row(text, name, percentile(openings, 0.95), "ms at p95", note)
    note = f"{processor / seconds:.2f} cores"
    yield Row(f"memory growth, {MEASURE}", name, memory.growth / 1e6, "MB", note)


def _upload(server: Server, number: int, done: threading.Event) -> int:
    """One study after the other, of its own numbers; the bytes that were acknowledged."""
    total, study = 0, FIRST + number
    with Client(server.address) as client:
        while not done.is_set():
            body = data.ct_study(study, INSTANCES)
            response = client.post_chunks(
                f"{server.prefix}/studies", data.CONTENT_TYPE, body.length, body.chunks()
            )
            stored(response.status, f"{server.name}'s store")
            total += body.length
            study += UPLOADERS
    return total


def _open(server: Server, watched: data.Body, done: threading.Event) -> list[float]:
    """Milliseconds of each opening."""
    study, times = watched.keys[0].study, []
    steps = (
        f"/studies?StudyInstanceUID={study}",
        f"/studies/{study}/series",
        f"/studies/{study}/metadata",
    )
    with Client(server.address) as client:
        while not done.wait(PAUSE):
            began = time.perf_counter()
            for step in steps:
                stored(client.get(server.prefix + step, JSON, keep=True).status, f"{server.name}'s answer")
            times.append((time.perf_counter() - began) * 1e3)
    return times
