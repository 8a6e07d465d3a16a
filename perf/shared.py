"""One client while others are served: mixed load, small answers beside a cold study, one frame beside bulk.

All clients share the machine with the server, unlike those of a real one. So the clients in bulk take the
processor time that the server leaves, and the client that is timed goes before all others.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial

from perf import bodies
from perf.bodies import Body
from perf.clients import DICOM, FRAME, JSON, Client, Load, Seen, Timed, started, together
from perf.results import OURS, Row
from perf.run import Run, Stretch, drop_from_memory, post_study, times_row, upload_studies, warm_memory
from perf.servers import MemorySampler, Service, cpu_seconds

UPLOADERS, VIEWERS, FRAMES_A_SECOND = 2, 8, 25
MIXED_SECONDS = 3  # times those of a rate
OPEN_PAUSE = 0.1  # seconds before each of the requests that open the study
FIRST = 121  # number of the first study that is uploaded
BULK, BURSTS = 8, 8
GAP = 0.005  # seconds from an answer to the next request of the client that is timed


# --- mixed load ---


def mixed(run: Run) -> Iterator[Row]:
    """Two clients upload CT studies, eight viewers scroll at 25 frames a second each, and one opens the study
    again and again. Then the same for Orthanc."""
    watched = bodies.ct_study(120, run.size.instances)
    for start in (partial(run.streamsrv, "mixed"), run.orthanc):
        with start() as server:
            if server is not None:
                run.store(watched, [server])
                yield from _mixed(run, server, watched)


def _mixed(run: Run, server: Service, watched: Body) -> Iterator[Row]:
    frames = [f"{key.path}/frames/1" for key in watched.keys]
    study = f"/studies/{watched.study}"
    steps = [f"/studies?StudyInstanceUID={watched.study}", f"{study}/series", f"{study}/metadata"]
    before, began = cpu_seconds(server.pid), time.perf_counter()

    def upload(number: int) -> int:
        studies = itertools.count(FIRST + number, UPLOADERS)
        return upload_studies(server, studies, run.size.uploaded, began + MIXED_SECONDS * run.size.seconds)

    with (
        MemorySampler(server.pid) as memory,
        ThreadPoolExecutor(UPLOADERS) as threads,
        started(Load(server, frames, FRAME, clients=VIEWERS, pause=1 / FRAMES_A_SECOND)) as viewers,
        started(Load(server, steps, JSON, gap=OPEN_PAUSE)) as opener,
    ):
        stored = sum(threads.map(upload, range(UPLOADERS)))
        seconds = time.perf_counter() - began
    seen, name = viewers.answered, server.name
    cores = (cpu_seconds(server.pid) - before) / seconds
    megabytes = stored * bodies.ct_study(FIRST, run.size.uploaded).length / 1e6
    yield Row("mixed load: stored", name, megabytes / seconds, f"{UPLOADERS} uploaders")
    wanted = f"{VIEWERS} viewers want {VIEWERS * FRAMES_A_SECOND}; {seen.note}"
    yield Row("mixed load: frames seen", name, seen.rate, wanted)
    yield Row("mixed load: a frame", name, seen.p99, seen.note)
    steps_done = [one.seconds * 1e3 for one in opener.answers]
    openings = [sum(steps_done[first : first + 3]) for first in range(0, max(1, len(steps_done) - 2), 3)]
    measure = f"mixed load: search, series and metadata of {run.size.instances} instances"
    yield times_row(measure, name, openings, 0.95)
    if server.pid:
        yield Row("memory growth, mixed load", name, memory.growth / 1e6, f"{cores:.2f} cores")


# --- small answers beside a study from the disk ---


def latency(run: Run) -> Iterator[Row]:
    instances = max(4, run.size.cold_bytes // 526_000)
    body = bodies.ct_study(6, instances)
    with run.streamsrv("cold") as server:
        with Client(server) as client:
            post_study(body, client)
        metadata = f"{body.keys[instances // 2].path}/metadata"
        for name, path in (("/health/live", "//health/live"), ("metadata of one instance", metadata)):
            with _timed(server, path, JSON) as quiet:
                time.sleep(1)
            drop_from_memory(Stretch(segment) for segment in server.segments())
            fetch = [lambda client: client.get(f"/studies/{body.study}", DICOM)] * 2
            with _timed(server, path, JSON) as busy:
                together(2, server, fetch)
            measure = f"latency of {name} while a study streams cold"
            yield _p99(measure, f"{OURS}, quiet", quiet.answers)
            yield _p99(measure, f"{OURS}, streaming", busy.answers)


def _timed(server: Service, path: str, accept: str) -> AbstractContextManager[Seen]:
    return started(Load(server, [path], accept, gap=GAP, first=True))


def _p99(measure: str, subject: str, answers: Sequence[Timed], note: str = "") -> Row:
    return times_row(measure, subject, [one.seconds * 1e3 for one in answers], note=note)


# --- one frame beside bulk ---


def fairness(run: Run) -> Iterator[Row]:
    """Single frames while eight clients upload studies and eight download one, from memory and from disk."""
    instances = min(run.size.instances // 2, run.size.uploaded)
    watched, study = bodies.ct_study(6, 1), bodies.ct_study(7, instances)
    with run.streamsrv("fair") as server:
        run.store(watched, [server])
        before = server.segments() if server.folder else {}
        run.store(study, [server])
        # Only the study of the bulk is cold: the disk is slow for a single frame, too.
        after = server.segments() if server.folder else {}
        cold = [Stretch(path, before.get(path, 0), end) for path, end in after.items()]
        frame = f"{watched.path}/frames/1"
        with _timed(server, frame, FRAME) as idle:
            time.sleep(1 + 2 * run.size.seconds)
        yield _p99("one frame at a time", f"{OURS}, idle", idle.answers)
        yield _beside_bulk(server, study, frame, "in memory", 20, [])
        if cold:
            yield _beside_bulk(server, study, frame, "on disk", 20 + BURSTS * BULK, cold)


def _beside_bulk(
    server: Service, study: Body, frame: str, where: str, first: int, cold: Sequence[Stretch]
) -> Row:
    """Strategy: bursts. In each burst every uploader sends one study, and downloads go on until the last of
    these is stored; only requests of that time count. Memory is warmed before each burst."""
    bursts: list[tuple[float, float]] = []
    received = 0
    with _timed(server, frame, FRAME) as seen:
        for number in range(first, first + BURSTS * BULK, BULK):
            uploads = [bodies.ct_study(number + n, len(study.keys)) for n in range(BULK)]
            warm_memory()
            began = time.perf_counter()
            received += _burst(server, uploads, study, cold)
            bursts.append((began, time.perf_counter()))
    seconds = sum(ended - began for began, ended in bursts)
    rates = [moved / 1e6 / seconds for moved in (BURSTS * BULK * study.length, received)]
    note = f"bulk: {rates[0]:.0f} MB/s in, {rates[1]:.0f} MB/s out"
    measure = f"one frame at a time, {BULK} uploads and {BULK} downloads, {where}"
    return _p99(measure, f"{OURS}, busy", within(bursts, seen.answers), note)


def _burst(server: Service, uploads: Sequence[Body], study: Body, cold: Sequence[Stretch]) -> int:
    """Bytes that were downloaded until all uploads were stored."""
    received: list[int] = []
    over = threading.Event()

    def download(client: Client) -> None:
        while not over.is_set():
            drop_from_memory(cold)
            received.append(client.get(f"/studies/{study.study}", DICOM).length)

    with ThreadPoolExecutor(2 * BULK) as threads:
        downloads = [threads.submit(_in_bulk, server, download) for _ in range(BULK)]
        stores = [threads.submit(_in_bulk, server, partial(post_study, body)) for body in uploads]
        try:
            for future in stores:
                future.result()
        finally:
            over.set()
    for future in downloads:
        future.result()
    return sum(received)


def _in_bulk(server: Service, work: Callable[[Client], object]) -> None:
    """In a thread that runs when nothing else wants the core."""
    os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
    with Client(server) as client:
        work(client)


def within(times: Sequence[tuple[float, float]], answers: Sequence[Timed]) -> list[Timed]:
    """The answers whose requests began in one of the times."""
    return [one for one in answers if any(began <= one.began < ended for began, ended in times)]
