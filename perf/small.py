"""How long small answers take while large ones stream from a disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from perf import data, servers
from perf.load import AS_STORED, Client, pinging, together
from perf.measures import Size, stored
from perf.report import Claim, Finding, Row
from perf.servers import Server

JSON = "application/dicom+json"


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


def drop_from_memory(folder: Path) -> None:
    """Drops the segments' pages from the page cache; they were synced when the store was acknowledged."""
    for path in (path for path in folder.rglob("*") if path.is_file() and "segments" in path.parts):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
