"""One instance of 2.26 GB, and one of 10 GB: in, out, deleted.

Orthanc holds such an instance in memory several times (8.7 GB for 2.26): it gets it once, and only where that
much memory is to be had. The instance of 10 GB is stored beside `cp` alone; no memory holds it twice, so what
comes out of the disk again is not compared.
"""

from __future__ import annotations

import mmap
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from perf import data, pixel_data, servers
from perf.load import FRAME, Client
from perf.measures import (
    Size,
    beside,
    copy_and_sync,
    forget,
    in_turns,
    missing,
    store_study,
    stored,
)
from perf.report import Claim, Finding, Row, median_row
from perf.servers import MemorySampler, Server
from perf.study import STORED_GROWTH, Stored, costs, deletes, put, retrieved

STORE, STORE_PEER = 0.7, 8.0
TIMES_IN_MEMORY = 4  # what Orthanc takes
# Bytes, in and copied, that the rest between rounds is meant for: the disk's budget has more to recover from.
RESTED_FOR = 840e6
FRAMES = 50
FRAME_LENGTH = 512 * 1024
_BLOCK = bytes(2 << 20)


def large(size: Size) -> Iterator[Finding]:
    yield from _large(size)
    if size.largest:
        yield from _largest(size)


def _large(size: Size) -> Iterator[Finding]:
    """Native frames: a DICOM element of that form ends at 4 GB. What is measured once comes first, while the
    disk has done nothing yet."""
    body = pixel_data.native_loop(80, max(2, size.large // data.CT_PIXELS))
    what = f"one instance of {body.length / 1e9:.3g} GB"
    files = size.folder / "nginx"
    files.mkdir()
    path = body.write(files / "large.body")
    os.sync()
    fits = servers.available_memory() > TIMES_IN_MEMORY * body.length + (1 << 30)
    with ExitStack() as stack:
        ours = stack.enter_context(servers.streamsrv(size.folder / "large"))
        web = stack.enter_context(servers.nginx(files))
        peer = stack.enter_context(servers.orthanc(size.folder / "peer")) if fits else None
        if peer is not None:
            yield from _stored_there(size, what, ours, peer, body, path)
        elif fits:
            yield missing(f"store {what}", "Orthanc", "MB/s")
        else:
            yield Row(f"store {what}", "Orthanc", None, "MB/s", "takes more memory than there is")
        yield from _stored(size, what, ours, body, path)
        if web is not None:
            yield median_row(
                f"store the bytes of {what} by PUT, not synced",
                "nginx",
                [put(web, path) for _ in range(2)],
                "MB/s",
            )
        store_study(ours, path)
        yield from _retrieved(size, what, ours, peer, web, body)


def _stored(size: Size, what: str, ours: Server, body: data.Body, path: Path) -> Iterator[Finding]:
    mine = Stored(ours, body.keys[0].study, path)
    yield from _beside_cp(size, f"store {what}", mine, max(2, size.rounds - 3), 1)
    yield from deletes(f"delete {what}", {"streamsrv": mine.deletes})


def _beside_cp(size: Size, measure: str, mine: Stored, rounds: int, thrown_away: int) -> Iterator[Finding]:
    path, length = mine.path, mine.path.stat().st_size
    megabytes = length / 1e6
    subjects: dict[str, Callable[[], float]] = {"streamsrv": mine.rate}
    subjects["cp + fsync"] = lambda: megabytes / copy_and_sync(path, size.folder / "copy")
    with MemorySampler(mine.server.pid) as memory:
        values = in_turns(rounds, subjects, _rest(size, length), partial(_warm, length), thrown_away)
    for name, rates in values.items():
        yield median_row(measure, name, rates, "MB/s")
    yield from beside(values, "cp + fsync", f"{measure}, in relation to cp + fsync", STORE)
    yield from costs(measure, {"streamsrv": (mine.processor, memory)})
    yield Claim(f"memory growth, {measure}", memory.growth / 1e6, "MB", at_most=STORED_GROWTH)


def _rest(size: Size, length: int) -> float:
    """Seconds before a round, which writes it twice."""
    return size.rest * max(1.0, 2 * length / RESTED_FOR)


def _warm(length: int) -> None:
    """As `measures.warm_memory`, without the disk: so much memory is used and freed again before each of the
    two, as far as it is there."""
    length = min(length, servers.available_memory() // 2)
    with mmap.mmap(-1, length) as memory:
        for start in range(0, length, len(_BLOCK)):
            memory[start : start + len(_BLOCK)] = _BLOCK[: length - start]


def _retrieved(
    size: Size, what: str, ours: Server, peer: Server | None, web: Server | None, body: data.Body
) -> Iterator[Finding]:
    paths = (f"/studies/{body.keys[0].study}", "/large.body")
    yield from retrieved(f"retrieve {what}", size.rounds + 3, ours, peer, web, paths, 1, peer_rounds=1)
    measure = f"one frame of {what}"
    yield median_row(measure, "streamsrv", _frames(ours, body, FRAMES), "ms")
    if peer is not None:
        yield median_row(measure, "Orthanc", _frames(peer, body, 1), "ms")
        took = forget(peer, body.keys[0].study) * 1e3
        yield Row(f"delete {what}", "Orthanc", took, "ms")


def _stored_there(
    size: Size, what: str, ours: Server, peer: Server, body: data.Body, path: Path
) -> Iterator[Finding]:
    """Orthanc once, and this server before and after: the disk is at no time the same as a minute ago. Each
    begins with a disk that has rested, and with warm memory."""

    def seconds(server: Server) -> float:
        time.sleep(_rest(size, body.length))
        _warm(body.length)
        return store_study(server, path)

    own = [seconds(ours)]
    forget(ours, body.keys[0].study)
    with MemorySampler(peer.pid) as memory:
        took = seconds(peer)
    own.append(seconds(ours))
    forget(ours, body.keys[0].study)
    megabytes = body.length / 1e6
    note = f"memory grew by {memory.growth / 1e6:.0f} MB"
    yield Row(f"store {what}", "Orthanc", megabytes / took, "MB/s", note)
    measure = f"store {what}, before and after Orthanc"
    yield median_row(measure, "streamsrv", [megabytes / one for one in own], "MB/s")
    text = f"store {what}, in relation to Orthanc"
    yield Claim(text, took / statistics.median(own), "x", at_least=STORE_PEER)


def _frames(server: Server, body: data.Body, count: int) -> list[float]:
    """Milliseconds of each of some frames all over the instance."""
    frames = body.length // data.CT_PIXELS
    times = []
    with Client(server.address) as client:
        for turn in range(count):
            number = 1 + turn * 7919 % frames
            response = client.get(f"{server.prefix}{body.keys[0].path}/frames/{number}", FRAME)
            stored(response.status, f"{server.name}'s frame")
            times.append(response.seconds * 1e3)
    return times


def _largest(size: Size) -> Iterator[Finding]:
    """Of encapsulated frames, which may be as long as they like."""
    what = f"store one instance of {size.largest / 1e9:.3g} GB"
    if shutil.disk_usage(size.folder).free < 5 * size.largest:
        yield Row(what, "streamsrv", None, "MB/s", "not enough free disk")
        return
    body = data.multi_frame(81, size.largest // FRAME_LENGTH, FRAME_LENGTH)
    path = body.write(size.folder / "largest.body")
    with servers.streamsrv(size.folder / "largest") as server:
        mine = Stored(server, body.keys[0].study, path)
        yield from _beside_cp(size, what, mine, 1, 0)
        took = statistics.median(mine.deletes)
        yield Row(what.replace("store", "delete"), "streamsrv", took, "ms")
