"""Small answers: frames of 524 kB and 21 kB, whole instances, the metadata of one; for 1, 16 and 64 clients.

nginx serves files of the same length twice: one file that it keeps open, and as many different ones as there
are frames, opened for each request; what it does faster of the two is what we are compared with. One more
has the length of our whole answer, which is multipart: some kernels send one length three times as fast as
another (docs/performance.md). Tiles are asked for without the express lane as well. Answers of half a
megabyte are asked for by `perf.flood`, all others by wrk; every subject by the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from perf import data, servers
from perf.flood import flood
from perf.load import AS_STORED, FRAME, Answered, Client, answered
from perf.measures import Size, missing, store_study
from perf.report import Claim, Finding, median_row
from perf.servers import Server

JSON = "application/dicom+json"
CLIENTS = (1, 16, 64)
FEWER = (1, 16)
ROUNDS = 5
TILE = 21_000
INSTANCES, TILES = 100, 500  # different ones that are asked for
LARGE = 100_000  # bytes from which on wrk would be what is measured
P99_MS = 20.0
LANE = 3.0  # the least that the express lane has to give
USUAL = "streamsrv, no express lane"
WHOLE = "nginx, a file as long as the whole answer"


@dataclass(frozen=True, slots=True)
class Question:
    """`nginx` and `orthanc`: the least rate in relation to them, for each number of clients that has one;
    `p99` the most milliseconds."""

    name: str
    paths: Sequence[str]
    accept: str
    length: int
    clients: Sequence[int]
    nginx: dict[int, float]
    orthanc: dict[int, float]
    p99: dict[int, float]
    lane: dict[int, float]


def small_answers(size: Size) -> Iterator[Finding]:
    study = data.ct_study(4, min(size.instances, INSTANCES))
    slide = data.multi_frame(5, size.tiles, TILE)
    files = size.folder / "small"
    _files(
        files,
        {data.CT_PIXELS: len(study.keys), TILE: min(TILES, size.tiles), 526_000: len(study.keys), 5_300: 1},
    )
    bodies = [study.write(size.folder / "frames.body"), slide.write(size.folder / "slide.body")]
    with ExitStack() as stack:
        ours = stack.enter_context(servers.streamsrv(size.folder / "frames"))
        usual = stack.enter_context(servers.streamsrv(size.folder / "usual", "--no-fast-path"))
        web = stack.enter_context(servers.nginx(files))
        peer = stack.enter_context(servers.orthanc(size.folder / "peer"))
        for server in [server for server in (ours, usual, peer) if server is not None]:
            for body in bodies:
                store_study(server, body)
        for question in _questions(study, slide, size):
            _whole_file(files, ours, question)
            for clients in question.clients:
                yield from _compared(size, question, clients, (ours, usual), web, peer)


def _questions(study: data.Body, slide: data.Body, size: Size) -> list[Question]:
    frames = [f"{key.path}/frames/1" for key in study.keys]
    tiles = [
        f"{slide.keys[0].path}/frames/{turn * 7 % size.tiles + 1}" for turn in range(min(TILES, size.tiles))
    ]
    instances = [key.path for key in study.keys]
    metadata = [f"{path}/metadata" for path in instances]
    every = dict.fromkeys(CLIENTS, 0.5)
    tenfold = dict.fromkeys(CLIENTS, 10.0)
    lane = dict.fromkeys(FEWER[-1:], LANE)
    return [
        Question("frames of 524 kB", frames, FRAME, data.CT_PIXELS, CLIENTS, {16: 0.9}, {}, {}, {}),
        Question("frames of 21 kB", tiles, FRAME, TILE, CLIENTS, every, tenfold, {64: P99_MS}, lane),
        Question("instances of 526 kB", instances, AS_STORED, 526_000, FEWER, {}, {}, {}, {}),
        Question("metadata of one instance", metadata, JSON, 5_300, FEWER, {}, {}, {}, {}),
    ]


def _files(folder: Path, counts: dict[int, int]) -> None:
    (folder / "many").mkdir(parents=True)
    for length, count in counts.items():
        noise = data.noise(length)
        (folder / str(length)).write_bytes(noise)
        for number in range(count):
            (folder / "many" / f"{length}-{number}").write_bytes(number.to_bytes(8, "little") + noise[8:])


def _whole_file(folder: Path, ours: Server, question: Question) -> None:
    with Client(ours.address) as client:
        length = client.get(ours.prefix + question.paths[0], question.accept).length
    (folder / f"whole-{question.length}").write_bytes(data.noise(length))


def _compared(
    size: Size,
    question: Question,
    clients: int,
    ours: tuple[Server, Server],
    web: Server | None,
    peer: Server | None,
) -> Iterator[Finding]:
    measure = f"{question.name}, {clients} at once"
    paths = [ours[0].prefix + path for path in question.paths]
    subjects = {"streamsrv": (ours[0], paths)}
    if clients in question.lane:
        subjects[USUAL] = ours[1], paths
    if web is not None:
        many = [f"/many/{question.length}-{number}" for number in range(len(question.paths))]
        if (web.folder / many[-1].lstrip("/")).exists():
            subjects["nginx, many files"] = (web, many)
        subjects["nginx, one file"] = (web, [f"/{question.length}"])
        subjects[WHOLE] = (web, [f"/whole-{question.length}"])
    found: dict[str, list[Answered]] = {name: [] for name in subjects}
    for _ in range(ROUNDS):
        for name, (server, paths) in subjects.items():
            found[name].append(_asked(server, paths, question, clients, size.seconds / 2))
    if peer is not None:
        paths = [peer.prefix + path for path in question.paths]
        found["Orthanc"] = [_asked(peer, paths, question, clients, size.seconds / 2)]
    for name, answers in found.items():
        yield median_row(measure, name, [one.rate for one in answers], "a second", _percentiles(answers))
    for name, there in (("nginx", web), ("Orthanc", peer)):
        if there is None:
            yield missing(measure, name, "a second")
    yield from _claims(measure, question, clients, found)


def _asked(
    server: Server, paths: Sequence[str], question: Question, clients: int, seconds: float
) -> Answered:
    ask = flood if question.length >= LARGE else answered
    accept = question.accept if server.name != "nginx" else "*/*"
    return ask(server.address, paths, accept, clients, seconds)


def _percentiles(answers: Sequence[Answered]) -> str:
    p50, p95, p99 = (
        statistics.median(getattr(one, name) for one in answers) for name in ("p50", "p95", "p99")
    )
    return f"p50 {p50:.3g}, p95 {p95:.3g}, p99 {p99:.3g} ms"


def _claims(
    measure: str, question: Question, clients: int, found: dict[str, list[Answered]]
) -> Iterator[Claim]:
    rates = {name: [one.rate for one in answers] for name, answers in found.items()}
    fastest = max(
        (name for name in rates if name.startswith("nginx") and name != WHOLE),
        key=lambda name: statistics.median(rates[name]),
        default=None,
    )
    if fastest is not None and clients in question.nginx:
        relation = statistics.median(a / b for a, b in zip(rates["streamsrv"], rates[fastest], strict=True))
        text, which = f"{measure}, in relation to nginx", fastest.partition(", ")[2]
        yield Claim(text, relation, "x", at_least=question.nginx[clients], note=which)
    if "Orthanc" in rates and clients in question.orthanc:
        relation = statistics.median(rates["streamsrv"]) / rates["Orthanc"][0]
        text = f"{measure}, in relation to Orthanc"
        yield Claim(text, relation, "x", at_least=question.orthanc[clients])
    if clients in question.lane:
        relation = statistics.median(a / b for a, b in zip(rates["streamsrv"], rates[USUAL], strict=True))
        text = f"{measure}, in relation to no express lane"
        yield Claim(text, relation, "x", at_least=question.lane[clients])
    if clients in question.p99:
        p99 = statistics.median(one.p99 for one in found["streamsrv"])
        yield Claim(f"{measure}, p99", p99, "ms", at_most=question.p99[clients])
