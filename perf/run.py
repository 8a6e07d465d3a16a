"""How much one run measures, and the servers, studies and rounds that all measures share."""

from __future__ import annotations

import json
import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from perf import servers
from perf.bodies import CONTENT_TYPE, Body
from perf.clients import Answered, Client, Load, Response, percentile
from perf.results import ORTHANC, OURS, Row, median_row
from perf.servers import Service

WARMED = 512 << 20
BLOCK = bytes(2 << 20)
LARGE_ANSWER = 100_000  # bytes from which on wrk would bound the rate


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured. A virtual disk is fast until its budget of bytes is spent: `rest` are seconds to
    fill it up again between two rounds of 400 MB."""

    instances: int = 400
    rounds: int = 7
    rates: int = 5  # rounds of each rate of small answers
    seconds: float = 4.0  # of each rate of small answers
    clients: tuple[int, ...] = (1, 16, 64)
    tiles: int = 4_000
    cold_bytes: int = 2 << 30
    large: int = 2_260_000_000  # bytes of one instance, beside all peers
    largest: int = 10_000_000_000  # bytes of one instance, beside cp; 0 for none
    loop: int = 20_000  # frames
    rest: float = 3.0
    memory_large: int = 10**10  # bytes of one instance.
    memory_instances: int = 2_000
    memory_each: int = 10**9  # bytes of each of eight uploads.
    asked: int = 500  # frames at one place of a loop
    uploaded: int = 100  # instances of a study that is uploaded while others are served
    archives: tuple[int, ...] = (10_000, 100_000, 1_000_000)  # instances
    listed: int = 100_000  # studies of the study list


TENTHS = "listed tiles cold_bytes large loop memory_large memory_instances memory_each"
QUICK = replace(
    Size(instances=100, rounds=3, seconds=1.0, largest=0, rest=0.5, archives=(1_000, 10_000)),
    **{name: getattr(Size(), name) // 10 for name in TENTHS.split()},
)


@dataclass(frozen=True, slots=True)
class Run:
    """`folder` is on the disk that is measured. `target` is a server that runs already; then no peer is
    started. `archive` holds the data folder of an archive that was grown before."""

    folder: Path
    size: Size = Size()
    target: Service | None = None
    archive: Path | None = None

    @contextmanager
    def streamsrv(self, name: str, *flags: str) -> Iterator[Service]:
        """A server with a data folder of its own, or the target, whose new studies are deleted afterwards."""
        if self.target is None:
            with servers.streamsrv(self.folder / name, *flags) as server:
                yield server
            return
        try:
            yield self.target
        finally:
            for study in sorted(self.target.studies):
                with suppress(OSError, RuntimeError):
                    forget(self.target, study)

    @contextmanager
    def with_key(self, name: str) -> Iterator[Service]:
        """A server that needs credentials and records accesses. Its service has a key."""
        with servers.streamsrv(self.folder / name, "--auth", "required") as server:
            yield replace(server, headers={"Authorization": f"Bearer {servers.new_key(server)}"})

    def peer(
        self, name: str, folder: Path, other: str = "", **more: str
    ) -> AbstractContextManager[Service | None]:
        """As servers.peer. None if it is not installed, or beside a target."""
        return nullcontext() if self.target else servers.peer(name, folder, other, **more)

    @contextmanager
    def both(self, name: str, *flags: str) -> Iterator[list[Service]]:
        """Ours, and Orthanc if it is there."""
        with self.streamsrv(name, *flags) as ours, self.peer(ORTHANC, self.folder / "peer") as peer:
            yield [ours] if peer is None else [ours, peer]

    def store(self, body: Body, those: Sequence[Service]) -> None:
        """Stores the body in each of the servers, by a file that is deleted afterwards."""
        path = body.write(self.folder / "stored.body")
        for server in those:
            store_study(server, body, path)
        path.unlink()


# --- studies ---


def store_study(server: Service, body: Body, path: Path) -> float:
    """Seconds of one POST of the body, which is in the file."""
    server.studies.update(key.study for key in body.keys)
    with Client(server) as client:
        return client.send_file("/studies", CONTENT_TYPE, path).seconds


def post_study(body: Body, client: Client) -> Response:
    """One POST of a body that is made while it is sent."""
    client.service.studies.update(key.study for key in body.keys)
    return client.post("/studies", CONTENT_TYPE, body.length, body.chunks())


def forget(server: Service, study: str) -> float:
    """Seconds of the deletion of a study. Orthanc deletes by identifiers of its own, whose look-up does not
    count."""
    server.studies.discard(study)
    with Client(server) as client:
        paths = [f"/studies/{study}"]
        if server.name != OURS:
            query = json.dumps({"Level": "Study", "Query": {"StudyInstanceUID": study}}).encode()
            found = client.post("//tools/find", "application/json", len(query), [query])
            paths = [f"//studies/{one}" for one in json.loads(found.payload)]
        return sum(client.exchange("DELETE", path, {}, keep=True).seconds for path in paths)


# --- memory ---


def warm_memory(length: int = 0) -> None:
    """Uses so many bytes of memory, WARMED at least, as far as they are there, and frees them again.

    A virtual machine returns memory that was free for a second to its host, and the next write to it costs
    ten times as much: the first of two subjects would pay for both."""
    length = min(max(length, WARMED), servers.available_memory() // 2)
    with mmap.mmap(-1, length) as memory:
        for start in range(0, length, len(BLOCK)):
            memory[start : start + len(BLOCK)] = BLOCK[: length - start]


def drop_from_memory(files: Mapping[Path, tuple[int, int]]) -> None:
    """Drops the pages of the files, from the first byte to the last, from the page cache, as far as they are
    on the disk."""
    for path, (begin, end) in files.items():
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)


# --- rounds and rows ---


def nothing() -> None:
    pass


def in_turns(
    rounds: int,
    subjects: Mapping[str, Callable[[], float]],
    rest: float = 0.0,
    before: Callable[[], None] = nothing,
    discarded: int = 1,
) -> dict[str, list[float]]:
    """The values of each subject, measured once a round. The first rounds are discarded. `rest`: seconds
    before each round; `before` is called before each subject."""
    values: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(discarded + rounds):
        time.sleep(rest)
        for name, measure in subjects.items():
            before()
            value = measure()
            if turn >= discarded:
                values[name].append(value)
    return values


def rows_of(measure: str, values: Mapping[str, Sequence[float]]) -> list[Row]:
    return [median_row(measure, name, each) for name, each in values.items()]


def rates(
    run: Run,
    measure: str,
    subjects: Mapping[str, Load],
    clients: int,
    *,
    p99: bool = False,
    processor: Sequence[str] = (),
) -> Iterator[Row]:
    """Answers a second of each subject, in turns; with `p99` that of the first subject in milliseconds, too.
    `processor` are subjects whose servers have a row of their processor time. Orthanc, which is slow, has one
    round."""
    found: dict[str, list[Answered]] = {name: [] for name in subjects}
    used: dict[str, list[float]] = {name: [] for name in processor}  # microseconds an answer
    for turn in range(run.size.rates):
        for name, load in subjects.items():
            if load.service.name == ORTHANC and turn:
                continue
            before, began = servers.cpu_seconds(load.service.pid), time.perf_counter()
            found[name].append(load.answered(clients, run.size.seconds / 2))
            if name in used:
                count = found[name][-1].rate * (time.perf_counter() - began)
                used[name].append((servers.cpu_seconds(load.service.pid) - before) * 1e6 / count)
    for name, answers in found.items():
        middle = Answered(*(statistics.median(values) for values in zip(*answers, strict=True)))
        note = f"{middle.note}, {middle.megabytes:,.0f} MB/s"
        yield median_row(measure, name, [one.rate for one in answers], note)
    if p99:
        first = next(iter(subjects))
        yield median_row(f"{measure}, p99", first, [one.p99 for one in found[first]])
    yield from rows_of(f"CPU time, {measure}", used)


def latencies(server: Service, paths: Iterable[str], accept: str) -> list[float]:
    """Milliseconds of each GET of one client."""
    with Client(server) as client:
        return [client.get(path, accept).seconds * 1e3 for path in paths]


def times_row(
    measure: str, subject: str, milliseconds: Sequence[float], share: float = 0.99, note: str = ""
) -> Row:
    """The time that so large a share of the answers does not exceed. 0.5 is the median."""
    p50, p99 = (percentile(milliseconds, each) for each in (0.5, 0.99))
    text = f"p50 {p50:.3g}, p99 {p99:.3g}, longest {max(milliseconds):.3g}, {len(milliseconds)} requests"
    value = percentile(milliseconds, share)
    return Row(measure, subject, value, f"{text}; {note}" if note else text)
