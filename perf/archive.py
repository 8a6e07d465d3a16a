"""An archive of up to a million instances: the cost of an instance, rates with a large index beside those
without, and first pages by each indexed key while uploads go on.

An archive grows in steps. For `scale` a server opens it at each size, and one beside it a store without an
archive. Both hold the same few studies and have the same requests in turns: the index is the only difference.
strace counts system calls in a pass of its own, because it slows down the server.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from perf import bodies, servers
from perf.answers import first_metadata
from perf.bodies import Body
from perf.clients import FRAME, JSON, Client, Load, started, together
from perf.pixels import DECODED
from perf.results import LEAST_RATE, Row
from perf.run import (
    Run,
    forget,
    in_turns,
    latencies,
    nothing,
    post_study,
    store_study,
    times_row,
    warm_memory,
)
from perf.servers import Service, family_of, private_bytes
from perf.studies import Moves, Retrieves, Stores, posts_a_second

A_STUDY = 100  # instances, of an archive
ARCHIVE_PIXELS = 512  # bytes
A_POST = 10  # studies
# The first study of an archive; other measures and uploads have smaller numbers.
ARCHIVE, UPLOADED_BEFORE = 45_000_000, 40_000
SYLLABLES = tuple(re.findall("..", "ALBEDOELFRIGUHANJOKALUMANOPERISATOVOWIZE"))
KEY_ROUNDS, WARMING = 300, 20  # requests for each key; those before them, which do not count.
PAUSE = 0.004  # seconds from an answer to the next request
UPLOADS, UPLOADED = 240, 10  # POSTs, and instances in each
UPLOAD_EVERY = 0.25  # seconds: 21 MB/s, as a busy department sends
FLOOR = "no search at all"  # the cost of a request that looks nothing up
TILES = 1_000
STUDY = 400  # instances of 526 kB
SMALL_STUDY = 100
SINGLES = 40  # stores of one instance, by each client
ROUNDS = 5
SEARCHES = 300  # with one key, in a round
SECONDS = 1.0
FRAMES = 20_000  # of a slide
SYNCS = ("fsync", "fdatasync", "msync", "sync_file_range")
WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
# Numbers of studies (perf.bodies): those that stay, and those that are stored to be deleted.
LARGE, SMALL, MOVED, SINGLY, SLIDE, OPENED = range(1, 7)
KEPT = (LARGE, SMALL, SLIDE)
Bodies = Mapping[int, tuple[Body, Path]]


# --- an archive ---


def stages(run: Run, folder: Path, *flags: str) -> Iterator[int]:
    """Grows an archive in the folder, and yields its number of instances at each size. An archive that was
    grown before is measured as it is. `flags` are those of the server."""
    made = 0
    if run.archive is not None:
        with servers.streamsrv(folder, *flags) as server:
            made = grown(server)
        yield made
        return
    for instances in run.size.archives:
        with servers.streamsrv(folder, *flags) as server:
            grow(server, made // A_STUDY, instances // A_STUDY)
        made = instances
        yield instances


def archive_study(study: int) -> Body:
    """A CT and an MR series: 100 attributes and 5 kB of DICOM JSON an instance, and next to no pixels."""
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
    parts, dataset, half = [], bodies.ct_dataset(ARCHIVE_PIXELS), A_STUDY // 2
    request = dataset.RequestAttributesSequence[0]
    for keyword, value in attributes.items():
        setattr(request if keyword in request else dataset, keyword, value)
    for series, modality in enumerate(("CT", "MR")):
        dataset.SeriesNumber, dataset.Modality = str(series + 1), modality
        numbers_of = range(series * half, (series + 1) * half)
        keys = [bodies.keys_of(ARCHIVE + study, number, series) for number in numbers_of]
        parts.append(bodies.series_of(dataset, keys, bodies.different(bodies.noise(ARCHIVE_PIXELS))))
    return bodies.joined(parts)


def grow(server: Service, first: int, last: int) -> None:
    """Stores the studies from `first` to `last` of an archive."""

    def post(begin: int, client: Client) -> None:
        some = [archive_study(study) for study in range(begin, min(begin + A_POST, last))]
        post_study(bodies.joined(some), client)

    together(2, server, [partial(post, begin) for begin in range(first, last, A_POST)])


def grown(server: Service) -> int:
    """How many instances the archive has grown to."""
    low, high = 0, 1 << 24
    with Client(server) as client:
        while low < high:
            middle = (low + high + 1) // 2
            study = bodies.keys_of(ARCHIVE + middle - 1).study
            there = client.get(f"/studies?StudyInstanceUID={study}").length > len("[]")
            low, high = (middle, high) if there else (low, middle - 1)
    return low * A_STUDY


# --- searches ---


# OHIF's list, and each attribute with an inverted list or a place of its own in the index: its request.
KEYS: dict[str, str] = json.loads(Path(__file__).with_name("keys.json").read_text())


def path_of(template: str, numbers: random.Random, studies: int) -> str:
    """The path with values of a random study of the archive, a random day and a random name."""
    n, day = numbers.randrange(studies), _day(numbers)
    keys = bodies.keys_of(ARCHIVE + n, numbers.randrange(A_STUDY // 2))
    name = "".join(numbers.choices(SYLLABLES, k=2)).lower()
    return template.format(n=n, patient=n // 2, day=day, month=day[:6], name=name, **keys._asdict())


def _day(numbers: random.Random) -> str:
    return f"20{numbers.randrange(26):02d}{numbers.randrange(1, 13):02d}{numbers.randrange(1, 29):02d}"


def search(run: Run) -> Iterator[Row]:
    yield from first_pages(run, run.archive or run.folder, "first pages")


def first_pages(run: Run, folder: Path, measure: str, *flags: str) -> Iterator[Row]:
    """One client, so that the time is that of one reader: two that ask at once wait for each other. `flags`
    are those of the server."""
    for instances in stages(run, folder, *flags):
        subject = f"{instances:,} instances"
        times, stored = _timed(folder, instances // A_STUDY, *flags)
        rows = {name: times_row(f"99 % of {measure}: {name}", subject, each) for name, each in times.items()}
        yield from rows.values()
        yield Row(f"stored beside {measure}", subject, stored)
        del rows[FLOOR]
        slowest = max(rows, key=lambda name: rows[name].value or 0.0)
        yield Row(f"99 % of {measure}: the slowest key", subject, rows[slowest].value, slowest)


def _timed(folder: Path, studies: int, *flags: str) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of the requests of each key, and how many instances a second were stored meanwhile. The
    keys take turns, in another order each time, so that all of them meet the same uploads."""
    numbers = random.Random(studies)
    templates = {FLOOR: "//health/live"} | KEYS
    names = [
        name for _ in range(WARMING + KEY_ROUNDS) for name in numbers.sample(list(templates), len(templates))
    ]
    paths = [path_of(templates[name], numbers, studies) for name in names]
    # An archive that was measured before has earlier studies.
    first = int(time.time() / 10) % UPLOADED_BEFORE * 1000
    with (
        servers.streamsrv(folder, "--workers", "2", *flags) as server,
        started(Load(server, paths, JSON, gap=PAUSE)) as seen,
    ):
        for study in range(first, first + UPLOADS):
            due = time.perf_counter() + UPLOAD_EVERY
            with Client(server) as client:
                post_study(bodies.ct_study(study, UPLOADED), client)
            time.sleep(max(0.0, due - time.perf_counter()))
    seconds = seen.answers[-1].began - seen.answers[0].began
    times: dict[str, list[float]] = {name: [] for name in templates}
    answered = zip(itertools.cycle(names), seen.answers, strict=False)
    for name, answer in itertools.islice(answered, WARMING * len(templates), None):
        times[name].append(answer.seconds * 1e3)
    return times, UPLOADS * UPLOADED / seconds


