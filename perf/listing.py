"""The study list of the page: its searches while a person types, and those of each order.

An archive of small studies, two of each patient, is stored once. Each request has a limit of its own, so no
page that was kept answers. The queries are those of streamsrv/web/pages/files/study-search.js.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import partial

from perf import bodies
from perf.archive import ARCHIVE, FLOOR, SYLLABLES, WARMING
from perf.bodies import Body
from perf.clients import JSON, Client, together
from perf.results import Row
from perf.run import Run, latencies, post_study, times_row
from perf.servers import Service

PIXELS = 64  # bytes
A_POST = 500  # studies
ASKED = 60  # requests of each query
WORDS = "PatientName={}&fuzzymatching=true"
QUERIES = {
    "all, the newest first": "",
    "a letter of a name": WORDS.format("a"),
    "two letters of a name": WORDS.format("al"),
    "six letters of a name": WORDS.format("albedo"),
    "two words of a letter": WORDS.format("a+b"),
    "three words of a letter": WORDS.format("a+b+c"),
    "two words that no name has": WORDS.format("al+qu"),
    "part of an ID": "PatientID=*123*&ignorecase=true",
    "part of an accession number": "AccessionNumber=*099*&ignorecase=true",
    "part of a description": "StudyDescription=*spine*&ignorecase=true",
    "a description, two words of a letter": "StudyDescription=*spine*&ignorecase=true&" + WORDS.format("a+b"),
    "since 2020, two words of a letter": "StudyDate=20200101-&" + WORDS.format("a+b"),
    **{
        f"by {name}": f"orderby={sign}{keyword}"
        for name, sign, keyword in (
            ("name", "", "PatientName"),
            ("name, descending", "-", "PatientName"),
            ("ID", "", "PatientID"),
            ("date, the oldest first", "", "StudyDate"),
            ("accession number", "", "AccessionNumber"),
            ("description", "", "StudyDescription"),
        )
    },
    "a letter, by name": "orderby=PatientName&" + WORDS.format("a"),
    "two words of a letter, by name": "orderby=PatientName&" + WORDS.format("a+b"),
}
# Fields of fixed width in the instances of a body.
_NAME, _ID, _NUMBER, _TEXT, _DATE = b"N" * 20, b"P0000000", b"A0000000", b"D" * 20, b"20000101"


def listing(run: Run) -> Iterator[Row]:
    """One client, so that the time is that of one reader."""
    studies = run.size.listed
    with run.streamsrv("listing", "--workers", "2") as server:
        store(server, studies)
        subject = f"{studies:,} studies"
        yield times_row(FLOOR, subject, latencies(server, ["//health/live"] * ASKED, JSON))
        rows = {name: _timed(server, name, query, subject) for name, query in QUERIES.items()}
        yield from rows.values()
        slowest = max(rows, key=lambda name: rows[name].value or 0.0)
        yield Row("99 % of study lists: the slowest", subject, rows[slowest].value, slowest)


def _timed(server: Service, name: str, query: str, subject: str) -> Row:
    paths = [f"/studies?{query}&limit={50 + number}" for number in range(WARMING + ASKED)]
    return times_row(f"99 % of study lists: {name}", subject, latencies(server, paths, JSON)[WARMING:])


def store(server: Service, studies: int) -> None:
    def post(first: int, client: Client) -> None:
        post_study(patients(first, min(first + A_POST, studies)), client)

    together(2, server, [partial(post, first) for first in range(0, studies, A_POST)])


def patients(first: int, last: int) -> Body:
    """One small instance a study."""
    dataset = bodies.ct_dataset(PIXELS)
    dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = map(bytes.decode, (_NAME, _ID, _NUMBER))
    dataset.StudyDescription, dataset.StudyDate = _TEXT.decode(), _DATE.decode()
    keys = [bodies.keys_of(ARCHIVE + study) for study in range(first, last)]
    body = bodies.series_of(dataset, keys, bodies.different(bodies.noise(PIXELS)))

    def chunks() -> Iterator[bytes]:
        for study, chunk in zip(itertools.count(first), body.chunks(), strict=False):
            yield _of(study, chunk) if study < last else chunk

    return body._replace(chunks=chunks)


def _of(study: int, chunk: bytes) -> bytes:
    numbers, patient = random.Random(study), random.Random(study // 2)
    name = "^".join("".join(patient.choices(SYLLABLES, k=count)) for count in (3, 2))
    text = " ".join(map(numbers.choice, (("CT", "MR", "XR"), ("Head", "Knee", "Spine"), ("native", "late"))))
    date = f"20{numbers.randrange(26):02d}{numbers.randrange(1, 13):02d}{numbers.randrange(1, 29):02d}"
    for field, value in (
        (_NAME, name.ljust(20)),
        (_ID, f"P{study // 2:07d}"),
        (_NUMBER, f"A{study:07d}"),
        (_TEXT, text.ljust(20)),
        (_DATE, date),
    ):
        chunk = chunk.replace(field, value.encode())
    return chunk
