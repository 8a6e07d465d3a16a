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
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import lmdb

from perf import bodies, servers
from perf.bodies import CT_PIXELS, Body
from perf.clients import DICOM, Client, Response, together
from perf.results import COPY, NGINX, ORTHANC, OURS, Row, median_row
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
    a GB, milliseconds that a subclass explains, and the memory of the server from the first round on."""

    def __init__(self, server: Service) -> None:
        self.server = server
        self.processor: list[float] = []
        self.times: list[float] = []
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
    """Stores a study and deletes it; `times` are those of the deletions."""

    def __init__(self, server: Service, body: Body, path: Path) -> None:
        super().__init__(server)
        self.body, self.path = body, path

    def move(self) -> tuple[int, float]:
        return self.body.length, store_study(self.server, self.body, self.path)

    def __call__(self) -> float:
        rate = super().__call__()
        self.times.append(forget(self.server, self.body.study) * 1e3)
        return rate


class Retrieves(Moves):
    """Retrieves by several clients at once; `times` are those to the first byte of each answer."""

    def __init__(self, server: Service, path: str, clients: int, each: int = 2) -> None:
        super().__init__(server)
        self.path, self.clients, self.each = path, clients, each

    def move(self) -> tuple[int, float]:
        answers: list[Response] = []
        fetch = [lambda client: answers.append(client.get(self.path, DICOM))] * (self.clients * self.each)
        seconds = together(self.clients, self.server, fetch)
        self.times += [answer.first_byte * 1e3 for answer in answers]
        return sum(answer.length for answer in answers), seconds


def alternated(
    measure: str,
    transfers: Sequence[Moves],
    others: Mapping[str, Callable[[], float]],
    rounds: int,
    peer_rounds: int,
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
            values |= in_turns(peer_rounds, {peer.server.name: peer}, rest, before, discarded=0)
    yield from rows_of(measure, values)
    name = costs_of or measure
    for one in (one for one in transfers if one.server.pid):
        subject = one.server.name
        spent = one.processor[-len(values[subject]) :]
        yield median_row(f"CPU time, {name}", subject, spent, "user and system, all processes")
        note = f"at most {one.memory.peak / 1e6:.0f} MB, RssAnon + RssShmem of all processes"
        yield Row(f"memory growth, {name}", subject, one.memory.growth / 1e6, note)


def stored(
    run: Run,
    measure: str,
    servers: Sequence[Service],
    body: Body,
    path: Path,
    rounds: tuple[int, int],
    costs_of: str = "",
    discarded: int = 1,
) -> Iterator[Row]:
    """Each round stores the body and deletes it, after a rest and with warm memory. `rounds`: ours, and those
    of a peer."""
    stores = [Stores(server, body, path) for server in servers]
    rest = run.size.rest * max(1.0, 2 * body.length / RESTED_FOR)
    warm = partial(warm_memory, body.length)
    others = copies(run, body, path)
    yield from alternated(measure, stores, others, *rounds, costs_of, rest, warm, discarded)
    for one in stores:
        name = measure.removesuffix(", one POST").replace("store", "delete")
        yield median_row(name, one.server.name, one.times)


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


def retrieved(
    name: str,
    both: Sequence[Service],
    web: Service | None,
    paths: tuple[str, str],
    clients: int,
    rounds: tuple[int, int],
) -> Iterator[Row]:
    """`paths`: of the DICOMweb servers, and of the file of nginx."""
    transfers = [Retrieves(server, paths[0], clients, 1 + (server is both[0])) for server in both]
    others = {} if web is None else {web.name: Retrieves(web, paths[1], clients)}
    yield from alternated(name, transfers, others, *rounds)
    for one in (*transfers, *others.values()):
        warming = clients * one.each if one.server.name != ORTHANC else 0
        yield times_row(f"first byte, {name}", one.server.name, one.times[warming:], 0.95)


def study(run: Run) -> Iterator[Row]:
    body, rounds = bodies.ct_study(1, run.size.instances), (2 * run.size.rounds + 1, PEER_ROUNDS)
    name = f"store {run.size.instances} CT instances of 526 kB, one POST"
    clients = {f"retrieve the study, {count} at once": count for count in (1, 4)}
    archive = "retrieve the study as a ZIP archive"
    yield from in_and_out(run, name, clients, body, rounds, rounds, "store the study", archive)


def large(run: Run) -> Iterator[Row]:
    """Native frames: a DICOM element of that form ends at 4 GB. Orthanc has one round."""
    body = bodies.native_loop(80, max(2, run.size.large // CT_PIXELS))
    name, rounds = f"one instance of {body.length / 1e9:.3g} GB", run.size.rounds
    clients = {f"retrieve {name}": 1}
    yield from in_and_out(run, f"store {name}", clients, body, (max(2, rounds - 3), 1), (rounds + 3, 1))
    if run.size.largest and run.target is None:
        yield from _largest(run)


def in_and_out(
    run: Run,
    name: str,
    clients: Mapping[str, int],
    body: Body,
    rounds_in: tuple[int, int],
    rounds_out: tuple[int, int],
    costs_of: str = "",
    archive: str = "",
) -> Iterator[Row]:
    """The body stored and deleted, then retrieved by so many clients; Orthanc only if memory is enough.
    `archive` names the measure of a ZIP archive of our server."""
    files = run.folder / "nginx"
    files.mkdir()
    path = body.write(files / "stored.body")
    fits = servers.available_memory() > TIMES_IN_MEMORY * body.length + (1 << 30)
    orthanc = run.peer(ORTHANC, run.folder / "peer") if fits else nullcontext()
    with run.streamsrv("ours") as ours, orthanc as peer, run.peer(NGINX, files) as web:
        both = [ours] if peer is None else [ours, peer]
        if not fits:
            yield Row(name, ORTHANC, None, "needs more memory than there is")
        yield from stored(run, name, both, body, path, rounds_in, costs_of)
        for server in both:
            store_study(server, body, path)
        paths = (f"/studies/{body.study}", "/stored.body")
        for measure, count in clients.items():
            yield from retrieved(measure, both, web, paths, count, rounds_out)
        if archive:
            zipped = f"{paths[0]}?accept=application/zip"
            yield from retrieved(archive, [ours], web, (zipped, paths[1]), 1, rounds_out)


def _largest(run: Run) -> Iterator[Row]:
    """Encapsulated frames, whose length has no limit, beside `cp` alone: no memory holds them twice."""
    name = f"store one instance of {run.size.largest / 1e9:.3g} GB"
    if shutil.disk_usage(run.folder).free < 5 * run.size.largest:
        yield Row(name, OURS, None, "not enough free disk")
        return
    body = bodies.multi_frame(81, run.size.largest // FRAME_LENGTH, FRAME_LENGTH)
    path = body.write(run.folder / "largest.body")
    with run.streamsrv("largest") as server:
        yield from stored(run, name, [server], body, path, (1, 0), discarded=0)


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

    def post(part: bytes, client: Client) -> None:
        chunks = [part, bodies.CLOSING]
        client.post("/studies", bodies.CONTENT_TYPE, sum(map(len, chunks)), chunks)

    server.studies.add(body.study)
    parts = list(body.chunks())[:-1]
    seconds = together(clients, server, [partial(post, part) for part in parts])
    forget(server, body.study)
    return len(parts) / seconds


def _appends_a_second(folder: Path, body: Body) -> float:
    """The instance to the end of a file, synced; then 6 kB to an index, committed."""
    parts = list(body.chunks())[:-1]
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
            yield _grown(server, before, f"{name} in", [body], [])
            yield _grown(server, before, f"{name} out", [], [body])
        # Four of the uploads are one large instance, four are studies.
        frames = max(1, size.memory_each // FRAME_LENGTH)
        uploads = [
            bodies.multi_frame(20 + n, frames, FRAME_LENGTH) if n % 2 else bodies.ct_study(20 + n, frames)
            for n in range(8)
        ]
        name = f"eight uploads of {size.memory_each / 1e9:.3g} GB and eight downloads at once"
        yield _grown(server, before, name, uploads, [long, many] * 4)


def _grown(
    server: Service, before: int, name: str, uploads: Sequence[Body], downloads: Sequence[Body]
) -> Row:
    paths = [f"/studies/{body.study}" for body in downloads]
    work: list[Callable[[Client], Response]] = [partial(post_study, body) for body in uploads]
    work += [partial(Client.get, path=path, accept=DICOM) for path in paths]
    with MemorySampler(server.pid, before) as sampler:
        seconds = together(len(work), server, work)
    moved = sum(body.length for body in (*uploads, *downloads))
    return Row("memory growth", name, sampler.growth / 1e6, f"at {moved / 1e6 / seconds:.0f} MB/s")
