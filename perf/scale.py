"""The cost of an instance, and whether a large index makes anything slower.

An archive grows (`perf.searches.grow`). At each size a server opens it, and one beside it a store without an
archive. Both hold the same few studies and have the same requests in turns: the index is the only difference.
strace counts system calls in a pass of its own, because it slows down the server.
"""

from __future__ import annotations

import json
import os
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
from perf.claims import LEAST_RATE
from perf.clients import FRAME, JSON
from perf.pixels import CT, DECODED
from perf.results import Row
from perf.run import Asked, Run, forget, in_turns, latencies, nothing, store_study, warm_memory
from perf.searches import A_STUDY, grow, grown
from perf.servers import Server, family_of, private_bytes
from perf.studies import Download, Transfer, Upload, posts_a_second

MAKING = 40  # frames or pictures a round that have to be made
TILES = 1_000
STUDY = 400  # instances of 526 kB
SMALL_STUDY = 100
SINGLES = 40  # stores of one instance, by each client
ROUNDS = 5
SEARCHES = 300
SECONDS = 1.0
FRAMES = 20_000  # of a slide
SLICES_MADE = MAKING * (ROUNDS + 1)
SYNCS = ("fsync", "fdatasync", "msync", "sync_file_range")
WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
# Numbers of studies (perf.bodies): those that stay, and those that are stored to be deleted.
LARGE, SMALL, MOVED, DELETED, SINGLY, SLIDE, SLICES, OPENED = range(1, 9)
KEPT = (LARGE, SMALL, SLIDE, SLICES)
Bodies = Mapping[int, tuple[Body, Path]]
# Makes the measurement of one server; each call is a round and gives a rate.
Start = Callable[[Server], Callable[[], float]]


