"""Studies and large instances in and out: rates, first byte, deletion, processor time and memory.

Store, retrieve and delete share their rounds: a study that one round stores is deleted in it. Subjects take
turns; Orthanc, which is much slower and rewrites its own files, has rounds of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import lmdb

from perf import bodies, servers
from perf.bodies import CT_PIXELS, Body
from perf.clients import DICOM, Client, Response, together
from perf.results import COPY, ORTHANC, OURS, Row, median_row
from perf.run import (
    Run,
    forget,
    in_turns,
    nothing,
    post_study,
    rows_of,
    store_study,
    times_row,
    warm_memory,
)
from perf.servers import MemorySampler, Service, cpu_seconds

PEER_ROUNDS = 3
TIMES_IN_MEMORY = 4  # the instance, in Orthanc
# The rest between rounds is meant for so many bytes, sent and copied.
RESTED_FOR = 840e6
FRAME_LENGTH = 512 * 1024


class Moves(ABC):
    """One kind of transfer from or to one server; each call is a round. It keeps seconds of processor time
    a GB, and memory of the server from the first round to the last."""

    def __init__(self, server: Service) -> None:
        self.server = server
        self.processor: list[float] = []
        self.memory = MemorySampler(server.pid)

    def __call__(self) -> float:
        """MB/s."""
        before = cpu_seconds(self.server.pid)
        length, seconds = self.move()
        self.processor.append((cpu_seconds(self.server.pid) - before) * 1e9 / length)
        return length / 1e6 / seconds

    @abstractmethod
    def move(self) -> tuple[int, float]:
        """Bytes and seconds."""


class Stores(Moves):
    """Stores a study and deletes it; keeps the milliseconds of the deletions."""

    def __init__(self, server: Service, body: Body, path: Path) -> None:
        super().__init__(server)
        self.body, self.path = body, path
        self.deletes: list[float] = []

    def move(self) -> tuple[int, float]:
        return self.body.length, store_study(self.server, self.body, self.path)

    def __call__(self) -> float:
        rate = super().__call__()
        self.deletes.append(forget(self.server, self.body.study) * 1e3)
        return rate


class Retrieves(Moves):
    """Retrieves by several clients at once; keeps the milliseconds to the first byte of each answer."""

    def __init__(self, server: Service, path: str, clients: int, each: int = 2) -> None:
        super().__init__(server)
        self.path, self.clients, self.each = path, clients, each
        self.first_bytes: list[float] = []

    def move(self) -> tuple[int, float]:
        answers: list[Response] = []
        fetch = [lambda client: answers.append(client.get(self.path, DICOM))] * (self.clients * self.each)
        seconds = together(self.clients, self.server, fetch)
        self.first_bytes += [answer.first_byte * 1e3 for answer in answers]
        return sum(answer.length for answer in answers), seconds


def alternated(
    measure: str,
    transfers: Sequence[Moves],
    others: Mapping[str, Callable[[], float]],
    rounds: int,
    peer_rounds: int = PEER_ROUNDS,
    costs_of: str = "",
    rest: float = 0.0,
    before: Callable[[], None] = nothing,
    discarded: int = 1,
) -> Iterator[Row]:
    """Ours, the first transfer, in turns with `others`; then each peer by itself. Rates, and for the servers
    of this machine processor time a GB and memory of all their processes."""
    ours, *theirs = transfers
    with ours.memory:
        values = in_turns(rounds, {ours.server.name: ours, **others}, rest, before, discarded)
    for peer in theirs:
        with peer.memory:
            values |= in_turns(peer_rounds, {peer.server.name: peer}, discarded=0)
    yield from rows_of(measure, values)
    name = costs_of or measure
    for one in (one for one in transfers if one.server.pid):
        subject = one.server.name
        spent = one.processor[-len(values[subject]) :]
        yield median_row(f"CPU time, {name}", subject, spent, "user and system, all processes")
        note = f"at most {one.memory.peak / 1e6:.0f} MB, RssAnon + RssShmem of all processes"
        yield Row(f"memory growth, {name}", subject, one.memory.growth / 1e6, note)


def copies(run: Run, body: Body, path: Path) -> dict[str, Callable[[], float]]:
    """The floor under every durable store, in MB/s: the same bytes by cp, then fsync. None beside a server
    that was started elsewhere."""

    def rate() -> float:
        copy = run.folder / "copy"
        started = time.perf_counter()
        subprocess.run(["cp", "--reflink=never", str(path), str(copy)], check=True)
        with copy.open("rb+") as stream:
            os.fsync(stream.fileno())
            seconds = time.perf_counter() - started
        copy.unlink()
        return body.length / 1e6 / seconds

    return {} if run.target is not None else {COPY: rate}


# --- a CT study ---


def study(run: Run) -> Iterator[Row]:
    body = bodies.ct_study(1, run.size.instances)
    files = run.folder / "nginx"
    files.mkdir()
    path = body.write(files / "study.body")
    with run.both("ct") as both, run.nginx(files) as web:
        yield from _store(run, both, body, path)
        for server in both:
            store_study(server, body, path)
        paths = (f"/studies/{body.study}", "/study.body")
        for clients in (1, 4):
            name = f"retrieve the study, {clients} at once"
            yield from retrieved(name, 2 * run.size.rounds + 1, both, web, paths, clients)


def _store(run: Run, both: Sequence[Service], body: Body, path: Path) -> Iterator[Row]:
    count = f"{run.size.instances} CT instances of 526 kB"
    uploads = [Stores(server, body, path) for server in both]
    yield from alternated(
        f"store {count}, one POST",
        uploads,
        copies(run, body, path),
        2 * run.size.rounds + 1,
        costs_of="store the study",
        rest=run.size.rest,
        before=warm_memory,
    )
    for one in uploads:
        yield median_row(f"delete {count}", one.server.name, one.deletes)


def retrieved(
    name: str,
    rounds: int,
    both: Sequence[Service],
    web: Service | None,
    paths: tuple[str, str],
    clients: int,
    peer_rounds: int = PEER_ROUNDS,
) -> Iterator[Row]:
    """`paths`: of the DICOMweb servers, and of the file of nginx."""
    transfers = [Retrieves(server, paths[0], clients, 1 + (server is both[0])) for server in both]
    others = {} if web is None else {web.name: Retrieves(web, paths[1], clients)}
    yield from alternated(name, transfers, others, rounds, peer_rounds)
    for one in (*transfers, *others.values()):
        warming = clients * one.each if one.server.name != ORTHANC else 0
        yield times_row(f"first byte, {name}", one.server.name, one.first_bytes[warming:], 0.95)


# --- one large instance ---


def large(run: Run) -> Iterator[Row]:
    """Native frames: a DICOM element of that form ends at 4 GB. Measures with one round come first, before
    the disk has worked."""
    body = bodies.native_loop(80, max(2, run.size.large // CT_PIXELS))
    name = f"one instance of {body.length / 1e9:.3g} GB"
    files = run.folder / "nginx"
    files.mkdir()
    path = body.write(files / "large.body")
    os.sync()
    fits = servers.available_memory() > TIMES_IN_MEMORY * body.length + (1 << 30)
    with ExitStack() as stack:
        both = [stack.enter_context(run.streamsrv("large"))]
        web = stack.enter_context(run.nginx(files))
        if not fits:
            yield Row(f"store {name}", ORTHANC, None, "needs more memory than there is")
        elif (peer := stack.enter_context(run.orthanc())) is not None:
            both.append(peer)
            yield from _before_and_after(run, name, both, body, path)
        yield from _beside_cp(run, f"store {name}", Stores(both[0], body, path), max(2, run.size.rounds - 3))
        store_study(both[0], body, path)
        paths = (f"/studies/{body.study}", "/large.body")
        yield from retrieved(f"retrieve {name}", run.size.rounds + 3, both, web, paths, 1, peer_rounds=1)
        for server in both[1:]:
            yield Row(f"delete {name}", server.name, forget(server, body.study) * 1e3)
    if run.size.largest and run.target is None:
        yield from _largest(run)


def _beside_cp(run: Run, measure: str, upload: Stores, rounds: int, discarded: int = 1) -> Iterator[Row]:
    rest, warm = _rest(run, upload.body.length), partial(warm_memory, upload.body.length)
    others = copies(run, upload.body, upload.path)
    yield from alternated(measure, [upload], others, rounds, rest=rest, before=warm, discarded=discarded)
    yield median_row(measure.replace("store", "delete"), OURS, upload.deletes)


def _rest(run: Run, length: int) -> float:
    """Seconds before a round, which writes the bytes twice."""
    return run.size.rest * max(1.0, 2 * length / RESTED_FOR)


def _before_and_after(run: Run, name: str, both: Sequence[Service], body: Body, path: Path) -> Iterator[Row]:
    """Orthanc once, ours before and after it, each after a rest and with warm memory."""

    def rate(server: Service) -> float:
        time.sleep(_rest(run, body.length))
        warm_memory(body.length)
        return body.length / 1e6 / store_study(server, body, path)

    ours, peer = both
    rates = [rate(ours)]
    forget(ours, body.study)
    with MemorySampler(peer.pid) as memory:
        theirs = rate(peer)
    rates.append(rate(ours))
    forget(ours, body.study)
    yield Row(f"store {name}", ORTHANC, theirs, f"memory grew by {memory.growth / 1e6:.0f} MB")
    yield median_row(f"store {name}, before and after Orthanc", OURS, rates)


def _largest(run: Run) -> Iterator[Row]:
    """Encapsulated frames, whose length has no limit, beside `cp` alone: no memory holds them twice."""
    measure = f"store one instance of {run.size.largest / 1e9:.3g} GB"
    if shutil.disk_usage(run.folder).free < 5 * run.size.largest:
        yield Row(measure, OURS, None, "not enough free disk")
        return
    body = bodies.multi_frame(81, run.size.largest // FRAME_LENGTH, FRAME_LENGTH)
    path = body.write(run.folder / "largest.body")
    with run.streamsrv("largest") as server:
        yield from _beside_cp(run, measure, Stores(server, body, path), 1, 0)


# --- one instance a request ---


def single(run: Run) -> Iterator[Row]:
    """Each answer waits for its own sync. Orthanc syncs each file and not its index. The floor is the time
    that the disk takes for one instance."""
    count = min(run.size.instances, 100)
    with run.both("single") as both:
        for clients in (1, 8):
            body = bodies.ct_study(2 + clients, count)
            subjects: dict[str, Callable[[], float]] = {
                server.name: partial(posts_a_second, server, body, clients) for server in both
            }
            if clients == 1 and run.target is None:
                subjects["append, sync, commit"] = partial(_appends_a_second, run.folder / "floor", body)
            values = in_turns(run.size.rounds, subjects, min(1.0, run.size.rest))
            yield from rows_of(f"store CT instances one a POST, {clients} at once", values)


def posts_a_second(server: Service, body: Body, clients: int) -> float:
    """Stores each instance of the body by a POST of its own, and deletes the study."""

    def post(part: bytes | memoryview, client: Client) -> None:
        chunks = [part, bodies.CLOSING]
        client.post("/studies", bodies.CONTENT_TYPE, sum(map(len, chunks)), chunks)

    server.studies.add(body.study)
    parts = list(body.chunks())[:-1]
    seconds = together(clients, server, [partial(post, part) for part in parts])
    forget(server, body.study)
    return len(parts) / seconds


def _appends_a_second(folder: Path, body: Body) -> float:
    """The instance to the end of a file, synced; then 6 kB to an index, committed."""
    parts = [bytes(chunk) for chunk in body.chunks()][:-1]
    folder.mkdir(exist_ok=True)
    file = os.open(folder / "segment", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    index = lmdb.open(str(folder), map_size=1 << 30)
    started = time.perf_counter()
    for number, part in enumerate(parts):
        os.write(file, part)
        os.fdatasync(file)
        with index.begin(write=True) as transaction:
            transaction.put(b"%d-%f" % (number, started), part[:6000])
    seconds = time.perf_counter() - started
    index.close()
    os.close(file)
    return len(parts) / seconds


def index(run: Run) -> Iterator[Row]:
    """Instances with next to no pixels: the cost that remains is reading, JSON and index."""
    count = run.size.small_instances
    body = bodies.ct_study(3, count, pixels=512)
    with run.streamsrv("index") as server:
        path = body.write(run.folder / "small.body")
        with MemorySampler(server.pid) as memory:
            seconds = store_study(server, body, path)
        note = f"{count} CT headers in one POST; memory grew by {memory.growth / 1e6:.0f} MB"
        yield Row("instances stored and indexed", OURS, count / seconds, note)
        if server.folder is not None:
            files = server.files().keys() - server.segments().keys()
            used = sum(path.stat().st_blocks * 512 for path in files)
            yield Row("index on disk", OURS, used / count, "CT headers of 80 attributes")


# --- bounded memory ---


def memory(run: Run) -> Iterator[Row]:
    """Growth from the server as it stood ready. Bodies come from a generator, so the disk holds an instance
    once: in the store."""
    size = run.size
    with run.streamsrv("memory") as server:
        before = servers.private_bytes(server.pid)
        yield Row("memory", "ready, no request yet", before / 1e6, "RssAnon + RssShmem, all processes")
        long = bodies.multi_frame(10, max(1, size.memory_large // FRAME_LENGTH), FRAME_LENGTH)
        many = bodies.ct_study(11, size.memory_instances)
        for name, body in (
            (f"one instance of {long.length / 1e9:.3g} GB", long),
            (f"{size.memory_instances} instances of 526 kB", many),
        ):
            for direction, move in (("in", _post), ("out", _get)):
                yield _grown(server, before, f"{name} {direction}", [partial(move, body)])
        # Four of the uploads are one large instance, four are studies.
        frames = max(1, size.memory_each // FRAME_LENGTH)
        uploads = [
            bodies.multi_frame(20 + n, frames, FRAME_LENGTH) if n % 2 else bodies.ct_study(20 + n, frames)
            for n in range(8)
        ]
        work = [partial(_post, body) for body in uploads]
        work += [partial(_get, (long, many)[n % 2]) for n in range(8)]
        name = f"eight uploads of {size.memory_each / 1e9:.3g} GB and eight downloads at once"
        yield _grown(server, before, name, work)


def _grown(server: Service, before: int, name: str, work: Sequence[Callable[[Client], int]]) -> Row:
    moved: list[int] = []

    def move(one: Callable[[Client], int], client: Client) -> None:
        moved.append(one(client))

    with MemorySampler(server.pid, before) as sampler:
        seconds = together(len(work), server, [partial(move, one) for one in work])
    return Row("memory growth", name, sampler.growth / 1e6, f"at {sum(moved) / 1e6 / seconds:.0f} MB/s")


def _post(body: Body, client: Client) -> int:
    post_study(body, client)
    return body.length


def _get(body: Body, client: Client) -> int:
    response = client.get(f"/studies/{body.study}", DICOM)
    framing = len(body.keys) * 1000 + 1000
    if abs(response.length - body.length) > framing:
        raise RuntimeError(f"{body.length} bytes were stored, {response.length} were retrieved")
    return response.length
