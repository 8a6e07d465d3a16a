"""What an instance costs, and whether a large index makes anything slower: `python -m perf scale`.

An archive grows through the store's own code (`perf.search.grow`). At each size a real server opens it, and
one beside it a store without an archive. Both are asked the same of the same few real studies, in turns: what
differs is the index alone. CPU time is user and system time of all processes of a server, whoever waits for
whom; system calls are counted by strace, in a pass of their own, because it slows down what it counts.
"""

from __future__ import annotations

import math
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path

from perf import data, pixel_data, servers
from perf.flood import flood
from perf.load import AS_STORED, FRAME, Client, answers_a_second, together
from perf.measures import forget, in_turns, missing, nothing, ratio, store_study, stored, warm_memory
from perf.report import Claim, Finding, Row
from perf.search import A_STUDY, grow
from perf.search import grown as grown_to
from perf.servers import Server, cpu_seconds, family_of, private_bytes
from perf.transcodes import frames_as
from streamsrv.store import Store, StoreOptions

STAGES = (10_000, 100_000, 1_000_000)
QUICK_STAGES = (1_000, 10_000)
MAKING = 40  # frames or pictures a round that have to be made
TILES = 1_000
STUDY = 400  # instances of 526 kB
SMALL_STUDY = 100
SINGLES = 40  # stores of one instance, by each client
ROUNDS = 5
SEARCHES = 300
SECONDS = 1.0
FRAMES = 20_000  # of a slide
LEAST = 0.5  # of the figure without an archive
JSON = "application/dicom+json"
SLICES_MADE = MAKING * (ROUNDS + 1)
AS_JPEG_LS = frames_as("image/jls", "1.2.840.10008.1.2.4.80")
SYNCS = ("fsync", "fdatasync", "msync", "sync_file_range")
WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
# Numbers of studies (perf.data): those that stay, and those that are stored to be deleted.
LARGE, SMALL, MOVED, DELETED, SINGLY, SLIDE, SLICES, OPENED = range(1, 9)


