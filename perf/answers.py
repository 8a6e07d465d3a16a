"""Stored frames, instances, metadata and searches: answers a second, and the time of one answer, also beside
bulk.

nginx serves files of the same length twice: one file that it keeps open, and one file for each frame, opened
for each request. The faster of the two counts. One more file has the length of our whole answer, which is
multipart: some kernels send one length three times as fast as another (docs/performance.md).

Beside bulk, all clients share the machine with the server, unlike those of a real one. So the clients in bulk
take the processor time that the server leaves, and the client that is timed goes before all others.
"""

from __future__ import annotations

import gzip
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from perf import bodies
from perf.bodies import Body
from perf.clients import DICOM, FRAME, JSON, Client, Load, Seen, Timed, percentile, started, together
from perf.results import KEYED, NGINX, OURS, USUAL, WHOLE, Row, median_row
from perf.run import (
    LARGE_ANSWER,
    Run,
    drop_from_memory,
    forget,
    latencies,
    post_study,
    rates,
    store_study,
    times_row,
    warm_memory,
)
from perf.servers import Service

TILE = 21_000
INSTANCES, TILES = 100, 500  # different ones that are asked for.
PLAIN = "--no-fast-path"  # the flag of a server without its fast path.
PLAIN_CLIENTS = 16
PEER = 3  # requests of a frame to Orthanc, which reads the whole instance for each
STUDIES, SERIES = 1_000, 400  # searched: studies of one instance, and the instances of one more.
PIXELS = 2_048  # bytes of these, which a search never reads.
SEARCHERS = 16
BULK, BURSTS = 8, 8
GAP = 0.005  # seconds from an answer to the next request of the client that is timed


def frames(run: Run) -> Iterator[Row]:
    study = bodies.ct_study(4, min(run.size.instances, INSTANCES))
    slide = bodies.multi_frame(5, run.size.tiles, TILE)
    different = min(TILES, run.size.tiles)
    tiles = [f"{slide.path}/frames/{turn * 7 % run.size.tiles + 1}" for turn in range(different)]
    instances = [key.path for key in study.keys]
    kinds = (
        ("frames of 524 kB", bodies.CT_PIXELS, [f"{path}/frames/1" for path in instances], FRAME),
        ("frames of 21 kB", TILE, tiles, FRAME),
        ("instances of 526 kB", 526_000, instances, DICOM),
        ("metadata of one instance", 5_300, [f"{path}/metadata" for path in instances], JSON),
    )
    files = run.folder / "small"
    _write_files(files, {length: len(paths) for _, length, paths, _ in kinds})
    # Ours without its fast path, and with a key, for one measure of tiles.
    absent = run.target is not None or PLAIN_CLIENTS not in run.size.clients
    plain = nullcontext() if absent else run.streamsrv("usual", PLAIN)
    guarded = nullcontext() if absent else run.with_key("guarded")
    with run.both("frames") as both, run.peer(NGINX, files) as web, plain as usual, guarded as keyed:
        more = {USUAL: usual, KEYED: keyed} if usual and keyed else {}
        for body in (study, slide):
            run.store(body, [*both, *more.values()])
        for name, length, paths, accept in kinds:
            with Client(both[0]) as client:
                whole = client.get(paths[0], accept).length
            (files / f"whole-{length}").write_bytes(bodies.noise(whole))
            large = length >= LARGE_ANSWER
            ours, *theirs = (Load(server, paths, accept, large=large) for server in both)
            beside = {} if web is None else _files_of(web, length, 0 if accept == JSON else len(paths))
            beside |= {load.service.name: load for load in theirs}
            for clients in run.size.clients if accept == FRAME else run.size.clients[:2]:
                subjects, compared = {OURS: ours}, length == TILE and clients == PLAIN_CLIENTS
                if compared:
                    subjects |= {each: Load(server, paths, accept) for each, server in more.items()}
                yield from rates(
                    run,
                    f"{name}, {clients} at once",
                    subjects | beside,
                    clients,
                    p99=length == TILE,
                    processor=[OURS, KEYED] if compared and more else (),
                )


def _write_files(folder: Path, counts: dict[int, int]) -> None:
    (folder / "many").mkdir(parents=True)
    for length, count in counts.items():
        noise = bodies.noise(length)
        (folder / str(length)).write_bytes(noise)
        for number in range(count):
            (folder / "many" / f"{length}-{number}").write_bytes(number.to_bytes(8, "little") + noise[8:])


def _files_of(web: Service, length: int, count: int) -> dict[str, Load]:
    many = [f"/many/{length}-{number}" for number in range(count)]
    paths = {"nginx, many files": many, "nginx, one file": [f"/{length}"], WHOLE: [f"/whole-{length}"]}
    large = length >= LARGE_ANSWER
    return {name: Load(web, each, large=large) for name, each in paths.items() if each}


# --- instances with very many frames ---


