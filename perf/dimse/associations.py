"""C-STORE, C-FIND and C-GET, beside Orthanc, storescp of DCMTK and the same server over HTTP.

Strategy: storescu of DCMTK sends files, because each subject has to receive. Requests come from a client of
sockets that parses no dataset, so that the servers are measured.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from perf import bodies
from perf.bodies import Body
from perf.clients import DICOM, Client
from perf.dimse.scu import C_FIND, C_GET, Scu, identifier
from perf.results import ORTHANC, OURS, Row, median_row
from perf.run import Run, forget, in_turns, rows_of
from perf.servers import Service, cpu_seconds, free_port

STUDIES = 100
ASSOCIATIONS = (1, 8)
WADO, STORESCP = f"{OURS}, WADO-RS", "storescp"
TITLE, CALLING = "STREAMSRV", "PERF"
FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
SYNTAX = bodies.EXPLICIT_VR_LITTLE_ENDIAN
# A list of studies as workstations show it.
KEYS = {
    (0x0008, 0x0020): ("DA", ""),
    (0x0008, 0x0050): ("SH", ""),
    (0x0008, 0x0052): ("CS", "STUDY"),
    (0x0008, 0x0061): ("CS", ""),
    (0x0008, 0x1030): ("LO", ""),
    (0x0010, 0x0010): ("PN", ""),
    (0x0010, 0x0020): ("LO", ""),
    (0x0010, 0x0030): ("DA", ""),
    (0x0020, 0x000D): ("UI", ""),
    (0x0020, 0x1206): ("IS", ""),
    (0x0020, 0x1208): ("IS", ""),
}


class Receiver(NamedTuple):
    """A port for associations. `clear` removes a study again; `pid` is the process that receives."""

    name: str
    port: int
    pid: int
    clear: Callable[[str], object]


def dimse(run: Run) -> Iterator[Row]:
    ours, theirs, plain = (free_port() for _ in range(3))
    flags = ("--dimse-port", str(ours), "--aet", TITLE, "--dimse-peers", f"{CALLING} -> store search read")
    with (
        run.streamsrv("ours", *flags) as server,
        run.peer(ORTHANC, run.folder / "peer", ASSOCIATIONS="true", ACCEPTING=str(theirs)) as orthanc,
        storescp(run.folder / "received", plain) as receiver,
    ):
        those = [(server, ours), *([(orthanc, theirs)] if orthanc else [])]
        yield from _stored(run, [*map(_receiver, those), *([receiver] if receiver else [])])
        yield from _found(run, those)
        yield from _retrieved(run, those)


def _receiver(one: tuple[Service, int]) -> Receiver:
    service, port = one
    return Receiver(service.name, port, service.pid, lambda study: forget(service, study))


@contextlib.contextmanager
def storescp(folder: Path, port: int) -> Iterator[Receiver | None]:
    """Yields None if DCMTK is not installed."""
    if shutil.which(STORESCP) is None:
        yield None
        return
    folder.mkdir(parents=True)
    process = subprocess.Popen([STORESCP, "--fork", "-aet", TITLE, "-od", str(folder), str(port)])

    def clear(study: str) -> None:
        for path in folder.iterdir():
            path.unlink()

    try:
        time.sleep(0.5)
        yield Receiver(STORESCP, port, process.pid, clear)
    finally:
        process.terminate()
        process.wait()


# C-STORE


def _stored(run: Run, receivers: Sequence[Receiver]) -> Iterator[Row]:
    if shutil.which("storescu") is None:
        return
    body = bodies.ct_study(7_000, run.size.instances)
    for number in ASSOCIATIONS:
        folders = list(_written(body, run.folder / f"sent{number}", number))
        measure = f"store {run.size.instances} CT instances by C-STORE, {number} at once"
        subjects = {each.name: _StudySending(each, body, folders) for each in receivers}
        yield from rows_of(measure, in_turns(run.size.rounds, subjects, run.size.rest))
        for name in subjects.keys() - {STORESCP}:  # its processes end with their associations
            sending = subjects[name]
            yield median_row(f"CPU time, {measure}", name, sending.processor[1:])


class _StudySending:
    """MB/s of one study; each call is a round. Each folder has an association of its own."""

    def __init__(self, receiver: Receiver, body: Body, folders: Sequence[Path]) -> None:
        self.receiver, self.body, self.folders = receiver, body, folders
        self.processor: list[float] = []

    def __call__(self) -> float:
        command = ["storescu", "-aet", CALLING, "-aec", TITLE, "127.0.0.1", str(self.receiver.port), "+sd"]
        before, begin = cpu_seconds(self.receiver.pid), time.perf_counter()
        senders = [subprocess.Popen([*command, str(folder)]) for folder in self.folders]
        codes = [sender.wait() for sender in senders]
        if any(codes):
            raise RuntimeError(f"{self.receiver.name} did not take each instance")
        seconds = time.perf_counter() - begin
        self.processor.append((cpu_seconds(self.receiver.pid) - before) * 1e9 / self.body.length)
        self.receiver.clear(self.body.study)
        return self.body.length / 1e6 / seconds


def _written(body: Body, folder: Path, number: int) -> Iterator[Path]:
    """Writes the instances to files of so many folders."""
    path = folder.with_suffix(".body")
    content = body.write(path).read_bytes()
    path.unlink()
    parts = content.split(bodies.PART_HEAD)[1:]
    parts[-1] = parts[-1].removesuffix(bodies.CLOSING)
    for at in range(number):
        inner = folder / str(at)
        inner.mkdir(parents=True)
        for place, part in enumerate(parts[at::number]):
            (inner / f"{place}.dcm").write_bytes(part)
        yield inner


# C-FIND and C-GET


def _found(run: Run, those: Sequence[tuple[Service, int]]) -> Iterator[Row]:
    run.store(bodies.patients(STUDIES, 1024), [service for service, _ in those])
    with contextlib.ExitStack() as stack:
        subjects = {
            service.name: _StudySearch(stack.enter_context(Scu(port, FIND, SYNTAX)))
            for service, port in those
        }
        measure = f"find {STUDIES} studies by C-FIND"
        yield from rows_of(measure, in_turns(4 * run.size.rounds, subjects))


class _StudySearch:
    """Milliseconds of one search of all studies."""

    def __init__(self, scu: Scu) -> None:
        self.scu = scu

    def __call__(self) -> float:
        begin = time.perf_counter()
        number, _ = self.scu.request(C_FIND, identifier(KEYS))
        if number < STUDIES:
            raise RuntimeError(f"{number} matches instead of {STUDIES}")
        return (time.perf_counter() - begin) * 1e3


def _retrieved(run: Run, those: Sequence[tuple[Service, int]]) -> Iterator[Row]:
    body = bodies.ct_study(8_000, run.size.instances)
    run.store(body, [service for service, _ in those])
    wanted = identifier({(0x0008, 0x0052): ("CS", "STUDY"), (0x0020, 0x000D): ("UI", body.study)})

    def by_get(scu: Scu) -> float:
        begin = time.perf_counter()
        _, length = scu.request(C_GET, wanted)
        return length / 1e6 / (time.perf_counter() - begin)

    def by_wado() -> float:
        with Client(those[0][0]) as client:
            answer = client.get(f"/studies/{body.study}", DICOM)
        return answer.length / 1e6 / answer.seconds

    with contextlib.ExitStack() as stack:
        subjects: dict[str, Callable[[], float]] = {WADO: by_wado}
        for service, port in those:
            scu = stack.enter_context(Scu(port, GET, SYNTAX, [bodies.CT_STORAGE]))
            subjects[service.name] = lambda scu=scu: by_get(scu)  # type: ignore[misc]
        measure = f"retrieve {run.size.instances} CT instances by C-GET"
        yield from rows_of(measure, in_turns(run.size.rounds, subjects))