def scale(folder: Path, stages: tuple[int, ...], archive: Path | None = None) -> Iterator[Finding]:
    """`archive` holds the data folder of one that was grown before: measured as it is, at its one size; what
    is stored beside is deleted again."""
    made, least = 0, math.inf
    bodies = _bodies(folder)
    yield from _frame_bytes(folder / "slide")
    if archive is not None:
        with Store.open(archive / "data", StoreOptions(min_free=0), read_only=True) as store:
            stages = (grown_to(store),)
    holding = archive or folder / "with"
    for stage in stages:
        if archive is None:
            grow(holding / "data", made // A_STUDY, stage // A_STUDY)
        made = stage
        yield from _index_bytes(holding / "data", stage)
        with (
            servers.streamsrv(folder / "without", "--workers", "2") as without,
            servers.streamsrv(holding, "--workers", "2") as grown,
        ):
            kept = [(server, number) for server in (without, grown) for number in KEPT]
            for server, number in kept:
                store_study(server, bodies[number])
            relations = yield from _compared(without, grown, bodies, stage)
            yield from _costs(grown, bodies, stage)
            for server, number in kept:
                forget(server, data.keys_of(number, 0).study)
        least, what = min(relations)
        yield Row("rates in relation to those without: the least", f"{stage:,} instances", least, "x", what)
    text = f"each of these rates with {made:,} instances in the index, in relation to none"
    yield Claim(text, least, "x", at_least=LEAST)


KEPT = (LARGE, SMALL, SLIDE, SLICES)


def _bodies(folder: Path) -> dict[int, Path]:
    bodies = {
        LARGE: data.ct_study(LARGE, STUDY),
        SMALL: data.ct_study(SMALL, SMALL_STUDY),
        MOVED: data.ct_study(MOVED, STUDY),
        DELETED: data.ct_study(DELETED, STUDY),
        SLIDE: pixel_data.jpeg_slide(SLIDE, TILES),
        SLICES: pixel_data.ct_slices(SLICES, SLICES_MADE),
        OPENED: data.ct_study(OPENED, STUDY),
    }
    return {number: body.write(folder / f"{number}.body") for number, body in bodies.items()}


def _compared(
    without: Server, grown: Server, bodies: dict[int, Path], stage: int
) -> Generator[Finding, None, list[tuple[float, str]]]:
    relations = []
    for what, rate, unit in _measures(bodies):
        values = in_turns(ROUNDS, {"without": partial(rate, without), "with": partial(rate, grown)})
        relation = ratio(values, "with", "without")
        relations.append((relation, what))
        note = f"{statistics.median(values['without']):,.0f} without an archive; {relation:.2f} of that"
        yield Row(what, f"{stage:,} instances", statistics.median(values["with"]), unit, note)
    return relations


# --- the index ---


def _index_bytes(archive: Path, instances: int) -> Iterator[Finding]:
    with Store.open(archive, StoreOptions(min_free=0), read_only=True) as store:
        found = store.index.statistics()
    note = f"{found['bytes_file'] / 1e6:,.0f} MB of file"
    yield Row("index an instance", f"{instances:,} instances", found["bytes_used"] / instances, "bytes", note)


def _frame_bytes(folder: Path) -> Iterator[Finding]:
    """Of a slide: what its index has more than that of a slide of one frame, and how long the frames are does
    not matter."""
    sizes = {}
    for frames in (1, FRAMES):
        part = folder / str(frames)
        part.mkdir(parents=True)
        with servers.streamsrv(part, "--workers", "1") as server:
            store_study(server, data.multi_frame(7, frames, 200).write(part / "slide.body"))
        with Store.open(part / "data", StoreOptions(min_free=0), read_only=True) as store:
            sizes[frames] = store.index.statistics()["bytes_used"]
    each = (sizes[FRAMES] - sizes[1]) / FRAMES
    yield Row("index a frame of a slide", f"{FRAMES:,} frames", each, "bytes", "native frames need none")


# --- rates ---

Rate = Callable[[Server], float]


def _measures(bodies: dict[int, Path]) -> Iterator[tuple[str, Rate, str]]:
    (large, series, _), small = data.keys_of(LARGE, 0), data.keys_of(SMALL, 0).study
    keys = [data.keys_of(SMALL, number) for number in range(SMALL_STUDY)]
    frames = [f"{key.path}/frames/1" for key in keys]
    metadata = [f"{key.path}/metadata" for key in keys]
    yield f"store a study of {STUDY}", partial(_store, bodies[MOVED]), "MB/s"
    yield f"retrieve a study of {STUDY}", partial(_retrieve, f"/studies/{large}"), "MB/s"
    yield "frames of 524 kB, 16 at once", partial(_answers, frames, FRAME), "a second"
    tiles = [f"{data.keys_of(SLIDE, 0).path}/frames/{number + 1}" for number in range(TILES)]
    yield "frames of a slide, 16 at once", partial(_answers, tiles, FRAME), "a second"
    yield "metadata of an instance, 16 at once", partial(_answers, metadata, JSON), "a second"
    yield f"metadata of {STUDY} instances", partial(_metadata, large), "a second"
    yield (
        f"metadata of {STUDY} instances, the first request after the store",
        partial(_first_metadata, bodies[OPENED]),
        "a second",
    )
    yield from _made(tiles)
    for what, path in (
        ("PatientID", "/studies?PatientID=P0012345"),
        ("StudyInstanceUID", f"/studies?StudyInstanceUID={small}"),
        ("the series of a study", f"/studies/{small}/series?Modality=CT"),
        ("the instances of a series", f"/studies/{large}/series/{series}/instances?includefield=00280010"),
    ):
        yield f"search, one client: {what}", partial(_searches, path), "a second"
    yield f"delete a study of {STUDY}", partial(_delete, bodies[DELETED]), "a second"
    for clients in (1, 8):
        yield f"store one CT instance a POST, {clients} at once", partial(_singly, clients), "a second"


def _made(tiles: Sequence[str]) -> Iterator[tuple[str, Rate, str]]:
    """Frames and pictures that have to be made; each is asked for once, so that no cache answers."""
    slices = [data.keys_of(SLICES, number).path for number in range(SLICES_MADE)]
    decoded = frames_as("application/octet-stream", data.EXPLICIT_VR_LITTLE_ENDIAN)
    for what, paths, accept in (
        ("tiles of a slide decoded, one client", tiles, decoded),
        ("CT slices as JPEG-LS, one client", [f"{path}/frames/1" for path in slices], AS_JPEG_LS),
        ("CT slices rendered as JPEG, one client", [f"{path}/rendered" for path in slices], "image/jpeg"),
        ("CT slices rendered as PNG, one client", [f"{path}/rendered" for path in slices], "image/png"),
    ):
        yield what, partial(_each_once, paths, accept, dict[int, int]()), "a second"


def _each_once(paths: Sequence[str], accept: str, asked: dict[int, int], server: Server) -> float:
    """`asked`: how many each server, by its process, has been asked for before."""
    first = asked.setdefault(server.pid, 0)
    asked[server.pid] += MAKING
    chosen = paths[first : first + MAKING]
    with Client(server.address) as client:
        began = time.perf_counter()
        for path in chosen:
            stored(client.get(server.prefix + path, accept, keep=True).status, "a frame that is made")
        return len(chosen) / (time.perf_counter() - began)


def _metadata(study: str, server: Server) -> float:
    path = f"{server.prefix}/studies/{study}/metadata"
    return flood(server.address, [path], JSON, 1, SECONDS).rate


def _first_metadata(body: Path, server: Server) -> float:
    store_study(server, body)
    study = data.keys_of(OPENED, 0).study
    with Client(server.address) as client:
        response = client.get(f"{server.prefix}/studies/{study}/metadata", JSON, keep=True)
    stored(response.status, "metadata")
    forget(server, study)
    return 1 / response.seconds


def _store(body: Path, server: Server) -> float:
    warm_memory(body.parent)
    rate = body.stat().st_size / 1e6 / store_study(server, body)
    forget(server, data.keys_of(MOVED, 0).study)
    return rate


def _retrieve(path: str, server: Server) -> float:
    with Client(server.address) as client:
        response = client.get(server.prefix + path, AS_STORED)
    stored(response.status, "a retrieve")
    return response.length / 1e6 / response.seconds


def _answers(paths: Sequence[str], accept: str, server: Server) -> float:
    return answers_a_second(server.address, [server.prefix + path for path in paths], accept, 16, SECONDS)


def _searches(path: str, server: Server) -> float:
    """Each with another limit: within a round none is answered with a page that was kept, and something is
    deleted between two rounds."""
    began = time.perf_counter()
    with Client(server.address) as client:
        for number in range(SEARCHES):
            stored(client.get(f"{server.prefix}{path}&limit={number + 1}", JSON).status, "a search")
        seconds = time.perf_counter() - began
        _post(server, _parts(SINGLY, 1)[0], client)
    forget(server, data.keys_of(SINGLY, 0).study)
    return SEARCHES / seconds


def _delete(body: Path, server: Server) -> float:
    store_study(server, body)
    return 1 / forget(server, data.keys_of(DELETED, 0).study)


def _singly(clients: int, server: Server) -> float:
    parts = _parts(SINGLY, SINGLES * clients)
    seconds = together(clients, server.address, [partial(_post, server, part) for part in parts])
    forget(server, data.keys_of(SINGLY, 0).study)
    return len(parts) / seconds


def _parts(study: int, count: int) -> list[bytes]:
    return [bytes(chunk) for chunk in data.ct_study(study, count).chunks()][:-1]


def _post(server: Server, part: bytes, client: Client) -> None:
    chunks = [part, data.CLOSING]
    path, length = f"{server.prefix}/studies", sum(map(len, chunks))
    stored(client.post_chunks(path, data.CONTENT_TYPE, length, chunks).status, "the store of one instance")


# --- costs ---


def _costs(server: Server, bodies: dict[int, Path], stage: int) -> Iterator[Finding]:
    size, gigabytes = f"{stage:,} instances", bodies[LARGE].stat().st_size / 1e9
    large, moved = data.keys_of(LARGE, 0).study, data.keys_of(MOVED, 0).study
    for what, move, undo in (
        ("store", partial(store_study, server, bodies[MOVED]), partial(forget, server, moved)),
        ("retrieve", partial(_retrieve, f"/studies/{large}", server), nothing),
    ):
        seconds = []
        for _ in range(ROUNDS):
            warm_memory(bodies[MOVED].parent)
            before = cpu_seconds(server.pid)
            move()
            seconds.append(cpu_seconds(server.pid) - before)
            undo()
        yield Row(
            f"CPU time to {what}", size, statistics.median(seconds) / gigabytes, "s/GB", "user and system"
        )
    yield Row("memory of the server", size, private_bytes(server.pid) / 1e6, "MB", "those for pixels too")
    yield from _calls(server, bodies[MOVED], size)


def _calls(server: Server, body: Path, size: str) -> Iterator[Finding]:
    if shutil.which("strace") is None:
        yield missing("syncs of a store", size, "calls")
        return
    parts = _parts(SINGLY, SINGLES)

    def singly() -> None:
        together(1, server.address, [partial(_post, server, part) for part in parts])

    for what, count, number, work in (
        ("one CT instance", SINGLES, SINGLY, singly),
        (f"a study of {STUDY}", 1, MOVED, partial(store_study, server, body)),
    ):
        calls = _counted(server, work)
        forget(server, data.keys_of(number, 0).study)
        for kind, names in (("syncs", SYNCS), ("writes", WRITES)):
            each = sum(calls.get(name, 0) for name in names) / count
            note = ", ".join(f"{name} {calls[name] / count:.1f}" for name in names if name in calls)
            yield Row(f"{kind} to store {what}", size, each, "calls", note)


def _counted(server: Server, work: Callable[[], object]) -> dict[str, int]:
    """How often the server's processes made each call meanwhile. Writes to sockets are among them."""
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
