"""Searches beside Orthanc: the first 100 studies, the studies of a patient, the 400 instances of a series.

Both hold the same 1,001 studies, and nothing is stored while they are asked: what an archive is that everyone
reads. The time of one answer is that of one client; how many a second, of sixteen.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from perf import data, servers
from perf.load import Client, answers_a_second
from perf.measures import Size, missing, store_study
from perf.report import Claim, Finding, Row
from perf.servers import Server

JSON = "application/dicom+json"
STUDIES = 1_000
SERIES = 400  # instances, in the study behind these
CLIENTS = 16
PIXELS = 2_048  # bytes: a search never looks at them
_PATIENT = b"P0012345"  # of every study that perf.data makes


@dataclass(frozen=True, slots=True)
class Question:
    name: str
    paths: Sequence[str]
    rounds: int  # by one client
    ratio: float  # of answers a second, to Orthanc's
    milliseconds: float


def questions() -> list[Question]:
    numbers = random.Random(1)
    patients = [f"/studies?PatientID=P{study:07d}" for study in numbers.sample(range(STUDIES), STUDIES)]
    series = data.keys_of(STUDIES, 0)
    return [
        Question("the first 100 studies", ["/studies?limit=100"], 300, 20, 1.0),
        Question("the studies of a patient", patients, STUDIES, 5, 0.3),
        Question(
            f"the {SERIES} instances of a series",
            [f"/studies/{series.study}/series/{series.series}/instances"],
            100,
            100,
            3.0,
        ),
    ]


def search_peers(size: Size) -> Iterator[Finding]:
    bodies = list(_bodies(size.folder))
    with ExitStack() as stack:
        ours = stack.enter_context(servers.streamsrv(size.folder / "searched", "--workers", "2"))
        peer = stack.enter_context(servers.orthanc(size.folder / "peer"))
        both = [server for server in (ours, peer) if server is not None]
        for server in both:
            for body in bodies:
                store_study(server, body)
        floor = _times(ours, ["/health/live"], 300)
        yield Row("no search at all: median", ours.name, statistics.median(floor), "ms", "what HTTP takes")
        for question in questions():
            yield from _answered(size, both, question)


def _bodies(folder: Path) -> Iterator[Path]:
    """One instance a study, each of another patient, then the series; a store transaction each."""
    path = folder / "studies.body"
    with path.open("wb") as stream:
        for study in range(STUDIES):
            text = b"".join(data.ct_study(study, 1, PIXELS).chunks()).removesuffix(data.CLOSING)
            stream.write(text.replace(_PATIENT, b"P%07d" % study))
        stream.write(data.CLOSING)
    yield path
    yield data.ct_study(STUDIES, SERIES, PIXELS).write(folder / "series.body")


def _answered(size: Size, both: Sequence[Server], question: Question) -> Iterator[Finding]:
    rates: dict[str, float] = {}
    medians: dict[str, float] = {}
    for server in both:
        paths = [server.prefix + path for path in question.paths]
        ours = server.name == "streamsrv"
        times = _times(server, paths, question.rounds if ours else max(question.rounds // 5, 20))
        medians[server.name] = statistics.median(times)
        note = f"99 % {sorted(times)[int(len(times) * 0.99)]:.2f} ms"
        yield Row(f"{question.name}: median", server.name, medians[server.name], "ms", note)
        # So long that the slowest answers each client several times.
        seconds = max(size.seconds, 2 * CLIENTS * medians[server.name] / 1e3)
        rates[server.name] = answers_a_second(server.address, paths, JSON, CLIENTS, seconds)
        yield Row(f"{question.name}, {CLIENTS} at once", server.name, rates[server.name], "a second")
    yield Claim(f"{question.name}: median", medians["streamsrv"], "ms", at_most=question.milliseconds)
    if "Orthanc" not in rates:
        yield missing(f"{question.name}, {CLIENTS} at once", "Orthanc", "a second")
        return
    text = f"{question.name}, {CLIENTS} at once, in relation to Orthanc"
    yield Claim(text, rates["streamsrv"] / rates["Orthanc"], "x", at_least=question.ratio)


def _times(server: Server, paths: Sequence[str], rounds: int) -> list[float]:
    """Milliseconds; the first tenth warms up and does not count."""
    times = []
    with Client(server.address) as client:
        for number in range(rounds + rounds // 10):
            response = client.get(paths[number % len(paths)], JSON)
            if response.status != 200:
                raise RuntimeError(f"{server.name} answered {response.status}")
            times.append(response.seconds * 1e3)
    return times[rounds // 10 :]
