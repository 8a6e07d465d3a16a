"""Searches of a large archive while uploads go on: `python -m perf search`.

The archive grows through the store's own code, transactions and claims included; only the reading of Part 10
files is left out, and records hold next to nothing, because a search never looks at them. At each stage a
real server opens it, one client stores CT instances of 526 kB at a steady rate, and another one asks for the
first page by every indexed key, each time with other values. One client, so that what is measured is what one
reader waits for: two that ask for pages at once wait for one another besides.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

from perf import data, servers
from perf.index_data import CT, ROOT, SYLLABLES, new_instance
from perf.load import Address, Client
from perf.report import Claim, Finding, Row
from streamsrv.store import NewInstance, Record, Store, StoreOptions, Transaction

STAGES = (10_000, 100_000, 1_000_000)
QUICK_STAGES = (1_000, 10_000, 100_000)
A_STUDY = 100  # instances, in two series
ROUNDS = 300  # requests for each key
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


def search(folder: Path, stages: tuple[int, ...], archive: Path | None = None) -> Iterator[Finding]:
    """`archive` holds the data folder of one that was grown before: measured as it is, and written to."""
    if archive is not None:
        with Store.open(archive / "data", StoreOptions(min_free=0), read_only=True) as store:
            instances = grown(store)
        yield from _stage(archive, instances)
        return
    made = 0
    for stage in stages:
        began = time.perf_counter()
        grow(folder / "data", made // A_STUDY, stage // A_STUDY)
        rate = (stage - made) / (time.perf_counter() - began)
        yield Row("the archive grows", f"to {stage:,} instances", rate, "instances a second")
        made = stage
        *rows, claim = _stage(folder, made)
        yield from rows
    yield claim


def grown(store: Store) -> int:
    """How many instances an archive has grown to; those that were uploaded beside are in other studies."""
    low, high = 0, 1 << 24
    while low < high:
        middle = (low + high + 1) // 2
        there = store.index.count(f"{ROOT}.{middle - 1}")
        low, high = (middle, high) if there else (low, middle - 1)
    return low * A_STUDY


def _stage(folder: Path, instances: int) -> Iterator[Finding]:
    worst = ("", 0.0)
    times, uploads = _answered(folder, instances // A_STUDY)
    for name, milliseconds in times.items():
        milliseconds.sort()
        slow = milliseconds[int(len(milliseconds) * 0.99)]
        if name != FLOOR:
            worst = max(worst, (name, slow), key=lambda each: each[1])
        note = f"median {statistics.median(milliseconds):.2f} ms, slowest {milliseconds[-1]:.1f} ms"
        yield Row(f"99 % of first pages: {name}", f"{instances:,} instances", slow, "ms", note)
    yield Row("stored meanwhile", f"{instances:,} instances", uploads, "instances a second")
    yield Row("99 % of first pages: the slowest key", f"{instances:,} instances", worst[1], "ms", worst[0])
    text = f"99 % of first pages of any indexed key, {instances:,} instances, while uploads go on"
    yield Claim(text, worst[1], "ms", at_most=MOST_MS)


def _answered(folder: Path, studies: int) -> tuple[dict[str, list[float]], float]:
    """For each key the milliseconds of its requests, and how many instances a second were stored meanwhile.
    The keys take turns, in another order each time, so that all of them meet the same uploads."""
    numbers = random.Random(studies)
    context = multiprocessing.get_context("spawn")
    stop, stored = context.Event(), context.Value("q", 0)
    with servers.streamsrv(folder, "--workers", "2") as server:
        makes = {FLOOR: lambda *_: "/health/live"} | {
            name: lambda *given, make=make: server.prefix + make(*given) for name, make in KEYS.items()
        }
        times: dict[str, list[float]] = {name: [] for name in makes}
        seed = int(time.time() / 10) % 80_000  # an archive that was measured before has the studies of before
        uploader = context.Process(
            target=upload, args=(server.address, server.prefix, seed, stop, stored), daemon=True
        )
        uploader.start()
        try:
            while not stored.value and uploader.is_alive():
                time.sleep(0.05)
            with Client(server.address) as client:
                for turn in range(-WARMING, ROUNDS):
                    if not turn:
                        before, began = stored.value, time.perf_counter()
                    for name in numbers.sample(list(makes), len(makes)):
                        milliseconds = _timed(client, makes[name](numbers, studies))
                        times[name] += [milliseconds] if turn >= 0 else []
                    if not uploader.is_alive():
                        raise RuntimeError("the uploads ended too soon")
            return times, (stored.value - before) / (time.perf_counter() - began)
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
    new.row = new.row._replace(
        location=record.location,
        record_id=record.record_id,
        stored_at=record.stored_at,
        digest=record.digest,
    )
    return record, new