# --- the cost of an instance ---


def scale(run: Run) -> Iterator[Row]:
    """An archive that was grown before holds the same afterwards."""
    stored = _bodies(run.folder)
    yield from _frame_bytes(run.folder / "slide")
    holding = run.archive or run.folder / "with"
    for instances in stages(run, holding):
        subject, found = f"{instances:,} instances", _index(holding)
        note = f"{found['bytes_file'] / 1e6:,.0f} MB of file"
        yield Row("index an instance", subject, found["bytes_used"] / instances, note)
        with (
            servers.streamsrv(run.folder / "without", "--workers", "2") as without,
            servers.streamsrv(holding, "--workers", "2") as beside,
        ):
            kept = [(server, number) for server in (without, beside) for number in KEPT]
            for server, number in kept:
                store_study(server, *stored[number])
            yield from _compared((without, beside), stored, subject)
            yield from _calls(beside, stored, subject)
            for server, number in kept:
                forget(server, bodies.keys_of(number).study)


def _index(folder: Path) -> Mapping[str, int]:
    """Figures of the index of a store that no server has open."""
    command = [sys.executable, "-m", "streamsrv", "info", "--json", "--data", str(folder / "data")]
    environment = {**os.environ, "PYTHONPATH": servers.PYTHONPATH}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found: Mapping[str, int] = json.loads(printed)["index"]
    return found


