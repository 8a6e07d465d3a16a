"""Instances that leave: the verb `export` beside an archive, and studies that are forwarded to peers.

An archive of tiny instances grows in steps, so that the memory of the verb is seen beside their number.
Transactions of the store write it, without HTTP. A forwarded study counts from the end of `study_quiet` until
its last instance is with the peer.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage

from perf import bodies
from perf.clients import Client
from perf.dimse.associations import STORESCP, TITLE, storescp
from perf.results import OURS, Row, median_row
from perf.run import Run, store_study
from perf.servers import PYTHONPATH, MemorySampler, Service, cpu_seconds, free_port
from streamsrv.config import load
from streamsrv.store import Store, StoreOptions
from streamsrv.tools.incoming.store_landing import StoreDestination

QUIET = 0.5  # seconds
LONGEST = 600.0  # seconds until a study is there
A_STUDY, TRANSACTION = 500, 2_000  # instances
PATIENT = b"P0000000"
FIRST = 7_100  # number of a study
SLOW, SLOWLY = "a slow peer", 0.1  # seconds for each MB
SLOW_SECONDS = 10.0


def _verb(*words: object, output: int | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "streamsrv", *map(str, words)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PYTHONPATH}, stdout=output)


# Files


def exporting(run: Run) -> Iterator[Row]:
    data, out, made = run.folder / "data", run.folder / "exported", 0
    for instances in run.size.archives:
        _grow(data, made, instances)
        made = instances
        begin = time.perf_counter()
        process = _verb("export", out, "--data", data, "--quiet")
        with MemorySampler(process.pid, 0) as memory:
            used = _cpu_until_end(process)
        seconds = time.perf_counter() - begin
        if process.returncode:
            raise RuntimeError("an instance was not exported")
        shutil.rmtree(out)
        subject, measure = OURS, f"export {instances:,} tiny instances"
        yield Row(measure, subject, instances / seconds)
        yield Row(f"CPU time, {measure}", subject, used * 1e6 / instances)
        yield Row(f"memory, {measure}", subject, memory.growth / 1e6)


def _cpu_until_end(process: subprocess.Popen[bytes]) -> float:
    """Seconds of processor time, as far as they were seen in time."""
    used = 0.0
    while process.poll() is None:
        used = max(used, cpu_seconds(process.pid))
        time.sleep(0.1)
    return used


def _grow(data: Path, first: int, last: int) -> None:
    """Stores the instances from `first` to `last`, in studies of A_STUDY."""
    if not data.exists():
        Store.open(data, StoreOptions()).close()
    destination = StoreDestination(load(None, {}, {"data": str(data)}), "import")
    with contextlib.closing(destination), contextlib.closing(destination.landing()) as landing:
        for number in range(first, last):
            landing.take("", [_tiny(number)])
            if number % TRANSACTION == TRANSACTION - 1:
                landing.flush()
        landing.flush()


def _tiny(number: int) -> bytes:
    """An instance of 700 bytes, without pixels."""
    content = _template()
    for old, new in zip(bodies.keys_of(0), bodies.keys_of(number // A_STUDY, number), strict=True):
        content = content.replace(old.encode(), new.encode())
    return content.replace(PATIENT, b"P%07d" % (number // A_STUDY))


@cache
def _template() -> bytes:
    dataset, file = Dataset(), io.BytesIO()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = bodies.EXPLICIT_VR_LITTLE_ENDIAN
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = bodies.keys_of(0)
    dataset.SOPClassUID, dataset.Modality, dataset.StudyDate = CTImageStorage, "CT", "20240101"
    dataset.PatientName = dataset.PatientID = PATIENT.decode()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


# Peers


def forwarding(run: Run) -> Iterator[Row]:
    flags = ("--hooks", "--study-quiet", str(QUIET), "--aet", "SENDER")
    port, slow = free_port(), free_port()
    with (
        run.streamsrv("source", *flags) as source,
        run.streamsrv("peer") as peer,
        storescp(run.folder / "received", port) as receiver,
        _slow_peer(slow),
    ):
        folder = run.folder / "received"
        yield from _forwarded(run, source, f"{OURS}, DICOMweb", peer.url + peer.prefix, lambda: _at(peer))
        if receiver is not None:
            address = f"aet://{TITLE}@127.0.0.1:{port}"
            yield from _forwarded(run, source, STORESCP, address, lambda: sum(1 for _ in folder.iterdir()))
        with _hook(source, f"http://127.0.0.1:{slow}/v2"):
            _post(run, source, FIRST - 1)
            with MemorySampler(source.pid) as memory:
                time.sleep(SLOW_SECONDS)
        yield Row(f"memory growth, forward a study of {run.size.instances} CT", SLOW, memory.growth / 1e6)


def _forwarded(
    run: Run, source: Service, subject: str, address: str, there: Callable[[], int]
) -> Iterator[Row]:
    """`there` counts the instances that the peer has."""
    rates, growths, measure = list[float](), list[float](), f"forward a study of {run.size.instances} CT"
    with _hook(source, address):
        for number in range(run.size.rounds):
            before = there()
            length = _post(run, source, FIRST + number + 100 * len(subject))
            begin = time.monotonic() + QUIET
            with MemorySampler(source.pid) as memory:
                while there() < before + run.size.instances:
                    if time.monotonic() > begin + LONGEST:
                        raise RuntimeError(f"{subject} has not got all instances")
                    time.sleep(0.02)
            rates.append(length / 1e6 / (time.monotonic() - begin))
            growths.append(memory.growth / 1e6)
    yield median_row(measure, subject, rates)
    yield median_row(f"memory growth, {measure}", subject, growths)


def _post(run: Run, source: Service, number: int) -> int:
    body = bodies.ct_study(number, run.size.instances)
    path = body.write(run.folder / "forwarded.body")
    store_study(source, body, path)
    path.unlink()
    return body.length


def _at(peer: Service) -> int:
    """Instances of all studies of a service."""
    with Client(peer) as client:
        found = client.get("/studies?includefield=00201208&limit=200", keep=True).payload
    return sum(each["00201208"]["Value"][0] for each in json.loads(found or b"[]"))


@contextlib.contextmanager
def _hook(source: Service, address: str) -> Iterator[None]:
    data = ("--data", source.folder)
    _run("hook", "forward", address, "--name", "perf", "--allow-local", *data)
    deadline = time.monotonic() + LONGEST
    while json.loads(_run("hook", "list", "--json", *data))[0]["sequence"] is None:
        if time.monotonic() > deadline:
            raise RuntimeError("the hook does not begin")
        time.sleep(0.1)
    try:
        yield
    finally:
        _run("hook", "remove", "perf", *data)


def _run(*words: object) -> bytes:
    process = _verb(*words, output=subprocess.PIPE)
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{words[0]} {words[1]} failed")
    return output


@contextlib.contextmanager
def _slow_peer(port: int) -> Iterator[None]:
    """Takes a MB of a request in SLOWLY, and never answers."""
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                connection, _ = listener.accept()
                connection.settimeout(1.0)
                with connection, contextlib.suppress(OSError):
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    while not ended.wait(SLOWLY) and connection.recv(1 << 20):
                        pass

    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(None)
        thread = threading.Thread(target=serve, args=[listener], daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
