"""Stored frames, instances and metadata: answers a second and the time of one answer.

nginx serves files of the same length twice: one file that it keeps open, and one file for each frame, opened
for each request. The faster of the two counts. One more file has the length of our whole answer, which is
multipart: some kernels send one length three times as fast as another (docs/performance.md).
"""

from __future__ import annotations

import gzip
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from perf import bodies
from perf.bodies import Body
from perf.claims import USUAL, WHOLE
from perf.clients import DICOM, FRAME, JSON, Client, percentile
from perf.results import Row, median_row
from perf.run import LARGE_ANSWER, Asked, Run, Size, forget, latencies, rates, store_study
from perf.servers import Server

TILE = 21_000
INSTANCES, TILES = 100, 500  # different ones that are asked for.
PLAIN = "--no-fast-path"  # the flag of a server without its fast path.
PLAIN_CLIENTS = 16
DIFFERENT = 2_000  # requests of lists, in turn.
PEER = 3  # requests of a frame to Orthanc, which reads the whole instance for each


class Kind(NamedTuple):
    name: str
    paths: Sequence[str]
    accept: str
    length: int


def frames(run: Run) -> Iterator[Row]:
    study = bodies.ct_study(4, min(run.size.instances, INSTANCES))
    slide = bodies.multi_frame(5, run.size.tiles, TILE)
    different = min(TILES, run.size.tiles)
    tiles = [f"{slide.path}/frames/{turn * 7 % run.size.tiles + 1}" for turn in range(different)]
    instances = [key.path for key in study.keys]
    kinds = [
        Kind("frames of 524 kB", [f"{path}/frames/1" for path in instances], FRAME, bodies.CT_PIXELS),
        Kind("frames of 21 kB", tiles, FRAME, TILE),
        Kind("instances of 526 kB", instances, DICOM, 526_000),
        Kind("metadata of one instance", [f"{path}/metadata" for path in instances], JSON, 5_300),
    ]
    files = run.folder / "small"
    _write_files(files, {each.length: len(each.paths) for each in kinds})
    # Ours without its fast path, for one measure of tiles.
    absent = run.target is not None or PLAIN_CLIENTS not in run.size.clients
    plain = nullcontext() if absent else run.streamsrv("usual", PLAIN)
    with run.both("frames") as both, run.nginx(files) as web, plain as usual:
        for body in (study, slide):
            path = body.write(run.folder / "frames.body")
            for server in [*both, *([usual] if usual else [])]:
                store_study(server, body, path)
        for kind in kinds:
            with Client(both[0]) as client:
                whole = client.fetch(kind.paths[0], kind.accept).length
            (files / f"whole-{kind.length}").write_bytes(bodies.noise(whole))
            clients = run.size.clients if kind.accept == FRAME else run.size.clients[:2]
            for count in clients:
                yield from _compared(run, kind, count, both, usual, web)


def _write_files(folder: Path, counts: dict[int, int]) -> None:
    (folder / "many").mkdir(parents=True)
    for length, count in counts.items():
        noise = bodies.noise(length)
        (folder / str(length)).write_bytes(noise)
        for number in range(count):
            (folder / "many" / f"{length}-{number}").write_bytes(number.to_bytes(8, "little") + noise[8:])


def _compared(
    run: Run,
    kind: Kind,
    clients: int,
    both: Sequence[Server],
    usual: Server | None,
    web: Server | None,
) -> Iterator[Row]:
    large = kind.length >= LARGE_ANSWER
    ours, *theirs = (Asked(server, kind.paths, kind.accept, large) for server in both)
    subjects = {"streamsrv": ours}
    if usual and kind.length == TILE and clients == PLAIN_CLIENTS:
        subjects[USUAL] = ours._replace(server=usual)
    if web is not None:
        many = [f"/many/{kind.length}-{number}" for number in range(len(kind.paths))]
        if kind.accept != JSON:
            subjects["nginx, many files"] = Asked(web, many, large=large)
        subjects["nginx, one file"] = Asked(web, [f"/{kind.length}"], large=large)
        subjects[WHOLE] = Asked(web, [f"/whole-{kind.length}"], large=large)
    subjects |= {peer.server.name: peer for peer in theirs}
    measure = f"{kind.name}, {clients} at once"
    p99 = kind.length == TILE
    yield from rates(measure, subjects, clients, run.size.seconds / 2, run.size.rates, p99=p99)


# --- instances with very many frames ---


