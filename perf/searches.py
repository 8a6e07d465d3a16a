"""Searches: of 1,001 studies beside Orthanc, and of an archive of up to a million instances by each indexed
key while uploads go on."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

from perf import bodies
from perf.bodies import Body
from perf.clients import JSON, Client, percentile, together
from perf.results import OURS, Row
from perf.run import Asked, Run, latencies, post_study, store_study
from perf.servers import Server, streamsrv

STUDIES = 1_000
SERIES = 400  # instances, in the study behind these
CLIENTS = 16
PIXELS = 2_048  # bytes, which a search never reads.
ROUNDS = 300  # requests for each key.
PAUSE = 0.004  # seconds between two requests.
WARMING = 20  # rounds before them, which do not count.
UPLOADED = 10  # instances in one POST.
UPLOADS_A_SECOND = 4  # 21 MB/s, as a busy department sends
# The cost of a request that looks nothing up.
FLOOR = "no search at all"
A_STUDY = 100  # instances, of an archive
A_POST = 10  # studies
# The first study of an archive; other measures and uploads have smaller numbers.
ARCHIVE, UPLOADS = 45_000_000, 40_000
SYLLABLES = tuple(re.findall("..", "ALBEDOELFRIGUHANJOKALUMANOPERISATOVOWIZE"))


# --- beside Orthanc ---


class Query(NamedTuple):
    name: str
    paths: Sequence[str]
    rounds: int  # of one client


def queries() -> list[Query]:
    numbers = random.Random(1)
    patients = [f"/studies?PatientID=P{study:07d}" for study in numbers.sample(range(STUDIES), STUDIES)]
    series = bodies.keys_of(STUDIES)
    instances = f"/studies/{series.study}/series/{series.series}/instances"
    return [
        Query("the first 100 studies", ["/studies?limit=100"], 300),
        Query("the studies of a patient", patients, STUDIES),
        Query(f"the {SERIES} instances of a series", [instances], 100),
    ]


def searches(run: Run) -> Iterator[Row]:
    """Both hold the same studies, and nothing is stored while they are asked. The time of one answer is that
    of one client; the rate is that of sixteen."""
    studies = bodies.patients(STUDIES, PIXELS)
    series = bodies.ct_study(STUDIES, SERIES, PIXELS)
    with run.both("searched", *([] if run.target else ["--workers", "2"])) as both:
        for body in (studies, series):
            path = body.write(run.folder / "searched.body")
            for server in both:
                store_study(server, body, path)
                server.studies.update(key.study for key in body.keys)
        floor = latencies(both[0], ["//health/live"] * ROUNDS, "*/*")
        yield Row(f"{FLOOR}: median", OURS, statistics.median(floor), "the cost of HTTP")
        for query in queries():
            for server in both:
                yield from _answered(run, server, query, server is both[0])


def _answered(run: Run, server: Server, query: Query, ours: bool) -> Iterator[Row]:
    rounds = query.rounds if ours else max(query.rounds // 5, 20)
    asked = [query.paths[turn % len(query.paths)] for turn in range(rounds + rounds // 10)]
    times = latencies(server, asked, JSON)[rounds // 10 :]
    median = statistics.median(times)
    note = f"99 % {percentile(times, 0.99):.2f} ms"
    yield Row(f"{query.name}: median", server.name, median, note)
    # Long enough that the slowest server answers each client several times.
    seconds = max(run.size.seconds, 2 * CLIENTS * median / 1e3)
    rate = Asked(server, query.paths, JSON).rate(CLIENTS, seconds).rate
    yield Row(f"{query.name}, {CLIENTS} at once", server.name, rate)


# --- a large archive ---


def archive_study(study: int) -> Body:
    """A study of an archive: 100 attributes and 5 kB of DICOM JSON an instance, as a CT has."""
    numbers = random.Random(study)
    date = _day(numbers)
    attributes = dict.fromkeys(("StudyDate", "SeriesDate", "PerformedProcedureStepStartDate"), date)
    attributes |= {
        "PatientName": "^".join("".join(numbers.choices(SYLLABLES, k=count)) for count in (3, 2)),
        "PatientID": f"P{study // 2:06d}",
        "AccessionNumber": f"A{study:07d}",
        "StudyID": f"S{study}",
        "ScheduledProcedureStepID": f"SPS{study}",
        "RequestedProcedureID": f"RP{study}",
    }
    return bodies.small_study(ARCHIVE + study, A_STUDY, attributes)


def grow(server: Server, first: int, last: int) -> None:
    """Stores the studies from `first` to `last` of an archive."""

    def post(begin: int, client: Client) -> None:
        some = [archive_study(study) for study in range(begin, min(begin + A_POST, last))]
        post_study(client, bodies.joined(some))

    together(2, server, [partial(post, begin) for begin in range(first, last, A_POST)])


def grown(server: Server) -> int:
    """How many instances the archive has grown to."""
    low, high = 0, 1 << 24
    with Client(server) as client:
        while low < high:
            middle = (low + high + 1) // 2
            study = bodies.keys_of(ARCHIVE + middle - 1).study
            there = client.get(f"/studies?StudyInstanceUID={study}", keep=True).length > len("[]")
            low, high = (middle, high) if there else (low, middle - 1)
    return low * A_STUDY


def _day(numbers: random.Random) -> str:
    return f"20{numbers.randrange(26):02d}{numbers.randrange(1, 13):02d}{numbers.randrange(1, 29):02d}"


# OHIF's list, and each attribute with an inverted list or a place of its own in the index.
KEYS = {
    "study list as OHIF asks": "/studies?limit=101&offset=0&fuzzymatching=true"
    "&includefield=00081030,00080060,00080090,00100030",
    "StudyDate, a day": "/studies?StudyDate={day}",
    "StudyDate, a month": "/studies?StudyDate={month}01-{month}31&limit=101",
    "StudyTime": "/studies?StudyTime=101500.123&limit=101",
    "AccessionNumber": "/studies?AccessionNumber=A{n:07d}",
    "ModalitiesInStudy": "/studies?ModalitiesInStudy=MR&limit=101",
    "SOPClassesInStudy": f"/studies?SOPClassesInStudy={bodies.CT_STORAGE}&limit=101",
    "ReferringPhysicianName": "/studies?ReferringPhysicianName=referrer*&limit=101",
    "StudyDescription": "/studies?StudyDescription=CT*&limit=101",
    "PatientName, beginning": "/studies?PatientName={name}*&limit=101",
    "PatientName, within": "/studies?PatientName=*{name}*&limit=101",
    "PatientID": "/studies?PatientID=P{patient:06d}",
    "PatientBirthDate": "/studies?PatientBirthDate=19600229&limit=101",
    "StudyID": "/studies?StudyID=S{n}",
    "StudyInstanceUID": "/studies?StudyInstanceUID={study}",
    "Modality": "/series?Modality=CT&limit=101",
    "SeriesNumber": "/series?SeriesNumber=2&limit=101",
    "PerformedProcedureStepStartDate": "/series?PerformedProcedureStepStartDate={day}",
    "ScheduledProcedureStepID": "/series?RequestAttributesSequence.ScheduledProcedureStepID=SPS{n}",
    "RequestedProcedureID": "/series?RequestAttributesSequence.RequestedProcedureID=RP{n}",
    "SeriesInstanceUID": "/series?SeriesInstanceUID={series}",
    "SOPInstanceUID": "/instances?SOPInstanceUID={instance}",
    "series of a study": "/studies/{study}/series",
    "instances of a series": "/studies/{study}/series/{series}/instances",
}


def path_of(template: str, numbers: random.Random, studies: int) -> str:
    """The path with values of a random study of the archive, a random day and a random name."""
    n, day = numbers.randrange(studies), _day(numbers)
    keys = bodies.keys_of(ARCHIVE + n, numbers.randrange(A_STUDY // 2))
    name = "".join(numbers.choices(SYLLABLES, k=2)).lower()
    return template.format(n=n, patient=n // 2, day=day, month=day[:6], name=name, **keys._asdict())


def search(run: Run) -> Iterator[Row]:
    """One client, so that the time is that of one reader: two that ask at once wait for each other."""
    if run.archive is not None:
        with streamsrv(run.archive) as server:
            instances = grown(server)
        yield from _stage(run.archive, instances)
        return
    made = 0
    for instances in run.size.archives:
        with streamsrv(run.folder) as server:
            began = time.perf_counter()
            grow(server, made // A_STUDY, instances // A_STUDY)
            rate = (instances - made) / (time.perf_counter() - began)
        yield Row("the archive grows", f"to {instances:,} instances", rate)
        made = instances
        yield from _stage(run.folder, instances)


def _stage(folder: Path, instances: int) -> Iterator[Row]:
    subject, slowest = f"{instances:,} instances", ("", 0.0)
    times, uploads = _timed(folder, instances // A_STUDY)
    for name, milliseconds in times.items():
        p99 = sorted(milliseconds)[int(len(milliseconds) * 0.99)]
        if name != FLOOR:
            slowest = max(slowest, (name, p99), key=lambda each: each[1])
        note = f"median {statistics.median(milliseconds):.2f} ms, slowest {max(milliseconds):.1f} ms"
        yield Row(f"99 % of first pages: {name}", subject, p99, note)
    yield Row("stored meanwhile", subject, uploads)
    yield Row("99 % of first pages: the slowest key", subject, slowest[1], slowest[0])


def _timed(folder: Path, studies: int) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of the requests of each key, and how many instances a second were stored meanwhile. The
    keys take turns, in another order each time, so that all of them meet the same uploads."""
    numbers = random.Random(studies)
    context = multiprocessing.get_context("spawn")
    stop, stored = context.Event(), context.Value("q", 0)
    templates = {FLOOR: "//health/live"} | KEYS
    times: dict[str, list[float]] = {name: [] for name in templates}
    with streamsrv(folder, "--workers", "2") as server:
        seed = int(time.time() / 10) % UPLOADS  # an archive that was measured before has earlier studies
        uploader = context.Process(target=upload, args=(server, seed, stop, stored), daemon=True)
        uploader.start()
        try:
            while not stored.value and uploader.is_alive():
                time.sleep(0.05)
            with Client(server) as client:
                for turn in range(-WARMING, ROUNDS):
                    if not turn:
                        before, began = stored.value, time.perf_counter()
                    for name in numbers.sample(list(templates), len(templates)):
                        milliseconds = _once(client, path_of(templates[name], numbers, studies))
                        times[name] += [milliseconds] if turn >= 0 else []
                    if not uploader.is_alive():
                        raise RuntimeError("the uploads ended too soon")
            return times, (stored.value - before) / (time.perf_counter() - began)
        finally:
            stop.set()
            uploader.join()


def _once(client: Client, path: str) -> float:
    time.sleep(PAUSE)
    response = client.get(path)
    if response.status not in (200, 204):
        raise RuntimeError(f"{path} was answered with {response.status}")
    return response.seconds * 1e3


def upload(server: Server, seed: int, stop: Event, stored: object) -> None:
    """Stores studies of CT instances one after the other, in a process of its own."""
    with Client(server) as client:
        for study in itertools.count(seed * 1000):
            began = time.perf_counter()
            post_study(client, bodies.ct_study(study, UPLOADED))
            stored.value += UPLOADED  # type: ignore[attr-defined]  # a multiprocessing.Value
            if stop.wait(max(began + 1 / UPLOADS_A_SECOND - time.perf_counter(), 0)):
                return
