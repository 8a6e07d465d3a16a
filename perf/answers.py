"""Stored frames, instances, metadata and searches: answers a second and the time of one answer.

nginx serves files of the same length twice: one file that it keeps open, and one file for each frame, opened
for each request. The faster of the two counts. One more file has the length of our whole answer, which is
multipart: some kernels send one length three times as fast as another (docs/performance.md).
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from perf import bodies
from perf.bodies import Body
from perf.clients import DICOM, FRAME, JSON, Client, Load, percentile
from perf.results import OURS, USUAL, WHOLE, Row, median_row
from perf.run import LARGE_ANSWER, Run, forget, latencies, rates, store_study, times_row
from perf.servers import Service

TILE = 21_000
INSTANCES, TILES = 100, 500  # different ones that are asked for.
PLAIN = "--no-fast-path"  # the flag of a server without its fast path.
PLAIN_CLIENTS = 16
DIFFERENT = 2_000  # requests of lists, in turn.
PEER = 3  # requests of a frame to Orthanc, which reads the whole instance for each
STUDIES, SERIES = 1_000, 400  # searched: studies of one instance, and the instances of one more.
PIXELS = 2_048  # bytes of these, which a search never reads.
SEARCHERS = 16


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
    # Ours without its fast path, for one measure of tiles.
    absent = run.target is not None or PLAIN_CLIENTS not in run.size.clients
    plain = nullcontext() if absent else run.streamsrv("usual", PLAIN)
    with run.both("frames") as both, run.nginx(files) as web, plain as usual:
        for body in (study, slide):
            run.store(body, [*both, *([usual] if usual else [])])
        for name, length, paths, accept in kinds:
            with Client(both[0]) as client:
                whole = client.get(paths[0], accept).length
            (files / f"whole-{length}").write_bytes(bodies.noise(whole))
            large = length >= LARGE_ANSWER
            ours, *theirs = (Load(server, paths, accept, large=large) for server in both)
            beside = {} if web is None else _files_of(web, length, 0 if accept == JSON else len(paths))
            beside |= {load.service.name: load for load in theirs}
            for clients in run.size.clients if accept == FRAME else run.size.clients[:2]:
                subjects = {OURS: ours}
                if usual and length == TILE and clients == PLAIN_CLIENTS:
                    subjects[USUAL] = Load(usual, paths, accept)
                subjects |= beside
                yield from rates(run, f"{name}, {clients} at once", subjects, clients, p99=length == TILE)


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


def lists(run: Run) -> Iterator[Row]:
    """A loop of encapsulated frames and a whole slide: one frame at a place, and lists of frames at random
    places."""
    size = run.size
    loop = bodies.multi_frame(90, size.loop, TILE)
    slide = bodies.pyramid(91, size.slide, TILE)
    with run.both("many") as both:
        run.store(loop, both)
        run.store(slide, both[:1])
        name, tiles = f"a slide of {size.slide:,} tiles", size.slide * 3 // 4
        yield from _places(run, f"a loop of {size.loop:,} frames", both, loop.path, size.loop)
        yield from _places(run, name, both[:1], slide.path, tiles)
        yield from _lists(run, "a loop", both[0], loop.path, size.loop)
        yield from _lists(run, "a slide", both[0], slide.path, tiles)


def _places(run: Run, name: str, servers: Sequence[Service], path: str, frames: int) -> Iterator[Row]:
    """An instance whose frames all cost the same has one cost at the first, the last and any place."""
    numbers = random.Random(1)
    places: dict[str, Callable[[], int]] = {
        "the first": lambda: 1,
        "the last": lambda: frames,
        "any": lambda: numbers.randrange(1, frames + 1),
    }
    for where, place in places.items():
        for server in servers:
            asked = run.size.asked if server is servers[0] else PEER
            times = latencies(server, [f"{path}/frames/{place()}" for _ in range(asked)], FRAME)
            yield times_row(f"one frame of {name}: {where}", server.name, times, 0.5)


def _lists(run: Run, name: str, ours: Service, path: str, frames: int) -> Iterator[Row]:
    numbers = random.Random(2)
    for clients in run.size.clients[:2]:
        for count in (1, *run.size.lists):
            chosen = [numbers.choices(range(1, frames + 1), k=count) for _ in range(DIFFERENT)]
            paths = [f"{path}/frames/{','.join(map(str, each))}" for each in chosen]
            measure = f"lists of {count} frames of {name}, {clients} at once"
            if count == 1:
                measure = f"frames of {name} at random, {clients} at once"
            yield from rates(run, measure, {OURS: Load(ours, paths, FRAME, large=count > 1)}, clients)


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
        with run.nginx(files) as web:
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