def lists(run: Run) -> Iterator[Row]:
    """A loop of encapsulated frames and a whole slide: one frame at a place, and lists of frames at random
    places."""
    loop = bodies.multi_frame(90, run.size.loop, TILE)
    slide = bodies.pyramid(91, run.size.slide, TILE)
    path = run.folder / "many.body"
    with run.both("many") as both:
        for body, servers in ((loop, both), (slide, both[:1])):
            body.write(path)
            for server in servers:
                store_study(server, body, path)
        path.unlink()
        yield from _places(run, f"a loop of {run.size.loop:,} frames", both, loop.path, run.size.loop)
        name, tiles = f"a slide of {run.size.slide:,} tiles", run.size.slide * 3 // 4
        yield from _places(run, name, both[:1], slide.path, tiles)
        yield from _lists(run, "a loop", both[0], [(loop.path, run.size.loop)])
        yield from _lists(run, "a slide", both[0], _levels(slide, run.size))


def _levels(slide: Body, size: Size) -> list[tuple[str, int]]:
    """Path and number of tiles of each level that has more than a few."""
    found, tiles = [], size.slide
    for key in slide.keys:
        count = max(1, tiles * 3 // 4)
        found.append((key.path, count))
        tiles -= count
    return [(path, count) for path, count in found if count >= max(size.lists)] or found[:1]


def _places(run: Run, name: str, servers: Sequence[Server], path: str, frames: int) -> Iterator[Row]:
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
            p95, p99 = (percentile(times, share) for share in (0.95, 0.99))
            note = f"p95 {p95:.3g}, p99 {p99:.3g}, {len(times)} requests"
            yield Row(f"one frame of {name}: {where}", server.name, statistics.median(times), note)


def _lists(run: Run, name: str, ours: Server, parts: Sequence[tuple[str, int]]) -> Iterator[Row]:
    numbers = random.Random(2)

    def paths(count: int) -> Iterator[str]:
        for _ in range(DIFFERENT):
            path, frames = numbers.choice(parts)
            chosen = ",".join(str(numbers.randrange(1, frames + 1)) for _ in range(min(count, frames)))
            yield f"{path}/frames/{chosen}"

    for clients in run.size.clients[:2]:
        for count in (1, *run.size.lists):
            measure = f"lists of {count} frames of {name}, {clients} at once"
            if count == 1:
                measure = f"frames of {name} at random, {clients} at once"
            asked = Asked(ours, list(paths(count)), FRAME, large=count > 1)
            rounds = min(3, run.size.rates)
            yield from rates(measure, {"streamsrv": asked}, clients, run.size.seconds / 2, rounds)


# --- metadata of a study ---


def metadata(run: Run) -> Iterator[Row]:
    """nginx's gzip is the file compressed beforehand (gzip_static), the cheapest that there can be."""
    files = run.folder / "nginx"
    files.mkdir()
    name = f"metadata of {run.size.instances} instances"
    with run.both("metadata") as both:
        yield from _first(run, name, both)
        body = bodies.ct_study(100, run.size.instances)
        path = body.write(run.folder / "study.body")
        url = f"/studies/{body.study}/metadata"
        for server in both:
            store_study(server, body, path)
        with Client(both[0]) as client:
            text = client.fetch(url, JSON, keep=True).payload
        (files / "metadata.json").write_bytes(text)
        (files / "metadata.json.gz").write_bytes(gzip.compress(text, 6))
        with run.nginx(files) as web:
            for coding, encoding in (("plain", "identity"), ("gzip", "gzip")):
                for clients in run.size.clients[:2]:
                    asked = both if (coding, clients) == ("plain", 1) else both[:1]
                    subjects = {one.name: Asked(one, [url], JSON, True, encoding) for one in asked}
                    if web is not None:
                        subjects["nginx"] = Asked(web, ["/metadata.json"], JSON, True, encoding)
                    measure, rounds = f"{name}, {coding}, {clients} at once", min(3, run.size.rates)
                    yield from rates(measure, subjects, clients, run.size.seconds / 2, rounds)


def _first(run: Run, name: str, both: Sequence[Server]) -> Iterator[Row]:
    """Each of a study that was stored just now."""
    for server in both:
        times = []
        for number in range((run.size.rounds if server is both[0] else 2) + 1):
            body = bodies.ct_study(101 + number, run.size.instances)
            times.append(first_metadata(server, body, body.write(run.folder / "study.body")))
        yield median_row(f"{name}, the first request after the store", server.name, times[1:])


def first_metadata(server: Server, body: Body, path: Path) -> float:
    """Milliseconds of the first request for the metadata of a study, which is stored and deleted."""
    store_study(server, body, path)
    (milliseconds,) = latencies(server, [f"/studies/{body.study}/metadata"], JSON)
    forget(server, body.study)
    return milliseconds
