"""One client while others are served: mixed load, small answers beside a cold study, one frame beside bulk.

All clients share the machine with the server, unlike those of a real one. So the clients in bulk take the
processor time that the server leaves, and the client that is timed goes before all others.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from perf import bodies
from perf.bodies import Body
from perf.clients import DICOM, FRAME, JSON, Client, percentile, together
from perf.flood import Answer, pinging, started, viewing
from perf.results import Row
from perf.run import Run, Stretch, drop_from_memory, post_study, store_study, warm_memory
from perf.servers import MemorySampler, Server, cpu_seconds

UPLOADERS, VIEWERS, FRAMES_A_SECOND = 2, 8, 25
MIXED_SECONDS = 3  # times those of a rate
OPEN_PAUSE = 0.25  # seconds between two openings of the study
FIRST = 121  # number of the first study that is uploaded
BULK, BURSTS = 8, 8


# --- mixed load ---


def mixed(run: Run) -> Iterator[Row]:
    """Two clients upload CT studies, eight viewers scroll at 25 frames a second each, and one opens the study
    again and again. Then the same for Orthanc."""
    watched = bodies.ct_study(120, run.size.instances)
    path = watched.write(run.folder / "watched.body")
    for start in (partial(run.streamsrv, "mixed"), run.orthanc):
        with start() as server:
            if server is not None:
                store_study(server, watched, path)
                yield from _mixed(run, server, watched)


def _mixed(run: Run, server: Server, watched: Body) -> Iterator[Row]:
    frames = [f"{key.path}/frames/1" for key in watched.keys]
    plan = viewing(server, frames, FRAME, VIEWERS, 1 / FRAMES_A_SECOND)
    done = threading.Event()
    before, began = cpu_seconds(server.pid), time.perf_counter()
    with (
        MemorySampler(server.pid) as memory,
        ThreadPoolExecutor(UPLOADERS + 1) as threads,
        started(plan) as viewers,
    ):
        uploads = [threads.submit(_upload, run, server, number, done) for number in range(UPLOADERS)]
        opened = threads.submit(_open, server, watched, done)
        time.sleep(MIXED_SECONDS * run.size.seconds)
        done.set()
        stored_bytes = sum(upload.result() for upload in uploads)
        openings = opened.result()
        seconds = time.perf_counter() - began
    seen, name = viewers.answered, server.name
    cores = (cpu_seconds(server.pid) - before) / seconds
    yield Row("mixed load: stored", name, stored_bytes / 1e6 / seconds, f"{UPLOADERS} uploaders")
    wanted = f"{VIEWERS} viewers want {VIEWERS * FRAMES_A_SECOND}; {seen.note}"
    yield Row("mixed load: frames seen", name, seen.rate, wanted)
    yield Row("mixed load: a frame", name, seen.p99, seen.note)
    note = f"p50 {percentile(openings, 0.5):.1f} ms, {len(openings)} times"
    measure = f"mixed load: search, series and metadata of {run.size.instances} instances"
    yield Row(measure, name, percentile(openings, 0.95), note)
    if server.pid:
        yield Row("memory growth, mixed load", name, memory.growth / 1e6, f"{cores:.2f} cores")


def _upload(run: Run, server: Server, number: int, done: threading.Event) -> int:
    """Bytes of the studies that were acknowledged, one after the other."""
    total, study = 0, FIRST + number
    with Client(server) as client:
        while not done.is_set():
            body = bodies.ct_study(study, run.size.uploaded)
            post_study(client, body)
            total += body.length
            study += UPLOADERS
    return total


def _open(server: Server, watched: Body, done: threading.Event) -> list[float]:
    """Milliseconds of each opening: the search, the series, the metadata."""
    study, times = watched.study, list[float]()
    steps = (f"/studies?StudyInstanceUID={study}", f"/studies/{study}/series", f"/studies/{study}/metadata")
    with Client(server) as client:
        while not times or not done.wait(OPEN_PAUSE):
            began = time.perf_counter()
            for step in steps:
                client.fetch(step, JSON, keep=True)
            times.append((time.perf_counter() - began) * 1e3)
    return times


# --- small answers beside a study from the disk ---


def latency(run: Run) -> Iterator[Row]:
    instances = max(4, run.size.cold_bytes // 526_000)
    body = bodies.ct_study(6, instances)
    with run.streamsrv("cold") as server:
        with Client(server) as client:
            post_study(client, body)
        metadata = f"{body.keys[instances // 2].path}/metadata"
        yield from _beside_a_cold_study(server, body, "/health/live", "//health/live", "*/*")
        yield from _beside_a_cold_study(server, body, "metadata of one instance", metadata, JSON)


def _beside_a_cold_study(server: Server, body: Body, name: str, path: str, accept: str) -> Iterator[Row]:
    with started(pinging(server, path, accept)) as quiet:
        time.sleep(1)
    drop_from_memory(Stretch(segment) for segment in server.segments())
    fetch = [lambda client: client.fetch(f"/studies/{body.study}", DICOM)] * 2
    with started(pinging(server, path, accept)) as busy:
        together(2, server, fetch)
    for subject, seen in (("streamsrv, quiet", quiet), ("streamsrv, streaming", busy)):
        times = [one.seconds for one in seen.answers]
        yield _p99(f"latency of {name} while a study streams cold", subject, times)


def _p99(measure: str, subject: str, seconds: Sequence[float], note: str = "") -> Row:
    p50, p99 = (percentile(seconds, share) * 1e3 for share in (0.5, 0.99))
    text = f"median {p50:.2f}, longest {max(seconds) * 1e3:.1f}, {len(seconds)} requests"
    return Row(measure, subject, p99, f"{text}; {note}" if note else text)


# --- one frame beside bulk ---


@dataclass(slots=True)
class Bulk:
    """Bytes that moved in the bursts, and when these began and ended."""

    sent: int = 0
    received: int = 0
    bursts: list[tuple[float, float]] = field(default_factory=list)


def fairness(run: Run) -> Iterator[Row]:
    """Single frames while eight clients upload studies and eight download one, from memory and from disk.

    Strategy: bursts. In each burst every uploader sends one study, and downloads go on until the last of
    these is stored; only requests of that time count. Memory is warmed before each burst."""
    instances = min(run.size.instances // 2, run.size.uploaded)
    watched, study = bodies.ct_study(6, 1), bodies.ct_study(7, instances)
    with run.streamsrv("fair") as server:
        store_study(server, watched, watched.write(run.folder / "fair.body"))
        before = server.segments() if server.folder else {}
        store_study(server, study, study.write(run.folder / "fair.body"))
        # Only the study of the bulk is cold: the disk is slow for a single frame, too.
        after = server.segments() if server.folder else {}
        cold = [Stretch(path, before.get(path, 0), end) for path, end in after.items()]
        frame = f"{watched.path}/frames/1"
        with started(pinging(server, frame, FRAME)) as idle:
            time.sleep(1 + 2 * run.size.seconds)
        yield _p99("one frame at a time", "streamsrv, idle", [one.seconds for one in idle.answers])
        for number, (where, stretches) in enumerate((("in memory", []), ("on disk", cold))):
            if where == "on disk" and not cold:
                return
            first = 20 + number * BURSTS * BULK
            bulk, frames = _bursts(run, server, study, frame, first, stretches)
            seconds = sum(ended - began for began, ended in bulk.bursts)
            rates = [moved / 1e6 / seconds for moved in (bulk.sent, bulk.received)]
            note = f"bulk: {rates[0]:.0f} MB/s in, {rates[1]:.0f} MB/s out"
            measure = f"one frame at a time, {BULK} uploads and {BULK} downloads, {where}"
            yield _p99(measure, "streamsrv, busy", within(bulk.bursts, frames), note)


def _bursts(
    run: Run, server: Server, study: Body, frame: str, first: int, cold: Sequence[Stretch]
) -> tuple[Bulk, Sequence[Answer]]:
    bulk = Bulk()
    with started(pinging(server, frame, FRAME)) as frames:
        for burst in range(BURSTS):
            numbers = range(first + burst * BULK, first + (burst + 1) * BULK)
            uploads = [bodies.ct_study(number, len(study.keys)) for number in numbers]
            warm_memory(run.folder)
            began = time.perf_counter()
            _burst(server, uploads, study, cold, bulk)
            bulk.bursts.append((began, time.perf_counter()))
    return bulk, frames.answers


def _burst(server: Server, uploads: Sequence[Body], study: Body, cold: Sequence[Stretch], bulk: Bulk) -> None:
    received: list[int] = []
    over = threading.Event()

    def download(client: Client) -> None:
        while not over.is_set():
            drop_from_memory(cold)
            received.append(client.fetch(f"/studies/{study.study}", DICOM).length)

    def upload(body: Body, client: Client) -> None:
        post_study(client, body)

    with ThreadPoolExecutor(2 * BULK) as threads:
        downloads = [threads.submit(_in_bulk, server, download) for _ in range(BULK)]
        stores = [threads.submit(_in_bulk, server, partial(upload, body)) for body in uploads]
        try:
            for future in stores:
                future.result()
        finally:
            over.set()
    for future in downloads:
        future.result()
    bulk.sent += sum(body.length for body in uploads)
    bulk.received += sum(received)


def _in_bulk(server: Server, work: Callable[[Client], None]) -> None:
    """In a thread that runs when nothing else wants the core."""
    os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
    with Client(server) as client:
        work(client)


def within(times: Sequence[tuple[float, float]], answers: Sequence[Answer]) -> list[float]:
    """Seconds of the answers whose requests began in one of the times."""
    return [one.seconds for one in answers if any(began <= one.began < ended for began, ended in times)]