def places(run: Run) -> Iterator[Row]:
    """An instance whose frames all cost the same has one cost at the first, the last and any place."""
    count, numbers = run.size.loop, random.Random(1)
    loop = bodies.multi_frame(90, count, TILE)
    with run.both("many") as both:
        run.store(loop, both)
        for where, first, last in (("the first", 1, 1), ("the last", count, count), ("any", 1, count)):
            for server in both:
                asked = run.size.asked if server is both[0] else PEER
                paths = [f"{loop.path}/frames/{numbers.randint(first, last)}" for _ in range(asked)]
                measure = f"one frame of a loop of {count:,} frames: {where}"
                yield times_row(measure, server.name, latencies(server, paths, FRAME), 0.5)


# --- metadata of a study ---


def metadata(run: Run) -> Iterator[Row]:
    """nginx's gzip is the file compressed beforehand (gzip_static), the cheapest that there can be."""
    files = run.folder / "nginx"
    files.mkdir()
    name = f"metadata of {run.size.instances} instances"
    with run.both("metadata") as both:
        yield from _first(run, name, both)
        body = bodies.ct_study(100, run.size.instances)
        url = f"/studies/{body.study}/metadata"
        run.store(body, both)
        with Client(both[0]) as client:
            text = client.get(url, JSON, keep=True).payload
        (files / "metadata.json").write_bytes(text)
        (files / "metadata.json.gz").write_bytes(gzip.compress(text, 6))
        with run.peer(NGINX, files) as web:
            for coding, encoding in (("plain", "identity"), ("gzip", "gzip")):
                for clients in run.size.clients[:2]:
                    asked = both if (coding, clients) == ("plain", 1) else both[:1]
                    subjects = {one.name: Load(one, [url], JSON, encoding, large=True) for one in asked}
                    if web is not None:
                        subjects[web.name] = Load(web, ["/metadata.json"], JSON, encoding, large=True)
                    yield from rates(run, f"{name}, {coding}, {clients} at once", subjects, clients)


def _first(run: Run, name: str, both: Sequence[Service]) -> Iterator[Row]:
    """Each of a study that was stored just now."""
    for server in both:
        times = []
        for number in range((run.size.rounds if server is both[0] else 2) + 1):
            body = bodies.ct_study(101 + number, run.size.instances)
            times.append(first_metadata(server, body, body.write(run.folder / "study.body")))
        yield median_row(f"{name}, the first request after the store", server.name, times[1:])


def first_metadata(server: Service, body: Body, path: Path) -> float:
    """Milliseconds of the first request for the metadata of a study, which is stored and deleted."""
    store_study(server, body, path)
    (milliseconds,) = latencies(server, [f"/studies/{body.study}/metadata"], JSON)
    forget(server, body.study)
    return milliseconds


# --- searches ---


def searches(run: Run) -> Iterator[Row]:
    """Both hold the same studies, and nothing is stored while they are asked. The time of one answer is that
    of one client; the rate is that of sixteen."""
    numbers, series = random.Random(1), bodies.keys_of(STUDIES)
    patients = [f"/studies?PatientID=P{study:07d}" for study in numbers.sample(range(STUDIES), STUDIES)]
    queries = (
        ("no search at all", ["//health/live"], 300),
        ("the first 100 studies", ["/studies?limit=100"], 300),
        ("the studies of a patient", patients, STUDIES),
        (f"the {SERIES} instances of a series", [f"{series.series_path}/instances"], 100),
    )
    with run.both("searched", *([] if run.target else ["--workers", "2"])) as both:
        for body in (bodies.patients(STUDIES, PIXELS), bodies.ct_study(STUDIES, SERIES, PIXELS)):
            run.store(body, both)
        for name, paths, rounds in queries:
            for server in both[:1] if paths[0].startswith("//") else both:
                # Of a peer fewer are asked; the first tenth does not count.
                asked = rounds if server is both[0] else max(rounds // 5, 20)
                every = [paths[turn % len(paths)] for turn in range(asked + asked // 10)]
                times = latencies(server, every, JSON)[asked // 10 :]
                yield times_row(f"{name}: median", server.name, times, 0.5)
                if not paths[0].startswith("//"):
                    # Long enough that the slowest server answers each client several times.
                    seconds = max(run.size.seconds, 2 * SEARCHERS * percentile(times, 0.5) / 1e3)
                    answered = Load(server, paths, JSON).answered(SEARCHERS, seconds)
                    yield Row(f"{name}, {SEARCHERS} at once", server.name, answered.rate, answered.note)


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
            drop_from_memory({path: (0, size) for path, size in server.segments().items()})
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
        cold = {path: (before.get(path, 0), end) for path, end in after.items() if end > before.get(path, 0)}
        frame = f"{watched.path}/frames/1"
        with _timed(server, frame, FRAME) as idle:
            time.sleep(1 + 2 * run.size.seconds)
        yield _p99("one frame at a time", f"{OURS}, idle", idle.answers)
        yield _beside_bulk(server, study, frame, "in memory", 20, {})
        if cold:
            yield _beside_bulk(server, study, frame, "on disk", 20 + BURSTS * BULK, cold)


def _beside_bulk(
    server: Service, study: Body, frame: str, where: str, first: int, cold: Mapping[Path, tuple[int, int]]
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


def _burst(
    server: Service, uploads: Sequence[Body], study: Body, cold: Mapping[Path, tuple[int, int]]
) -> int:
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
