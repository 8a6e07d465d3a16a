"""Searches of a large archive while uploads go on: `python -m perf search`.

The archive grows through the store's own code, transactions and claims included; only the reading of Part 10
files is left out, and records hold next to nothing, because a search never looks at them. At each stage a
real server opens it, one client stores CT instances of 526 kB at a steady rate, and another one asks for the
first page by every indexed key, each time with other values.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

from perf import data, servers
from perf.index_data import CT, ROOT, SYLLABLES, new_instance
from perf.load import Address, Client
from perf.report import Claim, Finding, Row
from streamsrv.store.rows import NewInstance
from streamsrv.store.store import Store, StoreOptions
from streamsrv.store.transaction import Record, Transaction

STAGES = (10_000, 100_000, 1_000_000)
QUICK_STAGES = (1_000, 10_000, 100_000)
A_STUDY = 100  # instances, in two series
ROUNDS = 200  # requests for each key
PAUSE = 0.004  # seconds between two requests
WARMING = 20  # more before them, which do not count
UPLOADED = 10  # instances in one POST
UPLOADS_A_SECOND = 4  # 21 MB/s: what a busy department sends, and not so much that the disk is all there is
MOST_MS = 20.0
# What the machine and the uploads make of a request that looks nothing up.
FLOOR = "no search at all"
ALL_STORED = 200

Make = Callable[[random.Random, int], str]


def _pick(form: str) -> Make:
    """A value made of the number of one study there is."""
    return lambda numbers, studies: form.format(numbers.randrange(studies))


def _day(numbers: random.Random) -> str:
    return f"20{numbers.randrange(26):02d}{numbers.randrange(1, 13):02d}{numbers.randrange(1, 29):02d}"


def _patient(numbers: random.Random, studies: int) -> str:
    return f"/studies?PatientID=P{numbers.randrange(studies) // 2:06d}"


def _name(numbers: random.Random, studies: int) -> str:
    return f"/studies?PatientName={''.join(numbers.choices(SYLLABLES, k=2)).lower()}*&limit=101"


def _inside(numbers: random.Random, studies: int) -> str:
    return f"/studies?PatientName=*{''.join(numbers.choices(SYLLABLES, k=2)).lower()}*&limit=101"


def _month(numbers: random.Random, studies: int) -> str:
    day = _day(numbers)
    return f"/studies?StudyDate={day[:6]}01-{day[:6]}31&limit=101"


# OHIF's list, and each attribute with an inverted list or a place of its own in the index.
KEYS: dict[str, Make] = {
    "study list as OHIF asks": lambda numbers, studies: (
        "/studies?limit=101&offset=0&fuzzymatching=true&includefield=00081030,00080060,00080090,00100030"
    ),
    "StudyDate, a day": lambda numbers, studies: f"/studies?StudyDate={_day(numbers)}",
    "StudyDate, a month": _month,
    "StudyTime": lambda numbers, studies: "/studies?StudyTime=101530&limit=101",
    "AccessionNumber": _pick("/studies?AccessionNumber=A{:07d}"),
    "ModalitiesInStudy": lambda numbers, studies: "/studies?ModalitiesInStudy=MR&limit=101",
    "SOPClassesInStudy": lambda numbers, studies: f"/studies?SOPClassesInStudy={CT}&limit=101",
    "ReferringPhysicianName": lambda numbers, studies: "/studies?ReferringPhysicianName=referrer*&limit=101",
    "StudyDescription": lambda numbers, studies: "/studies?StudyDescription=Thorax*&limit=101",
    "PatientName, beginning": _name,
    "PatientName, within": _inside,
    "PatientID": _patient,
    "PatientBirthDate": lambda numbers, studies: "/studies?PatientBirthDate=19700101&limit=101",
    "StudyID": _pick("/studies?StudyID=S{}"),
    "StudyInstanceUID": _pick(f"/studies?StudyInstanceUID={ROOT}.{{}}"),
    "Modality": lambda numbers, studies: "/series?Modality=CT&limit=101",
    "SeriesNumber": lambda numbers, studies: "/series?SeriesNumber=2&limit=101",
    "PerformedProcedureStepStartDate": lambda numbers, studies: (
        f"/series?PerformedProcedureStepStartDate={_day(numbers)}"
    ),
    "ScheduledProcedureStepID": _pick("/series?RequestAttributesSequence.ScheduledProcedureStepID=SPS{}"),
    "RequestedProcedureID": _pick("/series?RequestAttributesSequence.RequestedProcedureID=RP{}"),
    "SeriesInstanceUID": lambda numbers, studies: (
        f"/series?SeriesInstanceUID={ROOT}.{numbers.randrange(studies)}.1"
    ),
    "SOPInstanceUID": lambda numbers, studies: (
        f"/instances?SOPInstanceUID={ROOT}.{numbers.randrange(studies)}.1.{numbers.randrange(50)}"
    ),
    "series of a study": _pick(f"/studies/{ROOT}.{{}}/series"),
    "instances of a series": lambda numbers, studies: (
        f"/studies/{ROOT}.{(study := numbers.randrange(studies))}/series/{ROOT}.{study}.1/instances"
    ),
}


def search(folder: Path, stages: tuple[int, ...]) -> Iterator[Finding]:
    made, worst = 0, ("", 0.0)
    for stage in stages:
        began = time.perf_counter()
        grow(folder / "data", made // A_STUDY, stage // A_STUDY)
        rate = (stage - made) / (time.perf_counter() - began)
        made = stage
        yield Row("the archive grows", f"to {stage:,} instances", rate, "instances a second")
        worst = ("", 0.0)
        for name, times, uploads in _answered(folder, stage // A_STUDY):
            times.sort()
            slow = times[int(len(times) * 0.99)]
            if name != FLOOR:
                worst = max(worst, (name, slow), key=lambda each: each[1])
            note = f"median {statistics.median(times):.2f} ms, {uploads:.1f} instances a second stored beside"
            yield Row(f"99 % of first pages: {name}", f"{stage:,} instances", slow, "ms", note)
        yield Row("99 % of first pages: the slowest key", f"{stage:,} instances", worst[1], "ms", worst[0])
    text = f"99 % of first pages of any indexed key, {made:,} instances, while uploads go on"
    yield Claim(text, worst[1], "ms", at_most=MOST_MS)


def _answered(folder: Path, studies: int) -> Iterator[tuple[str, list[float], float]]:
    """For each key the milliseconds of its requests, and how many instances a second were stored meanwhile.
    Requests are spread over more than a second, so that each key meets uploads."""
    numbers = random.Random(studies)
    context = multiprocessing.get_context("spawn")
    stop, stored = context.Event(), context.Value("q", 0)
    with servers.streamsrv(folder, "--workers", "2") as server:
        uploader = context.Process(
            target=upload, args=(server.address, server.prefix, studies, stop, stored), daemon=True
        )
        uploader.start()
        try:
            while not stored.value and uploader.is_alive():
                time.sleep(0.05)
            makes = {FLOOR: lambda *_: "/health/live"} | {
                name: lambda *given, make=make: server.prefix + make(*given) for name, make in KEYS.items()
            }
            with Client(server.address) as client:
                for name, make in makes.items():
                    for _ in range(WARMING):
                        _timed(client, make(numbers, studies))
                    before, began = stored.value, time.perf_counter()
                    times = [_timed(client, make(numbers, studies)) for _ in range(ROUNDS)]
                    yield name, times, (stored.value - before) / (time.perf_counter() - began)
                    if not uploader.is_alive():
                        raise RuntimeError("the uploads ended too soon")
        finally:
            stop.set()
            uploader.join()


def _timed(client: Client, path: str) -> float:
    time.sleep(PAUSE)
    response = client.get(path)
    if response.status not in (200, 204):
        raise RuntimeError(f"{path} was answered with {response.status}")
    return response.seconds * 1e3


def upload(address: Address, prefix: str, seed: int, stop: Event, stored: object) -> None:
    """Studies of CT instances one after the other, in a process of its own."""
    with Client(address) as client:
        for study in itertools.count(seed * 1000):
            began = time.perf_counter()
            body = data.ct_study(study, UPLOADED)
            response = client.post_chunks(f"{prefix}/studies", data.CONTENT_TYPE, body.length, body.chunks())
            if response.status != ALL_STORED:
                raise RuntimeError(f"an upload was answered with {response.status}")
            stored.value += UPLOADED  # type: ignore[attr-defined]  # a multiprocessing.Value
            if stop.wait(max(began + 1 / UPLOADS_A_SECOND - time.perf_counter(), 0)):
                return


def grow(folder: Path, first: int, last: int) -> None:
    """The studies from `first` to `last`, by as many processes as there are cores."""
    Store.open(folder, StoreOptions(min_free=0)).close()
    count = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    growers = [
        context.Process(target=_grow, args=(folder, range(first + number * 10, last, count * 10), last))
        for number in range(count)
    ]
    for grower in growers:
        grower.start()
    for grower in growers:
        grower.join()
        if grower.exitcode:
            raise RuntimeError("the archive could not be grown")


def _grow(folder: Path, begins: range, last: int) -> None:
    """Ten studies to a transaction."""
    with Store.open(folder, StoreOptions(min_free=0)) as store:
        for study in begins:
            transaction = store.begin()
            transaction.commit([_received(transaction, new) for new in _ten(study, last)])


def _ten(study: int, last: int) -> Iterator[NewInstance]:
    for number in range(min(10, last - study) * A_STUDY):
        series, instance = divmod(number % A_STUDY, A_STUDY // 2)
        yield new_instance(study + number // A_STUDY, series + 1, instance, number)


def _received(transaction: Transaction, new: NewInstance) -> tuple[Record, NewInstance]:
    transaction.open_record()
    transaction.write([b"what a search never reads"])
    record = transaction.close_record()
    new.row = replace(
        new.row,
        location=record.location,
        record_id=record.record_id,
        stored_at=record.stored_at,
        digest=record.digest,
    )
    return record, new