def scale(run: Run) -> Iterator[Row]:
    """An archive that was grown before is measured as it is, and holds the same afterwards."""
    made = 0
    stored = _bodies(run.folder)
    yield from _frame_bytes(run.folder / "slide")
    stages, holding = run.size.archives, run.archive or run.folder / "with"
    if run.archive is not None:
        with servers.streamsrv(run.archive) as server:
            stages = (grown(server),)
    for stage in stages:
        if run.archive is None:
            with servers.streamsrv(holding) as server:
                grow(server, made // A_STUDY, stage // A_STUDY)
        made, subject = stage, f"{stage:,} instances"
        found = _index(holding)
        note = f"{found['bytes_file'] / 1e6:,.0f} MB of file"
        yield Row("index an instance", subject, found["bytes_used"] / stage, note)
        with (
            servers.streamsrv(run.folder / "without", "--workers", "2") as without,
            servers.streamsrv(holding, "--workers", "2") as beside,
        ):
            for server in (without, beside):
                for number in KEPT:
                    store_study(server, *stored[number])
            yield from _compared(without, beside, stored, subject)
            yield from _calls(beside, stored, subject)
            for server in (without, beside):
                for number in KEPT:
                    forget(server, bodies.keys_of(number).study)


def _index(folder: Path) -> Mapping[str, int]:
    """Figures of the index of a store that no server has open."""
    command = [sys.executable, "-m", "streamsrv", "info", "--json", "--data", str(folder / "data")]
    environment = {**os.environ, "PYTHONPATH": servers.PYTHONPATH}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found: Mapping[str, int] = json.loads(printed)["index"]
    return found


def _bodies(folder: Path) -> Bodies:
    made = {
        LARGE: bodies.ct_study(LARGE, STUDY),
        SMALL: bodies.ct_study(SMALL, SMALL_STUDY),
        MOVED: bodies.ct_study(MOVED, STUDY),
        DELETED: bodies.ct_study(DELETED, STUDY),
        SLIDE: bodies.jpeg_slide(SLIDE, TILES),
        SLICES: bodies.ct_slices(SLICES, SLICES_MADE),
        OPENED: bodies.ct_study(OPENED, STUDY),
    }
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


def _compared(without: Server, beside: Server, stored: Bodies, subject: str) -> Iterator[Row]:
    relations = []
    transfers: list[Transfer] = []
    for name, start in _measures(stored):
        rates = [start(server) for server in (without, beside)]
        moves = [rate for rate in rates if isinstance(rate, Transfer)]
        warm = partial(warm_memory, stored[MOVED][1].parent) if moves else nothing
        values = in_turns(ROUNDS, dict(zip(("without", "with"), rates, strict=True)), before=warm)
        relation = statistics.median(a / b for a, b in zip(values["with"], values["without"], strict=True))
        relations.append((relation, name))
        note = f"{statistics.median(values['without']):,.0f} without an archive; {relation:.2f} of that"
        yield Row(name, subject, statistics.median(values["with"]), note)
        transfers += moves[1:]
    for name, transfer in zip(("store", "retrieve"), transfers, strict=True):
        spent = statistics.median(transfer.processor[1:])
        yield Row(f"CPU time to {name}", subject, spent, "user and system")
    yield Row("memory of the server", subject, private_bytes(beside.pid) / 1e6, "with its pixel processes")
    least, name = min(relations)
    yield Row(LEAST_RATE, subject, least, name)


def _measures(stored: Bodies) -> Iterator[tuple[str, Start]]:
    (large, series, _), small = bodies.keys_of(LARGE), bodies.keys_of(SMALL).study
    keys = [bodies.keys_of(SMALL, number) for number in range(SMALL_STUDY)]
    tiles = [f"{bodies.keys_of(SLIDE).path}/frames/{number + 1}" for number in range(TILES)]
    whole = f"/studies/{large}/metadata"
    yield f"store a study of {STUDY}", lambda server: Upload(server, *stored[MOVED])
    yield f"retrieve a study of {STUDY}", lambda server: Download(server, f"/studies/{large}", 1, 1)
    yield from _answers("frames of 524 kB, 16 at once", [f"{key.path}/frames/1" for key in keys], FRAME)
    yield from _answers("frames of a slide, 16 at once", tiles, FRAME)
    yield from _answers("metadata of an instance, 16 at once", [f"{key.path}/metadata" for key in keys], JSON)
    yield from _answers(f"metadata of {STUDY} instances", [whole], JSON, 1)
    name = f"metadata of {STUDY} instances, the first request after the store"
    yield name, lambda server: lambda: 1e3 / first_metadata(server, *stored[OPENED])
    slices = [bodies.keys_of(SLICES, number).path for number in range(SLICES_MADE)]
    made = [("tiles of a slide decoded", "", DECODED, tiles)]
    for question in CT:
        if question.name in ("JPEG-LS", "rendered as JPEG", "rendered as PNG"):
            name = question.name.replace("JPEG-LS", "as JPEG-LS")
            made.append((f"CT slices {name}", question.path, question.accept, slices))
    for name, path, accept, instances in made:
        paths = [instance + path for instance in instances]
        yield f"{name}, one client", partial(_each_once, paths, accept)
    for name, path in (
        ("PatientID", "/studies?PatientID=P0012345"),
        ("StudyInstanceUID", f"/studies?StudyInstanceUID={small}"),
        ("the series of a study", f"/studies/{small}/series?Modality=CT"),
        ("the instances of a series", f"/studies/{large}/series/{series}/instances?includefield=00280010"),
    ):
        yield f"search, one client: {name}", partial(_searches, path)
    yield f"delete a study of {STUDY}", partial(_deletes, stored[DELETED])
    for clients in (1, 8):
        name = f"store one CT instance a POST, {clients} at once"
        yield name, partial(_posts, clients)


def _answers(name: str, paths: Sequence[str], accept: str, clients: int = 16) -> Iterator[tuple[str, Start]]:
    def start(server: Server) -> Callable[[], float]:
        return lambda: Asked(server, paths, accept, large=clients == 1).rate(clients, SECONDS).rate

    yield name, start


def _each_once(paths: Sequence[str], accept: str, server: Server) -> Callable[[], float]:
    """Frames and pictures that have to be made: no path is asked for twice, so that no cache answers."""
    rounds = iter([paths[first : first + MAKING] for first in range(0, len(paths), MAKING)])
    return lambda: MAKING * 1e3 / sum(latencies(server, next(rounds), accept))


def _searches(path: str, server: Server) -> Callable[[], float]:
    """Each with another limit, and with a store and a delete between two rounds: no page that was kept
    answers."""
    paths = [f"{path}&limit={number + 1}" for number in range(SEARCHES)]

    def rate() -> float:
        milliseconds = sum(latencies(server, paths, JSON))
        posts_a_second(server, bodies.ct_study(SINGLY, 1), 1)
        return SEARCHES * 1e3 / milliseconds

    return rate


def _deletes(stored: tuple[Body, Path], server: Server) -> Callable[[], float]:
    upload = Upload(server, *stored)

    def rate() -> float:
        upload()
        return 1e3 / upload.deletes[-1]

    return rate


def _posts(clients: int, server: Server) -> Callable[[], float]:
    return partial(posts_a_second, server, bodies.ct_study(SINGLY, SINGLES * clients), clients)


# --- system calls ---


def _calls(server: Server, stored: Bodies, subject: str) -> Iterator[Row]:
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


def _counted(server: Server, work: Callable[[], object]) -> dict[str, int]:
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