def _bodies(folder: Path) -> Bodies:
    made = {number: bodies.ct_study(number, STUDY) for number in (LARGE, MOVED, OPENED)}
    made |= {SMALL: bodies.ct_study(SMALL, SMALL_STUDY), SLIDE: bodies.jpeg_slide(SLIDE, TILES)}
    return {number: (body, body.write(folder / f"{number}.body")) for number, body in made.items()}


def _frame_bytes(folder: Path) -> Iterator[Row]:
    """The index of a slide over that of a slide of one frame; the length of the frames does not matter."""
    sizes = {}
    for frames in (1, FRAMES):
        part = folder / str(frames)
        part.mkdir(parents=True)
        with servers.streamsrv(part, "--workers", "1") as server:
            body = bodies.multi_frame(7, frames, 200)
            store_study(server, body, body.write(part / "slide.body"))
        sizes[frames] = _index(part)["bytes_used"]
    each = (sizes[FRAMES] - sizes[1]) / FRAMES
    yield Row("index a frame of a slide", f"{FRAMES:,} frames", each, "native frames need none")


# --- rates ---


def _compared(both: Sequence[Service], stored: Bodies, subject: str) -> Iterator[Row]:
    relations = []
    for name, measures in _measures(both, stored):
        before = warm_memory if isinstance(measures[0], Moves) else nothing
        values = in_turns(ROUNDS, dict(zip(("without", "with"), measures, strict=True)), before=before)
        found = {name: (values["without"], values["with"])}
        without, beside = measures
        if isinstance(without, Stores) and isinstance(beside, Stores):
            deletes = ([1e3 / each for each in one.times[1:]] for one in (without, beside))
            found[f"delete a study of {STUDY}"] = next(deletes), next(deletes)
        for each, (alone, large) in found.items():
            relation = statistics.median(a / b for a, b in zip(large, alone, strict=True))
            relations.append((relation, each))
            note = f"{statistics.median(alone):,.0f} without an archive; {relation:.2f} of that"
            yield Row(each, subject, statistics.median(large), note)
        if isinstance(beside, Moves):
            spent = statistics.median(beside.processor[1:])
            yield Row(f"CPU time to {name.split(' ')[0]}", subject, spent, "user and system")
    latencies(both[1], [f"{bodies.keys_of(SLIDE).path}/frames/1"], DECODED)
    yield Row("memory of the server", subject, private_bytes(both[1].pid) / 1e6, "with its pixel processes")
    least, name = min(relations)
    yield Row(LEAST_RATE, subject, least, name)


