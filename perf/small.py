"""Questions about small answers: how many a second, and how long each takes while large ones stream."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from perf import data, servers
from perf.load import AS_STORED, FRAME, Client, pinging, together
from perf.measures import Size, store_study, stored
from perf.ping import pinging_apart
from perf.report import Claim, Finding, Row
from perf.servers import Server

JSON = "application/dicom+json"


# --- others meanwhile ---


def latency(size: Size) -> Iterator[Finding]:
    """Small requests while a large study streams from a disk whose pages are in no memory."""
    instances = max(4, size.cold_bytes // 526_000)
    body = data.ct_study(6, instances)
    with servers.streamsrv(size.folder / "cold") as server:
        with Client(server.address) as client:
            response = client.post_chunks(
                f"{server.prefix}/studies", data.CONTENT_TYPE, body.length, body.chunks()
            )
            stored(response.status, "the store of a large study")
        study = f"{server.prefix}/studies/{body.keys[0].study}"
        metadata = f"{server.prefix}{body.keys[instances // 2].path}/metadata"
        for name, path, accept in (
            ("/health/live", "/health/live", "*/*"),
            ("metadata of one instance", metadata, JSON),
        ):
            yield from _latency_while_cold(server, study, name, path, accept)


def _latency_while_cold(server: Server, study: str, name: str, path: str, accept: str) -> Iterator[Finding]:
    with pinging(server.address, path, accept) as quiet:
        time.sleep(1)
    drop_from_memory(server.folder)

    def fetch(client: Client) -> None:
        stored(client.get(study, AS_STORED).status, "the retrieve of a large study")

    with pinging(server.address, path, accept) as busy:
        seconds = together(2, server.address, [fetch] * 2)
    measure = f"latency of {name} while a study streams cold"
    for subject, values in (("streamsrv, quiet", quiet), ("streamsrv, streaming", busy)):
        ranked = sorted(values)
        p50, p99 = (ranked[int(len(ranked) * share)] * 1e3 for share in (0.5, 0.99))
        note = f"median {p50:.2f}, longest {ranked[-1] * 1e3:.1f}, {len(ranked)} requests in {seconds:.1f} s"
        yield Row(measure, subject, p99, "ms at p99", note)
    yield Claim(f"99 % of {name} answered while a study streams cold", p99, "ms", at_most=50)


BULK_CLIENTS = 8


def fairness(size: Size) -> Iterator[Finding]:
    """Single frames while eight clients upload studies and eight download them, from memory and from disk."""
    watched, study = data.ct_study(6, 1), data.ct_study(7, min(size.instances, 200))
    with servers.streamsrv(size.folder / "fair") as server:
        store_study(server, watched.write(size.folder / "fair.body"))
        # The disk itself is slow for one frame as well: it is the bulk that is cold.
        warm = {path: path.stat().st_size for path in segments_of(server.folder)}
        store_study(server, study.write(size.folder / "fair.body"))
        frame = f"{server.prefix}{watched.keys[0].path}/frames/1"
        with pinging_apart(server.address, frame, FRAME) as idle:
            time.sleep(1 + 2 * size.seconds)
        yield _percentiles("one frame at a time", "streamsrv, idle", idle)
        for number, (name, cold) in enumerate((("in memory", False), ("on disk", True))):
            busy = _while_bulk_moves(server, study, frame, 20 + 50 * number, warm if cold else None)
            measure = f"one frame at a time, {BULK_CLIENTS} uploads and {BULK_CLIENTS} downloads, {name}"
            yield _percentiles(measure, "streamsrv, busy", busy)
            ratio = percentile(busy, 0.99) / percentile(idle, 0.99)
            yield Claim(f"p99 of one frame, in relation to idle, bulk data {name}", ratio, "x", at_most=10)


def _while_bulk_moves(
    server: Server, study: data.Body, frame: str, first: int, warm: dict[Path, int] | None
) -> list[float]:
    """Seconds of each frame meanwhile. Of a cold run only the beginnings in `warm` stay in memory."""
    whole = f"{server.prefix}/studies/{study.keys[0].study}"

    def upload(number: int) -> Callable[[Client], None]:
        body = data.ct_study(first + number, len(study.keys))

        def run(client: Client) -> None:
            response = client.post_chunks(
                f"{server.prefix}/studies", data.CONTENT_TYPE, body.length, body.chunks()
            )
            stored(response.status, "an upload")

        return run

    def download(client: Client) -> None:
        for _ in range(20):
            if warm is not None:
                drop_from_memory(server.folder, warm)
            stored(client.get(whole, AS_STORED).status, "a download")

    work = [each for number in range(BULK_CLIENTS) for each in (upload(number), download)]
    with pinging_apart(server.address, frame, FRAME) as busy:
        together(2 * BULK_CLIENTS, server.address, work)
    return busy


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def _percentiles(measure: str, subject: str, values: Sequence[float]) -> Row:
    p50, p99 = (percentile(values, share) * 1e3 for share in (0.5, 0.99))
    note = f"median {p50:.2f}, longest {max(values) * 1e3:.1f}, {len(values)} requests"
    return Row(measure, subject, p99, "ms at p99", note)


def segments_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "segments" in path.parts]


def drop_from_memory(folder: Path, kept: Mapping[Path, int] = MappingProxyType({})) -> None:
    """Drops the segments' pages from the page cache but for the first `kept` bytes of each; they were synced
    when the store was acknowledged."""
    for path in segments_of(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, kept.get(path, 0), 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