def _measures(both: Sequence[Service], stored: Bodies) -> Iterator[tuple[str, list[Callable[[], float]]]]:
    """Name, and for each server the measurement of one round."""
    (large, series, _), small = bodies.keys_of(LARGE), bodies.keys_of(SMALL).study
    paths = [bodies.keys_of(SMALL, number).path for number in range(SMALL_STUDY)]
    tiles = [f"{bodies.keys_of(SLIDE).path}/frames/{number + 1}" for number in range(TILES)]
    yield f"store a study of {STUDY}", [Stores(server, *stored[MOVED]) for server in both]
    yield f"retrieve a study of {STUDY}", [Retrieves(server, f"/studies/{large}", 1, 1) for server in both]
    for name, asked, accept, clients in (
        ("frames of 524 kB, 16 at once", [f"{path}/frames/1" for path in paths], FRAME, 16),
        ("frames of a slide, 16 at once", tiles, FRAME, 16),
        ("metadata of an instance, 16 at once", [f"{path}/metadata" for path in paths], JSON, 16),
        (f"metadata of {STUDY} instances", [f"/studies/{large}/metadata"], JSON, 1),
    ):
        loads = [Load(server, asked, accept, large=clients == 1) for server in both]
        yield name, [partial(_rate, load, clients) for load in loads]
    name = f"metadata of {STUDY} instances, the first request after the store"
    yield name, [partial(_first, stored[OPENED], server) for server in both]
    for name, path in (
        ("PatientID", "/studies?PatientID=P0012345"),
        ("StudyInstanceUID", f"/studies?StudyInstanceUID={small}"),
        ("the series of a study", f"/studies/{small}/series?Modality=CT"),
        ("the instances of a series", f"/studies/{large}/series/{series}/instances?includefield=00280010"),
    ):
        yield f"search, one client: {name}", [partial(_searches, path, server) for server in both]
    for clients in (1, 8):
        body = bodies.ct_study(SINGLY, SINGLES * clients)
        name = f"store one CT instance a POST, {clients} at once"
        yield name, [partial(posts_a_second, server, body, clients) for server in both]


def _rate(load: Load, clients: int) -> float:
    return load.answered(clients, SECONDS).rate


def _first(stored: tuple[Body, Path], server: Service) -> float:
    return 1e3 / first_metadata(server, *stored)


def _searches(path: str, server: Service) -> float:
    """Each with another limit, and with a store and a delete between two rounds: no page that was kept
    answers."""
    milliseconds = sum(latencies(server, [f"{path}&limit={n + 1}" for n in range(SEARCHES)], JSON))
    posts_a_second(server, bodies.ct_study(SINGLY, 1), 1)
    return SEARCHES * 1e3 / milliseconds


# --- system calls ---


def _calls(server: Service, stored: Bodies, subject: str) -> Iterator[Row]:
    if shutil.which("strace") is None:
        return
    singles = bodies.ct_study(SINGLY, SINGLES)
    for name, count, work in (
        ("one CT instance", SINGLES, partial(posts_a_second, server, singles, 1)),
        (f"a study of {STUDY}", 1, partial(store_study, server, *stored[MOVED])),
    ):
        calls = _counted(server, work)
        for kind, names in (("syncs", SYNCS), ("writes", WRITES)):
            each = sum(calls.get(call, 0) for call in names) / count
            note = ", ".join(f"{call} {calls[call] / count:.1f}" for call in names if call in calls)
            yield Row(f"{kind} to store {name}", subject, each, note)
    forget(server, stored[MOVED][0].study)


def _counted(server: Service, work: Callable[[], object]) -> dict[str, int]:
    """How often the server's processes made each call meanwhile, writes to sockets included."""
    processes = [word for pid in family_of(server.pid) for word in ("-p", str(pid))]
    with tempfile.NamedTemporaryFile("r") as table:
        command = ["strace", "-f", "-c", "-o", table.name, "-e", f"trace={','.join(SYNCS + WRITES)}"]
        tracer = subprocess.Popen([*command, *processes], stderr=subprocess.DEVNULL)
        try:
            time.sleep(1)  # until it has attached to every thread
            work()
        finally:
            tracer.terminate()
            tracer.wait()
        return calls_in(table.read())


def calls_in(table: str) -> dict[str, int]:
    """Of strace's summary: share, seconds, microseconds a call, calls, errors if there were any, name."""
    row = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)
    return {name: int(count) for count, name in row.findall(table) if name != "total"}
